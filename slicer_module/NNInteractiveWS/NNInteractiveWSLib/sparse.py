"""Masks of a volume that are mostly empty: only the bricks in which something is set are kept."""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from itertools import product
import zlib

from nninteractive_ws import Box
from nninteractive_ws.masks import NO_CHANGE, Delta, tight
import numpy as np

#: Voxels along each edge of a brick: what is done with one takes a millisecond or so.
EDGE = 64


def bricks(box: Box) -> Iterator[tuple[tuple[int, int, int], Box]]:
    """The bricks that a box has a part in: their indices, and the parts."""
    for index in product(*(range(lo // EDGE, (hi - 1) // EDGE + 1) for lo, hi in box.pairs)):
        yield index, box.intersection(brickBox(index))


def brickBox(index):
    """The voxels of a brick, beyond the volume too."""
    return Box.from_pairs([(n * EDGE, (n + 1) * EDGE) for n in index])


class SparseMask:
    """An empty mask."""

    def __init__(self):
        self._bricks = {}

    @classmethod
    def of(cls, delta: Delta):
        """The mask that a change makes from the empty one."""
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
        """What is kept: boxes, and the voxels of each."""
        for index, brick in self._bricks.items():
            yield brickBox(index), brick

    def delta(self):
        """The mask as the change that makes it from the empty one."""
        parts = self.assemble()
        while True:
            try:
                next(parts)
            except StopIteration as end:
                return end.value

    def assemble(self):
        """:meth:`delta` a brick at a time: a generator that returns it in the end."""
        pieces, bounds = [], None
        for box, brick in self.parts():
            piece = tight(brick, box.start)
            if piece.box is not None:
                pieces.append(piece)
                bounds = piece.box.union(bounds)
            yield
        if bounds is None:
            return NO_CHANGE
        whole = np.zeros(bounds.shape, bool)
        for piece in pieces:
            whole[piece.box.within(bounds).slices] = piece.flips
            yield
        return Delta(bounds, whole)

    def read(self, box):
        """The voxels of a box: bool, of its shape, a copy, in the order of Slicer's labelmaps in memory."""
        found = np.zeros(box.shape, bool, order="F")
        for index, there, inBrick in _pieces(box):
            if (brick := self._bricks.get(index)) is not None:
                found[there] = brick[inBrick]
        return found

    def write(self, box, values):
        """Let the voxels of a box be these."""
        self._combine(_second, box, values)

    def flip(self, box, flips):
        """Turn the set voxels of ``flips`` round."""
        self._combine(np.logical_xor, box, flips)

    def set(self, box, mask):
        """Set the voxels of ``mask``."""
        self._combine(np.logical_or, box, mask)

    def clear(self, box, mask):
        """Clear the voxels of ``mask``."""
        self._combine(np.greater, box, mask)

    def _combine(self, operation, box, values):
        for index, there, inBrick in _pieces(box):
            given, brick = values[there], self._bricks.get(index)
            if brick is None:
                if operation is np.greater or not given.any():
                    continue
                brick = self._bricks[index] = np.zeros((EDGE, EDGE, EDGE), bool, order="F")
            view = brick[inBrick]
            operation(view, given, out=view)

    def packed(self):
        """As what JSON can hold; None where nothing is set."""
        cut = self.delta()
        if cut.box is None:
            return None
        data = zlib.compress(np.packbits(cut.flips.ravel()).tobytes(), 1)
        return {"box": cut.box.pairs, "bits": b64encode(data).decode()}

    @classmethod
    def unpacked(cls, packed, shape):
        """The mask of a result of :meth:`packed`, for a volume of ``shape``. Raises ValueError, KeyError or zlib.error
        for anything else."""
        if packed is None:
            return cls()
        box = Box.from_pairs(packed["box"])
        if not box.inside(shape):
            raise ValueError(f"the box {box.pairs} is not inside the volume of shape {shape}")
        # A few bytes can stand for gigabytes, so no more is unpacked than the box has.
        size = -(-box.voxels // 8)
        bits = np.frombuffer(zlib.decompressobj().decompress(b64decode(packed["bits"]), size + 1), np.uint8)
        if len(bits) != size:
            raise ValueError(f"{len(bits)} bytes or more for a box of {box.voxels} voxels")
        flips = np.unpackbits(bits, count=box.voxels).astype(bool)
        return cls.of(Delta(box, flips.reshape(box.shape)))


def _pieces(box):
    """As :func:`bricks`, but as slices: of an array of the box's voxels, and of the brick's. It is called often."""
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
