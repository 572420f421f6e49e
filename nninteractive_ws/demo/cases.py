"""Phantoms as cases for an evaluation."""

from dataclasses import dataclass
import re

import numpy as np

from nninteractive_ws.demo.phantom import ORGANS, make_phantom
from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.evaluation.cases import Scan


@dataclass(frozen=True)
class PhantomCase:
    """The phantom of a seed, with all its organs as structures."""

    seed: int

    @property
    def name(self) -> str:
        return f"phantom {self.seed}"

    def read(self) -> Scan:
        phantom = make_phantom(self.seed)
        structures = {organ: ORGANS[organ] for organ in phantom.organs()}
        return Scan(phantom.image, phantom.labels, phantom.spacing, np.eye(3), structures)


def phantom_cases(seeds: str) -> list[PhantomCase]:
    """Return the phantoms of ``10``, ``10-13`` or ``10-13,20``. Raises InvalidTable."""
    found: list[int] = []
    for part in seeds.split(","):
        numbers = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if numbers is None:
            raise InvalidTable(f'"phantom:{seeds}" is invalid. Expected seeds such as phantom:10-13 or phantom:3,7.')
        first = int(numbers[1])
        found += range(first, int(numbers[2] or first) + 1)
    if not found:
        raise InvalidTable(
            f'"phantom:{seeds}" is an empty range. The first seed must not be greater than the last one.'
        )
    return [PhantomCase(seed) for seed in dict.fromkeys(found)]
