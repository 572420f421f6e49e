"""Journal of a session: its prompts and masks without the image, in memory and as a file."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nninteractive_ws import masks
from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.bricks import MAX_VOXELS
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.errors import BadImage, BadJournal, Error
from nninteractive_ws.geometry import Index
from nninteractive_ws.history import Segment
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import MAX_SEGMENTS, MAX_STEPS, Count, Name, Shape, Step
from nninteractive_ws.protocol import to_msgpack

FORMAT: Literal["nninteractive-ws journal"] = "nninteractive-ws journal"
_VERSION = 1


class _SegmentHistory(msgspec.Struct, frozen=True):
    name: Name
    revision: Count
    steps: Annotated[list[Step], Meta(max_length=MAX_STEPS)]
    undone: Annotated[list[Step], Meta(max_length=MAX_STEPS)]


class _File(msgspec.Struct, frozen=True):
    """A journal file, one msgpack map. ``steps`` and ``undone`` are those of the protocol's ``restore``."""

    format: Literal["nninteractive-ws journal"]
    version: int
    image: Name
    shape: Shape
    segments: Annotated[list[_SegmentHistory], Meta(max_length=MAX_SEGMENTS)]


@dataclass(frozen=True)
class Journal:
    """The history of each segment of an image: prompts, their changes, and undone steps.

    Pass it to ``Session.set_image`` with the same image to continue.

    Attributes
    ----------
    image : str
        Digest of the image's voxels, dtype and shape, 32 hexadecimal digits.
    shape : tuple of 3 int
        Shape of the image, (i, j, k).
    """

    image: str
    shape: Index
    _histories: dict[str, _SegmentHistory]

    @classmethod
    def of(cls, image: ImageSource, segments: Sequence[Segment]) -> "Journal":
        """Make a journal of the current state of segments.

        Parameters
        ----------
        image : ImageSource
            The image of the segments.
        segments : sequence of history.Segment
            The segments to record.

        Returns
        -------
        Journal
            A snapshot. Later changes of the segments do not change it.
        """
        histories = {s.name: _SegmentHistory(s.name, s.revision, list(s.steps), list(s.undone)) for s in segments}
        return cls(image.name, image.grid.shape, histories)

    @property
    def masks(self) -> dict[str, Mask]:
        """Mask of each segment, as new bool arrays of the image's shape."""
        return {name: segment.writable_mask for name, segment in self._segments().items()}

    def segments_of(self, image: ImageSource) -> dict[str, Segment]:
        """Return new segments with the histories of the journal.

        Parameters
        ----------
        image : ImageSource
            The image to use them with.

        Returns
        -------
        dict of str to history.Segment
            Segments by name.

        Raises
        ------
        BadImage
            If the journal belongs to another image.
        """
        if image.name != self.image:
            raise BadImage(
                f"The journal belongs to another image of shape {self.shape} and digest {self.image}. This image "
                f"has the shape {image.grid.shape} and the digest {image.name}. Load the image that the journal was "
                "saved with, in the same orientation and dtype, or start without the journal."
            )
        return self._segments()

    def _segments(self) -> dict[str, Segment]:
        segments = {}
        for name, history in self._histories.items():
            steps, undone = list(history.steps), list(history.undone)
            segments[name] = segment = Segment(name, self.shape, history.revision, steps=steps, undone=undone)
            segment.rebuild()
        return segments

    def to_bytes(self) -> bytes:
        """Return the content of a journal file.

        Returns
        -------
        bytes
            One msgpack map.
        """
        return to_msgpack(_File(FORMAT, _VERSION, self.image, self.shape, list(self._histories.values())))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Journal":
        """Read the content of a journal file.

        Parameters
        ----------
        data : bytes
            Content of the file.

        Returns
        -------
        Journal
            The journal.

        Raises
        ------
        BadJournal
            If the bytes are not a journal, or are damaged.
        """
        try:
            file = msgspec.msgpack.decode(data, type=_File)
            if file.version != _VERSION:
                raise BadJournal(
                    f"The journal has format version {file.version}, but this release reads version {_VERSION}. Update "
                    "nninteractive-ws (pip install --upgrade nninteractive-ws)."
                )
            _check(file)
        except BadJournal:
            raise
        except (ValueError, RecursionError, Error) as e:
            detail = str(e).rstrip(".")
            raise BadJournal(f"This is not a journal of nninteractive-ws, or it is damaged. Details: {detail}.") from e
        return cls(file.image, file.shape, {s.name: s for s in file.segments})

    def save(self, path: str | Path) -> None:
        """Write the journal to a file.

        Parameters
        ----------
        path : str or Path
            File to write, completely or not at all. Readable by the user alone.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        with atomic_write(Path(path), private=True) as partial:  # it holds patient data
            partial.write_bytes(self.to_bytes())


def load(path: str | Path) -> Journal:
    """Read a journal from a file.

    Parameters
    ----------
    path : str or Path
        File that ``Session.save`` or ``Journal.save`` wrote.

    Returns
    -------
    Journal
        The journal, for ``Session.set_image``.

    Raises
    ------
    OSError
        If the file cannot be read.
    BadJournal
        If the file is not a journal, or is damaged.

    Examples
    --------
    >>> session.save("liver.journal")
    >>> journal = nni.load("liver.journal")
    >>> journal.shape == volume.shape
    True
    >>> session.set_image(volume, journal)
    """
    return Journal.from_bytes(Path(path).read_bytes())


def _check(file: _File) -> None:
    """Raise an Error unless every step fits the image. No array of the image's size is allocated.

    A few bytes can decode to gigabytes of voxels. Masks are only allocated when an image of that size exists.
    """
    if math.prod(file.shape) > MAX_VOXELS:
        raise BadJournal(f"The journal's image shape {file.shape} is too large. The limit is {MAX_VOXELS:,} voxels.")
    for step in (step for segment in file.segments for step in (*segment.steps, *segment.undone)):
        for mask in (step.change, getattr(step.request, "mask", None)):
            if mask is not None:
                masks.check(mask, file.shape)
