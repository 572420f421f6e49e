"""On a slow link, the first mask arrives long before the image is complete. The tests count bricks, not seconds."""

import threading

from helpers.end_to_end import phantom
from helpers.relay import relay
import numpy as np
import numpy.typing as npt
import pytest

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client.events import MaskDelta, Progress

SHAPE = (320, 256, 192)
BRICKS = 10 * 8 * 6
CORNER = (310, 246, 183)


@pytest.fixture(scope="module")
def volume() -> npt.NDArray[np.int16]:
    """A repeated body with incompressible noise."""
    tiled = np.tile(phantom(5, (80, 64, 64)), (4, 4, 3))
    rng = np.random.default_rng(0)
    tiled += rng.integers(-30, 30, SHAPE, np.int16)
    return tiled


@pytest.mark.slow
def test_the_first_mask_precedes_the_image(server: str, volume: npt.NDArray[np.int16]) -> None:
    present: list[int] = []
    at_first_pass: list[int] = []
    waited: list[Progress] = []

    def on_progress(event: Progress) -> None:
        # Bricks that arrive during the computation are not counted, because their number depends on its duration.
        if waited and event.state != "waiting_for_image" and not at_first_pass:
            at_first_pass.append(present[-1])
        if event.state == "waiting_for_image":
            waited.append(event)

    with relay(server, bytes_per_second=4e6) as slow:
        with nni.connect(slow.address) as session:
            # With autozoom, the model decides which part of the image it needs.
            session.set_options(autozoom=False)
            session.on("image_progress", lambda e: present.append(e.present))
            session.on("progress", on_progress)
            session.set_image(volume)
            result = session.segment("a").add_point(CORNER)
            mask = session.segment("a").mask.copy()
        sent = slow.bytes_up
    print(f"{at_first_pass} of {BRICKS} bricks at the first pass; {sent / 1e6:.1f} MB of {volume.nbytes / 1e6:.0f}")
    assert any(e.state == "waiting_for_image" for e in waited)
    assert at_first_pass[0] <= BRICKS // 6
    assert result.timings.waiting_for_image > 0
    assert result.timings.passes <= 2, "one for a preview, if this computer was so slow that bricks came in layers"
    with nni.connect(server) as session:
        everything = threading.Event()
        session.on("image_progress", lambda e: e.present == e.total and everything.set())
        session.set_options(autozoom=False)
        session.set_image(volume)
        assert everything.wait(60)
        after = session.segment("a").add_point(CORNER)
        assert after.timings.waiting_for_image == 0
        assert np.array_equal(session.segment("a").mask, mask)


@pytest.mark.slow
def test_a_preview_precedes_its_bricks_and_they_follow_over_another_connection(
    server: str, volume: npt.NDArray[np.int16]
) -> None:
    waited: list[Progress] = []
    at_first_pass: list[Progress] = []
    previews: list[npt.NDArray[np.bool_]] = []
    middle = tuple(n // 2 for n in SHAPE)
    with relay(server, bytes_per_second=5e5) as slow, nni.connect(slow.address) as session:
        segment = session.segment("a")

        def on_progress(event: Progress) -> None:
            if event.state == "waiting_for_image":
                waited.append(event)
            elif waited and not at_first_pass:
                at_first_pass.append(waited[-1])

        def on_delta(event: MaskDelta) -> None:
            if not previews:
                slow.cut()
            previews.append(segment.mask.copy())

        session.set_options(autozoom=False)
        session.on("progress", on_progress)
        session.on("mask_delta", on_delta)
        session.set_image(volume)
        result = segment.add_point(middle)
        mask = segment.mask.copy()
    (wait,), first = at_first_pass, previews[0]
    dice = 2 * (first & mask).sum() / (first.sum() + mask.sum())
    print(f"{wait.done} of {wait.total} bricks at the first preview, whose Dice with the result is {dice:.3f}")
    assert result.timings.passes == 2
    assert wait.done < wait.total
    assert dice > 0.95
    with nni.connect(server) as session:
        session.set_options(autozoom=False)
        session.set_image(volume)
        session.segment("a").add_point(middle)
        assert np.array_equal(session.segment("a").mask, mask)


@pytest.mark.slow
def test_another_image_cancels_a_prompt_that_waits_for_the_first(server: str, volume: npt.NDArray[np.int16]) -> None:
    waits = threading.Event()
    ended: list[BaseException] = []

    def prompt(segment: nni.Segment) -> None:
        try:
            segment.add_bbox(((0, 320), (128, 129), (0, 192)))
        except errors.Error as e:
            ended.append(e)

    with relay(server, bytes_per_second=2e6) as slow, nni.connect(slow.address) as session:
        session.on("progress", lambda e: e.state == "waiting_for_image" and waits.set())
        session.set_image(volume)
        thread = threading.Thread(target=prompt, args=(session.segment("a"),))
        thread.start()
        assert waits.wait(60)
        session.set_image(phantom())
        thread.join()
        assert [type(e) for e in ended] == [errors.Cancelled]
        assert session.segment("a").mask.shape == phantom().shape
        assert session.segment("a").add_point((30, 30, 28)).timings.passes >= 1


@pytest.mark.slow
def test_present_bricks_are_not_sent_again(server: str) -> None:
    image = phantom(5, (130, 72, 64))
    with relay(server) as counted, nni.connect(counted.address) as session:
        there = threading.Event()
        session.on("image_progress", lambda e: e.present == e.total and there.set())
        session.set_image(image)
        assert there.wait(60)
        first = counted.bytes_up
        session.set_image(image)
        session.segment("a").add_point((60, 30, 30))
        assert first > 50_000
        assert counted.bytes_up - first < 1000
