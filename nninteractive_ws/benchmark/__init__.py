"""Benchmark of this server against nnInteractive's own, with the same model, volume and prompts in one run."""

from enum import StrEnum


class Part(StrEnum):
    """The parts of the benchmark."""

    FIRST_MASK = "first-mask"
    PROMPTS = "prompts"
    HISTORY = "history"
    CLIENTS = "clients"
    FAIRNESS = "fairness"
    MEMORY = "memory"
    GPU = "gpu"
