"""Segments with their masks and histories. Both ends keep them, and the server's can be restored from the client's.

A history keeps changes in their wire format, as compressed run lengths. A step of some kilobytes would take megabytes
as an array. Changes are unpacked when they are used.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
import sys

import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import NO_CHANGE, Delta, Mask
from nninteractive_ws.messages import Encoding, Prompt, RunLengthMask, SetMask, Step, StepRequest

#: Bytes in memory of a step besides its masks, and of a mask besides its data. Measured with tracemalloc: 280 for a
#: click. A mask takes 330, and up to 520 if the coordinates of its box are above 256, since Python caches smaller ones.
STEP_BYTES, MASK_BYTES = 288, 352


def mask_memory(mask: RunLengthMask | None) -> int:
    """Return the bytes in memory of a packed mask."""
    return 0 if mask is None else MASK_BYTES + len(mask.data)


def memory_of(steps: Iterable[Step]) -> int:
    """Return the bytes in memory of steps."""
    return sum(
        STEP_BYTES
        + sys.getsizeof(step.request.segment)  # each has its own copy of the name
        + mask_memory(getattr(step.request, "mask", None))
        + mask_memory(step.change)
        for step in steps
    )


@dataclass
class Segment:
    """A segment with its mask and its history.

    ``mask``: bool, of the shape of the image; the composition of the changes of all steps. It is a read-only view,
    because users get it: :meth:`apply` changes it. The mask of a segment that is not in use may be packed
    (:meth:`pack_mask`), and is unpacked when it is used. ``steps``: the oldest first. ``undone``: undone steps, the
    next one to redo last. ``voxels``: number of set voxels.
    """

    name: str
    shape: Index
    revision: int = 0
    voxels: int = 0
    steps: list[Step] = field(default_factory=list)
    undone: list[Step] = field(default_factory=list)
    _mask: Mask | None = field(default=None, repr=False)
    _view: Mask | None = field(default=None, repr=False)
    _packed_mask: RunLengthMask | None = field(default=None, repr=False)
    _history_bytes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._history_bytes = memory_of(self.steps) + memory_of(self.undone)

    @classmethod
    def empty(cls, name: str, shape: Index) -> "Segment":
        """Create a segment without steps. Its mask is allocated now, because two threads may use it concurrently."""
        return cls(name, shape, _mask=np.zeros(shape, bool))

    @property
    def mask(self) -> Mask:
        array = self.writable_mask
        if self._view is None or self._view.base is not array:
            view = array.view()
            view.flags.writeable = False
            self._view = view
        return self._view

    @property
    def writable_mask(self) -> Mask:
        """The array behind ``mask``."""
        if self._mask is None:
            unpacked: Mask = np.zeros(self.shape, bool)
            masks.apply(self._unpack(self._packed_mask), unpacked)
            # Assigned last, because memory may run out above.
            self._mask, self._packed_mask = unpacked, None
        return self._mask

    def pack_mask(self, encoding: Encoding) -> None:
        """Keep the mask as run lengths until it is used again."""
        if self._mask is not None:
            cropped = masks.crop(self._mask, self.extent)
            self._packed_mask = None if cropped.box is None else masks.pack(cropped, encoding)
            self._mask = self._view = None

    def apply(self, change: Delta) -> None:
        """Apply a change to the mask in place. ``voxels`` stays as it is."""
        masks.apply(change, self.writable_mask)

    @property
    def is_empty(self) -> bool:
        """Whether there are no steps and no undone steps, as in a new segment."""
        return not self.steps and not self.undone

    @property
    def is_flat(self) -> bool:
        """Whether :meth:`flatten` would not reduce the history."""
        return not self.undone and len(self.steps) <= 1 and all(isinstance(s.request, SetMask) for s in self.steps)

    @property
    def memory(self) -> int:
        """Bytes in memory of the history and of a packed mask."""
        return self._history_bytes + mask_memory(self._packed_mask)

    @property
    def extent(self) -> Box | None:
        """A box outside which the mask is empty."""
        extent: Box | None = None
        for step in self.steps:
            if step.change is not None:
                extent = Box.from_pairs(step.change.box).union(extent)
        return extent

    def active_steps(self) -> list[Step]:
        """Return the steps since the last reset, in order. The first may be the set_mask or reset itself."""
        for n in range(len(self.steps) - 1, -1, -1):
            if self.steps[n].is_reset:
                return self.steps[n:]
        return self.steps

    def pending(self) -> list[Prompt]:
        """Return the prompts that wait for a prediction."""
        pending: list[Prompt] = []
        for step in self.active_steps():
            if step.predicted or step.is_reset:
                pending = []
            else:
                pending.append(step.request)  # type: ignore[arg-type]
        return pending

    def append(self, step: Step) -> None:
        """Append a step whose change has been applied, and drop the undone steps."""
        self._history_bytes += memory_of((step,)) - memory_of(self.undone)
        self.steps.append(step)
        self.undone.clear()

    def undo(self) -> Delta:
        """Move the last step to the undone ones. Return the change to apply. Raises IndexError if there is no step."""
        return self._move(self.steps, self.undone)

    def redo(self) -> Delta:
        """Move the last undone step back. Return the change to apply. Raises IndexError if there is no undone step."""
        return self._move(self.undone, self.steps)

    def _move(self, source: list[Step], target: list[Step]) -> Delta:
        change = self._unpack(source[-1].change)  # first, because memory may run out
        target.append(source.pop())
        return change

    def _unpack(self, change: RunLengthMask | None) -> Delta:
        return NO_CHANGE if change is None else masks.unpack(change, self.shape)

    def flip(self, change: Delta) -> None:
        """Apply a change to the mask, and update the number of set voxels."""
        self.apply(change)
        if change.box is not None:
            newly_set = int(np.count_nonzero(self.mask[change.box.slices] & change.flips))
            self.voxels += 2 * newly_set - change.voxels

    def composed(self) -> Mask:
        """Return the composition of the changes of all steps, as a new array."""
        composition: Mask = np.zeros(self.shape, bool)  # unlike zeros_like, this does not write the pages
        for step in self.steps:
            masks.apply(self._unpack(step.change), composition)
        return composition

    def rebuild(self) -> None:
        """Recompute the mask as the composition of the steps' changes."""
        if self._mask is None:
            self._mask, self._packed_mask = self.composed(), None
        else:
            self._mask[...] = self.composed()
        self.voxels = int(np.count_nonzero(self._mask))

    # ---- for the client ---------------------------------------------------------------------------------------

    def credit_move(self, back: bool, change: Delta, is_fresh: bool, encoding: Encoding) -> None:
        """Undo (``back``) or redo a step whose change the server has sent and the mask already has.

        ``change``: the server's. It may differ from the step's, if the step was credited with the changes of several.
        Then it replaces the step's, unless the mask was not fresh. Raises ValueError if there is no such step.
        """
        source, target = (self.steps, self.undone) if back else (self.undone, self.steps)
        if not source:
            raise ValueError("There is no step to undo or redo. Check the history of the segment.")
        expected = self._move(source, target)
        if is_fresh and masks.compose(expected, change).box is not None:
            self._replace_last(target, change, encoding)
            self.reconcile(encoding)

    def reconcile(self, encoding: Encoding) -> None:
        """Credit the last step with the difference between the mask and the composition of the steps' changes."""
        difference = masks.diff(self.composed(), self.mask)
        if self.steps and difference.box is not None:
            self._replace_last(self.steps, masks.compose(self._unpack(self.steps[-1].change), difference), encoding)

    def _replace_last(self, steps: list[Step], change: Delta, encoding: Encoding) -> None:
        last = steps[-1]
        steps[-1] = make_step(last.request, change, encoding)
        self._history_bytes += memory_of(steps[-1:]) - memory_of((last,))

    def flatten(self, encoding: Encoding) -> None:
        """Collapse the history into one set_mask step, which any server can restore."""
        mask = masks.to_delta(self.composed())
        self.undone.clear()
        self.steps.clear()
        if mask.box is not None:
            request = SetMask(id=1, segment=self.name, mask=masks.pack(mask, encoding))
            self.steps.append(make_step(request, mask, encoding))
        self._history_bytes = memory_of(self.steps)


def make_step(request: StepRequest, change: Delta, encoding: Encoding) -> Step:
    """Return the step of a request and its change."""
    return Step(request=request, change=None if change.box is None else masks.pack(change, encoding))
