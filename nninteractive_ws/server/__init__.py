"""The gateway: the process that clients talk to. It computes nothing and imports no torch."""
