"""Estimates from acknowledgements: the throughput of the link, and the compression faster on it."""

from collections.abc import Callable

import pytest

from nninteractive_ws.client.link import Link, SentMessage

BRICKS = 8


def run(link: Link, seconds_of: Callable[[str], float], messages: int, small_bytes: int = 200_000) -> list[str]:
    """Send messages one after another. Return the compression of each."""
    used = []
    now = link._acknowledged or 100.0
    for _ in range(messages):
        compression = link.compression
        used.append(compression)
        nbytes = small_bytes if compression == "small" else 3 * small_bytes // 2
        started, now = now, now + seconds_of(compression)
        link.acknowledge(SentMessage(BRICKS, nbytes, compression, started), now)
    return used


def test_the_throughput_is_that_of_the_last_messages():
    link = Link()
    assert link.throughput is None
    run(link, lambda _: 0.1, 5)
    assert link.throughput == pytest.approx(2e6)
    run(link, lambda _: 0.2, 100)
    assert link.throughput == pytest.approx(1e6, rel=1e-3)


def test_neither_idle_time_nor_the_round_trip_after_it_counts():
    link = Link()
    link.acknowledge(SentMessage(BRICKS, 1000, "small", sent=100.0), 101.0)
    assert link.throughput is None
    link.acknowledge(SentMessage(BRICKS, 1000, "small", sent=100.0), 101.5)
    link.acknowledge(SentMessage(BRICKS, 1000, "small", sent=900.0), 901.0)
    assert link.throughput == pytest.approx(2000)
    assert link.bricks_per_second == pytest.approx(2 * BRICKS)


def test_every_other_message_counts_if_each_comes_after_a_pause():
    """Packing takes longer than sending, so that no message is on its way when the next one is packed."""
    link = Link()
    for n in range(1, 101):
        link.acknowledge(SentMessage(BRICKS, 1000, "small", sent=n + 0.5), n + 1)
    assert link.throughput == pytest.approx(2000)


def test_on_a_slow_link_messages_are_always_small():
    assert set(run(Link(), lambda _: 0.05, 400)) == {"small"}


def test_on_a_fast_link_the_fast_compression_is_tried_and_kept():
    used = run(Link(), lambda c: 0.004 if c == "small" else 0.002, 100)
    assert used[:8] == ["small"] * 8
    assert used.count("fast") > 85


def test_the_fast_compression_is_given_up_if_it_is_slower():
    used = run(Link(), lambda c: 0.004 if c == "small" else 0.006, 400)
    assert 0 < used.count("fast") <= 32, "it is tried again, but seldom"


def test_the_compression_changes_with_the_link():
    link = Link()
    assert run(link, lambda c: 0.004 if c == "small" else 0.002, 100)[-1] == "fast"
    assert run(link, lambda _: 0.5, 2) == ["fast", "small"], "at once, because bytes decide now"
    assert run(link, lambda _: 0.5, 40)[-1] == "small"
    assert "fast" in run(link, lambda c: 0.004 if c == "small" else 0.002, 200)
