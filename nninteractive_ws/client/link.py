"""Estimates from the acknowledgements of bricks: the throughput of the link, and the compression faster on it."""

from dataclasses import dataclass

from nninteractive_ws.arrays import Compression

#: Weight of the past in the throughput, at each acknowledgement. The last ten or so count.
_DECAY = 0.9
#: A compression is judged after this many bricks, and the other one is tried again after this many trials.
_TRIAL_BRICKS, _TRIALS_REMEMBERED = 64, 16
#: Throughput, in bytes per second, above which "fast" compression is worth a trial. On slower links the bytes decide.
_FAST_LINK = 25e6


@dataclass(frozen=True)
class SentMessage:
    """A message with bricks. ``size``: in whole bricks. ``sent``: the time at which its packing began."""

    size: float
    nbytes: int
    compression: Compression
    sent: float


class Link:
    """The link to the server, as far as acknowledgements of messages with bricks show it.

    ``compression``: the one for the next message.
    """

    def __init__(self) -> None:
        self.compression: Compression = "small"
        self._acknowledged = 0.0  # time of the last one
        self._has_skipped = False  # whether the last message does not count
        self._bricks = self._bytes = self._seconds = 0.0
        self._bricks_on_trial = self._seconds_on_trial = 0.0
        # Seconds per brick of each compression, and the trials since then.
        self._costs: dict[Compression, float] = {}
        self._age: dict[Compression, int] = {"small": 0, "fast": 0}

    @property
    def throughput(self) -> float | None:
        """Bytes per second, also where a processor is the limit; None before the first messages."""
        return self._bytes / self._seconds if self._seconds else None

    @property
    def bricks_per_second(self) -> float | None:
        """Whole bricks per second; None before the first messages."""
        return self._bricks / self._seconds if self._seconds else None

    def acknowledge(self, message: SentMessage, now: float) -> None:
        """Note that the server has received a message."""
        # While messages follow each other closely, the time between acknowledgements is that of the slowest stage.
        # After a pause, it has a round trip in addition, and does not count. Where each message comes after a pause,
        # packing is slower than the link, and every other message counts.
        after_pause = message.sent > self._acknowledged
        seconds = now - max(self._acknowledged, message.sent)
        self._acknowledged = now
        self._has_skipped = after_pause and not self._has_skipped
        if self._has_skipped:
            return
        self._bricks = _DECAY * self._bricks + message.size
        self._bytes = _DECAY * self._bytes + message.nbytes
        self._seconds = _DECAY * self._seconds + seconds
        if message.compression == self.compression:
            self._bricks_on_trial += message.size
            self._seconds_on_trial += seconds
        if self.compression == "fast" and self._is_slow():
            self._begin_trial("small")
        elif self._bricks_on_trial >= _TRIAL_BRICKS:
            self._end_trial()

    def _is_slow(self) -> bool:
        return (self.throughput or 0.0) < _FAST_LINK

    def _end_trial(self) -> None:
        """Choose the compression with the lower cost, or the one whose cost is not known."""
        this: Compression = self.compression
        other: Compression = "fast" if this == "small" else "small"
        self._costs[this] = self._seconds_on_trial / self._bricks_on_trial
        self._age[this], self._age[other] = 0, self._age[other] + 1
        if self._is_slow():
            self._begin_trial("small")
        elif other not in self._costs or self._age[other] > _TRIALS_REMEMBERED:
            self._begin_trial(other)
        else:
            self._begin_trial(min(self._costs, key=self._costs.__getitem__))

    def _begin_trial(self, compression: Compression) -> None:
        self.compression = compression
        self._bricks_on_trial = self._seconds_on_trial = 0.0
