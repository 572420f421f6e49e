"""The queue of messages from a session to its client, which outlives connections.

All messages about a request are kept for a while, so that they can be replayed after a reconnection. Mask changes that
are queued for a slow client are composed into one, so that the queue is bounded.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
import threading

from nninteractive_ws import protocol
from nninteractive_ws.messages import Done, ErrorMessage, ImageProgress, MaskDelta, Message, Progress, RunLengthMask

#: Number of answers that are kept, so that a request received twice is answered twice and done once.
ANSWERS_KEPT = 1024
#: Bytes that are kept of messages before answers. Beyond them, a client that resumes requests the mask instead.
BYTES_KEPT = 16 * 1024**2
#: While more than this is queued, no further request is begun and no further message of the client is read.
FULL_BYTES, FULL_FRAMES = 8 * 1024**2, 512
#: Bytes in memory of a message besides its data, and of a request besides its messages. Measured with tracemalloc.
FRAME_BYTES, RECORD_BYTES = 88, 272
# Limit of bricks in a merged acknowledgement, because merging long lists repeatedly would be slow.
_MAX_MERGED = 4096


@dataclass(eq=False, slots=True)
class _Frame:
    """An encoded message. ``pending``: the message itself, as long as it can be merged with the next one."""

    data: bytes
    pending: Message | None = None

    @classmethod
    def of(cls, message: Message, pending: Message | None = None) -> "_Frame":
        # A copy, because the buffer of the encoder's own bytes object is 50 % larger, and would be kept with it.
        return cls(bytes(memoryview(protocol.encode(message))), pending)


@dataclass(eq=False, slots=True)
class _RequestRecord:
    """The messages about a request. ``requested``: the client has sent it on the current connection."""

    requested: bool
    frames: list[_Frame] = field(default_factory=list)
    answered: bool = False

    @property
    def size(self) -> int:
        """Bytes of the messages before the last one, which is the answer."""
        return sum(len(f.data) for f in self.frames[:-1])

    @property
    def memory(self) -> int:
        """Bytes of the record and all its messages."""
        return RECORD_BYTES + sum(len(f.data) + FRAME_BYTES for f in self.frames)


class Outbox:
    """A queue of messages, with records of the last requests.

    ``wake``: called from any thread when a message is queued.
    :meth:`begin`, :meth:`put`, :meth:`put_change` and :meth:`withdraw_change` are for the running request, and for one
    thread at a time. The other methods may be called from any thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[_Frame] = deque()
        self._waiting_bytes = 0
        self._records: OrderedDict[int, _RequestRecord] = OrderedDict()
        self._kept_bytes = self._memory = 0
        self._current: _RequestRecord | None = None
        self._latest: dict[type, _Frame] = {}  # by message type, of the types that can be merged

    # ---- to the client ------------------------------------------------------------------------------------

    def take(self) -> bytes | None:
        """Return the next message to send, or None if the queue is empty."""
        with self._lock:
            if not self._queue:
                return None
            frame = self._queue.popleft()
            self._waiting_bytes -= len(frame.data)
            frame.pending = None
            return frame.data

    @property
    def full(self) -> bool:
        """Whether the client is so far behind that the session has to wait for it."""
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

    @property
    def records(self) -> int:
        """Number of kept requests. While an early one has no answer, it exceeds ANSWERS_KEPT."""
        with self._lock:
            return len(self._records)

    # ---- connections and requests -------------------------------------------------------------------------

    def disconnect(self) -> None:
        """End the connection. No message about a request is queued until the client sends it on the next connection."""
        with self._lock:
            self._queue.clear()
            self._latest.clear()
            self._waiting_bytes = 0
            for record in self._records.values():
                record.requested = False

    def open(self, request: int) -> None:
        """Make a record of a request that was received for the first time."""
        with self._lock:
            self._records[request] = _RequestRecord(requested=True)
            self._memory += RECORD_BYTES
            while len(self._records) > ANSWERS_KEPT and next(iter(self._records.values())).answered:
                _, oldest = self._records.popitem(last=False)
                self._kept_bytes -= oldest.size
                self._memory -= oldest.memory

    def replay(self, request: int) -> bool:
        """Queue the messages about a request again: all of them on a new connection, else only the answer.

        Return False if there is no record of the request.
        """
        with self._lock:
            record = self._records.get(request)
            if record is None:
                return False
            frames = record.frames[-1:] if record.requested and record.answered else []
            if not record.requested:
                record.requested, frames = True, record.frames
            for frame in frames:
                self._queue_frame(frame)
        self._wake()
        return True

    def begin(self, request: int) -> None:
        """Begin a request. Messages that are put are about this request, up to its answer."""
        with self._lock:
            self._current = self._records[request]

    # ---- messages -----------------------------------------------------------------------------------------

    def put(self, message: Message) -> None:
        """Queue a message about the running request. Progress is not recorded, and dropped without a connection."""
        with self._lock:
            record = self._current
            if isinstance(message, Progress):
                if record is not None and record.requested:
                    self._replace_or_queue(message)
            else:
                assert record is not None
                self._send(record, _Frame.of(message))
                self._end_merging(type(message))
                if isinstance(message, Done | ErrorMessage):
                    self._settle(record)
        self._wake()

    def put_change(self, message: MaskDelta) -> None:
        """Queue a change of a mask. Until it is sent, :meth:`withdraw_change` can withdraw it."""
        with self._lock:
            assert self._current is not None
            self._send(self._current, _Frame.of(message, message))
        self._wake()

    def withdraw_change(self, segment: str) -> tuple[int, RunLengthMask] | None:
        """Remove the last change of a segment if it was not sent. Return its base revision and the change, else None.

        The caller composes it with the next change, so that a client that reads slowly catches up.
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
            return frame.pending.base_revision, frame.pending.change

    def put_unsolicited(self, message: Message) -> None:
        """Queue a message that belongs to no request. It is lost if there is no connection."""
        with self._lock:
            self._replace_or_queue(message)
        self._wake()

    def answer(self, request: int, message: Message) -> None:
        """Answer a request that was not begun."""
        with self._lock:
            record = self._records[request]
            self._send(record, _Frame.of(message))
            self._settle(record)
        self._wake()

    # ---- internals, which need the lock -------------------------------------------------------------------

    def _queue_frame(self, frame: _Frame) -> None:
        self._queue.append(frame)
        self._waiting_bytes += len(frame.data)

    def _send(self, record: _RequestRecord, frame: _Frame) -> None:
        record.frames.append(frame)
        self._memory += len(frame.data) + FRAME_BYTES
        if record.requested:
            self._queue_frame(frame)

    def _replace_or_queue(self, message: Message) -> None:
        """Queue a message, or merge it into a queued one of the same type."""
        last = self._latest.get(type(message))
        merged = None if last is None or last.pending is None else _merged(last.pending, message)
        if last is None or merged is None:
            self._end_merging(type(message))
            last = self._latest[type(message)] = _Frame.of(message, message)
            self._queue_frame(last)
        else:
            self._waiting_bytes -= len(last.data)
            last.pending, last.data = merged, protocol.encode(merged)
            self._waiting_bytes += len(last.data)

    def _end_merging(self, kind: type) -> None:
        """Merge no further message of a type into one that is queued, so that none overtakes what is queued now."""
        last = self._latest.pop(kind, None)
        if last is not None:
            last.pending = None

    def _settle(self, record: _RequestRecord) -> None:
        """Mark a request as answered. Beyond BYTES_KEPT, the oldest records keep only their answers."""
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


def _merged(queued: Message, message: Message) -> Message | None:
    """Return one message in place of two, or None if they cannot be merged."""
    if isinstance(queued, Progress) and isinstance(message, Progress) and queued.id == message.id:
        return message
    if isinstance(queued, ImageProgress) and isinstance(message, ImageProgress) and queued.image == message.image:
        received = {*queued.received, *message.received}
        base = {*queued.received_base, *message.received_base} - received
        if len(received) + len(base) > _MAX_MERGED:
            return None
        return ImageProgress(
            image=message.image,
            received=sorted(received),
            received_base=sorted(base),
            present=max(queued.present, message.present),
            total=message.total,
        )
    return None
