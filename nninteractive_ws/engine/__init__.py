"""The only part that imports torch and nnInteractive: models, sessions, the device thread, the worker."""
