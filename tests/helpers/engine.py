"""A quick network, a client that checks every message of a session, and prompts."""

from collections.abc import Callable, Iterable, Sequence
import copy
import dataclasses
import threading
import time
from typing import Any, TypeVar

import msgspec
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from helpers.shapes import ball
from nninteractive_ws import arrays, bricks, masks, messages, protocol
from nninteractive_ws.client import image_source
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.memory import MemoryPool, SessionAccount
from nninteractive_ws.engine.model_loader import LoadedModel
from nninteractive_ws.engine.session import Session
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import NO_CHANGE, Delta, Mask
from nninteractive_ws.messages import (
    AddBbox,
    AddLasso,
    AddPoint,
    AddScribble,
    Brick,
    Cancel,
    Done,
    ImageBricks,
    ImageProgress,
    MaskDelta,
    MaskSnapshot,
    Progress,
    Redo,
    Reset,
    Restore,
    Run,
    RunLengthMask,
    SetImage,
    SetMask,
    Step,
    Undo,
)

Volume = npt.NDArray[np.generic]
Request = Any  # a messages.Request, whose id is set when it is sent
M = TypeVar("M")


# Upstream's margin of 24 voxels per side leaves 24 voxels for refinement. With 48, it would not end.
QUICK_PATCH = 72


class QuickNetwork(nn.Module):
    """Replaces a trained network. In milliseconds, it finds the tissue under the positive prompts.

    It uses every channel and the fading of older prompts, and it fills patches, which causes autozoom and refinement.
    Its answers do not depend on the weights of the embedded model.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image, previous = x[:, :1], x[:, 1:2]
        include = x[:, 4:5] + x[:, 6:7] + 0.3 * x[:, 2:3]
        exclude = x[:, 5:6] + x[:, 7:8] + 0.3 * x[:, 3:4]
        weight = include**2 + 0.001 * previous
        tissue = (weight * image).sum() / weight.sum().clamp_min(1e-6)
        small = functional.avg_pool3d(torch.cat((image, previous, include, exclude), 1), 4)
        unlikeness = (12 * (small[:, :1] - tissue).abs()).clamp_max(2)
        near = functional.max_pool3d(small[:, 2:], 5, stride=1, padding=2)
        score = 0.7 - unlikeness + 0.5 * small[:, 1:2] + 6 * near[:, :1] - 8 * near[:, 1:2]
        score = score - 2 * (small[:, :1] == 0)  # outside the image
        score = functional.interpolate(score, scale_factor=4, mode="trilinear") + 0.2 * (image - tissue)
        # Channels last in memory: upstream's argmax takes several times longer across planes.
        return torch.cat((torch.zeros_like(score), score), 1).contiguous(memory_format=torch.channels_last_3d)


def with_network(model: LoadedModel, network: Callable[[torch.Tensor], torch.Tensor]) -> LoadedModel:
    """Return the model with another network."""
    return dataclasses.replace(model, artifacts={**model.artifacts, "network": network})


def with_patch(model: LoadedModel, edge: int) -> LoadedModel:
    """Return the model with patches of ``edge`` voxels per side. With large ones, upstream zooms out slowly."""
    plans = copy.deepcopy(model.artifacts["plans_manager"].plans)
    (name,) = plans["configurations"]
    plans["configurations"][name]["patch_size"] = [edge, edge, edge]
    configuration = PlansManager(plans).get_configuration(name)
    description = msgspec.structs.replace(model.description, patch_size=(edge, edge, edge))
    artifacts = {**model.artifacts, "configuration_manager": configuration}
    return dataclasses.replace(model, artifacts=artifacts, description=description)


def quick(model: LoadedModel) -> LoadedModel:
    """Return the model with a :class:`QuickNetwork` and small patches."""
    return with_patch(with_network(model, QuickNetwork()), QUICK_PATCH)


class Hooked:
    """A network that calls ``before(n)`` before its n-th pass, counted from 1 since :meth:`restart`."""

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._network = network
        self.restart(lambda n: None)

    def restart(self, before: Callable[[int], None]) -> None:
        self._before, self.passes = before, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        self._before(self.passes)
        return self._network(x)


# ---- volumes ----------------------------------------------------------------------------------------------


def torso(shape: Index, seed: int = 3, spacing: float | Sequence[float] = 2.8) -> npt.NDArray[np.int16]:
    """A CT-like volume. A patch of 96 voxels at 2.8 mm contains an organ, but not the body."""
    steps = (float(spacing),) * 3 if isinstance(spacing, int | float) else tuple(map(float, spacing))
    return make_phantom(seed, shape, (steps[0], steps[1], steps[2])).image


def bar_in_a_box() -> npt.NDArray[np.int16]:
    """A volume of (84, 72, 66) with a bright bar along the whole first axis, and a ball beside it."""
    shape = (84, 72, 66)
    noise = np.random.default_rng(0).normal(0, 10, shape)
    _, j, k = np.ogrid[:84, :72, :66]
    volume = noise + j + 2 * k + 300 * ball(shape, (60, 56, 46), 11)
    volume[np.broadcast_to((j - 30) ** 2 + (k - 28) ** 2 <= 12**2, shape)] += 1000
    return np.asarray(volume, np.int16)


def set_official_image(session: nnInteractiveInferenceSession, volume: Volume) -> None:
    """Set the image of upstream's own session, and end its threads.

    Its ``__del__`` joins them during garbage collection, on any thread. Inside the lock for the start or the end of a
    thread, that blocks forever (seen with Python 3.11).
    """
    session.set_image(volume[None])
    session._finish_preprocessing_and_initialize_interactions()
    session.executor.shutdown()


def brick_message(volume: Volume, image: str, indices: Iterable[int], encoding: str = "blosc2") -> ImageBricks:
    grid = bricks.Grid(shape_of(volume))
    packed = [
        Brick(index=i, encoding=encoding, data=arrays.pack(volume[grid.box(i).slices], encoding))  # type: ignore[arg-type]
        for i in indices
    ]
    return ImageBricks(image=image, bricks=packed)


def shape_of(array: npt.NDArray[Any]) -> Index:
    i, j, k = array.shape
    return i, j, k


# ---- prompts (their ids are set when they are sent) ---------------------------------------------------------


def point(at: Sequence[int], positive: bool = True, run: bool = True, segment: str = "a") -> AddPoint:
    i, j, k = at
    return AddPoint(id=1, segment=segment, point=(i, j, k), positive=positive, run=run)


def bbox(pairs: Any, positive: bool = True, run: bool = True, segment: str = "a") -> AddBbox:
    return AddBbox(id=1, segment=segment, box=Box.from_pairs(pairs).pairs, positive=positive, run=run)


def scribble(mask: Mask, positive: bool = True, run: bool = True, segment: str = "a") -> AddScribble:
    return AddScribble(id=1, segment=segment, mask=bits_of(mask), positive=positive, run=run)


def lasso(mask: Mask, positive: bool = True, run: bool = True, segment: str = "a") -> AddLasso:
    return AddLasso(id=1, segment=segment, mask=bits_of(mask), positive=positive, run=run)


def set_mask(mask: Mask, run: bool = False, segment: str = "a", flip: bool = False) -> SetMask:
    return SetMask(id=1, segment=segment, mask=bits_of(mask), run=run, flip=flip)


def run(segment: str = "a") -> Run:
    return Run(id=1, segment=segment)


def undo(segment: str = "a") -> Undo:
    return Undo(id=1, segment=segment)


def redo(segment: str = "a") -> Redo:
    return Redo(id=1, segment=segment)


def reset(segment: str = "a") -> Reset:
    return Reset(id=1, segment=segment)


def bits_of(mask: Mask) -> RunLengthMask:
    return masks.pack(masks.to_delta(mask), "blosc2")


def disc(shape: Index, center: Sequence[int], radius: float, axis: int = 2) -> Mask:
    """A filled circle in one slice."""
    flat = np.zeros(shape, bool)
    here = tuple(slice(c, c + 1) if a == axis else slice(None) for a, c in enumerate(center))
    flat[here] = ball(shape, center, radius)[here]
    return flat


def stroke(shape: Index, start: Sequence[float], stop: Sequence[float]) -> Mask:
    """A line two voxels thick between two voxels of the volume."""
    drawn = np.zeros(shape, bool)
    for at in np.linspace(start, stop, 4 * max(shape)):
        corner = np.clip(np.rint(at).astype(int), 0, np.array(shape) - 1)
        drawn[tuple(slice(c, c + 2) for c in corner)] = True
    return drawn


def prompts_for(shape: Index, seed: int) -> list[Request]:
    """A sequence of all requests that change a segment. Some span the whole volume."""
    rng = np.random.default_rng(seed)

    def at(low: float = 0.2, high: float = 0.8) -> tuple[int, int, int]:
        i, j, k = (int(n * rng.uniform(low, high)) for n in shape)
        return i, j, k

    def flat_box(axis: int, size: float) -> list[tuple[int, int]]:
        pairs = []
        for a, (c, n) in enumerate(zip(at(), shape, strict=True)):
            half = max(1, int(size * n / 2))
            pairs.append((c, c + 1) if a == axis else (max(0, c - half), min(n, c + half)))
        return pairs

    size = float(np.median(shape))
    return [
        point(at()),
        point(at(), positive=False),
        bbox(flat_box(2, 0.4)),
        scribble(stroke(shape, at(), at())),
        lasso(disc(shape, at(), 0.15 * size), run=False),
        point(at(), run=False),
        run(),
        scribble(stroke(shape, at(0.0, 0.05), at(0.95, 1.0))),
        undo(),
        bbox(flat_box(0, 0.3), positive=False),
        lasso(disc(shape, at(), 0.1 * size, axis=1), positive=False),
        set_mask(ball(shape, at(), 0.2 * size)),
        point(at()),
        scribble(stroke(shape, at(), at()), positive=False),
        set_mask(ball(shape, at(0.4, 0.6), 0.3 * size), run=True),
        undo(),
        point(at(0.0, 0.1), positive=False),
        set_mask(ball(shape, at(0.4, 0.6), 0.25 * size), run=True),
        point(at()),
        set_mask(ball(shape, at(0.4, 0.6), 0.2 * size), flip=True),
        point(at()),
        reset(),
        lasso(disc(shape, at(0.4, 0.6), 0.4 * size, axis=0)),
        point(at(0.9, 1.0)),
    ]


# ---- a client in the same process -----------------------------------------------------------------------------


@dataclasses.dataclass
class Journal:
    """A client's record of one segment."""

    mask: Mask
    revision: int = 0
    steps: list[Step] = dataclasses.field(default_factory=list)
    undone: list[Step] = dataclasses.field(default_factory=list)

    @property
    def waiting(self) -> bool:
        """Whether there are pending prompts without a prediction."""
        if not self.steps or self.steps[-1].predicted:
            return False
        return not self.steps[-1].is_reset

    def restore_message(self, segment: str) -> Restore:
        steps, undone = list(self.steps), list(self.undone)
        return Restore(id=1, segment=segment, revision=self.revision, steps=steps, undone=undone)


def boundless() -> list[MemoryPool]:
    """Memory pools without a limit."""
    return [MemoryPool(torch.device("cpu"), 2**60, lambda *_: False)]


class Client:
    """A session of the engine and its client, without a network. Messages go through the codec.

    It applies the received changes to its own masks, and asserts everything that can be checked.
    """

    def __init__(self, model: LoadedModel, device: DeviceScheduler) -> None:
        self.account = SessionAccount(boundless())
        self.session = Session(model, device, self, "blosc2", self.account)  # type: ignore[arg-type]
        self.received: list[messages.ServerMessage] = []
        self.journals: dict[str, Journal] = {}
        self.on_message: Callable[[messages.ServerMessage], None] = lambda message: None
        self.last_id = 0
        self._changes: dict[int, Delta] = {}
        self._volume: Volume | None = None

    # ---- the image ----------------------------------------------------------------------------------------

    def announce(self, volume: Volume, name: str = "image") -> list[int]:
        """Set the image without its voxels. Return the bricks that the session already has."""
        statistics = image_source.statistics(volume)
        self._volume, self._image = volume, name
        self.journals.clear()
        self.send(
            SetImage(
                id=1,
                image=name,
                shape=shape_of(volume),
                dtype=volume.dtype.name,  # type: ignore[arg-type]
                mean=statistics.mean,
                std=statistics.std,
            )
        )
        answer = self.received[-1]
        assert isinstance(answer, ImageProgress)
        return answer.received

    def send_bricks(self, indices: Iterable[int]) -> ImageProgress:
        assert self._volume is not None
        indices = list(indices)
        _, answer = self.session.put_bricks(through_the_wire(brick_message(self._volume, self._image, indices)))
        assert isinstance(answer, ImageProgress)
        assert answer.received == indices
        return answer

    def set_image(self, volume: Volume, name: str = "image", seed: int = 0) -> "Client":
        """Set the image and send its bricks in random order."""
        self.announce(volume, name)
        total = len(bricks.Grid(shape_of(volume)))
        for i in np.random.default_rng(seed).permutation(total):
            self.send_bricks([int(i)])
        return self

    def send_missing_late(self, indices: Sequence[int], pause: float = 0.02) -> threading.Thread:
        """Send bricks slowly from another thread, once a prompt waits for bricks."""
        waits = threading.Event()

        def notice(message: messages.ServerMessage) -> None:
            if isinstance(message, Progress) and message.state == "waiting_for_image":
                waits.set()

        def work() -> None:
            assert waits.wait(30)
            for i in indices:
                time.sleep(pause)
                self.send_bricks([i])

        self.on_message = notice
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    # ---- requests -----------------------------------------------------------------------------------------

    def send(self, request: Request) -> Done:
        """Run a request and check the answer. Check that an error leaves the state unchanged."""
        self.last_id += 1
        request = through_the_wire(_with_id(request, self.last_id))
        segment = getattr(request, "segment", None)
        journal = self.journals.get(segment) if segment is not None else None
        before = None if journal is None else journal.mask.copy()
        try:
            done = through_the_wire(self.session.handle(request, time.monotonic()), protocol.decode_server)
        except Exception:
            if before is not None:
                assert np.array_equal(self.journals[str(segment)].mask, before)
            elif segment in self.journals:
                # Its first request failed, so the session has no such segment. There may have been previews.
                assert not self.journals.pop(segment).mask.any()
                assert segment not in self.session._segments
            self._compare_with_session()
            raise
        self._record(request)
        self._check_done(request, done, before)
        self._compare_with_session()
        return done

    def send_all(self, requests: Iterable[Request]) -> list[Mask]:
        """Return the masks of the segment after each request."""
        return [self.mask_after(r) for r in requests]

    def mask_after(self, request: Request) -> Mask:
        self.send(request)
        return self.mask(request.segment)

    def mask(self, segment: str = "a") -> Mask:
        return self.journals[segment].mask.copy()

    def cancel_from_another_thread(self, request: int | None = None) -> None:
        """Cancel the running request, or all."""
        thread = threading.Thread(target=self.session.cancel, args=(Cancel(request=request), self.last_id))
        thread.start()
        thread.join()

    def progress(self, state: str) -> list[Progress]:
        """Return the progress of the last request."""
        return [m for m in self.received if isinstance(m, Progress) and m.id == self.last_id and m.state == state]

    def deltas(self) -> list[MaskDelta]:
        """Return the changes by the last request."""
        return [m for m in self.received if isinstance(m, MaskDelta) and m.request == self.last_id]

    # ---- the session's outbox -----------------------------------------------------------------------------

    def put(self, message: messages.Message) -> None:
        self._receive(message)

    def put_change(self, message: MaskDelta) -> None:
        self._receive(message)

    def withdraw_change(self, segment: str) -> None:
        """Withdraw nothing, because everything was received immediately."""

    # ---- internals ----------------------------------------------------------------------------------------

    def _receive(self, message: messages.Message) -> None:
        received: messages.ServerMessage | None = protocol.decode_server(protocol.encode(message))
        assert received is not None
        if isinstance(received, MaskDelta):
            self._apply(received)
        self.received.append(received)
        self.on_message(received)

    def _journal_of(self, segment: str) -> Journal:
        assert self._volume is not None
        if segment not in self.journals:
            self.journals[segment] = Journal(np.zeros(self._volume.shape, bool))
        return self.journals[segment]

    def _apply(self, delta: MaskDelta) -> None:
        journal = self._journal_of(delta.segment)
        assert delta.request == self.last_id
        assert (delta.base_revision, delta.revision) == (journal.revision, journal.revision + 1)
        change = masks.unpack(delta.change, shape_of(journal.mask))
        assert change.box is not None
        assert masks.to_delta(change.flips, change.box.start).box == change.box, "a delta wider than its change"
        masks.apply(change, journal.mask)
        assert masks.checksum(journal.mask, change.box) == delta.checksum
        assert int(journal.mask.sum()) == delta.voxels
        journal.revision = delta.revision
        self._changes[delta.request] = masks.compose(self._changes.get(delta.request, NO_CHANGE), change)

    def _record(self, request: Request) -> None:
        """Record a finished request in the journal."""
        change = self._changes.get(request.id, NO_CHANGE)
        if isinstance(request, Undo):
            journal = self.journals[request.segment]
            journal.undone.append(journal.steps.pop())
        elif isinstance(request, Redo):
            journal = self.journals[request.segment]
            journal.steps.append(journal.undone.pop())
        elif isinstance(request, Run) and not self.journals[request.segment].waiting:
            assert change.box is None
        elif isinstance(request, messages.RemoveSegment):
            del self.journals[request.segment]
        elif isinstance(request, messages.StepRequest):
            journal = self._journal_of(request.segment)
            packed = None if change.box is None else masks.pack(change, "blosc2")
            journal.steps.append(Step(request=request, change=packed))
            journal.undone.clear()

    def _check_done(self, request: Request, done: Done, before: Mask | None) -> None:
        assert done.id == request.id
        journal = self.journals.get(done.segment or "")
        if journal is None:
            return
        assert done.revision == journal.revision
        assert done.voxels == int(journal.mask.sum())
        changed = masks.diff(np.zeros_like(journal.mask) if before is None else before, journal.mask)
        if isinstance(request, messages.Restore | messages.GetMask):
            assert done.changed is None
        else:
            assert done.changed == (None if changed.box is None else changed.box.pairs)

    def _compare_with_session(self) -> None:
        for name, journal in self.journals.items():
            theirs = self.session._segments[name]
            assert np.array_equal(theirs.mask, journal.mask)
            assert (theirs.revision, theirs.voxels) == (journal.revision, int(journal.mask.sum()))
            assert len(theirs.steps) == len(journal.steps)
            assert len(theirs.undone) == len(journal.undone)

    def snapshot(self, segment: str = "a") -> Mask:
        """Return the mask from a snapshot of the session."""
        self.send(messages.GetMask(id=1, segment=segment))
        answer = self.received[-1]
        assert isinstance(answer, MaskSnapshot)
        shape = shape_of(self.journals[segment].mask)
        mask = np.zeros(shape, bool)
        if answer.mask is not None:
            masks.apply(masks.unpack(answer.mask, shape), mask)
        assert answer.voxels == int(mask.sum())
        assert answer.revision == self.journals[segment].revision
        return mask

    def moved_to(self, model: LoadedModel, device: DeviceScheduler) -> "Client":
        """Return this client on a new session, restored from its journals."""
        assert self._volume is not None
        other = Client(model, device).set_image(self._volume, self._image)
        for name, journal in self.journals.items():
            other.journals[name] = Journal(
                journal.mask.copy(), journal.revision, list(journal.steps), list(journal.undone)
            )
            done = other.send(journal.restore_message(name))
            assert done.timings.passes == 0
        return other


def _with_id(request: M, number: int) -> M:
    fields = {name: getattr(request, name) for name in request.__struct_fields__}  # type: ignore[attr-defined]
    return type(request)(**{**fields, "id": number})


def through_the_wire(message: M, decode: Callable[[bytes], Any] = protocol.decode_client) -> M:
    """Return the message after encoding and decoding."""
    received: M = decode(protocol.encode(message))  # type: ignore[arg-type]
    return received
