"""A session on the worker: the image, and its bricks as they arrive."""

from concurrent.futures import ThreadPoolExecutor
import gc
from itertools import pairwise
from typing import Any
import weakref
import zlib

from helpers import real_ct
from helpers.engine import (
    Client,
    brick_message,
    point,
    redo,
    reset,
    run,
    scribble,
    set_mask,
    shape_of,
    stroke,
    through_the_wire,
    torso,
    undo,
)
from helpers.session_prompts import POINTS, SHAPE
import msgspec
import nibabel
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from nninteractive_ws import arrays, bricks, layers, messages
from nninteractive_ws.client import image_source
from nninteractive_ws.client.upload import BrickPart
from nninteractive_ws.engine import image as image_module
from nninteractive_ws.engine.image import BrickImage
from nninteractive_ws.errors import BadImage, BadMessage, Cancelled, NoImage, TooLarge, UnknownSegment
from nninteractive_ws.messages import Brick, GetMask, ImageBricks, MaskDelta, Progress, SetImage, SetOptions


def test_a_prompt_waits_only_for_nearby_bricks(quick_model, device):
    volume = torso((200, 150, 140), spacing=3.0)
    client = Client(quick_model, device)
    client.announce(volume)
    client.send(SetOptions(id=1, autozoom=False))
    sent = answer_what_is_waited_for(client)
    client.send(point((3, 2, 5)))
    # Half a patch of 72 beyond the point takes two bricks of 32 per axis.
    assert sent == {i * 25 + j * 5 + k for i in (0, 1) for j in (0, 1) for k in (0, 1)}
    client.send(point((199, 149, 139)))
    assert len(sent) == 8 + 2 * 2 * 2
    assert len(bricks.Grid(shape_of(volume))) == 7 * 5 * 5


@pytest.mark.slow
def test_zooming_out_and_refining_wait_for_more_bricks(quick_model, device):
    volume = torso((200, 150, 140), spacing=3.0)
    client = Client(quick_model, device)
    client.announce(volume)
    sent = answer_what_is_waited_for(client)
    client.send(scribble(stroke((200, 150, 140), (2, 10, 10), (60, 20, 30))))
    assert 8 < len(sent) < 70
    waiting = client.progress("waiting_for_image")
    assert all(0 <= p.done < p.total for p in waiting)
    refining = client.progress("refining")
    assert [(p.done, p.total) for p in refining] == [(n, len(refining) - 1) for n in range(len(refining))]
    assert refining[1:]
    states = [m.state for m in client.received if isinstance(m, Progress)]
    after_waiting = [then for state, then in pairwise(states) if state == "waiting_for_image" != then]
    assert after_waiting[0] == "predicting"
    assert after_waiting[-1] == "refining"
    twin = Client(quick_model, device).set_image(volume)
    twin.send(scribble(stroke((200, 150, 140), (2, 10, 10), (60, 20, 30))))
    assert np.array_equal(client.mask(), twin.mask())


def answer_what_is_waited_for(client: Client) -> set[int]:
    """Let the client send only the bricks that a prompt waits for. Return the set of sent ones, which grows."""
    sent: set[int] = set()
    threads = ThreadPoolExecutor(1)

    def answer(message: messages.ServerMessage) -> None:
        if isinstance(message, Progress) and message.box is not None:
            box = bricks.Box.from_pairs(message.box)
            needed = set(bricks.Grid(shape_of(client._volume)).within(box)) - sent
            sent.update(needed)
            for i in sorted(needed):
                threads.submit(client.send_bricks, [i])

    client.on_message = answer
    return sent


def test_the_time_spent_waiting_for_bricks_is_reported(quick_model, device, volume):
    client = Client(quick_model, device)
    client.announce(volume)
    thread = client.send_missing_late(range(len(bricks.Grid(SHAPE))), pause=0.02)
    timings = client.send(POINTS[0]).timings
    thread.join()
    assert 0.02 <= timings.waiting_for_image <= timings.total


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"])
@pytest.mark.parametrize("encoding", arrays.ENCODINGS)
def test_voxels_of_every_type_are_normalized_alike(quick_model, device, dtype, encoding):
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 100, (70, 20, 9)).astype(dtype)
    client = Client(quick_model, device)
    client.announce(volume)
    client.session.put_bricks(brick_message(volume, "image", [1, 0, 2], encoding))
    statistics = image_source.statistics(volume)
    expected = (volume.astype(np.float32) - np.float32(statistics.mean)) / np.float32(statistics.std)
    assert np.array_equal(client.session._image.voxels[0].numpy(), expected)


def test_a_duplicate_brick_is_acknowledged_and_ignored(client, volume):
    before = client.session._image.voxels.clone()
    stored, again = client.session.put_bricks(brick_message(volume + 1, "image", [0]))
    assert (stored, again.received) == (0, [0])
    assert bool((client.session._image.voxels == before).all())


def test_bricks_of_another_image_are_ignored(client, volume):
    assert client.session.put_bricks(brick_message(volume, "another", [0])) == (0, None)
    client.send(POINTS[0])


# ---- layers -----------------------------------------------------------------------------------------------


def layer_message(volume, indices, layer, low_bits=5):
    grid = bricks.Grid(shape_of(volume))
    split = {"base": layers.base_layer, "enhancement": layers.enhancement_layer}[layer]
    packed = []
    for i in indices:
        data = arrays.pack(split(volume[grid.box(i).slices].copy(), low_bits), "blosc2", "bits")
        packed.append(Brick(index=i, encoding="blosc2", data=data, layer=layer, low_bits=low_bits))
    return through_the_wire(ImageBricks(image="image", bricks=packed))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"])
def test_both_layers_give_the_image_of_whole_bricks(quick_model, device, dtype):
    rng = np.random.default_rng(0)
    volume = rng.normal(0 if dtype[0] in "if" else 60, 20, (70, 40, 9)).astype(dtype)
    client, twin = Client(quick_model, device), Client(quick_model, device).set_image(volume)
    client.announce(volume)
    order = [3, 0, 5, 1, 4, 2]
    new, progress = client.session.put_bricks(layer_message(volume, order, "base"))
    assert (new, progress.received, progress.received_base, progress.present) == (6, [], order, 0)
    image = client.session._image
    exact = twin.session._image.voxels
    step = 2.0**5 if dtype[0] != "f" else 2.0 ** (5 - np.finfo(dtype).nmant) * 128
    assert 0 < float((image.voxels - exact).abs().max()) <= step / image.statistics.std
    assert client.session.put_bricks(layer_message(volume, [3], "base"))[0] == 0, "it is there already"
    new, progress = client.session.put_bricks(layer_message(volume, order[:4], "enhancement"))
    assert (new, progress.received, progress.received_base, progress.present) == (4, order[:4], [], 4)
    client.session.put_bricks(layer_message(volume, [2], "base", low_bits=3))
    client.session.put_bricks(layer_message(volume, [2], "enhancement", low_bits=3))
    client.send_bricks([4])
    new, progress = client.session.put_bricks(layer_message(volume, [4], "base"))
    assert (new, progress.received, progress.received_base, progress.present) == (0, [4], [], 6)
    assert np.array_equal(image.voxels, exact)
    assert image.base_layer_bytes == 0


def test_base_layers_give_a_preview_and_complete_bricks_the_result(quick_model, device, volume):
    client, twin = Client(quick_model, device), Client(quick_model, device).set_image(volume)
    client.announce(volume)
    client.session.put_bricks(layer_message(volume, range(27), "base"))
    threads = ThreadPoolExecutor(1)
    previews = []

    def complete_after_preview(message):
        if isinstance(message, MaskDelta) and not message.final and not previews:
            previews.append(client.mask())
            threads.submit(client.session.put_bricks, layer_message(volume, range(27), "enhancement"))

    client.on_message = complete_after_preview
    timings = client.send(POINTS[0]).timings
    assert timings.passes == twin.send(POINTS[0]).timings.passes + 1
    assert np.array_equal(client.mask(), twin.mask())
    (preview,) = previews
    first_pass = masks_of_previews(Client(quick_model, device).set_image(volume), POINTS[0])[0]
    assert preview.any()
    assert not np.array_equal(preview, first_pass)
    assert 2 * (preview & first_pass).sum() / (preview.sum() + first_pass.sum()) > 0.95


def masks_of_previews(client, prompt):
    found = []
    client.on_message = lambda message: isinstance(message, MaskDelta) and found.append(client.mask())
    client.send(prompt)
    return found


def organs_of_the_ct():
    """Return the real CT, and a voxel in the middle of each of some organs."""
    volume, labels = (np.asanyarray(nibabel.load(file).dataobj) for file in (real_ct.CT, real_ct.LABELS))
    depths = [distance_transform_edt(labels == value) for value in (1, 2, 3, 4, 5, 6, 20, 52, 63)]
    return volume, [tuple(int(i) for i in np.unravel_index(depth.argmax(), depth.shape)) for depth in depths]


def preview_from_base_layers(model, device, volume, voxel):
    """Return the first preview of a point in an image of which only the base layers have arrived."""
    source = image_source.ImageSource.of(volume)
    client = Client(model, device)
    client.announce(volume)

    def put(layer):
        parts = [BrickPart(i, layer, source.grid.distance(i, voxel)) for i in range(len(source.grid))]
        client.session.put_bricks(ImageBricks(image="image", bricks=[source.brick(part, "blosc2") for part in parts]))

    def complete(message):
        if isinstance(message, MaskDelta) and not previews:
            previews.append(client.mask())
            threads.submit(put, "enhancement")

    threads, previews = ThreadPoolExecutor(1), []
    put("base")
    client.on_message = complete
    client.send(point(voxel))
    assert np.array_equal(client.mask(), Client(model, device).set_image(volume).mask_after(point(voxel)))
    return previews[0]


@pytest.mark.slow
@real_ct.needs_ct
def test_previews_from_base_layers_are_like_those_from_complete_bricks(demo_model, device):
    volume, voxels = organs_of_the_ct()
    dice = []
    for voxel in voxels:
        preview = preview_from_base_layers(demo_model, device, volume, voxel)
        exact = masks_of_previews(Client(demo_model, device).set_image(volume), point(voxel))[0]
        dice.append(2 * (preview & exact).sum() / (preview.sum() + exact.sum()))
    assert min(dice) > 0.98, dice


@pytest.mark.parametrize("why", ["no previews", "slow passes"])
def test_base_layers_that_have_no_use_are_not_predicted_from(quick_model, device, volume, monkeypatch, why):
    client, twin = Client(quick_model, device), Client(quick_model, device).set_image(volume)
    for each in (client, twin):
        if why == "no previews":
            each.send(SetOptions(id=1, previews=False))
        else:
            monkeypatch.setattr(device, "last_pass_s", 1.1)
    client.announce(volume)
    client.session.put_bricks(layer_message(volume, range(27), "base"))
    threads = ThreadPoolExecutor(1)

    def complete(message):
        if isinstance(message, Progress) and message.state == "waiting_for_image":
            suffices.append(message.base_layers_suffice)
            client.on_message = lambda message: None
            threads.submit(client.session.put_bricks, layer_message(volume, range(27), "enhancement"))

    suffices: list[bool] = []
    client.on_message = complete
    assert client.send(POINTS[0]).timings.passes == twin.send(POINTS[0]).timings.passes
    assert np.array_equal(client.mask(), twin.mask())
    assert suffices == [False]


def test_a_prompt_tells_when_base_layers_suffice(quick_model, device, volume):
    """First it waits for base layers. After the preview from these, it waits for complete bricks."""
    client = Client(quick_model, device)
    client.announce(volume)
    threads = ThreadPoolExecutor(1)
    suffices = []

    def bring(message):
        if isinstance(message, Progress) and message.state == "waiting_for_image":
            layer = "base" if message.base_layers_suffice else "enhancement"
            if not suffices or suffices[-1] != message.base_layers_suffice:
                suffices.append(message.base_layers_suffice)
                threads.submit(client.session.put_bricks, layer_message(volume, range(27), layer))

    client.on_message = bring
    client.send(POINTS[0])
    assert suffices == [True, False]
    assert device.last_pass_s > 0


def test_a_prompt_that_waits_for_enhancement_layers_can_be_cancelled(quick_model, device, volume):
    client = Client(quick_model, device)
    client.announce(volume)
    client.session.put_bricks(layer_message(volume, range(27), "base"))

    def cancel(message):
        if isinstance(message, MaskDelta) and not message.final:
            client.cancel_from_another_thread()

    client.on_message = cancel
    with pytest.raises(Cancelled):
        client.send(POINTS[0])


def test_base_layers_are_charged_until_their_enhancement_arrives(quick_model, device, volume):
    client = Client(quick_model, device)
    client.announce(volume)
    message = layer_message(volume, range(27), "base")
    client.session.put_bricks(message)
    charged = client.account._host.used_by(client.account)
    assert charged["base layers"] == sum(len(brick.data) for brick in message.bricks)
    kept = client.account.kept_bytes
    client.session.put_bricks(layer_message(volume, range(26), "enhancement"))
    charged = client.account._host.used_by(client.account)
    assert charged["base layers"] == len(message.bricks[26].data)
    assert client.account.kept_bytes == kept
    client.send(SetImage(id=1, image="small", shape=(9, 9, 9), dtype="int8", mean=0.0, std=1.0))
    assert not client.account._host.used_by(client.account).get("base layers")


def test_both_layers_of_a_brick_may_be_in_one_message(quick_model, device, volume):
    client, twin = Client(quick_model, device), Client(quick_model, device).set_image(volume)
    client.announce(volume)
    both = [*layer_message(volume, range(27), "base").bricks, *layer_message(volume, range(27), "enhancement").bricks]
    new, progress = client.session.put_bricks(ImageBricks(image="image", bricks=both))
    assert (new, sorted(set(progress.received)), progress.received_base) == (54, list(range(27)), [])
    assert np.array_equal(client.session._image.voxels, twin.session._image.voxels)


def test_padding_of_a_base_layer_is_not_kept(quick_model, device, volume):
    client = Client(quick_model, device)
    client.announce(volume)
    (base,) = layer_message(volume, [0], "base").bricks
    plain = arrays.unpack(base.data, "blosc2", "int16", (32, 32, 32))
    stream = zlib.compressobj(1)
    padding = b"\0\0\0\xff\xff" * 200_000  # stored blocks without content
    packed = stream.compress(plain.tobytes()) + stream.flush(zlib.Z_SYNC_FLUSH) + padding + stream.flush()
    client.session.put_bricks(
        ImageBricks(image="image", bricks=[msgspec.structs.replace(base, encoding="deflate", data=packed)])
    )
    assert client.session._image.base_layer_bytes == plain.nbytes
    client.session.put_bricks(layer_message(volume, [0], "enhancement"))
    assert client.session._image.presence.count == 1


def test_base_layers_are_forgotten(quick_model, device, volume, monkeypatch):
    """As the client does not know which have arrived, it may send those of other bricks up to the limit."""
    monkeypatch.setattr(image_module, "MAX_BASE_LAYERS", 3)
    client = Client(quick_model, device)
    client.announce(volume)
    client.session.put_bricks(layer_message(volume, [0, 1, 2], "base"))
    client.session.forget_base_layers()  # as the queue of requests does when a connection begins
    assert not client.account._host.used_by(client.account).get("base layers")
    client.session.put_bricks(layer_message(volume, [3, 4, 5], "base"))
    client.session.put_bricks(layer_message(volume, [3], "enhancement"))
    assert client.session._image.presence.count == 1


def test_base_layers_have_a_limit(quick_model, device, volume, monkeypatch):
    monkeypatch.setattr(image_module, "MAX_BASE_LAYERS", 3)
    client = Client(quick_model, device)
    client.announce(volume)
    client.session.put_bricks(layer_message(volume, [0, 1, 2], "base"))
    client.session.put_bricks(layer_message(volume, [1], "base", low_bits=4))
    with pytest.raises(BadMessage, match="3 bricks"):
        client.session.put_bricks(layer_message(volume, [3], "base"))
    client.session.put_bricks(layer_message(volume, [0], "enhancement"))
    client.session.put_bricks(layer_message(volume, [3], "base"))


def bad_layers(volume):
    base, enhancement = (layer_message(volume, [0], layer).bricks[0] for layer in ("base", "enhancement"))
    replace = msgspec.structs.replace
    return {
        "no base layer": [enhancement],
        "another division": [base, replace(layer_message(volume, [0], "enhancement", 4).bricks[0], low_bits=4)],
        "no low bits": [replace(base, low_bits=0)],
        "all bits": [replace(base, low_bits=16)],
        "bits of the enhancement layer": [replace(base, low_bits=6)],
        "bits of the base layer": [base, replace(base, layer="enhancement")],
        "an index beyond the grid": [replace(base, index=27)],
        "too many bytes": [replace(base, encoding="raw", data=bytes(2 * 32**3 + 2))],
    }


@pytest.mark.parametrize("name", bad_layers(torso((32, 32, 32))))
def test_invalid_layers_are_refused(quick_model, device, volume, name):
    client = Client(quick_model, device)
    client.announce(volume)
    *good, bad = bad_layers(volume)[name]
    for brick in good:
        client.session.put_bricks(ImageBricks(image="image", bricks=[brick]))
    with pytest.raises(BadMessage):
        client.session.put_bricks(ImageBricks(image="image", bricks=[bad]))
    client.send_bricks(range(27))
    assert client.send(POINTS[0]).timings.passes > 0


BAD_BRICKS = {
    "an index beyond the grid": (Brick(index=27, encoding="raw", data=b""), BadMessage),
    "too few bytes": (Brick(index=0, encoding="raw", data=b"12"), BadMessage),
    "too many bytes": (Brick(index=0, encoding="raw", data=bytes(4 * 32**3 + 4)), BadMessage),
    "not packed": (Brick(index=0, encoding="blosc2", data=bytes(100)), BadMessage),
    "NaN": (Brick(index=0, encoding="raw", data=np.full((32, 32, 32), np.nan, "<f4").tobytes()), BadImage),
    "infinite": (Brick(index=0, encoding="raw", data=np.full((32, 32, 32), -np.inf, "<f4").tobytes()), BadImage),
}


@pytest.mark.parametrize("name", BAD_BRICKS)
def test_valid_bricks_are_accepted_after_invalid_ones(quick_model, device, volume, name):
    bad, error = BAD_BRICKS[name]
    client = Client(quick_model, device)
    client.announce(volume.astype(np.float32))
    with pytest.raises(error):
        client.session.put_bricks(ImageBricks(image="image", bricks=[bad]))
    assert client.session._image.presence.count == 0
    client.send_bricks(range(len(bricks.Grid(SHAPE))))
    assert client.send(POINTS[0]).timings.passes > 0


def test_bricks_before_an_invalid_one_are_kept(quick_model, device, volume):
    bad, error = BAD_BRICKS["an index beyond the grid"]
    client = Client(quick_model, device)
    client.announce(volume)
    good = brick_message(volume, "image", range(27)).bricks
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.send, POINTS[0])
        with pytest.raises(error):
            client.session.put_bricks(ImageBricks(image="image", bricks=[*good, bad]))
        assert waiting.result(60).timings.passes > 0


def test_the_same_image_again_keeps_its_bricks_and_loses_its_segments(client, volume):
    first = client.mask_after(POINTS[0])
    assert client.announce(volume) == list(range(27))
    with pytest.raises(UnknownSegment):
        client.send(undo())
    assert np.array_equal(client.mask_after(POINTS[0]), first)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["shape", "dtype", "mean", "std"])
def test_an_image_is_identified_by_more_than_its_name(client, volume, change):
    other = {
        "shape": volume[:-1],
        "dtype": volume.astype(np.int32),
        "mean": volume + np.int16(1),
        "std": np.where(volume > 1100, volume + np.int16(1), volume),
    }[change]
    assert client.announce(other) == []


@pytest.mark.slow
def test_another_image_replaces_the_first(quick_model, device, client):
    client.send(POINTS[0])
    other = torso((70, 64, 50), seed=9, spacing=3.0)
    client.set_image(other, "other")
    with pytest.raises(UnknownSegment):
        client.send(GetMask(id=1, segment="a"))
    twin = Client(quick_model, device).set_image(other)
    at = point((35, 30, 25))
    assert np.array_equal(client.mask_after(at), twin.mask_after(at))


@pytest.mark.slow
def test_the_old_image_is_released_before_reserving_the_next(client, monkeypatch):
    client.send(POINTS[0])
    upstream = client.session._upstream
    held = [weakref.ref(client.session._image.voxels), weakref.ref(upstream.interactions)]
    really_init = BrickImage.__init__

    def check_then_init(self: BrickImage, *args: Any) -> None:
        gc.collect()
        assert [r() for r in held] == [None, None]
        really_init(self, *args)

    monkeypatch.setattr(BrickImage, "__init__", check_then_init)
    client.announce(torso((70, 64, 50), spacing=3.0), "other")


def test_an_image_with_too_many_voxels(client):
    before = client.mask_after(POINTS[0])
    huge = SetImage(id=1, image="huge", shape=(1025, 1024, 1024), dtype="int16", mean=0.0, std=1.0)
    with pytest.raises(TooLarge):
        client.send(huge)
    assert np.array_equal(client.snapshot(), before), "the image from before is still there"


@pytest.mark.parametrize(
    "request_",
    [POINTS[0], set_mask(np.ones((2, 2, 2), bool)), run(), undo(), redo(), reset(), GetMask(id=1, segment="a")],
    ids=lambda r: type(r).__name__,
)
def test_requests_without_an_image_are_refused(quick_model, device, request_):
    client = Client(quick_model, device)
    with pytest.raises(NoImage):
        client.send(request_)
