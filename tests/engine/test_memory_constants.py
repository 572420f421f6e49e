"""The constants of memory accounts against allocated memory, measured with tracemalloc."""

from collections.abc import Callable, Iterator
import gc
import itertools
import time
import tracemalloc

from helpers.engine import Client, bits_of, boundless, brick_message, set_mask
from helpers.shapes import ball
import msgspec
import numpy as np
import pytest

from nninteractive_ws import bricks, masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import image_source
from nninteractive_ws.engine.memory import _MASKS, SessionAccount
from nninteractive_ws.engine.outbox import Outbox
from nninteractive_ws.engine.preview import MaskPreview
from nninteractive_ws.engine.request_queue import _REQUEST_BYTES, _memory_of_content
from nninteractive_ws.engine.session import _RUN_BYTES, Session
from nninteractive_ws.engine.upstream import _MAX_WRITTEN
from nninteractive_ws.geometry import Box
from nninteractive_ws.history import Segment, make_step
from nninteractive_ws.masks import Mask

SHAPE = (96, 96, 96)
COUNT = 50
NEAR = 0.2


def kept_bytes(make: Callable[[int], object]) -> float:
    """Return the bytes that stay allocated for each object that ``make`` creates. Ids start at 1000, because
    Python caches small numbers."""
    make(999)
    gc.collect()
    tracemalloc.start()
    try:
        kept = [make(n) for n in range(1000, 1000 + COUNT)]
        gc.collect()
        # Without the list of the objects.
        return (tracemalloc.get_traced_memory()[0] - kept.__sizeof__()) / COUNT
    finally:
        tracemalloc.stop()


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak of allocated bytes while ``work`` runs."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def received(request: wire.Request) -> wire.Request:
    message = protocol.decode_client(protocol.encode(request))
    assert isinstance(message, wire.Request)
    return message


def place(n: int) -> tuple[int, int, int]:
    i, j, k = np.random.default_rng(n).integers(12, 84, 3).tolist()
    return i, j, k


def noisy(mask: Mask, n: int) -> Mask:
    """A mask with a ragged surface, as real segmentations have."""
    return mask & (np.random.default_rng(n).random(mask.shape) < 0.9)


def click(n: int) -> wire.Request:
    return wire.AddPoint(id=n, segment="liver", point=place(n))


def scribble(n: int) -> wire.Request:
    return wire.AddScribble(id=n, segment="liver", mask=bits_of(ball(SHAPE, place(n), 3)))


def hand_edit(n: int) -> wire.Request:
    return wire.SetMask(id=n, segment="liver", mask=bits_of(noisy(ball(SHAPE, place(n), 5), n)), flip=True)


REQUESTS = [pytest.param(kind, id=kind.__name__) for kind in (click, scribble, hand_edit)]


@pytest.mark.slow
@pytest.mark.parametrize("radius", [2, 9])
@pytest.mark.parametrize("request_of", REQUESTS)
def test_bytes_of_a_step(request_of: Callable[[int], wire.Request], radius: int) -> None:
    segment = Segment.empty("liver", SHAPE)

    def append(n: int) -> None:
        change = masks.to_delta(noisy(ball(SHAPE, place(n), radius), n))
        segment.append(make_step(received(request_of(n)), change, "blosc2"))  # type: ignore[arg-type]

    actual = kept_bytes(append)
    assert segment.memory / len(segment.steps) == pytest.approx(actual, rel=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("request_of", REQUESTS)
def test_bytes_of_a_pending_request(request_of: Callable[[int], wire.Request]) -> None:
    stated = []

    def receive(n: int) -> object:
        message = protocol.encode(request_of(n))
        stated.append(_REQUEST_BYTES + _memory_of_content(request_of(n), len(message)))
        return received(request_of(n)), time.monotonic(), stated[-1]

    actual = kept_bytes(receive) - 2 * stated.__sizeof__() / COUNT
    assert np.mean(stated) == pytest.approx(actual, rel=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [0, 1, 3])
def test_bytes_of_an_answer(changes: int) -> None:
    outbox = Outbox(lambda: None)

    def answer(n: int) -> None:
        outbox.open(n)
        outbox.begin(n)
        for base in range(changes):
            bits = bits_of(noisy(ball(SHAPE, place(n), 9), n))
            outbox.put_change(
                wire.MaskDelta(
                    segment="liver",
                    request=n,
                    base_revision=base,
                    revision=base + 1,
                    change=bits,
                    checksum=0,
                    voxels=0,
                    final=False,
                )
            )
            while outbox.take() is not None:
                pass
        outbox.put(wire.Done(id=n, segment="liver", revision=n, voxels=n, timings=wire.Timings()))
        while outbox.take() is not None:
            pass

    actual = kept_bytes(answer)
    assert outbox.memory / (COUNT + 1) == pytest.approx(actual, rel=NEAR)


# ---- during a request -------------------------------------------------------------------------------------

VOLUME = np.random.default_rng(0).integers(0, 255, (96, 96, 96)).astype(np.uint8)


@pytest.fixture
def do(quick_model, device) -> Iterator[Callable[[wire.Request], float]]:
    """Run a request in a real session with an image, and return how many masks of its size were allocated at the
    peak."""
    outbox, ids = Outbox(lambda: None), itertools.count(1)
    session = Session(quick_model, device, outbox, "blosc2", SessionAccount(boundless()))

    def do_one(request: wire.Request) -> float:
        one = received(msgspec.structs.replace(request, id=next(ids)))
        outbox.open(one.id)
        outbox.begin(one.id)
        peak = peak_bytes(lambda: outbox.put(session.handle(one, time.monotonic())))
        while outbox.take() is not None:
            pass
        return peak / VOLUME.size

    statistics = image_source.statistics(VOLUME)
    do_one(
        wire.SetImage(id=1, image="noise", shape=(96, 96, 96), dtype="uint8", mean=statistics.mean, std=statistics.std)
    )
    for index in range(len(bricks.Grid((96, 96, 96)))):
        session.put_bricks(brick_message(VOLUME, "noise", [index]))
    yield do_one
    session.close()


def test_masks_allocated_during_a_request(do: Callable[[wire.Request], float]) -> None:
    everywhere = np.ones(VOLUME.shape, bool)
    assert do(set_mask(everywhere)) == pytest.approx(_MASKS, rel=NEAR)
    assert 1 + do(wire.Undo(id=1, segment="a")) <= _MASKS


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("flip", [False, True])
def test_bytes_of_run_lengths_of_noise(do: Callable[[wire.Request], float], share: float, flip: bool) -> None:
    noise = set_mask(np.random.default_rng(1).random(VOLUME.shape) < share, flip=flip)
    stated = _MASKS + _RUN_BYTES * noise.mask.runs / VOLUME.size
    assert 0.75 * stated < do(noise) < stated


def test_partial_results_are_kept_as_bits() -> None:
    shown = MaskPreview(np.zeros((64, 64, 64), bool))
    box = Box.whole((64, 64, 64))
    rng = np.random.default_rng(0)
    parts = [rng.random((64, 64, 64)) < 0.5 for _ in range(8)]
    assert peak_bytes(lambda: [shown.add_result(box, part) for part in parts]) < 1.5 * box.voxels
    shown.add_result(Box((0, 0, 0), (5, 7, 9)), np.ones((5, 7, 9), bool))
    expected = parts[-1].copy()
    expected[:5, :7, :9] = True
    found = np.zeros((64, 64, 64), bool)
    masks.apply(shown.final(), found)
    assert np.array_equal(found, expected)


def test_written_boxes_are_merged_and_cleared(quick_model, device) -> None:
    client = Client(quick_model, device).set_image(VOLUME)
    upstream = client.session._upstream
    values = np.asarray(upstream.interactions)
    for n in range(_MAX_WRITTEN + 50):
        at = np.unravel_index(n * 701, VOLUME.shape)
        upstream.add_point_interaction(tuple(map(int, at)), n % 2 == 0, run_prediction=False)
        assert len(upstream._written) <= _MAX_WRITTEN
    assert np.count_nonzero(values) > 1000
    upstream.clear()
    assert not np.asarray(upstream.interactions).any()
    assert not upstream._written
