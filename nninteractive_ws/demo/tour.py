"""The demonstration: organs of the phantom, prompted in every way there is, through a real server."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import time
from typing import Any

import numpy as np

from nninteractive_ws.client import events
from nninteractive_ws.client.blocking import Segment, Session
from nninteractive_ws.demo.phantom import Phantom
from nninteractive_ws.evaluation import user
from nninteractive_ws.evaluation.measures import dice
from nninteractive_ws.masks import Mask

#: Which organ gets which prompts, in this order. A correction is a point in the middle of the largest error.
ORGANS: dict[str, tuple[str, ...]] = {
    "liver": ("lasso", "correction", "correction"),
    "right kidney": ("point",),
    "left kidney": ("box", "correction"),
    "spleen": ("scribble",),
    "stomach": ("point", "negative point", "correction"),
    "aorta": ("scribble", "correction", "correction"),
    "right lung": ("point", "correction"),
    "spine": ("point", "correction"),
}


@dataclass
class Stop:
    """What one organ took. ``first_preview`` and ``first_result``: seconds from its first prompt; ``sent``,
    ``received``: bytes of all its messages, of the image too where it was still on its way."""

    organ: str
    prompts: list[str] = field(default_factory=list)
    dice: float = 0.0
    first_preview: float = 0.0
    first_result: float = 0.0
    sent: int = 0
    received: int = 0
    mask: Mask = field(default_factory=lambda: np.zeros((0, 0, 0), bool))


def tour(session: Session, phantom: Phantom, say: Callable[[str], None]) -> Iterator[Stop]:
    """Segment the organs of :data:`ORGANS`, one after the other; ``say`` is told what happens."""
    watch = _Watch(say)
    session.on("mask_delta", watch.on_delta)
    for organ, prompts in ORGANS.items():
        truth = phantom.mask(organ)
        if not truth.any():
            continue
        stop, segment = Stop(organ), session.segment(organ)
        sent, received = session.bytes_sent, session.bytes_received
        for prompt in prompts:
            watch.start(organ, prompt)
            started = time.monotonic()
            if (given := _give(prompt, segment, truth)) is None:
                continue
            if not stop.prompts:
                stop.first_result = time.monotonic() - started
                stop.first_preview = watch.first_preview or stop.first_result
            stop.prompts.append(given)
        stop.sent, stop.received = session.bytes_sent - sent, session.bytes_received - received
        stop.mask = segment.mask.copy()
        stop.dice = dice(stop.mask, truth)
        yield stop


class _Watch:
    """The previews of the prompt in hand."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._started = 0.0
        self._what = ""
        self.first_preview: float | None = None

    def start(self, organ: str, prompt: str) -> None:
        self._started, self._what, self.first_preview = time.monotonic(), f"{organ}: {prompt}", None
        self._say(self._what)

    def on_delta(self, event: events.MaskDelta) -> None:
        elapsed = time.monotonic() - self._started
        if not event.final and self.first_preview is None:
            self.first_preview = elapsed
        kind = "result" if event.final else "preview"
        self._say(f"{self._what}: {kind} after {elapsed:.2f} s, {event.voxels:,} voxels")


def _give(prompt: str, segment: Segment, truth: Mask) -> str | None:
    """Give one prompt of a kind; its name, or None where there was nothing to correct."""
    if prompt in ("correction", "negative point"):
        error = (truth, segment.mask) if prompt == "correction" else (truth & segment.mask, segment.mask)
        found = user.correction(*error) or (None if prompt == "correction" else (_beside(truth), False))
        if found is None:
            return None
        segment.add_point(found[0], positive=found[1])
        return "point" if found[1] else "negative point"
    _PROMPTS[prompt](segment, truth)
    return prompt


def _beside(truth: Mask) -> tuple[int, int, int]:
    """A voxel in the neighbourhood of the object that is not of it."""
    box = user.largest_slice(truth)
    (i0, _), (j0, j1), (k, _) = box
    return max(0, i0 - 6), (j0 + j1) // 2, k


def _add_point(segment: Segment, truth: Mask) -> Any:
    return segment.add_point(user.middle(truth))


def _add_box(segment: Segment, truth: Mask) -> Any:
    return segment.add_bbox(user.largest_slice(truth))


def _add_scribble(segment: Segment, truth: Mask) -> Any:
    mask, box = user.scribble(truth)
    return segment.add_scribble(mask, box=box)


def _add_lasso(segment: Segment, truth: Mask) -> Any:
    mask, box = user.lasso(truth)
    return segment.add_lasso(mask, box=box)


_PROMPTS = {"point": _add_point, "box": _add_box, "scribble": _add_scribble, "lasso": _add_lasso}
