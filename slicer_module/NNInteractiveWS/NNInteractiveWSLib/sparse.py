"""A mask of a volume that is mostly empty: only a box around what was ever set is kept."""

from base64 import b64decode, b64encode
import zlib

from nninteractive_ws import Box
from nninteractive_ws.masks import Delta, tight
import numpy as np


class SparseMask:
    """``bits``: bool, the voxels of ``box``; outside, and where there is no box, the mask is empty."""

    def __init__(self):
        self.box: Box | None = None
        self.bits = np.zeros((0, 0, 0), bool)

    @classmethod
    def of(cls, delta: Delta):
        """The mask that a change makes from the empty one; takes the change's array over."""
        made = cls()
        made.box, made.bits = delta.box, delta.flips
        return made

    def read(self, box):
        """The voxels of a box: bool, of its shape, a copy."""
        found = np.zeros(box.shape, bool)
        common = None if self.box is None else self.box.intersection(box)
        if common is not None:
            found[common.within(box).slices] = self.bits[common.within(self.box).slices]
        return found

    def write(self, box, values):
        """Let the voxels of a box be these."""
        if self.box is not None and self.box.intersection(box) == box:
            self.bits[box.within(self.box).slices] = values
        elif values.any() or (self.box is not None and self.box.intersection(box) is not None):
            frame = box.union(self.box)
            bits = self.read(frame)
            bits[box.within(frame).slices] = values
            self.box, self.bits = frame, bits

    def flip(self, box, flips):
        """Turn the set voxels of ``flips`` round."""
        self.write(box, self.read(box) ^ flips)

    def set(self, box, mask):
        """Set the voxels of ``mask``."""
        self.write(box, self.read(box) | mask)

    def clear(self, box, mask):
        """Clear the voxels of ``mask``."""
        if self.box is not None:
            self.write(box, self.read(box) & ~mask)

    def packed(self):
        """As what JSON can hold; None where nothing is set."""
        cut = tight(self.bits, self.box.start) if self.box is not None else None
        if cut is None or cut.box is None:
            return None
        data = zlib.compress(np.packbits(cut.flips.ravel()).tobytes(), 1)
        return {"box": cut.box.pairs, "bits": b64encode(data).decode()}

    @classmethod
    def unpacked(cls, packed):
        """What :meth:`packed` gave. Raises ValueError, KeyError or zlib.error where it is not that."""
        made = cls()
        if packed is not None:
            made.box = Box.from_pairs(packed["box"])
            bits = np.frombuffer(zlib.decompress(b64decode(packed["bits"])), np.uint8)
            made.bits = np.unpackbits(bits, count=made.box.voxels).astype(bool).reshape(made.box.shape)
        return made
