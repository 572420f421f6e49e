"""This server and nnInteractive's own, measured with the same model, volume and prompts in one run."""
