"""The gateway's metrics, parsed by Prometheus's own parser."""

from collections.abc import Callable, Iterator
import math
from typing import Any, get_args

from prometheus_client.parser import text_string_to_metric_families
import pytest

from nninteractive_ws import messages as wire
from nninteractive_ws.errors import WIRE_ERRORS
from nninteractive_ws.server.metrics import OTHER, REQUEST_TYPES, GaugeSnapshot, Metrics
from nninteractive_ws.server.sessions import Api

NOTHING = GaugeSnapshot(sessions={}, workers=0)


def metrics(now: Callable[[], GaugeSnapshot] = lambda: NOTHING) -> Metrics:
    return Metrics(now)


def samples(found: Metrics) -> Iterator[Any]:
    body, content_type = found.render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    for family in text_string_to_metric_families(body.decode()):
        assert family.name.startswith("nninteractive_ws_")
        assert family.documentation
        yield from family.samples


def value(found: Metrics, name: str, **labels: str) -> float:
    (sample,) = [s for s in samples(found) if s.name == f"nninteractive_ws_{name}" and s.labels == labels]
    return float(sample.value)


def labels(found: Metrics, name: str) -> list[dict[str, str]]:
    return [s.labels for s in samples(found) if s.name == f"nninteractive_ws_{name}"]


def test_an_answer_is_counted_by_its_type() -> None:
    found = metrics()
    timings = wire.Timings(queued=0.2, network=1.5, passes=3, total=2.0)
    found.request_answered("add_point", None, timings)
    found.request_answered("add_point", None, timings)
    found.request_answered("undo", "nothing_to_undo", None)
    assert value(found, "requests_total", type="add_point") == 2
    assert value(found, "requests_total", type="undo") == 1
    assert value(found, "requests_total", type="redo") == 0
    assert value(found, "passes_total") == 6
    assert value(found, "network_seconds_total") == 3.0
    assert value(found, "errors_total", code="nothing_to_undo") == 1
    assert value(found, "errors_total", code="internal") == 0


def test_times_fall_into_buckets() -> None:
    found = metrics()
    for total, queued in ((0.02, 0.0), (0.3, 0.2), (500.0, 40.0)):
        found.request_answered("run", None, wire.Timings(total=total, queued=queued))
    found.request_answered("run", "cancelled", None)  # the duration of a failed request is not measured
    assert value(found, "request_seconds_count") == 3
    assert value(found, "request_seconds_sum") == pytest.approx(500.32)
    below = {le["le"]: value(found, "request_seconds_bucket", **le) for le in labels(found, "request_seconds_bucket")}
    assert [below["0.01"], below["0.025"], below["0.5"], below["120.0"], below["+Inf"]] == [0, 1, 2, 2, 3]
    assert value(found, "queue_seconds_bucket", le="0.01") == 1
    assert value(found, "queue_seconds_sum") == pytest.approx(40.2)


def test_unknown_types_and_codes_add_no_series() -> None:
    found = metrics()
    before = [(s.name, s.labels) for s in samples(found)]
    for n in range(50):
        found.request_answered(f"dance{n}", f"code{n}", None)
        found.error_sent('a"\n{}')
    assert [(s.name, s.labels) for s in samples(found)] == before
    assert value(found, "requests_total", type=OTHER) == 50
    assert value(found, "errors_total", code="internal") == 100


def test_every_type_and_code_has_its_series_from_the_start() -> None:
    """The types are read from the encoding of the messages, not from the tested code."""
    found = metrics()
    types = {kind.__struct_config__.tag for kind in get_args(wire.Request)}
    assert {"add_point", "set_image", "restore"} <= types
    assert {s["type"] for s in labels(found, "requests_total")} == types | {OTHER} == {*REQUEST_TYPES, OTHER}
    assert {s["code"] for s in labels(found, "errors_total")} == set(WIRE_ERRORS)
    assert {s["direction"] for s in labels(found, "bytes_total")} == {"up", "down"}


def test_other_events_are_counted() -> None:
    found = metrics()
    found.bytes_transferred("up", 1000)
    found.bytes_transferred("up", 24)
    found.bytes_transferred("down", 5)
    found.evicted()
    found.worker_restarted()
    found.worker_restarted()
    found.error_sent("unauthorized")
    assert value(found, "bytes_total", direction="up") == 1024
    assert value(found, "bytes_total", direction="down") == 5
    assert value(found, "evictions_total") == 1
    assert value(found, "worker_restarts_total") == 2
    assert value(found, "errors_total", code="unauthorized") == 1
    assert math.fsum(value(found, "requests_total", **s) for s in labels(found, "requests_total")) == 0


def test_gauges_are_read_at_the_time_of_the_scrape() -> None:
    asked = 0

    def now() -> GaugeSnapshot:
        nonlocal asked
        asked += 1
        sessions = {(Api.WEBSOCKET, True): asked, (Api.WEBSOCKET, False): 10 * asked, (Api.OFFICIAL, True): 5}
        return GaugeSnapshot(sessions, workers=1, memory={"cuda:0": 2**33} if asked < 3 else {})

    found = metrics(now)
    assert asked == 0
    body = found.render()[0].decode()
    assert asked == 1, "all gauges are of one moment"
    assert 'sessions{api="websocket",state="connected"} 1.0' in body
    assert 'sessions{api="websocket",state="waiting"} 10.0' in body
    assert 'sessions{api="official",state="connected"} 5.0' in body
    assert 'sessions{api="official",state="waiting"} 0.0' in body
    assert value(found, "device_memory_bytes", device="cuda:0") == 2**33
    assert labels(found, "device_memory_bytes") == []  # the worker ended, and its memory is free
    assert value(found, "workers") == 1


def test_two_gateways_in_one_process_share_nothing() -> None:
    one, other = metrics(), metrics()
    one.evicted()
    assert value(one, "evictions_total") == 1
    assert value(other, "evictions_total") == 0
