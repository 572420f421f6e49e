"""nnInteractive's own HTTP API, for clients that speak it."""
