"""How good a model is: a simulated user prompts it on volumes whose truth is known, and what comes is measured."""
