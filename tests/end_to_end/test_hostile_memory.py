"""Clients that try to exhaust a server's memory are refused, and other clients are not affected."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from helpers.end_to_end import PlainClient, health, metrics, run, wait_until
from helpers.fast_server import QuickServer, quick_server, resident_bytes
from helpers.neighbor import Neighbor, undisturbed
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import arrays, masks
from nninteractive_ws import messages as wire
from nninteractive_ws.engine.request_queue import MAX_REFUSED, MAX_WAITING
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Delta

MIB = 2**20
SHAPE: Index = (192, 192, 192)
#: Growth of a worker: an attacker's image, messages with their answers, and a neighbor's prompt at the same time.
MAY_GROW = 24 * 192**3 + 96 * MIB
#: Growth that may remain, because partly used pages are not returned.
MAY_KEEP = 128 * MIB
#: Images whose bricks are mostly empty space.
THIN: Sequence[Index] = ((1, 1, 2**30), (2**30, 1, 1), (1, 33, 2**24 + 2**20))


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server("--memory", "2") as server:
        Neighbor(server.address).leave()  # the first session of a server leaves more memory allocated than later ones
        yield server


@contextmanager
def attacked(server: QuickServer, gateway: int = 400 * MIB, worker: int = MAY_GROW) -> Iterator[None]:
    """Check :func:`undisturbed`, and that memory is returned to the system after the attack."""
    pids = {"gateway": server.pid, "worker": server.worker}
    before = {name: resident_bytes(pid) for name, pid in pids.items()}
    with undisturbed(server, gateway, worker):
        yield
    wait_until(lambda: health(server.address)["sessions"] == 0)
    for name, pid in pids.items():
        wait_until(lambda pid=pid, name=name: resident_bytes(pid) - before[name] <= MAY_KEEP, timeout=10)


def full(shape: Index = SHAPE) -> wire.RunLengthMask:
    """A mask of all voxels in a hundred bytes."""
    whole = Box.whole(shape)
    return wire.RunLengthMask(
        box=whole.pairs, runs=2, encoding="raw", data=np.array([0, whole.voxels], "<u4").tobytes()
    )


def noise(shape: Index, seed: int = 0) -> wire.RunLengthMask:
    return masks.pack(Delta(Box.whole(shape), np.random.default_rng(seed).random(shape) < 0.5), "raw")


def history(steps: int, change: wire.RunLengthMask, shape: Index = SHAPE) -> list[wire.Step]:
    point = wire.AddPoint(id=1, segment="a", point=(1, 1, 1))
    return [wire.Step(request=point, change=change)] * steps


async def announce(client: PlainClient, shape: Index = SHAPE, request: int = 1) -> Any:
    """Set an image without sending its bricks."""
    await client.send(wire.SetImage(id=request, image="image", shape=shape, dtype="int16", mean=0.0, std=1.0))
    return (await client.receive_answer(request))[1]


async def ask(client: PlainClient, request: wire.Request) -> Any:
    await client.send(request)
    return (await client.receive_answer(request.id))[1]


def charged(server: QuickServer, purpose: str) -> int:
    (line,) = [x for x in metrics(server.address).splitlines() if f'purpose="{purpose}"' in x]
    return int(float(line.split()[-1]))


# ---- histories and masks ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_restore_with_a_long_history_stays_small(quick: QuickServer) -> None:
    """Each step changes all voxels. Unpacked, a thousand of them would take 7 GB."""

    async def work() -> None:
        client = await PlainClient.open(quick.address)
        await announce(client)
        restore = wire.Restore(id=2, segment="a", revision=9, steps=history(1001, full()))
        assert len(client_bytes(restore)) < 200_000
        done = await ask(client, restore)
        assert (done.voxels, done.revision) == (np.prod(SHAPE), 9)
        assert isinstance(await ask(client, wire.Undo(id=3, segment="a")), wire.Done)
        assert not (await client.mask(4, "a", SHAPE)).any()
        await client.leave()

    with attacked(quick):
        run(work())


def client_bytes(message: wire.Message) -> bytes:
    from nninteractive_ws import protocol

    return protocol.encode(message)


@pytest.mark.slow
def test_many_segments_of_all_voxels_are_kept_packed(quick: QuickServer) -> None:
    """Unpacked, 256 masks of 7 MB would take 1.8 GB."""

    async def work() -> None:
        client = await PlainClient.open(quick.address)
        await announce(client)
        for n in range(256):
            done = await ask(client, wire.SetMask(id=2 + n, segment=f"segment {n}", mask=full()))
            assert done.voxels == np.prod(SHAPE)
        refused = await ask(client, wire.SetMask(id=300, segment="one more", mask=full()))
        assert refused.code == "at_capacity"
        for request, n in enumerate((0, 100, 255), 301):
            assert (await client.mask(request, f"segment {n}", SHAPE)).all()
        assert charged(quick, "segments") < 2 * MIB
        await client.leave()

    with attacked(quick):
        run(work())


@pytest.mark.slow
def test_hand_edits_are_charged_at_their_packed_size(quick: QuickServer) -> None:
    rng = np.random.default_rng(3)

    async def work() -> None:
        client = await PlainClient.open(quick.address)
        await announce(client)
        await ask(client, wire.SetMask(id=2, segment="a", mask=full()))
        for n in range(300):
            corner = rng.integers(0, 120, 3)
            box = Box.from_pairs([(int(a), int(a) + 72) for a in corner])
            edit = masks.pack(Delta(box, np.ones(box.shape, bool)), "blosc2")
            await ask(client, wire.SetMask(id=3 + n, segment="a", mask=edit, flip=True))
        assert charged(quick, "segments") < 2 * MIB
        await client.leave()

    with attacked(quick):
        run(work())


@pytest.mark.slow
def test_masks_of_noise_are_refused_at_the_limit(quick: QuickServer) -> None:
    """A mask beyond the limit is refused. The others are kept, and removing one frees its memory."""
    shape = (128, 128, 128)

    async def work() -> None:
        client = await PlainClient.open(quick.address)
        await announce(client, shape)
        mask, answers = noise(shape), []
        for n in range(100):
            answers.append(await ask(client, wire.SetMask(id=2 + n, segment=f"segment {n}", mask=mask)))
            if isinstance(answers[-1], wire.ErrorMessage):
                break
        refused = answers[-1]
        assert refused.code == "out_of_memory", refused
        assert "MB" in refused.message
        assert len(answers) > 3
        assert charged(quick, "segments") < client.welcome.limits.session_bytes + 20 * MIB
        done = await ask(client, wire.RemoveSegment(id=200, segment="segment 0"))
        assert isinstance(done, wire.Done)
        assert isinstance(await ask(client, wire.SetMask(id=201, segment="another", mask=mask)), wire.Done)
        await client.leave()

    with attacked(quick, worker=600 * MIB):
        run(work())


# ---- queues and answers -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_pending_requests_are_charged(quick: QuickServer) -> None:
    """Eight sessions fill their queues behind a prompt whose bricks never arrive."""
    data = np.random.default_rng(0).bytes(8 * MIB)
    scribble = wire.RunLengthMask(box=Box.whole((128, 128, 128)).pairs, runs=2 * MIB, encoding="raw", data=data)

    async def fill(client: PlainClient) -> str:
        await announce(client, (128, 128, 128))
        await client.send(wire.AddPoint(id=2, segment="a", point=(5, 5, 5)))
        for n in range(60):
            await client.send(wire.AddScribble(id=3 + n, segment="a", mask=scribble))
        await client.send(wire.SetOptions(id=100, previews=True))
        while True:
            message = await client.receive()
            if isinstance(message, wire.ErrorMessage):
                return str(message.code)

    async def work() -> None:
        clients = [await PlainClient.open(quick.address) for _ in range(8)]
        codes = await asyncio.gather(*map(fill, clients))
        assert set(codes) == {"out_of_memory"}
        assert charged(quick, "queue") <= 8 * clients[0].welcome.limits.session_bytes
        await asyncio.gather(*(client.leave() for client in clients))

    with attacked(quick, gateway=400 * MIB, worker=2200 * MIB):
        run(work())
    assert charged(quick, "queue") < MIB, "it is given back with the sessions"


@pytest.mark.slow
def test_a_client_that_ignores_refusals_is_disconnected(quick: QuickServer) -> None:
    async def work() -> None:
        client = await PlainClient.open(quick.address)
        await announce(client)
        await client.send(wire.AddPoint(id=2, segment="a", point=(5, 5, 5)))

        async def flood() -> None:
            for n in range(MAX_WAITING + MAX_REFUSED + 5000):
                await client.send(wire.SetOptions(id=3 + n, previews=True))

        flooding = asyncio.ensure_future(flood())
        codes: list[str] = []
        with suppress(ConnectionClosed):
            while True:
                message = await client.receive()
                if isinstance(message, wire.ErrorMessage):
                    codes.append(message.code if message.id is not None else f"closed: {message.code}")
        await asyncio.gather(flooding, return_exceptions=True)
        assert codes.count("at_capacity") == MAX_REFUSED + 1
        assert "closed: at_capacity" in codes

    with attacked(quick):
        run(work())


@pytest.mark.slow
def test_cancelling_unsent_requests_takes_no_memory(quick: QuickServer) -> None:
    async def work() -> None:
        client = await PlainClient.open(quick.address)
        await announce(client)
        await client.send(wire.AddPoint(id=50_000, segment="a", point=(5, 5, 5)))
        for n in (*range(2, 20_000), *range(50_001, 70_000), 2**53):
            await client.send(wire.Cancel(request=n))
        await client.send(wire.SetMask(id=50_001, segment="b", mask=full()))
        await client.send(wire.Cancel(request=50_000))
        assert (await client.receive_answer(50_000))[1].code == "cancelled"
        assert isinstance((await client.receive_answer(50_001))[1], wire.Done), "it was cancelled before it was sent"
        await client.leave()

    with attacked(quick):
        run(work())


# ---- images -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shape", THIN, ids=str)
def test_a_thin_image_is_refused_at_once(quick: QuickServer, shape: Index) -> None:
    async def work() -> None:
        client = await PlainClient.open(quick.address)
        refused = await announce(client, shape)
        assert refused.code == "too_large"
        assert "1,048,576" in refused.message or "1,073,741,824" in refused.message
        await client.leave()

    with attacked(quick):
        run(work())


@pytest.mark.parametrize("shape", [(1, 1, 2**25), (2**25, 1, 1), (1, 5792, 5792)], ids=str)
@pytest.mark.slow
def test_the_thinnest_accepted_images(quick: QuickServer, shape: Index) -> None:
    """One brick is sent, and a prompt in it starts."""

    async def work() -> None:
        client = await PlainClient.open(quick.address)
        await announce(client, shape)
        done = await ask(client, wire.SetMask(id=2, segment="a", mask=full(shape)))
        assert done.voxels == np.prod(shape)
        grid_of_first = tuple(min(32, n) for n in shape)
        brick = wire.Brick(index=0, encoding="raw", data=arrays.pack(np.ones(grid_of_first, np.int16), "raw"))
        await client.send(wire.ImageBricks(image="image", bricks=[brick]))
        acknowledged = await client.receive_until(wire.ImageProgress)
        assert acknowledged.received == [0]
        await client.send(wire.AddPoint(id=3, segment="b", point=(0, 0, 0)))
        progress = await client.receive_until(wire.Progress)
        assert progress.id == 3
        await client.send(wire.Cancel())
        assert (await client.receive_answer(3))[1].code == "cancelled"
        await client.leave()

    with attacked(quick, worker=1600 * MIB):
        run(work())


# ---- ends -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sessions_ending_in_long_requests_do_not_block_others(quick: QuickServer) -> None:
    """More sessions than threads in a pool send bye, each with minutes of work pending."""

    async def leave_with_work(client: PlainClient) -> None:
        await announce(client, (160, 160, 160))
        whole = full((160, 160, 160))
        await client.send(wire.Restore(id=2, segment="a", revision=9, steps=history(10_000, whole)))
        await client.send(wire.Bye())

    async def work() -> None:
        clients = [await PlainClient.open(quick.address) for _ in range(9)]
        await asyncio.gather(*map(leave_with_work, clients))
        await asyncio.gather(*(client.websocket.wait_closed() for client in clients))

    with attacked(quick, worker=2000 * MIB):
        run(work())
