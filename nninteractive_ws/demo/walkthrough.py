"""The demonstration: segment organs of the phantom with each kind of prompt, through a real server."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import time
from typing import Any

import numpy as np

from nninteractive_ws.client import events
from nninteractive_ws.client.blocking import Segment, Session
from nninteractive_ws.demo.phantom import Phantom
from nninteractive_ws.evaluation import simulated_user
from nninteractive_ws.evaluation.measures import dice
from nninteractive_ws.masks import Mask

#: Prompts of each organ, in order. A correction is a point at the deepest voxel of the largest error.
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
class OrganResult:
    """The result for an organ. ``first_preview`` and ``first_result``: seconds from its first prompt. ``sent`` and
    ``received``: bytes of all messages meanwhile, including parts of the image if its upload has not finished."""

    organ: str
    prompts: list[str] = field(default_factory=list)
    dice: float = 0.0
    first_preview: float = 0.0
    first_result: float = 0.0
    sent: int = 0
    received: int = 0
    mask: Mask = field(default_factory=lambda: np.zeros((0, 0, 0), bool))


def walk_through(session: Session, phantom: Phantom, on_status: Callable[[str], None]) -> Iterator[OrganResult]:
    """Segment the organs of :data:`ORGANS`, and yield their results. ``on_status``: called with progress messages."""
    timer = _PreviewTimer(on_status)
    session.on("mask_delta", timer.on_delta)
    for organ, prompts in ORGANS.items():
        truth = phantom.mask(organ)
        if not truth.any():
            continue
        result, segment = OrganResult(organ), session.segment(organ)
        sent, received = session.bytes_sent, session.bytes_received
        for prompt in prompts:
            timer.start(organ, prompt)
            started = time.monotonic()
            if (applied := _send_prompt(prompt, segment, truth)) is None:
                continue
            if not result.prompts:
                result.first_result = time.monotonic() - started
                result.first_preview = timer.first_preview or result.first_result
            result.prompts.append(applied)
        result.sent, result.received = session.bytes_sent - sent, session.bytes_received - received
        result.mask = segment.mask.copy()
        result.dice = dice(result.mask, truth)
        yield result


class _PreviewTimer:
    """Times and reports the previews of the current prompt."""

    def __init__(self, on_status: Callable[[str], None]) -> None:
        self._on_status = on_status
        self._started = 0.0
        self._label = ""
        self.first_preview: float | None = None

    def start(self, organ: str, prompt: str) -> None:
        self._started, self._label, self.first_preview = time.monotonic(), f"{organ}: {prompt}", None
        self._on_status(self._label)

    def on_delta(self, event: events.MaskDelta) -> None:
        elapsed = time.monotonic() - self._started
        if not event.final and self.first_preview is None:
            self.first_preview = elapsed
        kind = "result" if event.final else "preview"
        self._on_status(f"{self._label}: {kind} after {elapsed:.2f} s, {event.voxels:,} voxels")


def _send_prompt(prompt: str, segment: Segment, truth: Mask) -> str | None:
    """Send a prompt of a kind. Return its name, or None if there is nothing to correct."""
    if prompt in ("correction", "negative point"):
        error = (truth, segment.mask) if prompt == "correction" else (truth & segment.mask, segment.mask)
        found = simulated_user.correction(*error) or (
            None if prompt == "correction" else (_outside_voxel(truth), False)
        )
        if found is None:
            return None
        segment.add_point(found[0], positive=found[1])
        return "point" if found[1] else "negative point"
    _PROMPTS[prompt](segment, truth)
    return prompt


def _outside_voxel(truth: Mask) -> tuple[int, int, int]:
    """Return a voxel near the object that does not belong to it."""
    box = simulated_user.largest_slice(truth)
    (i0, _), (j0, j1), (k, _) = box
    return max(0, i0 - 6), (j0 + j1) // 2, k


def _add_point(segment: Segment, truth: Mask) -> Any:
    return segment.add_point(simulated_user.deepest_voxel(truth))


def _add_box(segment: Segment, truth: Mask) -> Any:
    return segment.add_bbox(simulated_user.largest_slice(truth))


def _add_scribble(segment: Segment, truth: Mask) -> Any:
    mask, box = simulated_user.scribble(truth)
    return segment.add_scribble(mask, box=box)


def _add_lasso(segment: Segment, truth: Mask) -> Any:
    mask, box = simulated_user.lasso(truth)
    return segment.add_lasso(mask, box=box)


_PROMPTS = {"point": _add_point, "box": _add_box, "scribble": _add_scribble, "lasso": _add_lasso}
