"""Attacks that the size limit of messages does not cover: endless empty fragments, and pings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
import itertools
import socket
from typing import Any

from helpers.end_to_end import run, wait_until
from helpers.threads import run_in_thread
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.utils import accept_key

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events


@contextmanager
def sending_empty_fragments() -> Iterator[str]:
    def behave(connection: ServerConnection) -> None:
        connection.recv()
        with suppress(ConnectionClosed):
            connection.send(itertools.repeat(b""))

    with (
        serve(behave, "127.0.0.1", 0, compression=None) as listening,
        run_in_thread(listening.serve_forever, listening.shutdown),
    ):
        yield f"127.0.0.1:{listening.socket.getsockname()[1]}"


def by_asyncio(address: str) -> Exception:
    with pytest.raises(errors.Error) as refused:
        run(nni.aconnect(address))
    return refused.value


def by_polling(address: str) -> Exception:
    session = nni.PolledSession(address)
    happened: list[Any] = []
    wait_until(lambda: happened.extend(session.poll()) or session.closed, 60)
    (failed,) = [e for e in happened if isinstance(e, events.Failed)]
    error: Exception = failed.error
    return error


@pytest.mark.slow
@pytest.mark.parametrize("driver", [by_asyncio, by_polling])
def test_endless_empty_fragments(driver: Callable[[str], Exception]) -> None:
    with sending_empty_fragments() as address:
        assert isinstance(driver(address), errors.TooLarge)


# ---- pings ------------------------------------------------------------------------------------------------


@contextmanager
def sending_pings() -> Iterator[str]:
    """A server that sends pings endlessly, and reads nothing."""

    def behave(listening: socket.socket) -> None:
        with suppress(OSError):  # the client disconnected, or the test is over
            connection, _ = listening.accept()
            with connection:
                request = connection.recv(4096).decode()
                key = request.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + accept_key(key).encode() + b"\r\n\r\n"
                )
                while True:
                    connection.sendall(b"\x89\x00" * 4096)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with run_in_thread(lambda: behave(listening), lambda: listening.shutdown(socket.SHUT_RDWR)):
            yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_pings_of_a_server_that_does_not_read_pongs() -> None:
    with sending_pings() as address:
        error = by_polling(address)
    assert isinstance(error, errors.ConnectionFailed)
    assert "pings" in str(error)
