"""Draw the moving picture of the README: ``python -m tools.live_picture docs/images/live.webp``

A real server with the embedded model segments organs of a phantom over an emulated slow link. Every change of a mask is
recorded. The picture shows the changes in their order. It shortens pauses, since they depend on the machine.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

import nninteractive_ws as nni
from nninteractive_ws.benchmark.network_emulation import LinkSpeed, link
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import Phantom, make_phantom
from nninteractive_ws.evaluation.simulated_user import correction, deepest_voxel
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.local_server import local_server

#: Voxels small enough that the liver is larger than what the network looks at in one pass.
SHAPE = (256, 208, 180)
SPACING = (1.5625, 1.5625, 1.5625)
#: The organs with their colors and how many corrections they get after the first click.
ORGANS = {
    "right kidney": ((250, 200, 60), 0),
    "left kidney": ((90, 200, 110), 0),
    "spleen": ((90, 180, 240), 0),
    "liver": ((230, 80, 70), 0),
    "aorta": ((200, 120, 230), 2),
}
SPEED = LinkSpeed("2 Mbit/s", 2e6, 0.01)
#: How long a frame is shown: one that only shows more of the upload, one with a new caption, and the last one.
UPLOAD_FRAME_MS = 90
FRAME_MS = 600
LAST_FRAME_MS = 2500
#: A frame for every so many parts of the upload.
UPLOAD_STEP = 0.03
WINDOW = (-160.0, 300.0)
SCALE = 2
MARGIN = 8
CAPTION = 54


@dataclass
class Moment:
    """The state after an event. ``views``: for each organ its slices in the two views."""

    caption: str
    uploaded: float
    points: list[tuple[tuple[int, int, int], bool]]
    views: dict[str, tuple[Mask, Mask]]


@dataclass
class Recorder:
    """Takes a moment at every event of a session. ``cut``: the coronal and the axial slice that are shown."""

    cut: tuple[int, int]
    caption: str = ""
    uploaded: float = 0.0
    points: list[tuple[tuple[int, int, int], bool]] = field(default_factory=list)
    views: dict[str, tuple[Mask, Mask]] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)

    def take(self) -> None:
        self.moments.append(Moment(self.caption, self.uploaded, list(self.points), dict(self.views)))

    def on_image(self, event: events.ImageProgress) -> None:
        self.uploaded = event.present / event.total
        self.take()

    def on_delta(self, event: events.MaskDelta, segment: nni.Segment) -> None:
        coronal, axial = self.cut
        self.views[event.segment] = (segment.mask[:, :, axial].copy(), segment.mask[:, coronal, :].copy())
        self.caption = f"{event.segment}: preview, {event.voxels:,} voxels"
        self.take()

    def prompt(self, segment: nni.Segment, point: tuple[int, int, int], positive: bool = True) -> None:
        self.points.append((point, positive))
        self.caption = f"{segment.name}: {'click' if positive else 'negative click'}"
        self.take()
        result = segment.add_point(point, positive=positive)
        self.caption = f"{segment.name}: result, {result.voxels:,} voxels"
        self.take()


def record(phantom: Phantom) -> Recorder:
    """Segment the organs one after the other, the first right after the image is announced."""
    clicks = {organ: deepest_voxel(phantom.mask(organ)) for organ in ORGANS}
    _, coronal, axial = np.median(list(clicks.values()), axis=0).astype(int)
    with local_server("--model", "demo", "--log-level", "warning") as address:
        port = urlsplit(address).port
        assert port is not None
        with nni.connect(address):  # the model has been loaded once this returns
            pass
        with link(port, SPEED) as slow, nni.connect(f"ws://127.0.0.1:{slow.port}") as session:
            recorder = Recorder((int(coronal), int(axial)))
            segments = {organ: session.segment(organ) for organ in ORGANS}
            session.on("image_progress", recorder.on_image)
            session.on("mask_delta", lambda event: recorder.on_delta(event, segments[event.segment]))
            recorder.caption = "image opened"
            recorder.take()
            session.set_image(phantom.image)
            for organ, click in clicks.items():
                recorder.prompt(segments[organ], click)
                for _ in range(ORGANS[organ][1]):
                    if found := correction(phantom.mask(organ), segments[organ].mask):
                        recorder.prompt(segments[organ], *found)
    return recorder


def draw(phantom: Phantom, recorder: Recorder, moment: Moment) -> Image.Image:
    """The frame of a moment."""
    coronal, axial = recorder.cut
    low, high = WINDOW
    panels = []
    for view, image in enumerate((phantom.image[:, :, axial], phantom.image[:, coronal, :])):
        gray = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1) * 255
        color = np.repeat(gray[..., None], 3, axis=-1)
        for organ, masks in moment.views.items():
            mask = masks[view]
            color[mask] = 0.5 * color[mask] + 0.5 * np.array(ORGANS[organ][0], np.float32)
        panels.append(_panel(color, upside_down=view == 1))
    width = sum(p.width for p in panels) + 3 * MARGIN
    height = max(p.height for p in panels) + 2 * MARGIN + CAPTION
    frame = Image.new("RGB", (width, height), (16, 18, 22))
    left, pen = MARGIN, ImageDraw.Draw(frame)
    for view, panel in enumerate(panels):
        top = MARGIN + (height - CAPTION - 2 * MARGIN - panel.height) // 2
        frame.paste(panel, (left, top))
        for (i, j, k), positive in moment.points:
            row = j if view == 0 else phantom.image.shape[2] - 1 - k
            _mark(pen, left + SCALE * i, top + SCALE * row, positive)
        left += panel.width + MARGIN
    _caption(pen, moment, width, height)
    return frame


def _panel(color: npt.NDArray[np.float32], upside_down: bool) -> Image.Image:
    rows = np.swapaxes(color, 0, 1).astype(np.uint8)
    panel = Image.fromarray(rows[::-1] if upside_down else rows)
    return panel.resize((panel.width * SCALE, panel.height * SCALE), Image.Resampling.BICUBIC)


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, positive: bool) -> None:
    """Draw a plus or a minus."""
    for width, color in ((5, (0, 0, 0)), (2, (255, 255, 255))):
        pen.line((x - 7, y, x + 7, y), color, width)
        if positive:
            pen.line((x, y - 7, x, y + 7), color, width)


def _caption(pen: ImageDraw.ImageDraw, moment: Moment, width: int, height: int) -> None:
    font = ImageFont.load_default(18)
    top = height - CAPTION
    pen.text((MARGIN, top), moment.caption, (255, 255, 255), font)
    sent = f"image on the server: {moment.uploaded:.0%}"
    pen.text((width - MARGIN, top), sent, (170, 180, 190), font, anchor="ra")
    bar = height - 2 * MARGIN
    pen.rectangle((MARGIN, bar, width - MARGIN, bar + 5), (50, 54, 60))
    pen.rectangle((MARGIN, bar, MARGIN + int((width - 2 * MARGIN) * moment.uploaded), bar + 5), (110, 170, 240))


def _selected(moments: Sequence[Moment]) -> list[Moment]:
    """Drop moments that show little more than the one before."""
    chosen = [moments[0]]
    for moment in moments[1:]:
        if moment.caption != chosen[-1].caption or moment.uploaded >= chosen[-1].uploaded + UPLOAD_STEP:
            chosen.append(moment)
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="a .webp, .gif or .png file")
    path: Path = parser.parse_args(arguments).path
    phantom = make_phantom(0, SHAPE, SPACING)
    recorder = record(phantom)
    moments = _selected(recorder.moments)
    frames = [draw(phantom, recorder, moment) for moment in moments]
    new = [before.caption != after.caption for before, after in pairwise(moments)]
    durations = [FRAME_MS if is_new else UPLOAD_FRAME_MS for is_new in (True, *new)]
    durations[-1] = LAST_FRAME_MS
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70, method=6)
    print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
