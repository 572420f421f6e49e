"""Upload of the image: which bricks the client sends, in which order, and how many in flight."""

from helpers.core_link import LIMITS, WELCOME, deliver
import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from nninteractive_ws import arrays, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.bricks import Grid
from nninteractive_ws.client import events
from nninteractive_ws.client import upload as module
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.link import Link
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


def wait_for_bricks(core: Core, source: ImageSource, prompt: int, box: Box) -> list[int]:
    """Let a prompt wait for the bricks of a box, none of which is present, and return them."""
    acknowledge(core, source, [])
    deliver(core, wire.Progress(id=prompt, state="waiting_for_image", done=0, total=8, box=box.pairs))
    return source.grid.within(box)


def test_bricks_needed_by_a_prompt_are_sent_first() -> None:
    core, source = uploading()
    number = core.add_point("a", (0, 0, 0))
    needed = wait_for_bricks(core, source, number, Box((130, 70, 60), (250, 130, 70)))
    nearest = source.grid.nearest_first((0, 0, 0))
    order = []
    while batch := next_bricks(core):
        order += batch
        acknowledge(core, source, batch)
    assert order[: len(needed)] == [i for i in nearest if i in needed]
    assert order[len(needed) :] == [i for i in nearest if i not in needed]


@pytest.mark.parametrize("rate", [50.0, 150.0, 2000.0])
def test_the_link_is_never_idle(rate: float) -> None:
    """Simulate a link with a round trip of 60 ms that takes some bricks a second."""
    clock = Clock()
    upload = Upload(Grid((32 * 40, 32 * 40, 32)), 128, clock, Link())
    upload.acknowledged([])
    free, on_their_way, began = clock.now, [], clock.now
    while not upload.presence or upload.presence.count < len(upload.grid):
        while parts := upload.next(layered=False):
            upload.sent(parts, 20_000 * len(parts), "small")
            free = max(free, clock.now) + len(parts) / rate
            on_their_way.append((free + 0.06, [part.index for part in parts]))
        clock.now, arrived = on_their_way.pop(0)
        upload.acknowledged(arrived)
    assert clock.now - began < 1.05 * len(upload.grid) / rate + 0.5


@pytest.mark.parametrize("round_trip", [0.0, 0.6])
def test_the_window_adapts_to_the_acknowledgement_delay(round_trip: float) -> None:
    clock = Clock()
    upload = Upload(Grid((640, 640, 64)), 40, clock, Link())
    upload.acknowledged([])

    def under_way() -> list[int]:
        return [part.index for parts in iter(lambda: upload.next(layered=False), []) for part in parts]

    sizes = []
    for delay in (0.05, 0.05, 0.5, 0.5, 0.05, 0.05, 0.05, 0.05):
        batch = under_way()
        sizes.append(len(batch))
        clock.now += round_trip + delay
        upload.acknowledged(batch)
    assert sizes == [8, 16, 32, 24, 18, 36, 40, 40]


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


def test_an_older_acknowledgement_does_not_reduce_the_progress() -> None:
    """A resumed connection repeats the answer of an unanswered set_image."""
    core, source = uploading((64, 64, 64))
    core.start()
    resumed = msgspec.structs.replace(WELCOME, resumed=True, image=source.name, present_bricks=b"\x1f", last_id=1)
    assert events.ImageProgress(5, 8) in deliver(core, resumed)
    assert acknowledge(core, source, [0]) == [events.ImageProgress(5, 8)]
    assert acknowledge(core, source, [4, 5, 5]) == [events.ImageProgress(6, 8)]


def test_progress_of_another_image_changes_nothing() -> None:
    core, _ = uploading()
    assert deliver(core, wire.ImageProgress(image="other", received=[0], present=1, total=9)) == []
    assert core.next_brick() is None


def test_bricks_that_another_image_drops_are_sent_again() -> None:
    """Image A, then B, then A again, before the server has answered."""
    core, source = uploading((64, 64, 64))
    acknowledge(core, source, [])
    first = next_bricks(core)
    other = core.set_image(ImageSource.of(noise((40, 40, 40))))
    again = core.set_image(source)
    assert acknowledge(core, source, first) == []
    deliver(core, wire.Done(id=1))
    assert acknowledge(core, source, [0, 1, 2]) == []
    assert next_bricks(core) == []
    deliver(core, wire.Done(id=other))
    assert acknowledge(core, source, []) == [events.ImageProgress(0, 8)]
    deliver(core, wire.Done(id=again))
    assert sorted(send_rest(core, source)) == list(range(8))


def test_bricks_that_another_image_drops_are_sent_again_after_a_lost_connection() -> None:
    core, source = uploading((64, 64, 64))
    acknowledge(core, source, list(range(8)))
    deliver(core, wire.Done(id=1))
    core.start()
    other = core.set_image(ImageSource.of(noise((40, 40, 40))))
    core.set_image(source)
    resumed = msgspec.structs.replace(WELCOME, resumed=True, image=source.name, present_bricks=b"\xff", last_id=1)
    assert deliver(core, resumed) == [events.Connection("open", resumed)]
    assert next_bricks(core) == []
    deliver(core, wire.Done(id=other))
    acknowledge(core, source, [])
    assert sorted(send_rest(core, source)) == list(range(8))


@pytest.mark.parametrize("resumed", [False, True])
def test_the_order_of_bricks_outlives_a_lost_connection(resumed: bool) -> None:
    core, source = uploading()
    prompt = core.add_point("a", (255, 191, 0))
    needed = wait_for_bricks(core, source, prompt, Box((0, 70, 60), (60, 130, 70)))
    nearest = source.grid.nearest_first((255, 191, 0))
    for _ in range(2):
        reconnect(core, source, resumed)
        expected = [i for i in nearest if i in needed] + [i for i in nearest if i not in needed]
        assert next_bricks(core) == expected[:4]
    # Only while the prompt waits.
    answer = next(message for message in core._pending.values() if message.number == prompt)
    deliver(core, wire.Done(id=answer.request.id, segment="a"))
    reconnect(core, source, resumed)
    assert next_bricks(core) == nearest[:4]
    core.set_image(ImageSource.of(noise((256, 192, 131))))
    assert core._focus is None


def test_a_focus_from_before_the_connection_counts() -> None:
    source = ImageSource.of(noise((256, 192, 130)))
    core = Core(clock=Clock())
    core.set_image(source)
    core.add_point("a", (255, 191, 0))
    reconnect(core, source, resumed=False)
    assert next_bricks(core) == source.grid.nearest_first((255, 191, 0))[:4]


def reconnect(core: Core, source: ImageSource, resumed: bool) -> None:
    """Begin a connection whose server has no bricks."""
    core.start()
    bits = bytes(-(-len(source.grid) // 8))
    resuming = msgspec.structs.replace(WELCOME, resumed=True, image=source.name, present_bricks=bits, last_id=2)
    deliver(core, resuming if resumed else WELCOME)
    acknowledge(core, source, [])


def send_rest(core: Core, source: ImageSource) -> list[int]:
    """Send and acknowledge bricks until there are no more. Return them in order."""
    seen: list[int] = []
    while batch := next_bricks(core):
        seen += batch
        acknowledge(core, source, batch)
    return seen


# ---- layers -----------------------------------------------------------------------------------------------

LAYERED = msgspec.structs.replace(WELCOME, features=[protocol.LAYERED_BRICKS])


def ct_like(shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    return np.random.default_rng(0).normal(0, 500, shape).astype(np.int16)


def waiting_prompt(core: Core, source: ImageSource, base_layers_suffice: bool = True) -> int:
    """Let a prompt wait for all bricks, none of which is present, and return it."""
    number = core.add_point("a", (0, 0, 0))
    acknowledge(core, source, [])
    box = Box((0, 0, 0), source.grid.shape).pairs
    waiting = wire.Progress(id=number, state="waiting_for_image", box=box, base_layers_suffice=base_layers_suffice)
    deliver(core, waiting)
    return number


def next_parts(core: Core) -> list[wire.Brick]:
    make = core.next_brick()
    message = None if make is None else protocol.decode_client(make())
    return message.bricks if isinstance(message, wire.ImageBricks) else []


def acknowledge_parts(core: Core, source: ImageSource, parts: list[wire.Brick]) -> None:
    progress = wire.ImageProgress(
        image=source.name,
        received=[brick.index for brick in parts if brick.layer != "base"],
        received_base=[brick.index for brick in parts if brick.layer == "base"],
        present=0,
        total=len(source.grid),
    )
    deliver(core, progress)


def layered_core(clock: Clock, welcome: wire.Welcome = LAYERED) -> tuple[Core, ImageSource]:
    source = ImageSource.of(ct_like((192, 160, 96)))
    core = Core(clock=clock)
    core.start()
    deliver(core, welcome)
    deliver(core, wire.Done(id=core.set_image(source)))
    return core, source


def all_layers(core: Core, source: ImageSource, clock: Clock, seconds_per_message: float) -> list[tuple[int, str]]:
    """Send and acknowledge everything, message by message. Return bricks and layers in their order."""
    sent = []
    while parts := next_parts(core):
        sent += [(brick.index, brick.layer) for brick in parts]
        clock.now += seconds_per_message
        acknowledge_parts(core, source, parts)
    return sent


def test_on_a_slow_link_a_waiting_prompt_gets_all_base_layers_first() -> None:
    clock = Clock()
    core, source = layered_core(clock)
    waiting_prompt(core, source)
    received = np.zeros_like(source.volume)
    layers, bits = [], {}
    while parts := next_parts(core):
        for brick in parts:
            box = source.grid.box(brick.index)
            values = arrays.unpack(brick.data, brick.encoding, source.dtype, box.shape)
            received[box.slices] |= values  # type: ignore[arg-type]
            layers.append((brick.index, brick.layer))
            assert bits.setdefault(brick.index, brick.low_bits) == brick.low_bits
        clock.now += 1
        acknowledge_parts(core, source, parts)
    nearest = source.grid.nearest_first((0, 0, 0))
    assert layers == [(i, "base") for i in nearest] + [(i, "enhancement") for i in nearest]
    assert np.array_equal(received, source.volume)
    assert [bits[index] for index in (nearest[0], nearest[1], nearest[-1])] == [2, 5, 6]


def test_on_a_fast_link_only_the_first_bricks_are_in_layers() -> None:
    clock = Clock()
    core, source = layered_core(clock)
    waiting_prompt(core, source)
    sent = all_layers(core, source, clock, 0.001)
    base = [index for index, layer in sent if layer == "base"]
    assert 0 < len(base) <= 2 * LIMITS.unacknowledged_bricks  # until the second acknowledgement
    # Their enhancement layers come next, so that no pass for a preview is needed.
    assert sent[len(base) : 2 * len(base)] == [(index, "enhancement") for index in base]
    assert {layer for _, layer in sent[2 * len(base) :]} == {"whole"}


def test_what_a_link_has_shown_counts_for_the_next_image() -> None:
    clock = Clock()
    core, source = layered_core(clock)
    waiting_prompt(core, source)
    all_layers(core, source, clock, 0.001)
    other = ImageSource.of(ct_like((192, 160, 96)) + np.int16(1))
    deliver(core, wire.Done(id=core.set_image(other)))
    waiting_prompt(core, other)
    assert {layer for _, layer in all_layers(core, other, clock, 0.001)} == {"whole"}
    core.start()  # a new connection may use another link
    bits = bytes(-(-len(other.grid) // 8))
    deliver(core, msgspec.structs.replace(LAYERED, resumed=True, image=other.name, present_bricks=bits))
    assert next_parts(core)[0].layer == "base"


def test_base_layers_wait_until_the_image_is_set_again() -> None:
    """With a set_image, the server forgets base layers."""
    core, source = layered_core(Clock())
    waiting_prompt(core, source)
    first = next_parts(core)
    number = core.set_image(source)
    acknowledge_parts(core, source, first)  # of the upload before
    waiting_prompt(core, source)
    assert {brick.layer for brick in next_parts(core)} == {"whole"}
    deliver(core, wire.Done(id=number))
    assert {brick.layer for brick in next_parts(core)} == {"base"}


def test_layers_are_those_of_the_prompt_that_waits() -> None:
    """They are fine near that one, not near a later one elsewhere."""
    core, source = layered_core(Clock())
    waiting_prompt(core, source)
    core.add_point("b", (191, 159, 95))
    far = next_parts(core)[0]
    assert (far.layer, far.low_bits) == ("base", 6)


def test_bricks_are_whole_if_layers_are_of_no_use() -> None:
    no_feature = msgspec.structs.replace(LAYERED, features=[])
    for welcome, suffice, previews in ((no_feature, True, True), (LAYERED, False, True), (LAYERED, True, False)):
        core, source = layered_core(Clock(), welcome)
        if not previews:
            number = core.set_options(previews=False)
            deliver(core, wire.Done(id=number))
        waiting_prompt(core, source, suffice)
        assert {brick.layer for brick in next_parts(core)} == {"whole"}


def test_the_patch_around_a_prompt_is_sent_first_before_the_server_tells() -> None:
    core, source = layered_core(Clock())
    i, j, k = LAYERED.model.patch_size
    core.add_point("a", (100, 60, 50))
    acknowledge(core, source, [])
    patch = Box((100 - i // 2, 60 - j // 2, 50 - k // 2), (100 + i - i // 2, 60 + j - j // 2, 50 + k - k // 2))
    needed = source.grid.within(patch)
    sent = all_layers(core, source, core._clock, 0.0)  # type: ignore[arg-type]
    assert {index for index, _ in sent[: len(needed)]} == set(needed)


@pytest.mark.parametrize("end", ["done", "error", "cancel"])
def test_bricks_of_a_prompt_that_has_ended_have_no_priority(end: str) -> None:
    core, source = uploading()
    number = core.add_point("a", (0, 0, 0))
    wait_for_bricks(core, source, number, Box((130, 70, 60), (250, 130, 70)))
    if end == "done":
        deliver(core, wire.Done(id=number, segment="a"))
    elif end == "error":
        deliver(core, wire.ErrorMessage(id=number, code="internal", message="Failed."))
    else:
        core.cancel(number)
        # The server has sent this before it heard of the cancellation.
        wait_for_bricks(core, source, number, Box((130, 70, 60), (250, 130, 70)))
    assert send_rest(core, source) == source.grid.nearest_first((0, 0, 0))


def test_of_several_prompts_the_first_one_has_priority() -> None:
    core, source = uploading()
    first = core.add_point("a", (255, 191, 129))
    core.add_point("a", (0, 0, 0))
    needed = wait_for_bricks(core, source, first, Box((200, 150, 100), (250, 190, 129)))
    assert set(next_bricks(core)) <= set(needed)
    deliver(core, wire.Done(id=first, segment="a"))
    acknowledge(core, source, needed)
    assert 0 in next_bricks(core)


def test_no_brick_is_lost_if_the_focus_changes_between_its_layers() -> None:
    clock = Clock()
    core, source = layered_core(clock)
    waiting_prompt(core, source)
    sent: dict[int, list[str]] = {}
    bits: dict[int, int] = {}
    for n in range(1000):
        parts = next_parts(core)
        if not parts:
            break
        for brick in parts:
            sent.setdefault(brick.index, []).append(brick.layer)
            assert bits.setdefault(brick.index, brick.low_bits) == brick.low_bits
        if n % 3 == 0:
            core.add_point("a", (n % 192, n % 160, n % 96))
        clock.now += 1
        acknowledge_parts(core, source, parts)
    assert sorted(sent) == list(range(len(source.grid)))
    assert {tuple(layers) for layers in sent.values()} <= {("base", "enhancement"), ("whole",)}


def test_few_bricks_have_a_base_layer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BASE_LAYERS", 10)
    clock = Clock()
    core, source = layered_core(clock)
    waiting_prompt(core, source)
    base, most = 0, 0
    while parts := next_parts(core):
        base += sum((b.layer == "base") - (b.layer == "enhancement") for b in parts)
        most = max(base, most)
        clock.now += 1
        acknowledge_parts(core, source, parts)
    assert base == 0
    assert 0 < most <= 10


def test_the_progress_is_reported_again_after_a_lost_connection() -> None:
    core, source = uploading((64, 64, 64))
    acknowledge(core, source, [0])
    core.start()
    resumed = msgspec.structs.replace(WELCOME, resumed=True, image=source.name, present_bricks=b"\xff", last_id=1)
    assert events.ImageProgress(8, 8) in deliver(core, resumed)


@pytest.mark.parametrize("missing", range(1, 31))
def test_the_layers_of_a_brick_travel_in_separate_messages(missing: int) -> None:
    """A server may handle the bricks of a message in any order, and an enhancement layer needs its base layer."""
    clock = Clock()
    upload = Upload(Grid((32 * 40, 32, 32)), 128, clock, Link())
    upload.set_focus((0, 0, 0))
    upload.acknowledged([])
    arrived = deliver_parts(upload, clock, messages=2)
    left = [index for index in range(40) if index not in arrived]
    upload.prioritize(Box((32 * left[0], 0, 0), (32 * (left[0] + missing), 32, 32)), base_layers_suffice=True)
    layers = deliver_parts(upload, clock)
    whole = [index for index in layers if layers[index] == ["whole"]]
    layered = [index for index in layers if layers[index] == ["base", "enhancement"]]
    assert sorted([*arrived, *whole, *layered]) == list(range(40))
    assert layered == (left[:missing] if missing > 1 else [])  # one brick takes a second


def deliver_parts(upload: Upload, clock: Clock, messages: int = 1000) -> dict[int, list[str]]:
    """Deliver messages one by one on a slow link. Return the layers of each brick in the order of their arrival."""
    layers: dict[int, list[str]] = {}
    for _ in range(messages):
        parts = upload.next(layered=True)
        if not parts:
            break
        assert len({part.index for part in parts}) == len(parts), "both layers of a brick are in one message"
        upload.sent(parts, 20_000 * len(parts), "small")
        clock.now += len(parts)
        for part in parts:
            layers.setdefault(part.index, []).append(part.layer)
        received = [part.index for part in parts if part.layer != "base"]
        upload.acknowledged(received, [part.index for part in parts if part.layer == "base"])
    return layers
