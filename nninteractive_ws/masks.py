"""Changes of masks. A delta is the exclusive or of two masks in its bounding box.

Applying a delta twice reverts it, and two deltas compose into one. Therefore deltas serve as previews, results, steps
of undo and redo, entries of the journal, and merged updates for a slow client.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
import zlib

import numpy as np
import numpy.typing as npt

from nninteractive_ws import arrays
from nninteractive_ws.errors import BadMessage, OutOfBounds
from nninteractive_ws.geometry import Box, Index, box_in_volume
from nninteractive_ws.messages import Encoding, RunLengthMask

Mask = npt.NDArray[np.bool_]

#: Voxels that are expanded at once from run lengths, in some milliseconds.
_PART_VOXELS = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """The voxels of ``box`` to flip. ``flips``: bool, of the box's shape. ``box`` None: no change.

    It also represents a mask that is empty outside the box, as the change from the empty mask. The packed form is
    cached, because the same delta is sent and kept in the history.
    """

    box: Box | None
    flips: Mask
    _packed: dict[Encoding, RunLengthMask] = field(default_factory=dict, repr=False)

    @property
    def voxels(self) -> int:
        """Number of voxels that change."""
        return int(np.count_nonzero(self.flips))


NO_CHANGE = Delta(None, np.zeros((0, 0, 0), bool))


def bounding_box(mask: Mask) -> Box | None:
    """Return the bounding box of the set voxels, or None if there are none."""
    bounds = []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(occupied) == 0:
            return None
        bounds.append((int(occupied[0]), int(occupied[-1]) + 1))
        mask = mask[(slice(None),) * axis + (slice(*bounds[-1]),)]
    return Box.from_pairs(bounds)


def to_delta(flips: Mask, origin: Sequence[int] = (0, 0, 0)) -> Delta:
    """Return the delta of ``flips``, cropped to its bounding box. ``origin``: index of the array's first voxel."""
    box = bounding_box(flips)
    return NO_CHANGE if box is None else Delta(box.shift(origin), np.ascontiguousarray(flips[box.slices]))


def crop(mask: Mask, extent: Box | None) -> Delta:
    """Crop a mask that is empty outside ``extent`` (None: everywhere) to its bounding box. The result may be a view."""
    return NO_CHANGE if extent is None else to_delta(mask[extent.slices], extent.start)


def diff(before: Mask, after: Mask, origin: Sequence[int] = (0, 0, 0)) -> Delta:
    """Return the change between two arrays of the same shape. ``origin``: index of their first voxel."""
    return to_delta(before ^ after, origin)


def apply(delta: Delta, mask: Mask) -> None:
    """Flip the delta's voxels of ``mask`` in place. Raises OutOfBounds if the box is not inside."""
    if delta.box is None:
        return
    if not delta.box.inside(mask.shape):
        raise OutOfBounds(
            f"The box {delta.box.pairs} of a change is not inside the volume of shape {mask.shape}. Use changes of "
            "the same volume."
        )
    view = mask[delta.box.slices]
    np.logical_xor(view, delta.flips, out=view)


def compose(first: Delta, second: Delta) -> Delta:
    """Return the delta that is equivalent to both, in any order."""
    if first.box is None or second.box is None:
        return second if first.box is None else first
    frame = first.box.union(second.box)
    flips = np.zeros(frame.shape, bool)
    flips[first.box.relative_to(frame).slices] = first.flips
    view = flips[second.box.relative_to(frame).slices]
    np.logical_xor(view, second.flips, out=view)
    return to_delta(flips, frame.start)


def checksum(mask: Mask, box: Box) -> int:
    """Return the CRC-32 of the box's voxels in C order, packed eight to a byte, the first voxel in the lowest bit."""
    return zlib.crc32(np.packbits(mask[box.slices], axis=None, bitorder="little").tobytes())


def pack(delta: Delta, encoding: Encoding) -> RunLengthMask:
    """Pack a delta, or a mask, for the wire. Raises ValueError if it is empty."""
    if delta.box is None:
        raise ValueError("An empty delta cannot be packed, because it has no box. Check delta.box first.")
    if encoding not in delta._packed:
        delta._packed[encoding] = _pack(delta.box, delta.flips, encoding)
    return delta._packed[encoding]


def _pack(box: Box, flips: Mask, encoding: Encoding) -> RunLengthMask:
    runs = _run_lengths(flips.ravel())
    return RunLengthMask(box=box.pairs, runs=len(runs), encoding=encoding, data=arrays.pack(runs, encoding))


def _run_lengths(flat: Mask) -> npt.NDArray[np.uint32]:
    # In place, and 32 bits wide as soon as possible, because a noisy mask has a run for every other voxel.
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    first = int(flat[0])  # 1 if the mask starts with an empty run of unset voxels
    runs = np.zeros(first + len(edges) + 1, np.dtype("<u4"))
    runs[first:-1] = edges
    del edges
    ends = runs[first:]
    ends[:-1] += 1
    ends[-1] = flat.size
    ends[1:] -= ends[:-1]
    return runs


def unpack(packed: RunLengthMask, shape: Index) -> Delta:
    """Unpack a delta, or a mask, of a volume of ``shape``. Its box is not cropped to the bounding box.

    Raises OutOfBounds if the box is not inside the volume, BadMessage if box and runs do not match, and the errors of
    :func:`arrays.unpack`.
    """
    box, runs = _unpack_runs(packed, shape)
    return Delta(box, _expand(runs).reshape(box.shape), {packed.encoding: packed})


def _expand(runs: npt.NDArray[np.uint32]) -> Mask:
    """Return the voxels of alternating runs, of which the first is unset."""
    is_set = np.zeros(len(runs), bool)
    is_set[1::2] = True
    ends = np.cumsum(runs, dtype=np.int64)
    if ends[-1] <= _PART_VOXELS:
        return np.repeat(is_set, runs)
    # In parts, because np.repeat stops all other threads, for seconds if the mask is large.
    flat = np.empty(int(ends[-1]), bool)
    for start in range(0, flat.size, _PART_VOXELS):
        stop = min(start + _PART_VOXELS, flat.size)
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop)
        lengths = np.diff(ends[first : last + 1].clip(start, stop), prepend=start)
        flat[start:stop] = np.repeat(is_set[first : last + 1], lengths)
    return flat


def check(packed: RunLengthMask, shape: Index) -> None:
    """Raise the errors of :func:`unpack`, without allocating the voxels of the box."""
    _unpack_runs(packed, shape)


def _unpack_runs(packed: RunLengthMask, shape: Index) -> tuple[Box, npt.NDArray[np.uint32]]:
    box = box_in_volume(packed.box, shape)
    if packed.runs > box.voxels + 1:
        raise BadMessage(
            f"{packed.runs:,} runs were announced for a box of {box.voxels:,} voxels. Send at most {box.voxels + 1:,}."
        )
    runs = arrays.unpack(packed.data, packed.encoding, "<u4", (packed.runs,)).astype(np.uint32, copy=False)
    if (total := int(runs.sum(dtype=np.int64))) != box.voxels:
        raise BadMessage(f"The runs of a box of {box.voxels:,} voxels must add up to that number, not to {total:,}.")
    return box, runs
