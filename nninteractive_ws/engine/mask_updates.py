"""Updates of a client's masks: changes as they happen, and snapshots of whole masks."""

import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.engine.outbox import Outbox
from nninteractive_ws.engine.preview import MaskPreview
from nninteractive_ws.geometry import Box
from nninteractive_ws.history import Segment
from nninteractive_ws.masks import Delta, Mask
from nninteractive_ws.messages import Encoding, MaskDelta, MaskSnapshot


class MaskUpdateSender:
    """Sends mask updates through an outbox, and updates a segment's revision and voxel count."""

    def __init__(self, outbox: Outbox, encoding: Encoding) -> None:
        self._outbox, self.encoding = outbox, encoding

    def send_change(
        self, request: int, segment: Segment, change: Delta, after: Mask | MaskPreview, final: bool
    ) -> None:
        """Send a change of a segment, unless it is empty. ``after``: the mask after the change.

        If the previous change is still in the outbox, the two are composed and sent as one.
        """
        if change.box is None:
            return
        base = segment.revision
        segment.voxels += _voxel_gain(change, _values(after, change.box))
        segment.revision += 1
        if (unsent := self._outbox.withdraw_change(segment.name)) is not None:
            base, change = unsent[0], masks.compose(masks.unpack(unsent[1], segment.shape), change)
        if change.box is None:
            segment.revision = base  # the revisions in between were never sent
            return
        values = _values(after, change.box)
        message = MaskDelta(
            segment=segment.name,
            request=request,
            base_revision=base,
            revision=segment.revision,
            change=masks.pack(change, self.encoding),
            checksum=masks.checksum(values, Box.whole(values.shape)),
            voxels=segment.voxels,
            final=final,
        )
        self._outbox.put_change(message)

    def send_snapshot(self, request: int, segment: Segment) -> None:
        """Send the whole mask of a segment."""
        mask = masks.crop(segment.mask, segment.extent)
        packed = None if mask.box is None else masks.pack(mask, self.encoding)
        self._outbox.put(
            MaskSnapshot(
                segment=segment.name, request=request, revision=segment.revision, mask=packed, voxels=segment.voxels
            )
        )


def _values(mask: Mask | MaskPreview, box: Box) -> Mask:
    return mask.view(box) if isinstance(mask, MaskPreview) else mask[box.slices]


def _voxel_gain(change: Delta, after: Mask) -> int:
    """Return the increase in set voxels by a change. ``after``: the values in its box after the change."""
    return 2 * int(np.count_nonzero(after & change.flips)) - change.voxels
