"""A message in endless empty parts, which no limit on its size counts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
import itertools
from typing import Any

from chain_helpers import run, wait_until
import pytest
from threads import on_a_thread
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

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
        on_a_thread(listening.serve_forever, listening.shutdown),
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


@pytest.mark.parametrize("driver", [by_asyncio, by_polling])
def test_endless_empty_fragments(driver: Callable[[str], Exception]) -> None:
    with sending_empty_fragments() as address:
        assert isinstance(driver(address), errors.TooLarge)
