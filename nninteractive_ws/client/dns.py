"""DNS lookup on a thread of its own."""

from collections.abc import Callable
from concurrent.futures import Future
import socket
import threading
from typing import Any, TypeVar

T = TypeVar("T")

#: Result of :func:`socket.getaddrinfo`.
AddressList = list[tuple[Any, ...]]


def resolve(host: str, port: int, **hints: int) -> "Future[AddressList]":
    """Start a DNS lookup by :func:`socket.getaddrinfo` on a thread. Without a network, it can take a minute."""
    return run_in_thread(f"DNS lookup of {host}", lambda: socket.getaddrinfo(host, port, **hints))


def run_in_thread(name: str, work: Callable[[], T]) -> "Future[T]":
    """Run ``work()`` on a daemon thread, and return the future of its result. It need not be waited for."""
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # it cannot be cancelled, only ignored

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as e:
            result.set_exception(e)

    threading.Thread(target=run, name=name, daemon=True).start()
    return result
