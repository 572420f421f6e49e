"""The view of a session in a notebook: slices, prompts by mouse and live masks. It needs the extra ``notebook``."""

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
import threading
import time
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from nninteractive_ws.client import events
from nninteractive_ws.client.aio import AsyncSegment, AsyncSession
from nninteractive_ws.client.array_like import ArrayLike
from nninteractive_ws.client.display_grid import DisplayGrid
from nninteractive_ws.client.events import Event, EventName, Result
from nninteractive_ws.client.image_source import to_wire
from nninteractive_ws.client.notebook_panel import Drag, Panel, Tool
from nninteractive_ws.client.slice_shapes import draw_shape
from nninteractive_ws.errors import Error, NoImage
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Delta, Mask

Request: TypeAlias = Coroutine[Any, Any, Result]
Offsets: TypeAlias = npt.NDArray[np.uint32]

#: The prompts of a model for each tool. One is enough.
PROMPTS: dict[Tool, set[str]] = {
    "point": {"point"},
    "box": {"bbox2d", "bbox3d"},
    "scribble": {"scribble"},
    "lasso": {"lasso"},
}
#: Colors of segments, red, green and blue. They repeat.
COLORS = ((230, 75, 60), (60, 180, 75), (0, 130, 200), (255, 190, 25), (145, 70, 200), (70, 220, 220), (240, 90, 210))
#: Color and label of the shape that is being drawn. The labels of segments are the numbers of their colors, from 1.
DRAWN_COLOR, DRAWN = (255, 255, 255), len(COLORS) + 1
NO_VOXELS: Offsets = np.zeros(0, np.uint32)
#: Shortest time between two updates of the browser, so that previews do not block it. It copies the labels of the whole
#: volume to its GPU each time, and the connection may be slow.
INTERVAL_S, INTERVAL_S_PER_VOXEL, INTERVAL_S_PER_BYTE = 0.1, 0.4 / 2**26, 1 / 20e6
EVENTS: tuple[EventName, ...] = ("connection", "progress", "mask_delta", "done", "notice")


class View:
    """The view of a session in a notebook, made by ``Session.view``.

    A cell shows it as its last line, or with ``display``. It ends with its session, when the session gets another
    image, or by ``close``.
    """

    def __init__(
        self, session: AsyncSession, submit: Callable[[Request], "Future[Result]"], affine: ArrayLike | None
    ) -> None:
        image = session._core.image
        if image is None:
            raise NoImage("There is no image to view. Call set_image first.")
        self._session, self._submit, self._image = session, submit, image
        self._grid = DisplayGrid(image.grid.shape, to_affine(affine))
        self._labels: dict[str, int] = {}  # by segment
        self._lock = threading.Lock()  # for what several threads set:
        self._changed: Box | None = Box.whole(image.grid.shape)
        self._drawn = NO_VOXELS
        self._status = "The browser opens the image."
        self._has_loaded = self._is_loaded = self._has_ended = False
        self._shown_drawn = NO_VOXELS
        prompts = set(session.server.model.prompts)
        self._panel = Panel(
            self._grid.nifti(_to_nifti_type(to_wire(image.volume))),
            [tool for tool, needed in PROMPTS.items() if needed & prompts],
            [*COLORS, DRAWN_COLOR],
            on_load=self._on_load,
            on_move=self._on_move,
            on_release=self._on_release,
            on_action=self._on_action,
        )
        for name in EVENTS:
            session.on(name, self._on_event)
        self._wake = threading.Event()
        self._wake.set()
        threading.Thread(target=self._run, name="nninteractive-ws view", daemon=True).start()

    @property
    def widget(self) -> Any:
        """The view as an ``ipywidgets.VBox``, for layouts with other widgets."""
        return self._panel.widget

    def close(self) -> None:
        """Remove the view from the page, and free its memory. The session continues."""
        self._end("The view was closed.")
        self._panel.close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return what a notebook displays."""
        return self.widget._repr_mimebundle_(**options)

    # ---- on the thread of the kernel ----------------------------------------------------------------------

    def _on_load(self) -> None:
        with self._lock:
            self._has_loaded = True
        self._show_status(f"{self._session.server.model.name}: click into the image.")

    def _on_move(self, drag: Drag) -> None:
        if self._panel.tool != "point":
            shape = self._shape(drag)
            assert shape.box is not None
            self._show_drawn(self._grid.offsets(shape.box, shape.flips))

    def _on_release(self, drag: Drag) -> None:
        tool, positive = self._panel.tool, self._panel.positive
        segment = self._session.segment(self._panel.segment)
        if tool == "point":
            if drag.is_click:
                voxel = self._grid.voxel(drag.positions[-1])
                self._request(segment.add_point(voxel, positive=positive))
            return
        shape = self._shape(drag)
        assert shape.box is not None
        if tool == "box":
            self._request(segment.add_bbox(shape.box, positive=positive))
        else:
            add = segment.add_scribble if tool == "scribble" else segment.add_lasso
            self._request(add(shape.flips, box=shape.box, positive=positive))

    def _on_action(self, name: str) -> None:
        segment = self._session.segment(self._panel.segment)
        actions: dict[str, Callable[[AsyncSegment], Request]] = {
            "undo": AsyncSegment.undo,
            "redo": AsyncSegment.redo,
            "reset": AsyncSegment.reset,
        }
        self._request(actions[name](segment))

    def _shape(self, drag: Drag) -> Delta:
        """Return the voxels of the shape of a drag."""
        tool = self._panel.tool
        assert tool != "point"
        normal = self._grid.normal(drag.view)
        path = [self._grid.voxel(position) for position in drag.positions]
        thickness = np.delete(self._session.server.model.scribble_thickness, normal)
        return draw_shape(tool, path, normal, self._grid.shape, max(1, round(float(thickness.mean()))))

    def _show_drawn(self, voxels: Offsets) -> None:
        with self._lock:
            self._drawn = voxels
        self._wake.set()

    def _request(self, request: Request) -> None:
        """Send a request without waiting for its answer."""
        try:
            self._submit(request).add_done_callback(self._on_answer)
        except Error as e:
            self._show_status(str(e))

    # ---- on the I/O thread --------------------------------------------------------------------------------

    def _on_answer(self, answer: "Future[Result]") -> None:
        self._show_drawn(NO_VOXELS)
        if answer.cancelled():
            return
        if isinstance(error := answer.exception(), Error):
            self._show_status(str(error))
        elif error is not None:
            raise error

    def _on_event(self, event: Event) -> None:
        if isinstance(event, events.MaskDelta):
            self._mark_changed(event.box)
        elif isinstance(event, events.Done):
            self._on_done(event.result)
        elif isinstance(event, events.Connection) and event.state == "closed":
            self._end(event.reason)
        else:
            self._show_status(describe(event))

    def _on_done(self, result: Result) -> None:
        if result.segment is None:
            self._wake.set()  # the image may be another one
            return
        if result.segment not in self._session.segments:  # it was removed
            self._mark_changed(Box.whole(self._grid.shape))
        self._show_status(f"{result.segment}: {result.voxels:,} voxels after {result.timings.total:.1f} s.")

    def _mark_changed(self, box: Box) -> None:
        with self._lock:
            self._changed = box.union(self._changed)
        self._wake.set()

    # ---- on any thread ------------------------------------------------------------------------------------

    def _show_status(self, text: str) -> None:
        with self._lock:
            self._status = text
        self._wake.set()

    def _end(self, reason: str) -> None:
        with self._lock:
            if self._has_ended:
                return
            self._has_ended, self._status = True, reason
        for name in EVENTS:
            self._session._off(name, self._on_event)
        self._wake.set()

    # ---- on the view's thread, which sends all updates to the browser ----------------------------------------

    def _run(self) -> None:
        while not self._has_ended:
            self._wake.wait()
            self._wake.clear()
            time.sleep(self._update())
        self._panel.disable()
        self._panel.show_status(self._status)

    def _update(self) -> float:
        """Update the browser. Return the seconds until the next update."""
        with self._lock:
            box, self._changed = self._changed, None
            has_loaded, self._has_loaded = self._has_loaded, False
            drawn, status = self._drawn, self._status
        try:
            segments = self._read_segments()
        except NoImage as e:
            self._end(str(e))
            return 0.0
        offsets = NO_VOXELS if box is None else self._update_labels(box, segments)
        if has_loaded:
            self._panel.enable_labels()
            self._is_loaded = True
            offsets = np.flatnonzero(self._grid.bitmap).astype(np.uint32)
        sent = self._send(offsets, drawn) if self._is_loaded else 0
        self._panel.show_segments([(s.name, s.voxels, COLORS[self._label(s.name) - 1]) for s in segments])
        self._panel.show_status(status)
        return INTERVAL_S + INTERVAL_S_PER_VOXEL * self._grid.bitmap.size + INTERVAL_S_PER_BYTE * sent

    def _read_segments(self) -> "list[SegmentState]":
        """Raises NoImage if the session has another image, which can happen at any time."""
        segments = [self._session.segment(name) for name in self._session.segments]
        states = [SegmentState(segment.name, segment.voxels, segment.mask) for segment in segments]
        if self._session._core.image is not self._image:
            raise NoImage("The session has another image. Call view() again.")
        return states

    def _label(self, segment: str) -> int:
        return self._labels.setdefault(segment, len(self._labels) % len(COLORS) + 1)

    def _update_labels(self, box: Box, segments: "list[SegmentState]") -> Offsets:
        """Copy the masks in a box to the labels. Return the voxels whose labels changed."""
        labels = np.zeros(box.shape, np.uint8)
        for segment in segments:
            labels[segment.mask[box.slices]] = self._label(segment.name)
        shown = self._grid.labels[box.slices]
        offsets = self._grid.offsets(box, labels != shown)
        shown[...] = labels
        return offsets

    def _send(self, changed: Offsets, drawn: Offsets) -> int:
        """Send the labels of these voxels, with the shape being drawn. Return the number of bytes."""
        before, self._shown_drawn = self._shown_drawn, drawn
        offsets = np.unique(np.concatenate([changed, before, drawn])) if before is not drawn else changed
        labels = self._grid.bitmap[offsets]
        labels[np.isin(offsets, drawn)] = DRAWN
        return self._panel.set_labels(offsets, labels)


class SegmentState(NamedTuple):
    """A segment at the time of an update. ``mask``: (i, j, k), changed by the session at any time."""

    name: str
    voxels: int
    mask: Mask


def to_affine(affine: ArrayLike | None) -> npt.NDArray[np.float64]:
    """Return the matrix from voxels to millimeters. Raises ValueError if it is none."""
    matrix = np.eye(4) if affine is None else np.asarray(affine, np.float64)
    if (
        matrix.shape != (4, 4)
        or not np.isfinite(matrix).all()
        or not np.array_equal(matrix[3], (0, 0, 0, 1))
        or np.linalg.matrix_rank(matrix) < 4
    ):
        raise ValueError(
            f"The affine {affine!r} is not a matrix from voxels to millimeters. It needs 4 rows and 4 columns of "
            "finite numbers, three independent axes, and the last row 0, 0, 0, 1, as image.affine of nibabel has."
        )
    return matrix


def _to_nifti_type(volume: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return a volume of a type that NIfTI has."""
    return volume.astype(np.float32) if volume.dtype == np.float16 else volume


def describe(event: Event) -> str:
    """Return a sentence on an event for the status line."""
    if isinstance(event, events.Progress):
        return f"{event.segment}: {_PROGRESS[event.state].format(done=event.done, total=event.total)}"
    if isinstance(event, events.Notice):
        return event.message
    assert isinstance(event, events.Connection)
    return f"Connection lost. {event.reason}" if event.state == "lost" else "Connected."


_PROGRESS = {
    "queued": "waits for {done} requests.",
    "waiting_for_image": "waits for the image, {done} of {total} parts.",
    "predicting": "predicting.",
    "refining": "refining, {done} of {total}.",
}
