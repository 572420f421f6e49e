"""Batch processing: segment many images with the prompts of a table."""
