"""The work that both sides are given: a CT-like volume, and prompts of every kind for an object in it."""

from dataclasses import dataclass
from pathlib import Path
import pickle

import numpy as np
import numpy.typing as npt

from nninteractive_ws.demo.phantom import Phantom, make_phantom
from nninteractive_ws.evaluation.user import KINDS, Kind, Prompt, SimulatedUser
from nninteractive_ws.geometry import Index

#: Millimetres along (i, j, k): the body that the phantom shows, whatever the number of voxels.
_EXTENT = (384.0, 307.0, 280.0)
_OBJECT, _OTHER = "liver", "stomach"
_BRUSH = (2.0, 2.0, 2.0)


@dataclass(frozen=True)
class Work:
    """volume: int16, Hounsfield units, indexed (i, j, k). prompts: one of each kind and polarity, the positive ones in
    an object, the negative ones in another."""

    volume: npt.NDArray[np.int16]
    prompts: dict[tuple[Kind, bool], Prompt]

    def save(self, folder: Path) -> None:
        """Write it for the processes of clients; the folder must be one that nobody else writes to."""
        np.save(folder / "volume.npy", self.volume)
        (folder / "prompts.pickle").write_bytes(pickle.dumps(self.prompts))

    @classmethod
    def load(cls, folder: Path) -> "Work":
        """Read what :meth:`save` wrote."""
        return cls(np.load(folder / "volume.npy"), pickle.loads((folder / "prompts.pickle").read_bytes()))


def make_work(shape: Index) -> Work:
    """The work on a volume of a shape."""
    spacing = (_EXTENT[0] / shape[0], _EXTENT[1] / shape[1], _EXTENT[2] / shape[2])
    phantom = make_phantom(0, shape, spacing)
    prompts = {(kind, positive): _prompt(phantom, kind, positive) for kind in KINDS for positive in (True, False)}
    return Work(phantom.image, prompts)


def _prompt(phantom: Phantom, kind: Kind, positive: bool) -> Prompt:
    """What somebody would give who finds nothing of the object in the mask, or all of another object beside it."""
    truth = phantom.mask(_OBJECT)
    mask = np.zeros_like(truth) if positive else truth | phantom.mask(_OTHER)
    user = SimulatedUser(truth, phantom.spacing, (kind,), np.random.default_rng(0), _BRUSH)
    prompt = user.next(mask)
    assert prompt is not None
    assert prompt.positive == positive
    return prompt
