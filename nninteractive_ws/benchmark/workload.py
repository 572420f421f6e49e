"""The workload of both systems: a CT-like volume, and prompts of each kind for an object in it."""

from dataclasses import dataclass
from pathlib import Path
import pickle

import numpy as np
import numpy.typing as npt

from nninteractive_ws.demo.phantom import Phantom, make_phantom
from nninteractive_ws.evaluation.simulated_user import KINDS, Kind, SimulatedPrompt, SimulatedUser
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Delta

#: Extent of the volume in millimeters along (i, j, k), for any number of voxels.
_EXTENT = (384.0, 307.0, 280.0)
_OBJECT, _OTHER = "liver", "stomach"
_BRUSH = (2.0, 2.0, 2.0)


@dataclass(frozen=True)
class Workload:
    """``volume``: int16, Hounsfield units, indexed (i, j, k). ``prompts``: one of each kind and polarity, the positive
    ones in an object, the negative ones in another."""

    volume: npt.NDArray[np.int16]
    prompts: dict[tuple[Kind, bool], SimulatedPrompt]

    @property
    def size(self) -> str:
        """The volume's size in voxels, as a text."""
        return " x ".join(map(str, self.volume.shape))

    def save(self, folder: Path) -> None:
        """Save it for client processes. Nobody else may have write access to the folder, because it is unpickled."""
        np.save(folder / "volume.npy", self.volume)
        (folder / "prompts.pickle").write_bytes(pickle.dumps(self.prompts))

    @classmethod
    def load(cls, folder: Path) -> "Workload":
        """Load a workload written by :meth:`save`."""
        return cls(np.load(folder / "volume.npy"), pickle.loads((folder / "prompts.pickle").read_bytes()))


def make_workload(shape: Index) -> Workload:
    """Create the workload on a volume of a shape."""
    spacing = (_EXTENT[0] / shape[0], _EXTENT[1] / shape[1], _EXTENT[2] / shape[2])
    phantom = make_phantom(0, shape, spacing)
    prompts = {(kind, positive): _prompt(phantom, kind, positive) for kind in KINDS for positive in (True, False)}
    return Workload(phantom.image, prompts)


def large_prompt(shape: Index) -> SimulatedPrompt:
    """Return a box around the middle of a slice, whose prediction zooms out and takes many passes."""
    i, j, k = shape
    box = Box((i // 4, j // 4, k // 2), (i - i // 4, j - j // 4, k // 2 + 1))
    return SimulatedPrompt("bbox", True, Delta(box, np.ones(box.shape, bool)), box)


def _prompt(phantom: Phantom, kind: Kind, positive: bool) -> SimulatedPrompt:
    """Create a prompt: positive for an empty mask, negative for a mask with another object in addition."""
    truth = phantom.mask(_OBJECT)
    mask = np.zeros_like(truth) if positive else truth | phantom.mask(_OTHER)
    user = SimulatedUser(truth, phantom.spacing, (kind,), np.random.default_rng(0), _BRUSH)
    prompt = user.next(mask)
    assert prompt is not None
    assert prompt.positive == positive
    return prompt
