"""The host of a session on a real server: a client that does not read."""

import sys
import time

from helpers.end_to_end import PlainClient, answered, hello, phantom, run
import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect

from nninteractive_ws import masks
from nninteractive_ws import messages as wire

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@linux
@pytest.mark.slow
def test_a_client_that_does_not_read_takes_bounded_memory(server: str) -> None:
    """It requests snapshots endlessly without reading them. Another client is not affected."""

    async def work() -> None:
        greedy = PlainClient(await connect(server, compression=None, max_size=None, proxy=None, max_queue=1))
        await greedy.send(hello(encodings=["raw"]))
        greedy.welcome = await greedy.receive_until(wire.Welcome)
        shape = (200, 160, 160)
        noise = np.random.default_rng(0).integers(0, 9, shape).astype(np.int16)
        await greedy.set_image(noise)
        # A mask of noise has 2.5 million runs, which take 10 MB.
        given = masks.pack(masks.to_delta(noise > 4), "raw")
        await greedy.send(wire.SetMask(id=2, segment="a", mask=given))
        await greedy.receive_answer(2)
        for request in range(3, 8):  # while it still reads
            await greedy.send(wire.GetMask(id=request, segment="a"))
            await greedy.receive_answer(request)
        other = await PlainClient.open(server)
        await other.set_image(phantom())
        await other.send(wire.AddPoint(id=2, segment="a", point=(30, 30, 28)))
        await other.receive_answer(2)
        memory, made = _memory(server), answered(server, "get_mask")
        for request in range(8, 400):
            await greedy.send(wire.GetMask(id=request, segment="a"))
        for request in range(3, 9):
            started = time.monotonic()
            await other.send(wire.AddPoint(id=request, segment="a", point=(30, 30, 28)))
            await other.receive_answer(request)
            assert time.monotonic() - started < 60
        memory, made = _memory(server) - memory, answered(server, "get_mask") - made
        print(f"grown by {memory / 1e6:.0f} MB: {made} of 392 snapshots of 10 MB were made")
        # One or two are in flight at each of six places: the outbox, the sockets, the queues of both ends.
        assert 1 <= made <= 16
        # The memory includes what the allocator keeps of other sessions.
        assert memory < 2 * 16 * 10e6
        greedy.websocket.transport.abort()
        await other.send(wire.Bye())

    run(work())


def _memory(address: str) -> int:
    """Return the resident bytes of the server at an address and of its worker."""
    port = int(address.rpartition(":")[2])
    (gateway,) = {
        c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == psutil.CONN_LISTEN
    }
    process = psutil.Process(gateway)
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
