"""A phantom torso and a small trained model, so that everything runs with no GPU and no download."""
