"""What a client tells its user as it happens. ``name`` is what ``session.on`` takes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nninteractive_ws.errors import Error
from nninteractive_ws.geometry import Box
from nninteractive_ws.messages import NoticeCode, ProgressState, Timings, Welcome


@dataclass(frozen=True)
class Connection:
    """What became of the connection.

    ``open``: the server has said ``welcome``; its ``resumed`` says whether it still had the session, which is
    brought back otherwise. ``lost``: for the ``reason``, and it is tried again in ``retry_in`` seconds (None:
    with the next request). ``closed``: for the ``reason``, and for ever; the last event of a session.
    """

    name: ClassVar = "connection"
    state: Literal["open", "lost", "closed"]
    welcome: Welcome | None = None
    reason: str = ""
    retry_in: float | None = None


@dataclass(frozen=True)
class ImageProgress:
    """``present`` of ``total`` bricks of the image are on the server."""

    name: ClassVar = "image_progress"
    present: int
    total: int


@dataclass(frozen=True)
class Progress:
    """What a request is doing. ``n`` of ``m``: place in the queue, bricks there, or passes made."""

    name: ClassVar = "progress"
    request: int
    segment: str | None
    state: ProgressState
    n: int
    m: int


@dataclass(frozen=True)
class MaskDelta:
    """A segment's mask has changed inside ``box``; the mask holds it already. Not ``final``: a preview.
    ``request`` is None where the whole mask was fetched again because a change was missing."""

    name: ClassVar = "mask_delta"
    request: int | None
    segment: str
    box: Box
    revision: int
    voxels: int
    final: bool


@dataclass(frozen=True)
class Result:
    """What a request did. ``changed``: the box around all it changed. ``timings``: seconds, on the server."""

    request: int
    segment: str | None
    changed: Box | None
    voxels: int
    revision: int
    timings: Timings


@dataclass(frozen=True)
class Done:
    """A request is done."""

    name: ClassVar = "done"
    result: Result


@dataclass(frozen=True)
class Failed:
    """A request failed, or with no ``request`` the session: it is closed next."""

    name: ClassVar = "error"
    request: int | None
    error: Error


@dataclass(frozen=True)
class Notice:
    """Something the user should know."""

    name: ClassVar = "notice"
    code: NoticeCode
    message: str


Event = Connection | ImageProgress | Progress | MaskDelta | Done | Failed | Notice
EventName = Literal["connection", "image_progress", "progress", "mask_delta", "done", "error", "notice"]
EVENT_NAMES: tuple[EventName, ...] = (
    "connection",
    "image_progress",
    "progress",
    "mask_delta",
    "done",
    "error",
    "notice",
)
