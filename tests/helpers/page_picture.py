"""Pictures of the web page for the documentation: ``python -m helpers.page_picture FOLDER``

``PYTHONPATH`` names the folder of the tests. ``page.webp`` shows the page, and ``page-live.webp`` how masks grow: each
of its frames is a screenshot of a real browser. It shows no pause longer than a second.
"""

from dataclasses import dataclass, field
import io
from itertools import pairwise
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

from PIL import Image, ImageDraw

from helpers.browser import PageUser, Voxel, build_page, chromium, page_user
from helpers.end_to_end import server_process

_SIZE = (1280, 720)
#: The size of the moving picture, and how long its frames are shown.
_SMALL = (880, 495)
_MAX_FRAME_MS, _LAST_FRAME_MS = 1000, 2500
#: Voxels of the phantom, and what is done there.
_LIVER, _STOMACH, _KIDNEY = (40, 50, 56), (110, 48, 56), (62, 90, 56)


@dataclass
class _Recorder:
    """Screenshots of a page, with the mouse. ``frames``: a picture and its time."""

    user: PageUser
    pointer: tuple[float, float] = (0, 0)
    frames: list[tuple[Image.Image, float]] = field(default_factory=list)

    def take(self) -> None:
        picture = Image.open(io.BytesIO(self.user.page.screenshot(type="png"))).convert("RGB")
        x, y = self.pointer
        arrow = [(x, y), (x, y + 20), (x + 5, y + 15), (x + 13, y + 14)]
        ImageDraw.Draw(picture).polygon(arrow, fill="white", outline="black")
        self.frames.append((picture, time.monotonic()))

    def click(self, voxel: Voxel) -> None:
        """Click on a voxel, and take pictures until the result is there."""
        self.user.show(voxel)
        self.pointer = self.user.pixel(voxel)
        self.take()
        self.user.page.mouse.click(*self.pointer)
        cancel = self.user.page.get_by_role("button", name="Cancel", exact=True)
        self.take()
        while cancel.is_enabled():
            self.take()
        self.user.wait_for_result()
        self.take()

    def write(self, path: Path) -> None:
        small = [picture.resize(_SMALL, Image.Resampling.LANCZOS) for picture, _ in self.frames]
        times = [at for _, at in self.frames]
        durations = [min(round(1000 * (end - start)), _MAX_FRAME_MS) for start, end in pairwise(times)]
        small[0].save(
            path,
            save_all=True,
            append_images=small[1:],
            duration=[*durations, _LAST_FRAME_MS],
            loop=0,
            quality=60,
            method=6,
        )


def _record(browser: Any, address: str, folder: Path) -> None:
    with page_user(browser, viewport={"width": _SIZE[0], "height": _SIZE[1]}) as user:
        user.open_example(address)
        recorder = _Recorder(user)
        recorder.take()
        for n, voxel in enumerate((_LIVER, _STOMACH, _KIDNEY)):
            if n:
                user.press("e")
            recorder.click(voxel)
        user.page.mouse.move(1200, 700)
        last = Image.open(io.BytesIO(user.page.screenshot(type="png"))).convert("RGB")
        last.save(folder / "page.webp", quality=80, method=6)
        recorder.write(folder / "page-live.webp")


def write(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "page"
        build_page(page)
        with server_process("--model", "demo", page=page) as server, chromium() as browser:
            _record(browser, server.address, folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
