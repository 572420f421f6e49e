"""This server and nnInteractive's own, measured with the same model, volume and prompts in one run."""

from enum import StrEnum


class Part(StrEnum):
    """What can be measured."""

    FIRST_MASK = "first-mask"
    PROMPTS = "prompts"
    HISTORY = "history"
    CLIENTS = "clients"
    MEMORY = "memory"
    GPU = "gpu"
