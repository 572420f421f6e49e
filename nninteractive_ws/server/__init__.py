"""The gateway, the process that clients connect to. It computes nothing and does not import torch."""
