"""The messages between gateway and worker."""

from collections.abc import Callable
from typing import Any, get_args

from helpers.strategies import values_of
from hypothesis import given
import msgspec
import pytest

from nninteractive_ws import worker_protocol
from nninteractive_ws.worker_protocol import GatewayMessage, SessionAttached, WorkerMessage

DECODERS: dict[Any, Callable[[bytes], Any]] = {
    **dict.fromkeys(get_args(WorkerMessage), worker_protocol.decode_worker),
    **dict.fromkeys(get_args(GatewayMessage), worker_protocol.decode_gateway),
    SessionAttached: worker_protocol.decode_attached,
}


@pytest.mark.parametrize("kind", DECODERS, ids=lambda kind: kind.__name__)
def test_a_message_round_trips(kind: Any) -> None:
    @given(values_of(kind))
    def check(message: Any) -> None:
        data = worker_protocol.encode(message)
        assert DECODERS[kind](data) == message
        assert msgspec.msgpack.encode(message) == data

    check()
