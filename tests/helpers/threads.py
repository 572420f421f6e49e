"""Functions and servers that run on their own thread during a test."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import socket
import threading
from typing import Protocol, TypeVar


@contextmanager
def run_in_thread(work: Callable[[], object], stop: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Run a function during the context. At its end, call ``stop`` and wait for the function."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


class Serving(Protocol):
    """A server. ``serve`` sets ``started``, and runs until another thread calls ``stop``."""

    async def serve(self, started: threading.Event) -> None: ...
    def stop(self) -> None: ...


S = TypeVar("S", bound=Serving)


@contextmanager
def serving(made: S) -> Iterator[S]:
    """Run a server during the context, on a separate event loop."""
    started = threading.Event()
    with run_in_thread(lambda: asyncio.run(made.serve(started)), made.stop):
        started.wait()
        yield made


@contextmanager
def greeting_server(greeting: bytes, hold: bool = False) -> Iterator[str]:
    """The address of a server that sends bytes to its first client, and closes the connection or keeps it."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def work() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(greeting)
                if hold:
                    done.wait(30)

        with run_in_thread(work, done.set):
            yield f"127.0.0.1:{listening.getsockname()[1]}"
