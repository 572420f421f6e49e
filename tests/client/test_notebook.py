"""The view of a notebook with ipyniivue's widgets, a core without a server, and a replica of the browser's drawing."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
import threading
import time
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from nninteractive_ws.client import events
from nninteractive_ws.client.aio import AsyncSegment
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Result
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.errors import ConnectionFailed, Error, NoImage, NothingToUndo
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import AddBbox, AddLasso, AddPoint, AddScribble, Reset, Timings, Undo

pytest.importorskip("ipyniivue", reason="the extra notebook is not installed")

from nninteractive_ws.client.notebook import COLORS, DRAWN, View, to_affine

SHAPE = (12, 14, 16)
#: The array axes are superior, right (to the left) and anterior.
AFFINE = np.array([[0, -2.0, 0, 5], [0, 0, 3, -7], [1.5, 0, 0, 2], [0, 0, 0, 1]])
RESULT = Result(1, "a", None, 7, 1, Timings(queued=0, waiting_for_image=0, network=0, total=0.5, passes=1))


class FakeSession:
    """The part of ``AsyncSession`` that a view uses, with a real core. ``error``: raised by the next request."""

    def __init__(self, volume: np.ndarray) -> None:
        self._core = Core()
        self._core.image = ImageSource.of(volume)
        prompts = ["point", "bbox2d", "scribble", "lasso"]
        self.server = SimpleNamespace(
            model=SimpleNamespace(name="fake", prompts=prompts, scribble_thickness=(1.0, 3.0, 3.0))
        )
        self.requests: list[Any] = []
        self.error: Error | None = None
        self.callbacks: dict[str, list[Callable[[Any], object]]] = defaultdict(list)

    def on(self, name: str, callback: Callable[[Any], object]) -> None:
        self.callbacks[name].append(callback)

    def _off(self, name: str, callback: Callable[[Any], object]) -> None:
        self.callbacks[name].remove(callback)

    def emit(self, event: Any) -> None:
        for callback in tuple(self.callbacks[event.name]):
            callback(event)

    @property
    def segments(self) -> list[str]:
        return self._core.segment_names

    def segment(self, name: str) -> AsyncSegment:
        return AsyncSegment(self, name)  # type: ignore[arg-type]

    async def _ask(self, command: Callable[[], int]) -> Result:
        self.requests.append(self._core._pending[command()].request)
        if self.error is not None:
            raise self.error
        return RESULT

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        future: Future[Result] = Future()
        try:
            future.set_result(asyncio.run(work))
        except Error as e:
            future.set_exception(e)
        return future

    def set_mask(self, name: str, mask: Mask) -> None:
        """Change a mask as a delta of the server does."""
        segment = self._core.segment(name)
        box = Box.whole(SHAPE)
        segment.writable_mask[...] = mask
        segment.revision, segment.voxels = segment.revision + 1, int(mask.sum())
        self.emit(events.MaskDelta(1, name, box, segment.revision, segment.voxels, False))


class Browser:
    """The browser's side of a view. ``drawing``: NiiVue's labels, once the volume is loaded. ``sent``: buffers."""

    def __init__(self, view: View) -> None:
        self.panel = view._panel
        self.viewer, self.volume = self.panel._viewer, self.panel._volume
        self.drawing: np.ndarray | None = None
        self.sent: list[tuple[np.ndarray, np.ndarray]] = []
        self.pen = True
        self.viewer.send = self._receive

    def _receive(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        if content["type"] == "set_drawing_enabled":
            (self.pen,) = content["data"]
        elif content["type"] == "buffer_update":
            assert self.drawing is not None
            assert not self.pen
            assert content["data"] == {"attr": "drawBitmap", "type": "uint8", "indices_type": "uint32"}
            offsets, labels = (np.frombuffer(b, t) for b, t in zip(buffers or (), ("u4", "u1"), strict=True))
            self.sent.append((offsets, labels))
            self.drawing[offsets] = labels

    def send(self, event: str, **data: Any) -> None:
        message = {"method": "custom", "content": {"event": event, "data": data}}
        self.viewer._handle_msg({"content": {"data": message}, "buffers": []})

    def load(self) -> None:
        """Open the volume, as after the page was loaded."""
        self.drawing, self.pen, self.sent = np.zeros(np.prod(SHAPE), np.uint8), True, []
        self.volume.set_state({"hdr": {}})
        self.send("image_loaded", id=self.volume.id, dims=None)

    def drag(self, *voxels: tuple[int, int, int], view: int = 0, pixels: float = 10) -> None:
        """Press the left button at a voxel of the array, and move to the others."""
        grid = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE))
        for n, voxel in enumerate(voxels):
            displayed = (np.linalg.inv(grid.affine) @ AFFINE @ (*voxel, 1))[:3]
            fractions = ((displayed + 0.5) / grid.shape).tolist()
            self.send("location_change", ax_cor_sag=view, frac=fractions, xy=[n * pixels, 0.0])
            self.send("hover_idx_change", idxValues=[])

    def release(self) -> None:
        self.send("mouse_up", is_dragging=False, mouse_pos=[0, 0], frac_pos={"0": 0, "1": 0, "2": 0})

    def press_button(self, name: str) -> None:
        (button,) = (b for b in self.panel._actions if b.description == name)
        button.click()


def shown(labels: np.ndarray) -> np.ndarray:
    """Labels of voxels (i, j, k) as NiiVue's drawing, by nibabel."""
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(labels, AFFINE)).dataobj).ravel(order="F")


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def cube(*start: int, size: int = 4) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(s, s + size) for s in start)] = True
    return mask


@pytest.fixture
def session() -> FakeSession:
    return FakeSession(np.random.default_rng(0).normal(size=SHAPE))


@pytest.fixture
def view(session: FakeSession) -> Iterator[View]:
    view = View(session, session.submit, AFFINE)  # type: ignore[arg-type]
    yield view
    view.close()


@pytest.fixture
def browser(view: View) -> Browser:
    return Browser(view)


def shows(browser: Browser, labels: np.ndarray) -> Callable[[], bool]:
    return lambda: browser.drawing is not None and np.array_equal(browser.drawing, shown(labels))


# ---- the volume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "float16", "float64"])
def test_the_browser_gets_the_volume(dtype: str) -> None:
    volume = np.random.default_rng(0).integers(0, 2, SHAPE).astype(dtype)
    session = FakeSession(volume)
    view = View(session, session.submit, AFFINE)  # type: ignore[arg-type]
    file = nib.Nifti1Image.from_bytes(view._panel._volume.data)
    expected = nib.as_closest_canonical(nib.Nifti1Image(volume.astype(np.float32), AFFINE))
    assert np.array_equal(file.get_fdata(), expected.get_fdata())
    assert np.array_equal(file.affine, expected.affine)
    view.close()


def test_voxels_are_cubes_of_1_mm_by_default() -> None:
    assert np.array_equal(to_affine(None), np.eye(4))


@pytest.mark.parametrize(
    "affine",
    [np.eye(3), np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.diag([1, np.nan, 1, 1]), np.ones((4, 4)), 2 * np.eye(4)],
)
def test_an_invalid_affine_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match="matrix from voxels to millimeters"):
        to_affine(affine)


def test_a_session_without_an_image_has_no_view(session: FakeSession) -> None:
    session._core.image = None
    with pytest.raises(NoImage, match="set_image"):
        View(session, session.submit, None)  # type: ignore[arg-type]


def test_voxels_that_the_browser_returns_are_ignored(browser: Browser) -> None:
    chunk = {"chunk_index": 0, "total_chunks": 1, "data_type": "int16", "chunk": memoryview(b"\1\0")}
    browser.volume.set_state({"chunk_img_0": chunk})
    browser.viewer.set_state({"chunk_draw_bitmap_0": chunk})
    assert browser.volume.img.size == 0
    assert browser.viewer.draw_bitmap is None


# ---- masks ------------------------------------------------------------------------------------------------


def test_masks_are_shown_once_the_volume_is_loaded(session: FakeSession, browser: Browser) -> None:
    wait_until(lambda: browser.panel._status.value == "The browser opens the image.")
    session.set_mask("a", cube(1, 2, 3))
    wait_until(lambda: "a: 64 voxels" in browser.panel._legend.value)
    assert browser.drawing is None
    browser.load()
    wait_until(shows(browser, cube(1, 2, 3).astype(np.uint8)))
    wait_until(lambda: browser.panel._status.value == "fake: click into the image.")
    browser.load()  # the page was loaded again
    wait_until(shows(browser, cube(1, 2, 3).astype(np.uint8)))


def test_only_changed_voxels_are_sent(session: FakeSession, browser: Browser) -> None:
    browser.load()
    session.set_mask("a", cube(1, 2, 3))
    wait_until(shows(browser, cube(1, 2, 3).astype(np.uint8)))
    session.set_mask("a", cube(2, 2, 3))
    wait_until(shows(browser, cube(2, 2, 3).astype(np.uint8)))
    assert [len(offsets) for offsets, _ in browser.sent] == [64, 32]


def test_the_segment_that_came_last_is_on_top(session: FakeSession, browser: Browser) -> None:
    browser.load()
    session.set_mask("a", cube(1, 2, 3))
    session.set_mask("b", cube(3, 4, 5))
    expected = cube(1, 2, 3).astype(np.uint8)
    expected[cube(3, 4, 5)] = 2
    wait_until(shows(browser, expected))
    del session._core.segments["b"]
    session.emit(events.Done(Result(2, "b", None, 0, 0, RESULT.timings)))
    wait_until(shows(browser, cube(1, 2, 3).astype(np.uint8)))
    assert browser.panel._segments.options == ("segment 1", "a") or browser.panel._segments.options == (
        "a",
        "segment 1",
    )


def test_colors_repeat(session: FakeSession, browser: Browser) -> None:
    browser.load()
    for n in range(len(COLORS) + 1):
        session.set_mask(f"s{n}", cube(1, 2, 3))
    wait_until(shows(browser, cube(1, 2, 3).astype(np.uint8)))


def test_two_views_show_the_same(session: FakeSession, browser: Browser) -> None:
    other = View(session, session.submit, AFFINE)  # type: ignore[arg-type]
    browsers = browser, Browser(other)
    for one in browsers:
        one.load()
    session.set_mask("a", cube(1, 2, 3))
    for one in browsers:
        wait_until(shows(one, cube(1, 2, 3).astype(np.uint8)))
    other.close()


def test_names_are_no_html(session: FakeSession, browser: Browser) -> None:
    session.set_mask("<b>", cube(1, 2, 3))
    wait_until(lambda: "&lt;b&gt;: 64 voxels" in browser.panel._legend.value)
    session.emit(events.Notice("warning", "<i>"))
    wait_until(lambda: browser.panel._status.value == "&lt;i&gt;")


# ---- prompts ----------------------------------------------------------------------------------------------


def test_a_click_is_a_point(session: FakeSession, browser: Browser) -> None:
    browser.drag((3, 4, 5))
    browser.release()
    browser.panel._sign.value = False
    browser.drag((6, 7, 8), (6, 7, 8), pixels=1)
    browser.release()
    assert [(r.segment, r.point, r.positive) for r in session.requests] == [
        ("segment 1", (3, 4, 5), True),
        ("segment 1", (6, 7, 8), False),
    ]
    assert all(isinstance(request, AddPoint) for request in session.requests)


def test_the_point_tool_only_looks_while_dragging(session: FakeSession, browser: Browser) -> None:
    browser.drag((3, 4, 5), (3, 4, 9))
    browser.release()
    assert session.requests == []


def test_other_buttons_the_wheel_and_the_keyboard_are_no_prompts(session: FakeSession, browser: Browser) -> None:
    browser.release()
    browser.send("location_change", ax_cor_sag=None, frac=[0.5, 0.5, 0.5], xy=[0, 0])
    browser.release()
    assert session.requests == []


def test_a_box_has_the_corners_of_the_drag(session: FakeSession, browser: Browser) -> None:
    browser.panel._tool.value = "box"
    browser.drag((3, 4, 5), (3, 9, 2), (3, 7, 12))
    browser.release()
    (request,) = session.requests
    assert isinstance(request, AddBbox)
    assert request.box == ((3, 4), (4, 8), (5, 13))


@pytest.mark.parametrize(("tool", "message"), [("scribble", AddScribble), ("lasso", AddLasso)])
def test_strokes_are_in_the_slice(session: FakeSession, browser: Browser, tool: str, message: type) -> None:
    """In the coronal view, which is perpendicular to k. The scribble is 2 voxels thick, the mean of 1 and 3."""
    browser.panel._tool.value = tool
    browser.drag((3, 4, 5), (9, 4, 5), (9, 10, 5), view=1)
    browser.release()
    (request,) = session.requests
    assert isinstance(request, message)
    assert request.mask.box[2] == (5, 6)
    expected = ((3, 10), (4, 11)) if tool == "lasso" else ((3, 11), (4, 12))
    assert request.mask.box[:2] == expected


def test_the_shape_is_shown_until_the_answer(session: FakeSession, browser: Browser) -> None:
    browser.load()
    session.set_mask("a", cube(1, 2, 3))
    browser.panel._tool.value = "box"
    browser.drag((3, 4, 5), (3, 7, 12))
    expected = cube(1, 2, 3).astype(np.uint8)
    expected[3, 4:8, 5:13] = DRAWN
    wait_until(shows(browser, expected))
    browser.release()
    wait_until(shows(browser, cube(1, 2, 3).astype(np.uint8)))


def test_a_drag_that_left_the_canvas_does_not_continue(session: FakeSession, browser: Browser) -> None:
    browser.panel._tool.value = "box"
    browser.drag((3, 4, 5), (3, 7, 12))
    browser.send("hover_idx_change", idxValues=[])  # moves without the button
    browser.drag((3, 9, 9), (3, 10, 11))
    browser.release()
    (request,) = session.requests
    assert request.box == ((3, 4), (9, 11), (9, 12))


def test_buttons_change_the_selected_segment(session: FakeSession, browser: Browser) -> None:
    browser.panel._new_name.value = " b "
    assert browser.panel._new_name.value == ""
    for name in ("Undo", "Reset"):
        browser.press_button(name)
    assert [(type(request), request.segment) for request in session.requests] == [(Undo, "b"), (Reset, "b")]


def test_errors_are_in_the_status_line(session: FakeSession, browser: Browser) -> None:
    session.error = NothingToUndo("There is nothing to undo.")
    browser.press_button("Undo")
    wait_until(lambda: browser.panel._status.value == "There is nothing to undo.")


def test_tools_that_the_model_lacks_are_not_offered(session: FakeSession) -> None:
    session.server.model.prompts = ["bbox3d", "point"]
    view = View(session, session.submit, AFFINE)  # type: ignore[arg-type]
    assert [value for _, value in view._panel._tool.options] == ["point", "box"]
    view.close()


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (events.Progress(1, "a", "queued", 2, 0), "a: waits for 2 requests."),
        (events.Progress(1, "a", "waiting_for_image", 2, 9), "a: waits for the image, 2 of 9 parts."),
        (events.Progress(1, "a", "predicting", 0, 0), "a: predicting."),
        (events.Progress(1, "a", "refining", 1, 4), "a: refining, 1 of 4."),
        (events.Connection("lost", reason="No network.", retry_in=1), "Connection lost. No network."),
        (events.Connection("open"), "Connected."),
        (events.Notice("warning", "A notice."), "A notice."),
        (events.Done(RESULT), "a: 7 voxels after 0.5 s."),
    ],
)
def test_events_are_in_the_status_line(session: FakeSession, browser: Browser, event: Any, text: str) -> None:
    session.emit(event)
    wait_until(lambda: browser.panel._status.value == text)


# ---- the end ----------------------------------------------------------------------------------------------


def threads() -> int:
    return sum(thread.name == "nninteractive-ws view" for thread in threading.enumerate())


def test_the_view_ends_with_the_session(session: FakeSession, browser: Browser) -> None:
    session.emit(events.Connection("closed", reason="The session was closed."))
    wait_until(lambda: browser.panel._tool.disabled and threads() == 0)
    assert browser.panel._status.value == "The session was closed."
    browser.drag((3, 4, 5))
    browser.release()
    assert session.requests == []
    assert not any(session.callbacks.values())


def test_the_view_ends_with_the_image(session: FakeSession, browser: Browser) -> None:
    session._core.image = ImageSource.of(np.random.default_rng(1).normal(size=(5, 5, 5)))
    session.emit(events.Done(Result(2, None, None, 0, 0, RESULT.timings)))
    wait_until(lambda: browser.panel._tool.disabled and threads() == 0)
    assert browser.panel._status.value == "The session has another image. Call view() again."


def test_a_closed_view_is_removed(session: FakeSession, view: View) -> None:
    view.close()
    wait_until(lambda: threads() == 0)
    assert view.widget.comm is view._panel._volume.comm is None
    assert not any(session.callbacks.values())
    view.close()


def test_a_prompt_after_the_session_was_closed_is_an_error(session: FakeSession, view: View) -> None:
    def submit(work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        work.close()
        raise ConnectionFailed("The session was closed.")

    view._submit = submit
    Browser(view).press_button("Redo")
    wait_until(lambda: view._panel._status.value == "The session was closed.")
