"""Records conformance scenarios from the engine's real session: ``python -m helpers.conformance_recorder``.

The frames, masks and histories are the server's. They differ a little on another machine, because networks do.
"""

import msgpack
import numpy as np
import torch

from helpers.conformance import FOLDER, Json, volume_of
from helpers.conformance_builder import (
    Mask,
    Scenario,
    mask_of,
    numbers,
    request,
    run_lengths,
    set_image,
    step_of,
    welcome,
)
from helpers.conformance_scenarios import to_text
from helpers.engine import boundless, quick
from helpers.shapes import ball
from nninteractive_ws import masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.upload import BrickPart
from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.model_loader import LoadedModel, load_model
from nninteractive_ws.engine.model_registry import DEMO, MODEL_FOLDER
from nninteractive_ws.engine.request_queue import RequestQueue
from nninteractive_ws.history import Segment

#: Longer than a patch, so that large prompts are refined in several passes.
SHAPE = (130, 36, 33)
IMAGE: Json = {"shape": SHAPE, "dtype": "int16", "factors": [3, 5, 7], "modulus": 101, "offset": -20}
STROKE = mask_of(SHAPE, [(20, j, 16) for j in range(10, 26)])
OUTLINE = np.zeros(SHAPE, bool)
OUTLINE[4:126, 18, 4:28] = True
BALL = ball(SHAPE, (20, 18, 16), 5.5)

#: Commands with their arguments. The message has the same fields, but for ``flip_mask``.
SCRIPT: list[tuple[str, Json]] = [
    ("add_point", {"segment": "liver", "point": [20, 18, 16]}),
    ("add_lasso", {"segment": "spleen", "mask": numbers(OUTLINE)}),
    ("add_point", {"segment": "liver", "point": [30, 18, 16], "positive": False}),
    ("undo", {"segment": "liver"}),
    ("add_bbox", {"segment": "liver", "box": [[10, 30], [8, 28], [16, 17]], "run": False}),
    ("add_scribble", {"segment": "liver", "mask": numbers(STROKE)}),
    ("undo", {"segment": "liver"}),
    ("redo", {"segment": "liver"}),
    ("set_mask", {"segment": "spleen", "mask": numbers(BALL)}),
    ("add_point", {"segment": "spleen", "point": [20, 18, 16]}),
    ("flip_mask", {"segment": "spleen", "mask": numbers(STROKE)}),
    ("add_point", {"segment": "kidney", "point": [12, 12, 12], "run": False}),
    ("run", {"segment": "kidney"}),
    ("run", {"segment": "kidney"}),
    ("reset", {"segment": "liver"}),
    ("undo", {"segment": "liver"}),
    ("remove_segment", {"segment": "kidney"}),
    ("set_mask", {"segment": "liver", "mask": numbers(BALL), "run": True}),
]


class Recorder:
    """A scenario with a client that sends what the script says, and the server's session."""

    def __init__(self, title: str, model: LoadedModel, device: DeviceScheduler) -> None:
        self.scenario = Scenario(title, "Masks", "History", ct=IMAGE)
        self._queue = RequestQueue("recorded", model, device, "deflate", boundless(), lambda: None)
        self._queue.attach(created=True)
        self._last_id = 1

    def open(self, source: ImageSource) -> None:
        s = self.scenario
        s.start()
        s.receive(welcome())
        announced = set_image(1, s.images["ct"])
        s.command("set_image", "image", expect={"sends": [announced]}, image="ct")
        self._answer(announced, "image")
        bricks = list(range(len(source.grid)))
        s.upload(bricks)
        content = [source.brick(BrickPart(index), "raw") for index in bricks]
        self._queue.receive(protocol.encode(wire.ImageBricks(image="ct", bricks=content)))
        self._take()

    def command(self, name: str, arguments: Json) -> None:
        self._last_id += 1
        kind, fields = ("set_mask", {**arguments, "flip": True}) if name == "flip_mask" else (name, arguments)
        message = request(kind, self._last_id, **fields)
        label = f"{name} {self._last_id}"
        self.scenario.command(name, label, expect={"sends": [message]}, **arguments)
        self._answer(message, label)

    def _answer(self, message: Json, label: str) -> None:
        """Send a message to the server, and record what follows."""
        packed = {key: run_lengths(**value) if key == "mask" else value for key, value in message.items()}
        self._queue.receive(msgpack.packb(packed))
        self._queue.run_next()
        *frames, answer = self._take()
        assert answer["type"] == "done", answer
        for frame in frames:
            self.scenario.receive(frame)
        done = {key: answer.get(key) for key in ("segment", "revision", "voxels", "changed")}
        masks_after = {}
        if (name := message.get("segment")) is not None:
            segment = self._segments.get(name)
            masks_after[name] = None if segment is None else _state(segment)
        self.scenario.receive(answer, answers=[{"label": label, "done": done}], masks=masks_after)

    def finish(self) -> Json:
        """Expect the server's histories. Return the scenario."""
        self.scenario.expect(
            masks={name: _state(segment) for name, segment in self._segments.items()},
            histories={name: _history(segment) for name, segment in self._segments.items()},
        )
        return self.scenario.to_json()

    @property
    def _segments(self) -> dict[str, Segment]:
        segments: dict[str, Segment] = self._queue._session._segments
        return segments

    def _take(self) -> list[Json]:
        return [msgpack.unpackb(frame) for frame in iter(self._queue.outbox.take, None)]


def _state(segment: Segment) -> Json:
    return {"revision": segment.revision, "voxels": segment.voxels, "mask": numbers(segment.mask)}


def _plain(packed: wire.RunLengthMask | None) -> Mask | None:
    if packed is None:
        return None
    mask = np.zeros(SHAPE, bool)
    masks.apply(masks.unpack(packed, SHAPE), mask)
    return mask


def _history(segment: Segment) -> Json:
    def step(s: wire.Step) -> Json:
        message: Json = msgpack.unpackb(protocol.encode(s.request))
        drawn = {"mask": numbers(mask)} if (mask := _plain(getattr(s.request, "mask", None))) is not None else {}
        return step_of({**message, **drawn}, _plain(s.change))

    return {"steps": [step(s) for s in segment.steps], "undone": [step(s) for s in segment.undone]}


def record(model: LoadedModel, device: DeviceScheduler) -> Json:
    """Return the recorded scenario."""
    recorder = Recorder("A session with the real engine", quick(model), device)
    recorder.open(ImageSource.of(volume_of(IMAGE)))
    for name, arguments in SCRIPT:
        recorder.command(name, arguments)
    return recorder.finish()


def main() -> None:
    device = DeviceScheduler("cpu")
    scenario = record(load_model(DEMO, MODEL_FOLDER, torch.device("cpu")), device)
    device.close()
    (FOLDER / "scenarios" / "recorded.json").write_text(to_text(scenario))


if __name__ == "__main__":
    main()
