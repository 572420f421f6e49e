"""Functions and servers that run on their own thread during a test."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import socket
import threading
from typing import Protocol, TypeVar


@contextmanager
def run_in_thread(work: Callable[[], object], stop: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Work is done meanwhile; in the end ``stop`` is called, and the end of the work waited for."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


class Serving(Protocol):
    """``serve`` says when it has ``started``, and goes on until ``stop`` is called, from another thread."""

    async def serve(self, started: threading.Event) -> None: ...
    def stop(self) -> None: ...


S = TypeVar("S", bound=Serving)


@contextmanager
def serving(made: S) -> Iterator[S]:
    """What was made serves meanwhile, on an event loop of its own."""
    started = threading.Event()
    with run_in_thread(lambda: asyncio.run(made.serve(started)), made.stop):
        started.wait()
        yield made


@contextmanager
def greeting_server(greeting: bytes, hold: bool = False) -> Iterator[str]:
    """The address of a server that says something to the first who comes, and hangs up or stays."""
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
