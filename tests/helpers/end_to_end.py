"""A small image, a client for single messages, and server processes."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
import contextlib
from contextlib import contextmanager
from functools import cache
import json
from pathlib import Path
import socket
import subprocess
import sys
import time
from typing import IO, Any, ClassVar, Self, TypeVar
import urllib.request

import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect

from nninteractive_ws import masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.local_server import LISTENING

M = TypeVar("M")
T = TypeVar("T")

SHAPE = (72, 64, 56)
#: The modules that a gateway's child processes run.
WORKER, OFFICIAL_API = "nninteractive_ws.engine.worker", "nninteractive_ws.official_api.process"
#: Wider than the demo model's patch, so that a lasso over all of it takes many passes.
WIDE_SHAPE = (130, 72, 64)


@cache
def phantom(seed: int = 5, shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.int16]:
    image = make_phantom(seed, shape, (4.0, 4.0, 4.0)).image
    image.flags.writeable = False
    return image


def wide_lasso() -> Mask:
    """A filled outline through a whole wide volume."""
    drawn = np.zeros(WIDE_SHAPE, bool)
    drawn[4:-4, WIDE_SHAPE[1] // 2, 4:-4] = True
    return drawn


def stroke(shape: tuple[int, int, int] = SHAPE) -> Mask:
    drawn = np.zeros(shape, bool)
    i, j, k = (n // 2 for n in shape)
    drawn[i - 6 : i + 6, j : j + 2, k : k + 2] = True
    return drawn


def listens(port: int) -> bool:
    """Whether something on this machine accepts connections at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(true: Callable[[], object], timeout: float = 120) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    until = time.monotonic() + timeout
    while not true():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.02)


# ---- over HTTP --------------------------------------------------------------------------------------------


def http(address: str) -> str:
    return address.replace("ws://", "http://")


def metrics(address: str, token: str | None = None) -> str:
    request = urllib.request.Request(f"{http(address)}/metrics")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: str = answer.read().decode()
        return found


def sessions(address: str, state: str, token: str | None = None) -> int:
    """Return the number of sessions that are ``connected``, or ``waiting`` for their client."""
    return _metric(address, f'state="{state}"}}', token)


def answered(address: str, kind: str) -> int:
    """Return the number of answered requests of a type."""
    return _metric(address, f'requests_total{{type="{kind}"}}')


def _metric(address: str, sample: str, token: str | None = None) -> int:
    """Return the sum of the samples with ``sample``."""
    lines = [x for x in metrics(address, token).splitlines() if sample in x]
    assert lines
    return sum(int(float(line.split()[-1])) for line in lines)


def health(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{http(address)}/healthz", timeout=30) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        found: dict[str, Any] = json.load(answer)
        return found


# ---- messages ---------------------------------------------------------------------------------------------


def hello(**fields: Any) -> wire.Hello:
    return wire.Hello(**{"version": protocol.PROTOCOL_VERSION, "encodings": ["blosc2"], **fields})


class PlainClient:
    """A connection for single messages of a test."""

    #: All open clients, so that they are closed if a test fails.
    opened: ClassVar[list["PlainClient"]] = []

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.opened.append(self)

    @classmethod
    async def open(cls, address: str, token: str | None = None, **fields: Any) -> Self:
        """Connect and complete the handshake. ``fields``: of hello."""
        headers = None if token is None else {"Authorization": f"Bearer {token}"}
        client = cls(await connect(address, additional_headers=headers, compression=None, max_size=None, proxy=None))
        await client.send(hello(**fields))
        client.welcome = await client.receive_until(wire.Welcome)
        return client

    welcome: wire.Welcome

    async def send(self, message: wire.Message) -> None:
        await self.websocket.send(protocol.encode(message))

    async def receive(self) -> Any:
        data = await self.websocket.recv()
        assert isinstance(data, bytes)
        return protocol.decode_server(data)

    async def receive_until(self, kind: type[M]) -> M:
        """Return the next message of a type, and skip others."""
        while True:
            message = await self.receive()
            if isinstance(message, kind):
                return message

    async def receive_answer(self, request: int) -> tuple[list[Any], Any]:
        """Return the messages before the answer to a request, and the answer."""
        before: list[Any] = []
        while True:
            message = await self.receive()
            if isinstance(message, wire.Done | wire.ErrorMessage) and message.id == request:
                return before, message
            before.append(message)

    async def set_image(self, image: npt.NDArray[Any], name: str = "image", request: int = 1) -> None:
        """Announce an image and send all of its bricks, some at a time."""
        from nninteractive_ws import arrays, bricks
        from nninteractive_ws.client import image_source

        found, encoding = image_source.statistics(image), self.welcome.encoding
        shape: Any = image.shape
        grid = bricks.Grid(shape)
        dtype: Any = image.dtype.name
        await self.send(wire.SetImage(id=request, image=name, shape=shape, dtype=dtype, mean=found.mean, std=found.std))
        await self.receive_answer(request)
        for index in range(len(grid)):
            data = arrays.pack(image[grid.box(index).slices], encoding)
            await self.send(
                wire.ImageBricks(image=name, bricks=[wire.Brick(index=index, encoding=encoding, data=data)])
            )
            await self.receive_until(wire.ImageProgress)

    async def mask(self, request: int, segment: str, shape: tuple[int, int, int] = SHAPE) -> Mask:
        """Return a segment's mask on the server."""
        await self.send(wire.GetMask(id=request, segment=segment))
        before, _ = await self.receive_answer(request)
        (snapshot,) = [m for m in before if isinstance(m, wire.MaskSnapshot)]
        mask = np.zeros(shape, bool)
        if snapshot.mask is not None:
            masks.apply(masks.unpack(snapshot.mask, shape), mask)
        return mask

    async def leave(self) -> None:
        """Send bye, and wait until the server has closed the connection."""
        await self.send(wire.Bye())
        await self.websocket.wait_closed()

    async def close(self) -> None:
        await self.websocket.close()


def run(work: Coroutine[Any, Any, T], timeout: float = 100) -> T:
    """Run a coroutine, and close the clients that it left open."""

    async def timed() -> T:
        try:
            return await asyncio.wait_for(work, timeout)
        finally:
            for client in PlainClient.opened:
                if not client.websocket.transport.is_closing():
                    client.websocket.transport.abort()
                await client.websocket.wait_closed()
            PlainClient.opened.clear()

    return asyncio.run(timed())


# ---- processes --------------------------------------------------------------------------------------------


class ServerProcess:
    """A server for one test, whose processes can be inspected and ended."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self.process, self.address = process, address

    @property
    def worker(self) -> int:
        """The process id of the worker."""
        (worker,) = children_running(self.process.pid, WORKER)
        return worker


def children_running(pid: int, module: str) -> list[int]:
    """Return the process ids of a process's children that run a Python module."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                found.append(int(child))
    return found


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def command_with_page(page: Path, *arguments: str) -> list[str]:
    """Return a command of this package that serves the page of another folder than the package's own."""
    code = (
        "import pathlib, sys, nninteractive_ws.server.web_page as web_page; "
        "web_page.PAGE_FOLDER = pathlib.Path(sys.argv.pop(1)); from nninteractive_ws.__main__ import main; main()"
    )
    return [sys.executable, "-c", code, str(page), *arguments]


@contextmanager
def server_process(
    *arguments: str, stderr: IO[str] | int | None = None, limit: str | None = None, page: Path | None = None
) -> Iterator[ServerProcess]:
    """A server with the embedded model on a free port of loopback, and these arguments of ``serve``. ``stderr``: a file
    for its log. ``limit``: arguments of the shell's ulimit. ``page``: folder of the web page; None: it has no page."""
    serve = ["serve", "--port", "0", "--model", "demo", *arguments]
    command = [sys.executable, "-m", "nninteractive_ws", *serve, "--no-page"]
    if page is not None:
        command = command_with_page(page, *serve)
    if limit is not None:
        command = ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(LISTENING)
            yield ServerProcess(process, line.removeprefix(LISTENING).strip())
        finally:
            process.terminate()
            process.wait(20)
