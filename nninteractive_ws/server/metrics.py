"""What the gateway counts, for Prometheus.

Every label has a closed set of values, or comes from the server itself: what a client sends makes no new series.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from nninteractive_ws import messages
from nninteractive_ws.errors import WIRE_ERRORS, InternalError

Direction = Literal["up", "down"]

#: The types of requests, as they are on the wire.
REQUEST_TYPES: tuple[str, ...] = tuple(kind.__struct_config__.tag for kind in get_args(messages.Request))
#: What a type that is none of these is counted as.
OTHER = "other"

_PREFIX = "nninteractive_ws_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Now:
    """What is so at a moment: sessions with a client and those waiting for theirs, workers that have loaded the
    model, and, by device, bytes of memory in use, and bytes charged to sessions by purpose."""

    connected: int
    waiting: int
    workers: int
    memory: Mapping[str, int] = field(default_factory=dict)
    charged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Metrics:
    """Counters of one gateway, each moved by the method that is named for what happened."""

    def __init__(self, now: Callable[[], Now]) -> None:
        """``now``: called whenever the metrics are asked for."""
        self._registry = CollectorRegistry()
        self._registry.register(_Present(now))
        self._requests = self._counter("requests", "Requests answered, with whatever answer.", "type")
        self._errors = self._counter("errors", "Errors sent, to requests and to connections.", "code")
        self._bytes = self._counter("bytes", "Bytes of messages, up from clients and down to them.", "direction")
        self._passes = self._counter("passes", "Forward passes of the neural network.")
        self._network = self._counter("network_seconds", "Seconds inside the neural network.")
        self._evictions = self._counter("evictions", "Sessions forgotten while their client could still come back.")
        self._restarts = self._counter("worker_restarts", "Workers started in the place of one that ended.")
        self._total = self._histogram("request_seconds", "From a request's arrival to its answer, if that is no error.")
        self._queued = self._histogram("queue_seconds", "Of that, waiting for other requests.")
        # Those that have not happened yet are 0 and not absent: a rate needs a first value.
        for counter, values in (
            (self._requests, (*REQUEST_TYPES, OTHER)),
            (self._errors, WIRE_ERRORS),
            (self._bytes, get_args(Direction)),
        ):
            for value in values:
                counter.labels(value)

    def answered(self, kind: str, code: str | None, timings: messages.Timings | None) -> None:
        """A request of a type was answered; ``code``: of an error; ``timings``: of the answer, where it has them."""
        self._requests.labels(kind if kind in REQUEST_TYPES else OTHER).inc()
        if code is not None:
            self.failed(code)
        if timings is not None:
            self._passes.inc(timings.passes)
            self._network.inc(timings.network)
            self._total.observe(timings.total)
            self._queued.observe(timings.queued)

    def failed(self, code: str) -> None:
        """An error was sent. (Not to be called for an answer too.) A code that is unknown means internal, as ever."""
        self._errors.labels(code if code in WIRE_ERRORS else InternalError.code).inc()

    def moved(self, direction: Direction, n: int) -> None:
        """A message of ``n`` bytes went up from a client, or down to one."""
        self._bytes.labels(direction).inc(n)

    def evicted(self) -> None:
        """A session was forgotten to make room."""
        self._evictions.inc()

    def worker_restarted(self) -> None:
        """A worker was started in the place of one that ended."""
        self._restarts.inc()

    def render(self) -> tuple[bytes, str]:
        """The body of an answer to Prometheus, and its content type."""
        encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str) -> Histogram:
        return Histogram(_PREFIX + name, words, buckets=_SECONDS, registry=self._registry)


class _Present(Collector):
    """The gauges: not kept up to date but looked at, and all at one moment."""

    def __init__(self, now: Callable[[], Now]) -> None:
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = self._now()
        sessions = GaugeMetricFamily(
            _PREFIX + "sessions", "Sessions, connected to a client or waiting for theirs.", labels=["state"]
        )
        sessions.add_metric(["connected"], now.connected)
        sessions.add_metric(["waiting"], now.waiting)
        yield sessions
        yield GaugeMetricFamily(_PREFIX + "workers", "Workers that have loaded the model.", value=now.workers)
        memory = GaugeMetricFamily(
            _PREFIX + "device_memory_bytes", "Memory that the workers use on a device.", labels=["device"]
        )
        for device, used in now.memory.items():
            memory.add_metric([device], used)
        yield memory
        charged = GaugeMetricFamily(
            _PREFIX + "session_memory_bytes",
            "Memory of the host that sessions are charged for.",
            labels=["device", "purpose"],
        )
        for device, purposes in now.charged.items():
            for purpose, used in purposes.items():
                charged.add_metric([device, purpose], used)
        yield charged
