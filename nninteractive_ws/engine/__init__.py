"""The worker side: models, sessions, the device thread. The only package that imports torch and nnInteractive."""
