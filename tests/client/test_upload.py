"""Upload of the image: which bricks the client sends, in which order, and how many in flight."""

from helpers.core_link import LIMITS, WELCOME, deliver
import numpy as np
import numpy.typing as npt

from nninteractive_ws import arrays, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.bricks import Grid
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.upload import Upload
from nninteractive_ws.geometry import Box


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def noise(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def uploading(shape: tuple[int, int, int] = (256, 192, 130), clock: Clock | None = None) -> tuple[Core, ImageSource]:
    """A core with an announced image. The bricks on the server are unknown."""
    source = ImageSource.of(noise(shape))
    core = Core(clock=clock or Clock())
    core.start()
    deliver(core, WELCOME)
    core.set_image(source)
    return core, source


def next_bricks(core: Core) -> list[int]:
    """Return the bricks that may be sent now."""
    made = [make() for make in iter(core.next_brick, None)]
    return [b.index for frame in made for b in protocol.decode_client(frame).bricks]  # type: ignore[union-attr]


def acknowledge(core: Core, source: ImageSource, indices: list[int]) -> list[Event]:
    total = len(source.grid)
    return deliver(core, wire.ImageProgress(image=source.name, received=indices, present=len(indices), total=total))


def test_no_brick_is_sent_before_the_server_reports_present_bricks() -> None:
    core, source = uploading()
    assert next_bricks(core) == []
    assert acknowledge(core, source, [0, 1, 2]) == [events.ImageProgress(3, len(source.grid))]
    assert next_bricks(core)


def test_every_missing_brick_is_sent_once() -> None:
    core, source = uploading()
    there = [0, 5, 17]
    acknowledge(core, source, there)
    seen: list[int] = []
    while batch := next_bricks(core):
        assert len(batch) <= LIMITS.unacknowledged_bricks
        seen += batch
        acknowledge(core, source, batch)
    assert sorted(seen + there) == list(range(len(source.grid)))


def test_bricks_carry_the_voxels() -> None:
    core, source = uploading((70, 65, 64))
    acknowledge(core, source, [])
    rebuilt = np.zeros_like(source.volume)
    while makes := list(iter(core.next_brick, None)):
        for make in makes:
            message = protocol.decode_client(make())
            assert isinstance(message, wire.ImageBricks)
            for brick in message.bricks:
                box = source.grid.box(brick.index)
                rebuilt[box.slices] = arrays.unpack(brick.data, brick.encoding, source.dtype, box.shape)
                acknowledge(core, source, [brick.index])
    assert np.array_equal(rebuilt, source.volume)


def test_bricks_nearest_to_the_focus_are_sent_first() -> None:
    core, source = uploading()
    core.add_point("a", (255, 191, 0))  # before the server has reported its bricks
    acknowledge(core, source, [])
    expected = source.grid.nearest_first((255, 191, 0))
    order = []
    while batch := next_bricks(core):
        order += batch
        acknowledge(core, source, batch)
        if len(order) == 16:
            core.add_point("a", (0, 0, 129))
            rest = [i for i in source.grid.nearest_first((0, 0, 129)) if i not in expected[:16]]
            assert rest != expected[16:]
            expected = expected[:16] + rest
    assert order == expected


def test_bricks_needed_by_a_prompt_are_sent_first() -> None:
    core, source = uploading()
    number = core.add_point("a", (0, 0, 0))
    acknowledge(core, source, [])
    box = Box((130, 70, 60), (250, 130, 70))
    deliver(core, wire.Progress(id=number, state="waiting_for_image", done=0, total=8, box=box.pairs))
    needed = source.grid.within(box)
    nearest = source.grid.nearest_first((0, 0, 0))
    order = []
    while batch := next_bricks(core):
        order += batch
        acknowledge(core, source, batch)
    assert order[: len(needed)] == [i for i in nearest if i in needed]
    assert order[len(needed) :] == [i for i in nearest if i not in needed]


def test_the_window_adapts_to_the_acknowledgement_delay() -> None:
    clock = Clock()
    upload = Upload(Grid((640, 640, 64)), 40, clock)
    upload.acknowledged([])

    def under_way() -> list[int]:
        return [index for batch in iter(upload.next, []) for index in batch]

    sizes = []
    for delay in (0.05, 0.05, 0.5, 0.5, 0.05, 0.05, 0.05, 0.05):
        batch = under_way()
        sizes.append(len(batch))
        clock.now += delay
        upload.acknowledged(batch)
    assert sizes == [16, 32, 40, 16, 16, 32, 40, 40]


def test_a_new_connection_has_no_brick_in_flight() -> None:
    core, source = uploading()
    acknowledge(core, source, [])
    first = next_bricks(core)
    core.start()
    assert core.next_brick() is None
    deliver(core, WELCOME)
    assert core.next_brick() is None
    acknowledge(core, source, first[:1])
    assert first[1] in next_bricks(core)


def test_progress_of_another_image_changes_nothing() -> None:
    core, _ = uploading()
    assert deliver(core, wire.ImageProgress(image="other", received=[0], present=1, total=9)) == []
    assert core.next_brick() is None
