"""A client's core, connected in memory to a worker's request queue with the engine's real session."""

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from nninteractive_ws import messages as wire
from nninteractive_ws import protocol
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event

LIMITS = wire.Limits(message_bytes=2**26, image_voxels=2**30, segments=256, unacknowledged_bricks=4)
MODEL = wire.Model(name="m", license="l", patch_size=(8, 8, 8), prompts=["point"], scribble_thickness=(1.0, 1.0, 1.0))
WELCOME = wire.Welcome(
    version=1,
    server_version="test",
    features=[],
    encoding="raw",
    session_id="s",
    session_secret="s",
    resumed=False,
    limits=LIMITS,
    model=MODEL,
    device="cpu",
)


class MemoryServer:
    """A server for one client, without sockets and in this thread. It replaces gateway and worker.

    :meth:`receive` takes frames from the client, and :meth:`work` runs one request. Frames to the client are in
    ``outgoing``. ``slow``: frames wait in the outbox, as for a client that does not read.
    """

    def __init__(self, model: Any, device: Any) -> None:
        self._model, self._device = model, device
        self.outgoing: deque[bytes] = deque()
        self.bricks: list[int] = []
        self.slow = False
        self.sessions = 0
        self.forget()

    def forget(self) -> None:
        """Lose the session, as if the worker ended."""
        from helpers.engine import boundless
        from nninteractive_ws.engine.request_queue import RequestQueue

        self.sessions += 1
        self.queue = RequestQueue("memory", self._model, self._device, "blosc2", boundless(), self._wake)
        self._fresh = True

    @property
    def session(self) -> Any:
        return self.queue._session

    def _wake(self) -> None:
        if not self.slow:
            self.flush()

    def flush(self) -> None:
        while (frame := self.queue.outbox.take()) is not None:
            self.outgoing.append(frame)

    def disconnect(self) -> None:
        """End the connection."""
        self.queue.outbox.disconnect()
        self.outgoing.clear()

    def receive(self, frame: bytes) -> None:
        message = protocol.decode_client(frame)
        if isinstance(message, wire.Hello):
            return self._welcome(message)
        if isinstance(message, wire.ImageBricks):
            self.bricks += [b.index for b in message.bricks]
        self.queue.receive(frame)
        return None

    def _welcome(self, hello: wire.Hello) -> None:
        resumed = hello.session_id == self._name and not self._fresh
        if not resumed and not self._fresh:
            self.forget()
        attached = self.queue.attach(created=not resumed)
        self._fresh = False
        welcome = msgspec.structs.replace(
            WELCOME,
            encoding="blosc2",
            session_id=self._name,
            resumed=resumed,
            last_id=attached.last_id,
            revisions=attached.revisions,
            image=attached.image,
            present_bricks=attached.present_bricks,
        )
        self.outgoing.append(protocol.encode(welcome))

    @property
    def _name(self) -> str:
        return f"{id(self)} {self.sessions}"

    @property
    def can_work(self) -> bool:
        """Whether the next request needs no missing bricks, for which it would wait forever in this thread."""
        waiting = self.queue._waiting
        image = self.session._image
        complete = image is not None and image.presence.count == len(image.grid)
        return complete or not waiting or not isinstance(waiting[0][0], wire.Prompt | wire.Run | wire.SetMask)

    def work(self) -> bool:
        """Run one request. Return whether there was one."""
        assert self.can_work, "bricks are missing, and none is on its way"
        return self.queue.run_next() is not None


class Lost(Exception):
    """The link broke as planned."""


class Link:
    """Carries frames between a core and a server. It breaks after ``frames`` frames to the client."""

    def __init__(self, core: Core, server: MemoryServer, frames: float = float("inf")) -> None:
        self.core, self.server, self.frames = core, server, frames
        self.happened: list[Event] = []
        self.change_frame: Callable[[bytes], bytes | None] = lambda frame: frame

    def settle(self) -> list[Event]:
        """Exchange frames until both ends are idle. Raises Lost."""
        before = len(self.happened)
        while self._up() or self._down() or self.server.work():
            pass
        return self.happened[before:]

    def _up(self) -> bool:
        moved = False
        while (frame := self.core.next_control()) is not None:
            self.server.receive(frame)
            moved = True
        while (make := self.core.next_brick()) is not None:
            self.server.receive(make())
            moved = True
        return moved

    def _down(self) -> bool:
        moved = bool(self.server.outgoing)
        while self.server.outgoing:
            if self.frames <= 0:
                raise Lost
            self.frames -= 1
            frame = self.change_frame(self.server.outgoing.popleft())
            if frame is not None:
                self.happened += self.core.receive(frame)
        return moved


def deliver(core: Core, message: wire.Message) -> list[Event]:
    """Pass a message of the server to a core. Return its events."""
    return core.receive(protocol.encode(message))
