"""Changes of a mask: what differs between two masks, as the exclusive or inside the smallest box around it.

Applying a delta twice undoes it, and two of them compose into one, so the same object is the live preview,
the result, undo, redo, the journal and the catching up of a slow client.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
import zlib

import numpy as np
import numpy.typing as npt

from nninteractive_ws import arrays
from nninteractive_ws.errors import BadMessage, OutOfBounds
from nninteractive_ws.geometry import Box, Index, box_in_volume
from nninteractive_ws.messages import Bits, Encoding

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """The voxels of ``box`` to flip: ``flips`` is bool and of the box's shape. No box: nothing changes.

    The same pair stands for a mask that is empty outside the box: it is the change from the empty mask. The packed
    form is cached, because the same delta is sent and kept in the history.
    """

    box: Box | None
    flips: Mask
    _packed: dict[Encoding, Bits] = field(default_factory=dict, repr=False)

    @property
    def voxels(self) -> int:
        """How many voxels change."""
        return int(np.count_nonzero(self.flips))


NO_CHANGE = Delta(None, np.zeros((0, 0, 0), bool))


def hull(mask: Mask) -> Box | None:
    """The smallest box around what is set."""
    bounds = []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(occupied) == 0:
            return None
        bounds.append((int(occupied[0]), int(occupied[-1]) + 1))
        mask = mask[(slice(None),) * axis + (slice(*bounds[-1]),)]
    return Box.from_pairs(bounds)


def tight(flips: Mask, origin: Sequence[int] = (0, 0, 0)) -> Delta:
    """The delta of ``flips``, an array whose first voxel lies at ``origin``, cut to the smallest box."""
    box = hull(flips)
    return NO_CHANGE if box is None else Delta(box.shift(origin), np.ascontiguousarray(flips[box.slices]))


def crop(mask: Mask, extent: Box | None) -> Delta:
    """A mask that is empty outside ``extent`` (None: everywhere), cut to the smallest box. It may be a view."""
    return NO_CHANGE if extent is None else tight(mask[extent.slices], extent.start)


def diff(before: Mask, after: Mask, origin: Sequence[int] = (0, 0, 0)) -> Delta:
    """What turns ``before`` into ``after``, two arrays of one shape whose first voxel lies at ``origin``."""
    return tight(before ^ after, origin)


def apply(delta: Delta, mask: Mask) -> None:
    """Flip the delta's voxels of ``mask`` in place. Raises OutOfBounds where the box is not inside."""
    if delta.box is None:
        return
    if not delta.box.inside(mask.shape):
        raise OutOfBounds(f"A change of the box {delta.box.pairs} does not fit a volume of shape {mask.shape}.")
    view = mask[delta.box.slices]
    np.logical_xor(view, delta.flips, out=view)


def compose(first: Delta, second: Delta) -> Delta:
    """The one delta that does what the two do in turn (in either order)."""
    if first.box is None or second.box is None:
        return second if first.box is None else first
    frame = first.box.union(second.box)
    flips = np.zeros(frame.shape, bool)
    flips[first.box.within(frame).slices] = first.flips
    view = flips[second.box.within(frame).slices]
    np.logical_xor(view, second.flips, out=view)
    return tight(flips, frame.start)


def checksum(mask: Mask, box: Box) -> int:
    """CRC-32 of the box's voxels in C order, packed eight to a byte, the first voxel in the lowest bit."""
    return zlib.crc32(np.packbits(mask[box.slices], axis=None, bitorder="little").tobytes())


def pack(delta: Delta, encoding: Encoding) -> Bits:
    """A delta, or a mask, for the wire. Raises ValueError where it has no box: then nothing is to be sent."""
    if delta.box is None:
        raise ValueError("an empty delta has no box to send")
    if encoding not in delta._packed:
        delta._packed[encoding] = _pack(delta.box, delta.flips, encoding)
    return delta._packed[encoding]


def _pack(box: Box, flips: Mask, encoding: Encoding) -> Bits:
    runs = _run_lengths(flips.ravel())
    return Bits(box=box.pairs, runs=len(runs), encoding=encoding, data=arrays.pack(runs, encoding))


def _run_lengths(flat: Mask) -> npt.NDArray[np.uint32]:
    # In place, and 32 bits wide as soon as possible: a noisy mask has a run for every other voxel.
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    first = int(flat[0])  # 1 after an empty run of unset voxels
    runs = np.zeros(first + len(edges) + 1, np.dtype("<u4"))
    runs[first:-1] = edges
    del edges
    ends = runs[first:]
    ends[:-1] += 1
    ends[-1] = flat.size
    ends[1:] -= ends[:-1]
    return runs


def unpack(bits: Bits, shape: Index) -> Delta:
    """The delta, or mask, of a message about a volume of ``shape``; the box as sent, not cut.

    Raises OutOfBounds where the box is not inside the volume, BadMessage where box and runs do not match,
    and what :func:`arrays.unpack` raises.
    """
    box, runs = _unpack_runs(bits, shape)
    is_set = np.zeros(bits.runs, bool)
    is_set[1::2] = True
    return Delta(box, np.repeat(is_set, runs).reshape(box.shape), {bits.encoding: bits})


def check(bits: Bits, shape: Index) -> None:
    """Raise the errors of :func:`unpack`, without allocating the voxels of the box."""
    _unpack_runs(bits, shape)


def _unpack_runs(bits: Bits, shape: Index) -> tuple[Box, npt.NDArray[np.uint32]]:
    box = box_in_volume(bits.box, shape)
    if bits.runs > box.voxels + 1:
        raise BadMessage(f"{bits.runs:,} runs were announced for a box of {box.voxels:,} voxels.")
    runs = arrays.unpack(bits.data, bits.encoding, "<u4", (bits.runs,)).astype(np.uint32, copy=False)
    if int(runs.sum(dtype=np.int64)) != box.voxels:
        raise BadMessage(f"The runs of a box of {box.voxels:,} voxels do not add up to it.")
    return box, runs
