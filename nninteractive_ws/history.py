"""A segment: its mask and its history. Both ends keep one, and the client's can bring the server's back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import NO_CHANGE, Delta, Mask
from nninteractive_ws.messages import Encoding, Prompt, Reset, Run, SetMask, StepRequest
from nninteractive_ws.messages import Step as WireStep


@dataclass(frozen=True)
class Step:
    """A request that is part of the history, and what it changed."""

    request: StepRequest
    change: Delta
    _packed: dict[Encoding, WireStep] = field(default_factory=dict, compare=False, repr=False)

    def packed(self, encoding: Encoding) -> WireStep:
        """As it travels. It is kept: a journal is written again after every step."""
        if encoding not in self._packed:
            change = None if self.change.box is None else masks.pack(self.change, encoding)
            self._packed[encoding] = WireStep(request=self.request, change=change)
        return self._packed[encoding]

    @property
    def predicted(self) -> bool:
        """Whether a prediction followed, after which no prompt waited."""
        return isinstance(self.request, Run) or (not isinstance(self.request, Reset) and self.request.run)

    @property
    def starts_anew(self) -> bool:
        """Whether the prompts before it no longer count."""
        return isinstance(self.request, SetMask | Reset)


def pack_steps(steps: Sequence[Step], encoding: Encoding) -> list[WireStep]:
    """Steps as they travel."""
    return [step.packed(encoding) for step in steps]


def unpack_steps(steps: Sequence[WireStep], shape: Index) -> list[Step]:
    """Steps of a segment of an image of ``shape``. Raises what :func:`masks.unpack` does."""
    return [Step(s.request, NO_CHANGE if s.change is None else masks.unpack(s.change, shape)) for s in steps]


@dataclass
class Segment:
    """``mask``: bool, the shape of the image. The mask is the composition of the changes of all steps."""

    name: str
    mask: Mask
    revision: int = 0
    voxels: int = 0
    steps: list[Step] = field(default_factory=list)
    undone: list[Step] = field(default_factory=list)

    @classmethod
    def empty(cls, name: str, shape: Index) -> "Segment":
        return cls(name, np.zeros(shape, bool))

    @property
    def extent(self) -> Box | None:
        """A box outside which the mask is empty."""
        extent: Box | None = None
        for step in self.steps:
            if step.change.box is not None:
                extent = step.change.box.union(extent)
        return extent

    def since_anew(self) -> list[Step]:
        """The steps whose prompts count, in order; the first may be the mask that they started from."""
        for n in range(len(self.steps) - 1, -1, -1):
            if self.steps[n].starts_anew:
                return self.steps[n:]
        return self.steps

    def pending(self) -> list[Prompt]:
        """The prompts that wait for a prediction."""
        waiting: list[Prompt] = []
        for step in self.since_anew():
            if step.predicted or step.starts_anew:
                waiting = []
            else:
                waiting.append(step.request)  # type: ignore[arg-type]
        return waiting

    def append(self, step: Step) -> None:
        """Add a step whose change has been applied; what was undone before it is gone."""
        self.steps.append(step)
        self.undone.clear()

    def move(self, source: list[Step], target: list[Step], change: Delta, trusted: bool) -> None:
        """Undo or redo a step: from the end of one list to that of the other, the mask being changed already.

        ``change``: what it did on the other side, which counts, if it can be ``trusted``, where one step was credited
        with the changes of several. Raises ValueError where there is no such step.
        """
        if not source:
            raise ValueError("a step was undone or redone that was never done")
        step = source.pop()
        if not trusted or masks.compose(step.change, change).box is None:
            target.append(step)
        else:
            target.append(Step(step.request, change))
            self.reconcile()

    def flatten(self, encoding: Encoding) -> None:
        """Let the history be one step that sets the mask: what any server can restore."""
        mask = masks.tight(self.composed())
        self.undone.clear()
        self.steps.clear()
        if mask.box is not None:
            bits = masks.pack(mask, encoding)
            self.steps.append(Step(SetMask(id=1, segment=self.name, mask=bits), mask))

    def flip(self, change: Delta) -> None:
        """Apply a change to the mask and keep count of its voxels."""
        masks.apply(change, self.mask)
        if change.box is not None:
            now_set = int(np.count_nonzero(self.mask[change.box.slices] & change.flips))
            self.voxels += 2 * now_set - change.voxels

    def composed(self) -> Mask:
        """What the changes of all steps add up to: a new array."""
        summed: Mask = np.zeros(self.mask.shape, bool)  # unlike zeros_like, nothing is touched that stays empty
        for step in self.steps:
            masks.apply(step.change, summed)
        return summed

    def reconcile(self) -> None:
        """Let the last step account for what the mask holds beyond the steps' changes."""
        surplus = masks.diff(self.composed(), self.mask)
        if self.steps and surplus.box is not None:
            last = self.steps.pop()
            self.steps.append(Step(last.request, masks.compose(last.change, surplus)))

    def rebuild(self) -> None:
        """Let the mask be what the steps' changes add up to, where it can no longer be trusted."""
        self.mask[...] = self.composed()
        self.voxels = int(np.count_nonzero(self.mask))
