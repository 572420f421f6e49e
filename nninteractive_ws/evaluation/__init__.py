"""Evaluation of a model: a simulated user prompts it on volumes with known ground truth."""
