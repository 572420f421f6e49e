"""Phantoms as cases for an evaluation."""

from dataclasses import dataclass
import re

import numpy as np

from nninteractive_ws.demo.phantom import ORGANS, make_phantom
from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.evaluation.cases import Scan
from nninteractive_ws.files.rows import format_cell

#: Maximum number of phantoms of an evaluation. These take days.
_MAX_PHANTOMS = 10_000


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
    name = format_cell(f"phantom:{seeds}")
    found: dict[int, None] = {}
    for part in seeds.split(","):
        numbers = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        if numbers is None:
            raise InvalidTable(
                f"{name} is invalid. Expected seeds such as phantom:10-13 or phantom:3,7, of at most 9 digits."
            )
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if last < first:
            raise InvalidTable(f"{name} has an empty range. The first seed must not be greater than the last one.")
        # No more than one seed too many, because a range may have a billion.
        found |= dict.fromkeys(range(first, min(last, first + _MAX_PHANTOMS) + 1))
        if len(found) > _MAX_PHANTOMS:
            raise InvalidTable(f"{name} has too many seeds. Expected at most {_MAX_PHANTOMS:,}.")
    return [PhantomCase(seed) for seed in found]
