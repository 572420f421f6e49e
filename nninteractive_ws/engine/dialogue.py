"""A session's requests and answers, whatever connection there is: no I/O, and no thread of its own."""

from collections import deque
from collections.abc import Callable, Sequence
import logging
import threading
import time

from nninteractive_ws import protocol
from nninteractive_ws.engine.device import DeviceThread
from nninteractive_ws.engine.models import LoadedModel
from nninteractive_ws.engine.room import Room, free_memory
from nninteractive_ws.engine.session import Session
from nninteractive_ws.errors import AtCapacity, BadMessage, Cancelled, Error, InternalError
from nninteractive_ws.messages import Bye, Cancel, Done, Encoding, ErrorMessage, ImageBricks, Request
from nninteractive_ws.server.link import Answered, Attached
from nninteractive_ws.server.outbox import ANSWERS_KEPT, Outbox

_log = logging.getLogger(__name__)

#: Requests that wait are kept in memory: not without end. Fewer than answers are kept, so that each can be repeated.
MOST_WAITING, MOST_WAITING_BYTES = ANSWERS_KEPT // 2, 256 * 1024**2


class Dialogue:
    """See the module. ``wake`` is called, from any thread, when the outbox has something to take.

    :meth:`receive` takes a message, :meth:`work` does a request: each from one thread at a time, which may be two.
    """

    def __init__(
        self,
        model: LoadedModel,
        device: DeviceThread,
        encoding: Encoding,
        rooms: Sequence[Room],
        wake: Callable[[], None],
    ) -> None:
        self.outbox = Outbox(wake)
        self.encoding, self._rooms = encoding, rooms
        self.last_used = time.monotonic()
        self._session = Session(model, device, self.outbox, encoding, rooms)
        self._waiting: deque[tuple[Request, float, int]] = deque()
        self._waiting_bytes = 0
        self._last_id = 0
        self._lock = threading.Lock()
        self._working = self._closed = False

    def attach(self, fresh: bool) -> Attached:
        """Begin a connection; what the client is told of the session it takes up, or begins."""
        self.outbox.hang_up()
        image, revisions = self._session.state()
        name, bricks = (None, b"") if image is None else (image.name, image.presence.to_bytes())
        return Attached(fresh, self._last_id, revisions, name, bricks, free_memory(self._rooms))

    def owns(self, asker: object) -> bool:
        """Whether this is the session that asks for room."""
        return asker is self._session

    # ---- from the client ----------------------------------------------------------------------------------

    def receive(self, data: str | bytes) -> bool:
        """Take one message; False where the session is over: after bye, or a message that cannot be answered."""
        self.last_used = time.monotonic()
        try:
            if isinstance(data, str):
                raise BadMessage("A text message came; messages are msgpack in binary frames.")
            message = protocol.decode_client(data)
            if isinstance(message, Bye):
                return False
            if isinstance(message, Cancel):
                self._session.cancel(message, self._last_id)
            elif isinstance(message, ImageBricks):
                if (progress := self._session.put_bricks(message)) is not None:
                    self.outbox.put_aside(progress)
            elif isinstance(message, Request):
                self._take(message, len(data))
        except Error as e:
            request = protocol.request_id(data) if isinstance(data, bytes) else None
            return self._refuse(e, request)
        return True

    def _take(self, request: Request, size: int) -> None:
        if self.outbox.repeat(request.id):
            return
        if request.id <= self._last_id:
            raise BadMessage(f"Request ids must grow: {request.id} came after {self._last_id}.")
        self._last_id = request.id
        self.outbox.open(request.id)
        with self._lock:
            waiting, waiting_bytes = len(self._waiting), self._waiting_bytes
        if waiting >= MOST_WAITING or waiting_bytes + size > MOST_WAITING_BYTES:
            raise AtCapacity(f"{waiting} requests of this session wait already; wait for answers before sending more.")
        with self._lock:
            self._waiting.append((request, time.monotonic(), size))
            self._waiting_bytes += size

    def _refuse(self, error: Error, request: int | None) -> bool:
        """Say what was wrong with a message; whether the session goes on."""
        message = protocol.to_error_message(error, request)
        if request is not None and isinstance(error, AtCapacity):
            self.outbox.answer(request, message)
        else:
            self.outbox.put_aside(message)
        return request is not None

    # ---- requests -----------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def work(self) -> Answered | None:
        """Do the next request; what it was and took. None where there is none."""
        with self._lock:
            if self._closed or not self._waiting:
                return None
            request, arrived, size = self._waiting.popleft()
            self._waiting_bytes -= size
            self._working = True
        self.outbox.begin(request.id)
        answer = self._answer(request, arrived)
        self.outbox.put(answer)
        self.last_used = time.monotonic()
        with self._lock:
            self._working = False
        kind = str(type(request).__struct_config__.tag)
        if isinstance(answer, Done):
            return Answered(kind=kind, code=None, timings=answer.timings)
        return Answered(kind=kind, code=answer.code)

    def _answer(self, request: Request, arrived: float) -> Done | ErrorMessage:
        try:
            return self._session.handle(request, arrived)
        except Error as e:
            if not isinstance(e, Cancelled):
                _log.info("request %d (%s): %s: %s", request.id, type(request).__name__, e.code, e)
            return protocol.to_error_message(e, request.id)
        except Exception:
            _log.exception("request %d (%s) failed", request.id, type(request).__name__)
            error = InternalError("The server failed on this request; its log has the details. The session goes on.")
            return protocol.to_error_message(error, request.id)

    # ---- the end ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Cancel what runs and what waits."""
        self._session.cancel(Cancel(), self._last_id)

    def close_if_idle(self) -> bool:
        """Let go of image and segments for good, unless a request waits or is being done; whether it did."""
        with self._lock:
            if self._working or self._waiting or self._closed:
                return False
            self._closed = True
        self._session.close()
        return True

    def close(self) -> None:
        """Let go of image and segments for good; no request is being done."""
        with self._lock:
            self._closed = True
        self._session.close()
