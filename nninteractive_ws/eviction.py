"""The eviction rule, shared by the gateway (for its limits of sessions) and the workers (for memory).

A session without a connection is evicted before one with a connection. Among equals, the least recently used session is
evicted first. Its worker decides whether a session is idle, in ``SessionHost.evict_if_idle``.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

#: Seconds since its last useful message before a connected session may be evicted. Otherwise two sessions in use would
#: evict each other.
IDLE_S = 30.0


class Evictable(Protocol):
    """A session that can be evicted. ``last_used``: time.monotonic() of its last useful message."""

    @property
    def connected(self) -> bool: ...

    @property
    def last_used(self) -> float: ...


S = TypeVar("S", bound=Evictable)


def eviction_order(sessions: Iterable[S]) -> list[S]:
    """Sort sessions by the eviction rule. The first one is evicted first."""
    return sorted(sessions, key=lambda session: (session.connected, session.last_used))
