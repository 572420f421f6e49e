"""A session's requests and answers, whatever connection there is: no I/O, and no thread of its own."""

from collections import deque
from collections.abc import Callable, Sequence
import logging
import threading
import time

from nninteractive_ws import protocol
from nninteractive_ws.engine.device import DeviceThread
from nninteractive_ws.engine.memory import MemoryPool, SessionAccount, free_memory
from nninteractive_ws.engine.models import LoadedModel
from nninteractive_ws.engine.session import Session
from nninteractive_ws.errors import AtCapacity, BadMessage, Cancelled, Error, InternalError, OutOfMemory
from nninteractive_ws.history import MASK_BYTES, memory_of
from nninteractive_ws.messages import Bye, Cancel, Done, Encoding, ErrorMessage, ImageBricks, Request, Restore
from nninteractive_ws.server.link import Answered, Attached
from nninteractive_ws.server.outbox import ANSWERS_KEPT, Outbox

_log = logging.getLogger(__name__)

#: Limit of queued requests. More answers are kept, so that each can be repeated.
MAX_WAITING = ANSWERS_KEPT // 2
#: Limit of refused requests in a row, each of which is kept, too. A client beyond it ignores the answers.
MAX_REFUSED = 4096
# A request that waits for bricks ends within this when it is cancelled.
_STOP_TIMEOUT_S = 2.0
# Bytes in memory of a request besides its message, and besides a mask in it. Measured with tracemalloc: 290 for a
# click, whose message of 61 bytes is not kept.
_REQUEST_BYTES = 256


class Dialogue:
    """See the module. ``wake`` is called, from any thread, when the outbox has something to take.

    :meth:`receive` takes a message, :meth:`work` does a request: each from one thread at a time, which may be two.
    """

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        device: DeviceThread,
        encoding: Encoding,
        pools: Sequence[MemoryPool],
        wake: Callable[[], None],
    ) -> None:
        self.outbox = Outbox(wake)
        self.encoding, self._name, self._pools = encoding, name, pools
        #: Time of the last useful message: a request that succeeded, or a new brick.
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

    def attach(self, fresh: bool) -> Attached:
        """Begin a connection; what the client is told of the session it takes up, or begins."""
        self.outbox.hang_up()
        image, revisions = self._session.state()
        name, bricks = (None, b"") if image is None else (image.name, image.presence.to_bytes())
        return Attached(fresh, self._last_id, revisions, name, bricks, free_memory(self._pools))

    def is_session(self, requester: object) -> bool:
        """Whether this is the session that asks for memory."""
        return requester is self._account

    # ---- from the client ----------------------------------------------------------------------------------

    def receive(self, data: str | bytes) -> bool:
        """Take one message; False where the session is over: after bye, or a message that cannot be answered."""
        try:
            if isinstance(data, str):
                raise BadMessage("A text message came; messages are msgpack in binary frames.")
            message = protocol.decode_client(data)
            if isinstance(message, Bye):
                return False
            if isinstance(message, Cancel):
                self._cancel(message)
            elif isinstance(message, ImageBricks):
                self._put_bricks(message)
            elif isinstance(message, Request):
                self._take(message, len(data))
        except Error as e:
            request = protocol.request_id(data) if isinstance(data, bytes) else None
            return self._refuse(e, request)
        return True

    def _put_bricks(self, message: ImageBricks) -> None:
        stored, progress = self._session.put_bricks(message)
        if stored:
            self.last_used = time.monotonic()
        if progress is not None:
            self.outbox.put_aside(progress)

    def _cancel(self, message: Cancel) -> None:
        """Cancel a queued or running request. Any other id is of a request that is done, or that was not sent yet."""
        with self._lock:
            unanswered = {request.id for request, _, _ in self._waiting} | {self._running}
        if message.request is None or message.request in unanswered:
            self._session.cancel(message, self._last_id)

    def _take(self, request: Request, size: int) -> None:
        if self.outbox.repeat(request.id):
            return
        if request.id <= self._last_id:
            raise BadMessage(f"Request ids must grow: {request.id} came after {self._last_id}.")
        self._last_id = request.id
        self.outbox.open(request.id)
        memory = _REQUEST_BYTES + _memory_of_content(request, size)
        with self._lock:
            waiting, waiting_bytes = len(self._waiting), self._waiting_bytes
        if waiting >= MAX_WAITING:
            raise AtCapacity(f"{waiting} requests of this session wait already; wait for answers before sending more.")
        self._account.reserve("queue", waiting_bytes + memory)
        with self._lock:
            if self._closed:
                return  # evicted meanwhile; the client is being told
            self._waiting.append((request, time.monotonic(), memory))
            self._waiting_bytes += memory
            self._refused = 0
            # Again: a request may have finished since.
            self._account.charge("queue", self._waiting_bytes)

    def _refuse(self, error: Error, request: int | None) -> bool:
        """Say what was wrong with a message; whether the session goes on."""
        message = protocol.to_error_message(error, request)
        if request is not None and isinstance(error, AtCapacity | OutOfMemory):
            self._refused += 1
            self.outbox.answer(request, message)
            self._account.charge("outbox", self.outbox.memory)
            if self._refused <= MAX_REFUSED:
                return True
            last = AtCapacity(f"{MAX_REFUSED:,} requests in a row were refused; the session ends.")
            request, message = None, protocol.to_error_message(last, None)
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
            return Answered(self._name, kind, answer.code)
        self.last_used = time.monotonic()
        return Answered(self._name, kind, timings=answer.timings)

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

    def close_if_idle(self, idle: float) -> bool:
        """Release everything for good, unless a request waits or runs; whether it did.

        ``idle``: seconds for which nothing useful must have come. A request that waits for bricks of the image, of
        which none comes, does not count: its client is away or stuck. It gets no answer, and is done after a restore.
        """
        with self._lock:
            used = time.monotonic() - self.last_used < idle
            busy = (self._running is not None or self._waiting) and not self._session.awaits_bricks
            if used or busy or self._closed:
                return False
            self._closed = True
            self._waiting.clear()
        self.stop()
        if self._no_request.wait(_STOP_TIMEOUT_S):
            self._release()
        return True

    def close(self) -> None:
        """Release everything for good, while no request is running."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self._release()

    def _release(self) -> None:
        self._session.close()
        self._account.release()


def _memory_of_content(request: Request, size: int) -> int:
    """Bytes in memory of a request beyond ``_REQUEST_BYTES``. ``size``: of its message."""
    if isinstance(request, Restore):
        return memory_of((*request.steps, *request.undone))
    return size + (MASK_BYTES if hasattr(request, "mask") else 0)
