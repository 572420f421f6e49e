"""The web page in Chromium, used as a person does: by mouse and keyboard, and read from the document.

Playwright drives the browser. Waits look at the document only, because the page's content security policy forbids the
evaluation of texts inside of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
import re
import subprocess
from typing import Any

import msgspec
import pytest

from helpers.chromium import ARGUMENTS, find_chromium
from helpers.web_sources import WEB, missing_program
from nninteractive_ws import messages as wire

#: A name that the browser resolves to this machine, although it is no name of loopback.
OTHER_HOST = "gpu-box.test"
#: Timeout for what the page shows, in milliseconds. Software rendering on a busy machine is slow.
TIMEOUT_MS = 60_000
#: What the browser reports of a connection that was refused for want of a token.
UNAUTHORIZED = ("401", "HTTP Authentication failed")
_MAX_STEPS = 30
#: Distance in pixels over which the size of voxels is measured.
_PROBE = 100
_BUILD_TIMEOUT_S = 120

Voxel = tuple[int, int, int]
#: The axis that is orthogonal to the slices of each view, for an image whose axes are left, posterior and superior.
AXES = {"axial": 2, "coronal": 1, "sagittal": 0}


def build_page(folder: Path) -> None:
    """Build the web page from its sources. Skips the test if Node.js or its packages are missing."""
    if (reason := missing_program()) is not None:
        pytest.skip(reason)
    command = ["node", "build.mjs", str(folder)]
    built = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
    assert built.returncode == 0, built.stderr


def axe_source() -> str:
    """The script of axe-core. Skips the test if it is not installed."""
    path = WEB / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.skip("axe-core is missing: run npm ci in web/")
    return path.read_text()


def _playwright() -> Any:
    return pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser. Skips the test if Playwright or a browser is missing."""
    api = _playwright()
    if (program := find_chromium()) is None:
        pytest.skip("there is no Chromium on this machine")
    arguments = [*ARGUMENTS, f"--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@contextmanager
def page_user(browser: Any, **options: Any) -> Iterator["PageUser"]:
    """A person with a new profile of the browser. Fails at the end if the page reported an error. ``options``: of
    Playwright's new_context."""
    with browser.new_context(**options) as context:
        user = PageUser(context.new_page(), _playwright().expect)
        yield user
    assert user.problems == [], user.problems


@dataclass
class PageUser:
    """A person at the page. ``page``: Playwright's. ``problems``: errors of scripts, of the console, and violations of
    the content security policy."""

    page: Any
    expect: Any
    problems: list[str] = field(default_factory=list)
    #: Parts of problems that a test provokes.
    expected_problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.page.set_default_timeout(TIMEOUT_MS)
        self.expect.set_options(timeout=TIMEOUT_MS)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self._on_problem(str(error)))

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._on_problem(message.text)

    def _on_problem(self, text: str) -> None:
        if not any(part in text for part in self.expected_problems):
            self.problems.append(text)

    def open(self, address: str, query: str = "") -> None:
        """Open the page of a server."""
        self.page.goto(address.replace("ws://", "http://").rstrip("/") + "/" + query)

    def open_example(self, address: str) -> None:
        """Open the page with the example, and wait until all of it is on the server."""
        self.open(address, "?example")
        self.wait_for_status("The image is on the server.")

    # ---- what the page shows ----

    def wait_for_status(self, text: str) -> None:
        """Wait until the status line contains a text."""
        self.expect(self.page.locator("#status")).to_contain_text(text)

    @property
    def voxels(self) -> list[int]:
        """Voxels of the segments, in the order of the list."""
        rows = self.page.locator("#segments li").all()
        return [int(row.get_attribute("data-voxels")) for row in rows]

    def wait_for_voxels(self, *voxels: int) -> None:
        """Wait until the segments have these numbers of voxels."""
        rows = self.page.locator("#segments li")
        self.expect(rows).to_have_count(len(voxels))
        for row, count in zip(rows.all(), voxels, strict=True):
            self.expect(row).to_have_attribute("data-voxels", str(count))

    @property
    def names(self) -> list[str]:
        """Names of the segments."""
        return [str(text) for text in self.page.locator("#segments .name > span:first-child").all_inner_texts()]

    def wait_for_marks(self, **counts: int) -> None:
        """Wait until the views show these numbers of marks."""
        overlay = self.page.locator("#overlay")
        for plane, count in counts.items():
            self.expect(overlay).to_have_attribute("data-marks", re.compile(rf"\b{plane} {count}\b"))

    @property
    def crosshair(self) -> Voxel:
        """The voxel at which the slices meet."""
        self._next_frame()
        i, j, k = (int(self.page.input_value(f"#slider-{plane}")) for plane in ("sagittal", "coronal", "axial"))
        return i, j, k

    # ---- what a person does ----

    def press(self, *keys: str) -> None:
        """Press keys."""
        for key in keys:
            self.page.keyboard.press(key)

    def click(self, name: str) -> None:
        """Press the button of a name."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def show(self, voxel: Voxel) -> None:
        """Move the sliders of the slices to a voxel."""
        for plane, axis in AXES.items():
            self.page.fill(f"#slider-{plane}", str(voxel[axis]))
        self.expect(self.page.locator("#slider-axial")).to_have_value(str(voxel[2]))
        self._next_frame()

    def prompt(self, voxel: Voxel) -> None:
        """Click on a voxel with the point tool, and wait for the result."""
        self.show(voxel)
        self.press("p")
        self.page.mouse.click(*self.pixel(voxel))
        self.wait_for_result()

    def draw(self, tool: str, *path: Voxel, plane: str = "axial") -> None:
        """Drag a tool, named by its key, along voxels of a slice, and wait for the result."""
        self.show(path[0])
        self.press(tool)
        pixels = [self.pixel(voxel, plane) for voxel in path]
        self.page.mouse.move(*pixels[0])
        self.page.mouse.down()
        for pixel in pixels[1:]:
            self.page.mouse.move(*pixel, steps=4)
        self.page.mouse.up()
        self.wait_for_result()

    def wait_for_result(self) -> None:
        """Wait until no request is running."""
        self._next_frame()
        self.expect(self.page.get_by_role("button", name="Cancel", exact=True)).to_be_disabled()

    def pixel(self, voxel: Voxel, plane: str = "axial") -> tuple[float, float]:
        """Find the pixel of a voxel in a view by moving the mouse, as the page shows the voxel below it."""
        box = self.page.locator("#overlay").bounding_box()
        column, row = {"axial": (0.25, 0.25), "sagittal": (0.75, 0.25), "coronal": (0.25, 0.75)}[plane]
        x, y = box["x"] + column * box["width"], box["y"] + row * box["height"] - 12
        horizontal, vertical = (axis for axis in range(3) if axis != AXES[plane])
        at = self._voxel_at(x, y)
        # The smallest voxels are about 2 pixels wide, and each step follows the direction of the axis.
        right, below = self._voxel_at(x + _PROBE, y), self._voxel_at(x, y + _PROBE)
        per_x, per_y = (right[horizontal] - at[horizontal]) / _PROBE, (below[vertical] - at[vertical]) / _PROBE
        for _ in range(_MAX_STEPS):
            at = self._voxel_at(x, y)
            missing = voxel[horizontal] - at[horizontal], voxel[vertical] - at[vertical]
            if missing == (0, 0):
                return x, y
            x, y = x + missing[0] / per_x, y + missing[1] / per_y
        raise AssertionError(f"The {plane} view does not show voxel {voxel}, only {at}.")

    def _voxel_at(self, x: float, y: float) -> Voxel:
        self.page.mouse.move(x, y)
        text = self.page.inner_text("#position")
        found = re.match(r"Voxel (\d+), (\d+), (\d+):", text)
        assert found is not None, f"There is no voxel at {x}, {y}: {text!r}"
        i, j, k = map(int, found.groups())
        return i, j, k

    def _next_frame(self) -> None:
        """Wait until the page has drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    # ---- what the page keeps ----

    def save(self, button: str, folder: Path) -> Path:
        """Press a button that saves a file, and return the file."""
        with self.page.expect_download() as download:
            self.click(button)
        path = folder / str(download.value.suggested_filename)
        download.value.save_as(path)
        return path

    def steps(self, segment: str = "segment-1") -> list[wire.StepRequest]:
        """The steps of a segment that the page has stored, as the messages that it sent."""
        self.page.wait_for_timeout(1000)  # the page saves with a delay
        found: Sequence[dict[str, Any]] = self.page.evaluate(_READ_STEPS, segment)
        return [_message(request) for request in found]

    def axe(self) -> list[str]:
        """The problems that axe finds, each with the elements that it concerns."""
        self.page.evaluate(axe_source())
        found = self.page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found["violations"]]


#: Read the steps of a segment of the newest journal. Bytes become lists.
_READ_STEPS = """async (segment) => {
  const result = (request) => new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
  const database = await result(indexedDB.open('nninteractive-ws'));
  const records = await result(database.transaction('journals').objectStore('journals').getAll());
  database.close();
  records.sort((a, b) => b.savedAt - a.savedAt);
  const { steps } = records[0].journal.segments.find(({ name }) => name === segment);
  const plain = (value) => {
    if (value instanceof Uint8Array) return { bytes: [...value] };
    if (Array.isArray(value)) return value.map(plain);
    if (value === null || typeof value !== 'object') return value;
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, plain(each)]));
  };
  return steps.map(({ request }) => plain(request));
}"""


def _message(request: dict[str, Any]) -> wire.StepRequest:
    """Convert a request from the page's store to a message."""

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return bytes(value["bytes"]) if set(value) == {"bytes"} else {k: restored(v) for k, v in value.items()}
        return [restored(each) for each in value] if isinstance(value, list) else value

    message: wire.StepRequest = msgspec.convert(restored(request), wire.StepRequest)
    return message
