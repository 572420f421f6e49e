"""Sparse masks of a volume, stored as the bricks that contain set voxels."""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from itertools import product
import zlib

from nninteractive_ws import Box
from nninteractive_ws.masks import NO_CHANGE, Delta, to_delta
import numpy as np

#: Voxels along each edge of a brick. An operation on one brick takes about a millisecond.
EDGE = 64


def bricks(box: Box) -> Iterator[tuple[tuple[int, int, int], Box]]:
    """Yield the index of each brick that a box overlaps, and the overlap."""
    for index in product(*(range(lo // EDGE, (hi - 1) // EDGE + 1) for lo, hi in box.pairs)):
        yield index, box.intersection(brickBox(index))


def brickBox(index):
    """The box of a brick. It may extend beyond the volume."""
    return Box.from_pairs([(n * EDGE, (n + 1) * EDGE) for n in index])


class SparseMask:
    """A mask that is empty at first."""

    def __init__(self):
        self._bricks = {}

    @classmethod
    def of(cls, delta: Delta):
        """The mask that a change turns an empty mask into."""
        made = cls()
        if delta.box is not None:
            made.set(delta.box, delta.flips)
        return made

    def bounds(self):
        """A box outside which nothing is set, or None."""
        found = None
        for index in self._bricks:
            found = brickBox(index).union(found)
        return found

    def parts(self):
        """Yield the box and the voxels of each stored brick."""
        for index, brick in self._bricks.items():
            yield brickBox(index), brick

    def delta(self):
        """The change that turns an empty mask into this one."""
        parts = self.assemble()
        while True:
            try:
                next(parts)
            except StopIteration as end:
                return end.value

    def assemble(self):
        """Compute :meth:`delta` in steps of one brick, as a generator that returns it."""
        pieces, bounds = [], None
        for box, brick in self.parts():
            piece = to_delta(brick, box.start)
            if piece.box is not None:
                pieces.append(piece)
                bounds = piece.box.union(bounds)
            yield
        if bounds is None:
            return NO_CHANGE
        whole = np.zeros(bounds.shape, bool)
        for piece in pieces:
            whole[piece.box.relative_to(bounds).slices] = piece.flips
            yield
        return Delta(bounds, whole)

    def read(self, box):
        """A copy of the voxels in a box, bool, in the memory order of Slicer's labelmaps."""
        found = np.zeros(box.shape, bool, order="F")
        for index, inBox, inBrick in _pieces(box):
            if (brick := self._bricks.get(index)) is not None:
                found[inBox] = brick[inBrick]
        return found

    def write(self, box, values):
        """Overwrite the voxels of a box."""
        self._combine(_second, box, values)

    def flip(self, box, flips):
        """Invert the voxels that are set in ``flips``."""
        self._combine(np.logical_xor, box, flips)

    def set(self, box, mask):
        """Set the voxels that are set in ``mask``."""
        self._combine(np.logical_or, box, mask)

    def clear(self, box, mask):
        """Clear the voxels that are set in ``mask``."""
        self._combine(np.greater, box, mask)

    def _combine(self, operation, box, values):
        for index, inBox, inBrick in _pieces(box):
            operand, brick = values[inBox], self._bricks.get(index)
            if brick is None:
                if operation is np.greater or not operand.any():
                    continue
                brick = self._bricks[index] = np.zeros((EDGE, EDGE, EDGE), bool, order="F")
            view = brick[inBrick]
            operation(view, operand, out=view)

    def packed(self):
        """The mask as a JSON-serializable object, or None if it is empty."""
        cut = self.delta()
        if cut.box is None:
            return None
        data = zlib.compress(np.packbits(cut.flips.ravel()).tobytes(), 1)
        return {"box": cut.box.pairs, "bits": b64encode(data).decode()}

    @classmethod
    def unpacked(cls, packed, shape):
        """Restore a mask from a result of :meth:`packed`, for a volume of ``shape``. Raise ValueError, KeyError or
        zlib.error for invalid input."""
        if packed is None:
            return cls()
        box = Box.from_pairs(packed["box"])
        if not box.inside(shape):
            raise ValueError(f"the box {box.pairs} is not inside the volume of shape {shape}")
        # A few bytes can expand to gigabytes, so decompress no more than the size of the box.
        size = -(-box.voxels // 8)
        bits = np.frombuffer(zlib.decompressobj().decompress(b64decode(packed["bits"]), size + 1), np.uint8)
        if len(bits) != size:
            raise ValueError(f"expected {size} bytes for a box of {box.voxels} voxels, got {len(bits)} or more")
        flips = np.unpackbits(bits, count=box.voxels).astype(bool)
        return cls.of(Delta(box, flips.reshape(box.shape)))


def _pieces(box):
    """Yield the same as :func:`bricks`, as slices into an array of the box and into the brick. Optimized for speed."""
    axes = []
    for lo, hi in zip(box.start, box.stop, strict=True):
        axis = []
        for n in range(lo // EDGE, (hi - 1) // EDGE + 1):
            a, b, origin = max(lo, n * EDGE), min(hi, (n + 1) * EDGE), n * EDGE
            axis.append((n, slice(a - lo, b - lo), slice(a - origin, b - origin)))
        axes.append(axis)
    for i, j, k in product(*axes):
        yield (i[0], j[0], k[0]), (i[1], j[1], k[1]), (i[2], j[2], k[2])


def _second(_first, second, out):
    out[...] = second
