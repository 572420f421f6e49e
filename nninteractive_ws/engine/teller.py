"""What the client is told of its masks: each change as it happens, or a whole mask."""

import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.engine.shown import Shown
from nninteractive_ws.geometry import Box
from nninteractive_ws.history import Segment
from nninteractive_ws.masks import Delta, Mask
from nninteractive_ws.messages import Encoding, MaskDelta, MaskSnapshot
from nninteractive_ws.server.outbox import Outbox


class Teller:
    """See the module. It keeps count with what it tells: a segment's revision and voxels."""

    def __init__(self, outbox: Outbox, encoding: Encoding) -> None:
        self._outbox, self._encoding = outbox, encoding

    def change(self, request: int, segment: Segment, change: Delta, after: Mask | Shown, final: bool) -> None:
        """Send a change of a segment; ``after``: the mask once it is applied. Nothing where it is empty.

        Where the change before this one has not been sent yet, the two are sent as one.
        """
        if change.box is None:
            return
        base = segment.revision
        segment.voxels += _gained(change, _values(after, change.box))
        segment.revision += 1
        if (unsent := self._outbox.withdraw_change(segment.name)) is not None:
            base, change = unsent[0], masks.compose(masks.unpack(unsent[1], segment.shape), change)
        if change.box is None:
            segment.revision = base  # nobody has heard of those in between
            return
        values = _values(after, change.box)
        message = MaskDelta(
            segment=segment.name,
            request=request,
            base_rev=base,
            rev=segment.revision,
            change=masks.pack(change, self._encoding),
            checksum=masks.checksum(values, Box.whole(values.shape)),
            voxels=segment.voxels,
            final=final,
        )
        self._outbox.put_change(message)

    def snapshot(self, request: int, segment: Segment) -> None:
        """Send all of a segment's mask."""
        mask = masks.crop(segment.mask, segment.extent)
        bits = None if mask.box is None else masks.pack(mask, self._encoding)
        self._outbox.put(
            MaskSnapshot(segment=segment.name, request=request, rev=segment.revision, mask=bits, voxels=segment.voxels)
        )


def _values(mask: Mask | Shown, box: Box) -> Mask:
    return mask.view(box) if isinstance(mask, Shown) else mask[box.slices]


def _gained(change: Delta, after: Mask) -> int:
    """How many more voxels are set after a change; ``after``: the values in its box."""
    return 2 * int(np.count_nonzero(after & change.flips)) - change.voxels
