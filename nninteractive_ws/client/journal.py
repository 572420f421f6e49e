"""The journal as a file: what is needed to go on with an image another day, but for the image itself."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
import os
from pathlib import Path
import tempfile
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nninteractive_ws import masks
from nninteractive_ws.bricks import MAX_VOXELS
from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.errors import BadImage, BadJournal, Error
from nninteractive_ws.geometry import Index
from nninteractive_ws.history import Segment
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import MAX_SEGMENTS, MAX_STEPS, Count, Name, Shape, Step

FORMAT: Literal["nninteractive-ws journal"] = "nninteractive-ws journal"
_VERSION = 1


class _SegmentHistory(msgspec.Struct, frozen=True):
    name: Name
    revision: Count
    steps: Annotated[list[Step], Meta(max_length=MAX_STEPS)]
    undone: Annotated[list[Step], Meta(max_length=MAX_STEPS)]


class _File(msgspec.Struct, frozen=True):
    """One msgpack map. ``steps`` and ``undone`` are those of the protocol's ``restore``."""

    format: Literal["nninteractive-ws journal"]
    version: int
    image: Name
    shape: Shape
    segments: Annotated[list[_SegmentHistory], Meta(max_length=MAX_SEGMENTS)]


@dataclass(frozen=True)
class Journal:
    """Of every segment the prompts, what each changed, and what was undone; and which image they are of.

    ``image``: the digest of the image's voxels, type and shape (see :class:`ImageSource`). ``shape``: its shape.
    """

    image: str
    shape: Index
    _histories: dict[str, _SegmentHistory]

    @classmethod
    def of(cls, image: ImageSource, segments: Sequence[Segment]) -> "Journal":
        """What there is now; what happens later does not change it."""
        kept = {s.name: _SegmentHistory(s.name, s.revision, list(s.steps), list(s.undone)) for s in segments}
        return cls(image.name, image.grid.shape, kept)

    @property
    def masks(self) -> dict[str, Mask]:
        """The mask of each segment, bool, of the image's shape: new arrays."""
        return {name: segment.mask for name, segment in self._segments().items()}

    def segments_of(self, image: ImageSource) -> dict[str, Segment]:
        """The segments, new, for this image. Raises BadImage where the journal is of another."""
        if image.name != self.image:
            raise BadImage(
                f"The journal was written for another image: of the shape {self.shape} and the digest {self.image}, "
                f"where this one has the shape {image.grid.shape} and the digest {image.name}."
            )
        return self._segments()

    def _segments(self) -> dict[str, Segment]:
        made = {}
        for name, kept in self._histories.items():
            segment = Segment(name, self.shape, kept.revision, steps=list(kept.steps), undone=list(kept.undone))
            segment.rebuild()
            made[name] = segment
        return made

    def to_bytes(self) -> bytes:
        """The content of a journal's file."""
        return msgspec.msgpack.encode(_File(FORMAT, _VERSION, self.image, self.shape, list(self._histories.values())))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Journal":
        """Raises BadJournal where these bytes are not a journal, or a damaged one."""
        try:
            found = msgspec.msgpack.decode(data, type=_File)
            if found.version != _VERSION:
                raise BadJournal(
                    f"The journal is of version {found.version} and this release reads version {_VERSION}: "
                    "update it (pip install --upgrade nninteractive-ws)."
                )
            _check(found)
        except BadJournal:
            raise
        except (ValueError, RecursionError, Error) as e:
            raise BadJournal(f"This is not a journal of nninteractive-ws, or a damaged one ({e}).") from e
        return cls(found.image, found.shape, {s.name: s for s in found.segments})

    def save(self, path: str | Path) -> None:
        """Write a file, all of it or nothing. Raises OSError."""
        path = Path(path)
        # In the same folder, so that the last step is a rename; readable to the user alone, as patients' data is.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.to_bytes())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def load(path: str | Path) -> Journal:
    """Read what :meth:`Journal.save` wrote. Raises OSError or BadJournal."""
    return Journal.from_bytes(Path(path).read_bytes())


def _check(file: _File) -> None:
    """Raise an Error unless every step fits the image. No array of the image's size is allocated.

    A few bytes can stand for gigabytes of voxels. Masks are allocated once there is an image of that size.
    """
    if math.prod(file.shape) > MAX_VOXELS:
        raise BadJournal(f"The journal is of an image of the shape {file.shape}, which is too large to be one.")
    for step in (step for segment in file.segments for step in (*segment.steps, *segment.undone)):
        for bits in (step.change, getattr(step.request, "mask", None)):
            if bits is not None:
                masks.check(bits, file.shape)
