"""The journal as a file: what is needed to go on with an image another day, but for the image itself."""

from collections.abc import Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import tempfile
from typing import Literal

import msgspec
import numpy as np

from nninteractive_ws import arrays
from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.errors import BadImage, BadJournal, Error
from nninteractive_ws.geometry import Index
from nninteractive_ws.history import Segment, Step, pack_steps, unpack_steps
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import Count, Name, Shape
from nninteractive_ws.messages import Step as WireStep

FORMAT: Literal["nninteractive-ws journal"] = "nninteractive-ws journal"
_VERSION = 1


class _SegmentInFile(msgspec.Struct, frozen=True):
    name: Name
    revision: Count
    steps: list[WireStep]
    undone: list[WireStep]


class _File(msgspec.Struct, frozen=True):
    """One msgpack map. ``steps`` and ``undone`` are those of the protocol's ``restore``."""

    format: Literal["nninteractive-ws journal"]
    version: int
    image: Name
    shape: Shape
    segments: list[_SegmentInFile]


@dataclass(frozen=True)
class _Kept:
    revision: int
    steps: list[Step]
    undone: list[Step]


@dataclass(frozen=True)
class Journal:
    """Of every segment the prompts, what each changed, and what was undone; and which image they are of.

    ``image``: the digest of the image's voxels, type and shape (see :class:`ImageSource`). ``shape``: its shape.
    """

    image: str
    shape: Index
    _kept: dict[str, _Kept]

    @classmethod
    def of(cls, image: ImageSource, segments: Sequence[Segment]) -> "Journal":
        """What there is now; what happens later does not change it."""
        kept = {s.name: _Kept(s.revision, list(s.steps), list(s.undone)) for s in segments}
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
        for name, kept in self._kept.items():
            segment = Segment.empty(name, self.shape)
            segment.steps, segment.undone = list(kept.steps), list(kept.undone)
            segment.revision = kept.revision
            segment.rebuild()
            made[name] = segment
        return made

    def to_bytes(self) -> bytes:
        """The content of a journal's file."""
        segments = [
            _SegmentInFile(name, s.revision, *(pack_steps(steps, arrays.ENCODINGS[0]) for steps in (s.steps, s.undone)))
            for name, s in self._kept.items()
        ]
        return msgspec.msgpack.encode(_File(FORMAT, _VERSION, self.image, self.shape, segments))

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
            kept = {s.name: _kept(s, found.shape) for s in found.segments}
        except BadJournal:
            raise
        except (ValueError, RecursionError, Error) as e:
            raise BadJournal(f"This is not a journal of nninteractive-ws, or a damaged one ({e}).") from e
        return cls(found.image, found.shape, kept)

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


def _kept(segment: _SegmentInFile, shape: Index) -> _Kept:
    steps, undone = unpack_steps(segment.steps, shape), unpack_steps(segment.undone, shape)
    # A mask is allocated for each segment when the journal is used: not for a shape that no image has.
    if np.prod(shape, dtype=np.float64) > 2**34:
        raise BadJournal(f"The journal is of an image of the shape {shape}, which is too large to be one.")
    return _Kept(segment.revision, steps, undone)
