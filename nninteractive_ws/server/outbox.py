"""What a session has to say to its client, whatever connection there is.

Everything said about a request is kept for a while, so that a client whose connection was lost can hear it again.
Changes of a mask that wait for a slow client are composed into one, so what waits is bounded however long it does.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
import threading

from nninteractive_ws import protocol
from nninteractive_ws.messages import Bits, Done, ErrorMessage, ImageProgress, MaskDelta, Message, Progress

#: Answers kept, so that a request that comes twice gets its answer twice and is done once.
ANSWERS_KEPT = 1024
#: Bytes kept of what was said before answers: beyond them, a client that comes back asks for the mask instead.
BYTES_KEPT = 16 * 1024**2
#: While more than this waits for the client, no further request is begun and no further message is read.
FULL_BYTES, FULL_FRAMES = 8 * 1024**2, 512
#: Bytes in memory of a message besides its data, and of a request besides its messages. Measured with tracemalloc.
FRAME_BYTES, RECORD_BYTES = 88, 272
# Bricks of a merged acknowledgement, at most: merging long lists again and again would be slow.
_MAX_MERGED = 4096


@dataclass(eq=False, slots=True)
class _Frame:
    """An encoded message. ``pending``: the message itself, while it can be merged with the next."""

    data: bytes
    pending: Message | None = None

    @classmethod
    def of(cls, message: Message, pending: Message | None = None) -> "_Frame":
        # A copy: the buffer of the encoder's own bytes object is half as large again, and would be kept with it.
        return cls(bytes(memoryview(protocol.encode(message))), pending)


@dataclass(eq=False, slots=True)
class _Record:
    """What was said about a request. ``asked``: the client has sent it on the connection there is."""

    asked: bool
    frames: list[_Frame] = field(default_factory=list)
    answered: bool = False

    @property
    def size(self) -> int:
        return sum(len(f.data) for f in self.frames[:-1])

    @property
    def memory(self) -> int:
        """Bytes of the record and all its messages."""
        return RECORD_BYTES + sum(len(f.data) + FRAME_BYTES for f in self.frames)


class Outbox:
    """See the module. ``wake`` is called, from any thread, when there is something to take.

    Requests are said of one after another (:meth:`begin` and then all of it), by one thread at a time; the other
    methods may be called from any.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[_Frame] = deque()
        self._waiting_bytes = 0
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._kept_bytes = self._memory = 0
        self._current: _Record | None = None
        self._latest: dict[type, _Frame] = {}  # of the kinds that one message can say for several

    # ---- to the client ------------------------------------------------------------------------------------

    def take(self) -> bytes | None:
        """The next message to send, or None for now."""
        with self._lock:
            if not self._queue:
                return None
            frame = self._queue.popleft()
            self._waiting_bytes -= len(frame.data)
            frame.pending = None
            return frame.data

    @property
    def full(self) -> bool:
        """Whether the client is so far behind that it is to be waited for."""
        with self._lock:
            return self._waiting_bytes > FULL_BYTES or len(self._queue) > FULL_FRAMES

    @property
    def empty(self) -> bool:
        with self._lock:
            return not self._queue

    @property
    def memory(self) -> int:
        """Bytes of kept records and of the queue."""
        with self._lock:
            return self._memory + self._waiting_bytes

    # ---- connections and requests -------------------------------------------------------------------------

    def hang_up(self) -> None:
        """The connection ended: nothing is said about a request until the client sends it on another one."""
        with self._lock:
            self._queue.clear()
            self._latest.clear()
            self._waiting_bytes = 0
            for record in self._records.values():
                record.asked = False

    def open(self, request: int) -> None:
        """Note a request that came for the first time."""
        with self._lock:
            self._records[request] = _Record(asked=True)
            self._memory += RECORD_BYTES
            while len(self._records) > ANSWERS_KEPT and next(iter(self._records.values())).answered:
                _, oldest = self._records.popitem(last=False)
                self._kept_bytes -= oldest.size
                self._memory -= oldest.memory

    def repeat(self, request: int) -> bool:
        """Say again what was said about a request: all of it on a new connection, else the answer alone.

        False where nothing is known of it.
        """
        with self._lock:
            record = self._records.get(request)
            if record is None:
                return False
            again = record.frames[-1:] if record.asked and record.answered else []
            if not record.asked:
                record.asked, again = True, record.frames
            for frame in again:
                self._queue_frame(frame)
        self._wake()
        return True

    def begin(self, request: int) -> None:
        """What is put from here on is said about this request, until its answer."""
        with self._lock:
            self._current = self._records[request]

    # ---- what is said -------------------------------------------------------------------------------------

    def put(self, message: Message) -> None:
        """Say something about the request in hand."""
        with self._lock:
            record = self._current
            if isinstance(message, Progress):
                if record is not None and record.asked:
                    self._replace_or_queue(message)
            else:
                assert record is not None
                self._say(record, _Frame.of(message))
                if isinstance(message, Done | ErrorMessage):
                    self._settle(record)
        self._wake()

    def put_change(self, message: MaskDelta) -> None:
        """Queue a change of a mask. Until it is sent, :meth:`withdraw_change` can withdraw it."""
        with self._lock:
            assert self._current is not None
            self._say(self._current, _Frame.of(message, message))
        self._wake()

    def withdraw_change(self, segment: str) -> tuple[int, Bits] | None:
        """Take back the last change of a segment if nobody has been told: its base revision, and what it was.

        The caller composes it with the next one: that is how a client that reads slowly catches up.
        """
        with self._lock:
            record = self._current
            frame = record.frames[-1] if record is not None and record.frames else None
            if frame is None or not isinstance(frame.pending, MaskDelta) or frame.pending.segment != segment:
                return None
            assert record is not None
            record.frames.pop()
            self._memory -= len(frame.data) + FRAME_BYTES
            if frame in self._queue:
                self._queue.remove(frame)
                self._waiting_bytes -= len(frame.data)
            return frame.pending.base_rev, frame.pending.change

    def put_aside(self, message: Message) -> None:
        """Say something that belongs to no request; lost where there is no connection."""
        with self._lock:
            self._replace_or_queue(message)
        self._wake()

    def answer(self, request: int, message: Message) -> None:
        """Answer a request that is not begun."""
        with self._lock:
            record = self._records[request]
            self._say(record, _Frame.of(message))
            self._settle(record)
        self._wake()

    # ---- inside, under the lock ---------------------------------------------------------------------------

    def _queue_frame(self, frame: _Frame) -> None:
        self._queue.append(frame)
        self._waiting_bytes += len(frame.data)

    def _say(self, record: _Record, frame: _Frame) -> None:
        record.frames.append(frame)
        self._memory += len(frame.data) + FRAME_BYTES
        if record.asked:
            self._queue_frame(frame)

    def _replace_or_queue(self, message: Message) -> None:
        """Queue a message, or let one that still waits say what both do."""
        last = self._latest.get(type(message))
        merged = None if last is None or last.pending is None else _merged(last.pending, message)
        if last is None or merged is None:
            last = self._latest[type(message)] = _Frame.of(message, message)
            self._queue_frame(last)
        else:
            self._waiting_bytes -= len(last.data)
            last.pending, last.data = merged, protocol.encode(merged)
            self._waiting_bytes += len(last.data)

    def _settle(self, record: _Record) -> None:
        """The request is answered: from here on it is only kept, and the oldest are kept with less."""
        record.answered = True
        for frame in record.frames:
            frame.pending = None
        self._kept_bytes += record.size
        if self._current is record:
            self._current = None
        for old in self._records.values():
            if self._kept_bytes <= BYTES_KEPT:
                break
            if old.answered and len(old.frames) > 1:
                self._kept_bytes -= old.size
                self._memory -= old.size + FRAME_BYTES * (len(old.frames) - 1)
                del old.frames[:-1]


def _merged(waiting: Message, message: Message) -> Message | None:
    """One message that says what two do, or None."""
    if isinstance(waiting, Progress) and isinstance(message, Progress) and waiting.id == message.id:
        return message
    if isinstance(waiting, ImageProgress) and isinstance(message, ImageProgress) and waiting.image == message.image:
        if len(waiting.received) + len(message.received) > _MAX_MERGED:
            return None
        received = sorted({*waiting.received, *message.received})
        return ImageProgress(
            image=message.image, received=received, present=max(waiting.present, message.present), total=message.total
        )
    return None
