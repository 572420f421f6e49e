"""A session's requests and answers, independent of connections, without I/O and without threads."""

from collections import deque
from collections.abc import Callable, Sequence
import logging
import threading
import time

from nninteractive_ws import protocol
from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.memory import MemoryPool, SessionAccount, free_memory
from nninteractive_ws.engine.model_loader import LoadedModel
from nninteractive_ws.engine.outbox import ANSWERS_KEPT, Outbox
from nninteractive_ws.engine.session import Session
from nninteractive_ws.errors import AtCapacity, BadMessage, Cancelled, Error, InternalError, OutOfMemory
from nninteractive_ws.history import MASK_BYTES, memory_of
from nninteractive_ws.messages import (
    Bye,
    Cancel,
    Done,
    Encoding,
    ErrorMessage,
    ImageBricks,
    Request,
    Restore,
    SetImage,
    SetOptions,
)
from nninteractive_ws.worker_protocol import RequestAnswered, SessionAttached

_log = logging.getLogger(__name__)

#: Limit of queued requests. More answers than that are kept, so that each can be replayed.
MAX_WAITING = ANSWERS_KEPT // 2
#: Limit of consecutively refused requests, each of which is kept, too. A client that exceeds it ignores the answers.
MAX_REFUSED = 4096
# Timeout for the end of a cancelled request that waits for bricks.
_STOP_TIMEOUT_S = 2.0
# Bytes in memory of a request besides its message and its mask. Measured with tracemalloc: 290 for a click, whose
# message of 61 bytes is not kept.
_REQUEST_BYTES = 256


class RequestQueue:
    """The requests of one session, with the session itself and its outbox.

    ``wake``: called from any thread when the outbox has a message. :meth:`receive` takes a message, and
    :meth:`run_next` runs a request. Each may be called from one thread at a time. Both may run concurrently.
    """

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        device: DeviceScheduler,
        encoding: Encoding,
        pools: Sequence[MemoryPool],
        wake: Callable[[], None],
    ) -> None:
        self.outbox = Outbox(wake)
        self.encoding, self._name, self._pools = encoding, name, pools
        #: Time of the last useful message (time.monotonic()): a request that succeeded, without heartbeats, or a new
        #: brick.
        self.last_used = time.monotonic()
        self._account = SessionAccount(pools)
        self._session = Session(model, device, self.outbox, encoding, self._account)
        self._waiting: deque[tuple[Request, float, int]] = deque()
        self._waiting_bytes = 0
        self._running: int | None = None  # the id of the running request
        self._refused = 0
        self._last_id = 0
        self._lock = threading.Lock()
        self._closed = False
        self._no_request = threading.Event()  # set while none is running
        self._no_request.set()

    def attach(self, created: bool) -> SessionAttached:
        """Begin a connection. Return the session's state for the client."""
        self.outbox.disconnect()
        self._session.forget_base_layers()
        image, revisions = self._session.state()
        name, bricks = (None, b"") if image is None else (image.name, image.presence.to_bytes())
        return SessionAttached(created, self._last_id, revisions, name, bricks, free_memory(self._pools))

    def is_session(self, requester: object) -> bool:
        """Whether ``requester`` stands for this session in a memory pool."""
        return requester is self._account

    def memory_in(self, pool: MemoryPool) -> int:
        """Return the bytes of this session in a memory pool."""
        return sum(pool.used_by(self._account).values())

    # ---- from the client ----------------------------------------------------------------------------------

    def receive(self, data: str | bytes) -> bool:
        """Take a message. Return False if it ends the session.

        That is the case for bye, for an error without a request id, and after too many refused requests.
        """
        try:
            if isinstance(data, str):
                raise BadMessage("A text message was received. Send msgpack in binary frames.")
            message = protocol.decode_client(data)
            if isinstance(message, Bye):
                return False
            if isinstance(message, Cancel):
                self._cancel(message)
            elif isinstance(message, ImageBricks):
                self._put_bricks(message)
            elif isinstance(message, Request):
                self._enqueue(message, len(data))
        except Error as e:
            request = protocol.request_id(data) if isinstance(data, bytes) else None
            return self._send_error(e, request)
        except Exception:  # such as a device without memory for a brick
            _log.exception("a message of session %s failed", self._name)
            return self._send_error(
                InternalError("The server failed on a message, so the session ends. Its log has the details."), None
            )
        return True

    def _put_bricks(self, message: ImageBricks) -> None:
        stored, progress = self._session.put_bricks(message)
        if stored:
            self.last_used = time.monotonic()
        if progress is not None:
            self.outbox.put_unsolicited(progress)
            self._account.charge("outbox", self.outbox.memory)

    def _cancel(self, message: Cancel) -> None:
        """Cancel a queued or running request. Other ids are of requests that are answered, or were not sent yet."""
        with self._lock:
            unanswered = {request.id for request, _, _ in self._waiting} | {self._running}
        if message.request is None or message.request in unanswered:
            self._session.cancel(message, self._last_id)

    def _enqueue(self, request: Request, size: int) -> None:
        if self.outbox.replay(request.id):
            return
        if request.id <= self._last_id:
            raise BadMessage(f"Request ids must increase, but {request.id} was sent after {self._last_id}.")
        self._last_id = request.id
        self.outbox.open(request.id)
        memory = _REQUEST_BYTES + _memory_of_content(request, size)
        with self._lock:
            waiting, waiting_bytes = len(self._waiting), self._waiting_bytes
        if waiting >= MAX_WAITING:
            raise AtCapacity(
                f"{waiting} requests of this session are pending already. Wait for answers before sending more."
            )
        self._account.reserve("queue", waiting_bytes + memory)
        if isinstance(request, SetImage):
            self._session.forget_base_layers(request)
        with self._lock:
            if self._closed:
                return  # evicted meanwhile; the client gets a notice
            self._waiting.append((request, time.monotonic(), memory))
            self._waiting_bytes += memory
            self._refused = 0
            # Again, because a request may have finished since.
            self._account.charge("queue", self._waiting_bytes)

    def _send_error(self, error: Error, request: int | None) -> bool:
        """Send an error about a message. Return False if it ends the session."""
        message = protocol.to_error_message(error, request)
        if request is not None and isinstance(error, AtCapacity | OutOfMemory):
            self._refused += 1
            self.outbox.answer(request, message)
            self._account.charge("outbox", self.outbox.memory)
            if self._refused <= MAX_REFUSED and self.outbox.records <= ANSWERS_KEPT + MAX_REFUSED:
                return True
            final_error = AtCapacity(
                f"{MAX_REFUSED:,} requests in a row were refused, so the session ends. Wait for answers before sending "
                "more requests."
            )
            request, message = None, protocol.to_error_message(final_error, None)
        self.outbox.put_unsolicited(message)
        return request is not None

    # ---- requests -----------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def run_next(self) -> RequestAnswered | None:
        """Run the next request. Return its type with its timings or error code, or None if there was none."""
        with self._lock:
            if self._closed or not self._waiting:
                return None
            request, arrived, memory = self._waiting.popleft()
            self._running = request.id
            self._no_request.clear()
        self.outbox.begin(request.id)
        try:
            answer = self._answer(request, arrived)
        finally:
            self._no_request.set()
        if self._closed:
            return None  # evicted meanwhile
        self.outbox.put(answer)
        with self._lock:
            self._running = None
            self._waiting_bytes -= memory
            self._account.charge("queue", self._waiting_bytes)
        self._account.charge("outbox", self.outbox.memory)
        kind = str(type(request).__struct_config__.tag)
        if not isinstance(answer, Done):
            return RequestAnswered(self._name, kind, answer.code)
        used = not _is_heartbeat(request)
        if used:
            self.last_used = time.monotonic()
        return RequestAnswered(self._name, kind, timings=answer.timings, used=used)

    def _answer(self, request: Request, arrived: float) -> Done | ErrorMessage:
        try:
            return self._session.handle(request, arrived)
        except Error as e:
            if not isinstance(e, Cancelled):
                _log.info("request %d (%s): %s: %s", request.id, type(request).__name__, e.code, e)
            return protocol.to_error_message(e, request.id)
        except Exception:
            _log.exception("request %d (%s) failed", request.id, type(request).__name__)
            error = InternalError(
                "The server failed on this request. Its log has the details. The session continues without the request."
            )
            return protocol.to_error_message(error, request.id)

    # ---- the end ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Cancel the running request and the queued ones."""
        self._session.cancel(Cancel(), self._last_id)

    def is_idle(self, idle: float) -> bool:
        """Whether no request is queued or running.

        ``idle``: minimum of seconds since the last useful message. A request that waits for bricks does not count if
        none arrive, because its client is away or stuck.
        """
        with self._lock:
            return self._is_idle(idle)

    def _is_idle(self, idle: float) -> bool:
        used = time.monotonic() - self.last_used < idle
        busy = (self._running is not None or self._waiting) and not self._session.awaits_bricks
        return not (used or busy or self._closed)

    def close_if_idle(self, idle: float) -> bool:
        """Close the session and release its memory if :meth:`is_idle`. Return whether it did.

        A request that waits for bricks is not answered, and is done after a restore.
        """
        with self._lock:
            if not self._is_idle(idle):
                return False
            self._closed = True
            self._waiting.clear()
        self.stop()
        if self._no_request.wait(_STOP_TIMEOUT_S):
            self._release()
        return True

    def close(self) -> None:
        """Close the session and release its memory. No request must be running."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self._release()

    def _release(self) -> None:
        self._session.close()
        self._account.release()


def _is_heartbeat(request: Request) -> bool:
    """Return whether a request only shows that both sides are there, from a client that cannot send pings."""
    return isinstance(request, SetOptions) and request.autozoom is None and request.previews is None


def _memory_of_content(request: Request, size: int) -> int:
    """Return the bytes in memory of a request beyond ``_REQUEST_BYTES``. ``size``: bytes of its message."""
    if isinstance(request, Restore):
        return memory_of((*request.steps, *request.undone))
    return size + (MASK_BYTES if hasattr(request, "mask") else 0)
