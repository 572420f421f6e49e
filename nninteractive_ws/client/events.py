"""Events of a session. ``session.on(name, callback)`` registers for one kind, by the class attribute ``name``."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nninteractive_ws.errors import Error
from nninteractive_ws.geometry import Box
from nninteractive_ws.messages import NoticeCode, ProgressState, Timings, Welcome


@dataclass(frozen=True)
class Connection:
    """The state of the connection changed. Its name is ``connection``.

    Attributes
    ----------
    state : {"open", "lost", "closed"}
        ``open``: the server has sent ``welcome``. ``lost``: the connection broke. ``closed``: the session ended. No
        event follows.
    welcome : Welcome, optional
        With ``open``. Its ``resumed`` tells whether the server still had the session; otherwise the client restores it.
    reason : str
        With ``lost`` and ``closed``: a sentence for the user.
    retry_in : float, optional
        With ``lost``: seconds until the next attempt. None: the next request connects.
    """

    name: ClassVar = "connection"
    state: Literal["open", "lost", "closed"]
    welcome: Welcome | None = None
    reason: str = ""
    retry_in: float | None = None


@dataclass(frozen=True)
class ImageProgress:
    """Bricks of the image arrived on the server. Its name is ``image_progress``.

    Attributes
    ----------
    present, total : int
        Bricks on the server, and bricks of the image.
    """

    name: ClassVar = "image_progress"
    present: int
    total: int


@dataclass(frozen=True)
class Progress:
    """The state of a request. Its name is ``progress``.

    Attributes
    ----------
    request : int
        Number of the request.
    segment : str, optional
        Segment of the request.
    state : {"queued", "waiting_for_image", "predicting", "refining"}
        ``queued``: ``done`` requests are ahead. ``waiting_for_image``: ``done`` of ``total`` bricks are there.
        ``refining``: ``done`` of ``total`` passes are made.
    done, total : int
        See ``state``. 0 where they have no meaning.
    """

    name: ClassVar = "progress"
    request: int
    segment: str | None
    state: ProgressState
    done: int
    total: int


@dataclass(frozen=True)
class MaskDelta:
    """The mask of a segment changed. Its name is ``mask_delta``. ``segment.mask`` has the change already.

    Attributes
    ----------
    request : int, optional
        Request that caused the change. None after the whole mask was fetched because a change was missing.
    segment : str
        Name of the segment.
    box : Box
        Bounding box of the change, in voxels (i, j, k).
    revision : int
        Revision of the mask after the change.
    voxels : int
        Voxels of the mask after the change.
    final : bool
        False: a preview.
    """

    name: ClassVar = "mask_delta"
    request: int | None
    segment: str
    box: Box
    revision: int
    voxels: int
    final: bool


@dataclass(frozen=True)
class Result:
    """Result of a request.

    Attributes
    ----------
    request : int
        Number of the request.
    segment : str, optional
        Name of the segment. None for ``set_image`` and ``set_options``.
    changed : Box, optional
        Bounding box of all changed voxels, (i, j, k). None if none changed.
    voxels : int
        Voxels of the mask.
    revision : int
        Revision of the mask.
    timings : Timings
        Seconds on the server: ``queued``, ``waiting_for_image``, ``network`` and ``total``; and ``passes``, the number
        of forward passes.
    """

    request: int
    segment: str | None
    changed: Box | None
    voxels: int
    revision: int
    timings: Timings


@dataclass(frozen=True)
class Done:
    """A request succeeded. Its name is ``done``.

    Attributes
    ----------
    result : Result
        The result of the request.
    """

    name: ClassVar = "done"
    result: Result


@dataclass(frozen=True)
class Failed:
    """A request failed, or the session did. Its name is ``error``.

    Attributes
    ----------
    request : int, optional
        Number of the request. None: the session failed, and closes.
    error : Error
        One of ``errors``.
    """

    name: ClassVar = "error"
    request: int | None
    error: Error


@dataclass(frozen=True)
class Notice:
    """Information for the user. Its name is ``notice``.

    Attributes
    ----------
    code : str
        ``loading_model``, ``worker_lost``, ``shutting_down``, ``evicted`` or ``warning``.
    message : str
        A sentence.
    """

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
