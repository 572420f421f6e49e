"""Demonstration with a torso phantom and a small trained model. It needs neither a GPU nor a download."""
