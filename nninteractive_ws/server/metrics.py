"""The gateway's metrics for Prometheus.

Every label has a closed set of values or comes from the server itself, so no message of a client creates a series.
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
from nninteractive_ws.server.sessions import Api

Direction = Literal["up", "down"]

#: Types of requests, as on the wire.
REQUEST_TYPES: tuple[str, ...] = tuple(kind.__struct_config__.tag for kind in get_args(messages.Request))
#: Label for any other type.
OTHER = "other"

_PREFIX = "nninteractive_ws_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class GaugeSnapshot:
    """Snapshot of current gauges.

    ``sessions``: their number, by API and by whether they have a client. ``workers``: those that have loaded the model.
    ``memory``: bytes in use, by device. ``charged``: bytes charged to sessions, by device and purpose.
    """

    sessions: Mapping[tuple[Api, bool], int]
    workers: int
    memory: Mapping[str, int] = field(default_factory=dict)
    charged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Metrics:
    """Counters of one gateway. Each method counts the event that it is named for."""

    def __init__(self, gauges: Callable[[], GaugeSnapshot]) -> None:
        """``gauges``: called whenever Prometheus fetches the metrics."""
        self._registry = CollectorRegistry()
        self._registry.register(_GaugeCollector(gauges))
        self._requests = self._counter("requests", "Requests answered, including errors.", "type")
        self._errors = self._counter("errors", "Errors sent, to requests and to connections.", "code")
        self._bytes = self._counter("bytes", "Bytes of messages, up from clients and down to clients.", "direction")
        self._passes = self._counter("passes", "Forward passes of the neural network.")
        self._network = self._counter("network_seconds", "Seconds spent in the neural network.")
        self._evictions = self._counter("evictions", "Sessions evicted in favor of others.")
        self._restarts = self._counter("worker_restarts", "Workers restarted after their process ended.")
        self._total = self._histogram(
            "request_seconds", "Seconds from the arrival of a request to its answer, without errors."
        )
        self._queued = self._histogram("queue_seconds", "Seconds of that spent waiting for other requests.")
        # Counters start at 0 instead of being absent, because a rate needs a first value.
        for counter, values in (
            (self._requests, (*REQUEST_TYPES, OTHER)),
            (self._errors, WIRE_ERRORS),
            (self._bytes, get_args(Direction)),
        ):
            for value in values:
                counter.labels(value)

    def request_answered(self, kind: str, code: str | None, timings: messages.Timings | None) -> None:
        """Count an answered request of a type. ``code``: of an error; ``timings``: of the answer, if it has them."""
        self._requests.labels(kind if kind in REQUEST_TYPES else OTHER).inc()
        if code is not None:
            self.error_sent(code)
        if timings is not None:
            self._passes.inc(timings.passes)
            self._network.inc(timings.network)
            self._total.observe(timings.total)
            self._queued.observe(timings.queued)

    def error_sent(self, code: str) -> None:
        """Count an error. :meth:`request_answered` calls this itself. An unknown code counts as internal."""
        self._errors.labels(code if code in WIRE_ERRORS else InternalError.code).inc()

    def bytes_transferred(self, direction: Direction, n: int) -> None:
        """Count a message of ``n`` bytes, up from a client or down to one."""
        self._bytes.labels(direction).inc(n)

    def evicted(self) -> None:
        """Count an evicted session."""
        self._evictions.inc()

    def worker_restarted(self) -> None:
        """Count a worker that was restarted."""
        self._restarts.inc()

    def render(self) -> tuple[bytes, str]:
        """Return the body of the response to Prometheus, and its content type."""
        encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, description, labels, registry=self._registry)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(_PREFIX + name, description, buckets=_SECONDS, registry=self._registry)


class _GaugeCollector(Collector):
    """Collector of the gauges, which are read all at once when Prometheus fetches the metrics."""

    def __init__(self, gauges: Callable[[], GaugeSnapshot]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauges = self._gauges()
        sessions = GaugeMetricFamily(
            _PREFIX + "sessions", "Sessions, connected to a client or waiting for it.", labels=["state", "api"]
        )
        for api in Api:
            sessions.add_metric(["connected", api], gauges.sessions.get((api, True), 0))
            sessions.add_metric(["waiting", api], gauges.sessions.get((api, False), 0))
        yield sessions
        yield GaugeMetricFamily(_PREFIX + "workers", "Workers that have loaded the model.", value=gauges.workers)
        memory = GaugeMetricFamily(
            _PREFIX + "device_memory_bytes", "Memory that the workers use on a device.", labels=["device"]
        )
        for device, used in gauges.memory.items():
            memory.add_metric([device], used)
        yield memory
        charged = GaugeMetricFamily(
            _PREFIX + "session_memory_bytes",
            "Host memory charged to sessions.",
            labels=["device", "purpose"],
        )
        for device, purposes in gauges.charged.items():
            for purpose, used in purposes.items():
                charged.add_metric([device, purpose], used)
        yield charged
