"""The request queue of a session on a real server: invalid, repeated and surplus messages."""

import contextlib
from typing import Any

from helpers.end_to_end import SHAPE, PlainClient, phantom, run
from helpers.engine import boundless
import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.frames import CloseCode

from nninteractive_ws import arrays, layers, masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.engine import request_queue as module
from nninteractive_ws.engine.request_queue import RequestQueue
from nninteractive_ws.engine.session import Session


def test_invalid_requests_are_answered_with_errors(server: str) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)

        async def answer(request: int, **message: Any) -> Any:
            await client.websocket.send(msgspec.msgpack.encode({"id": request, **message}))
            before, found = await client.receive_answer(request)
            assert before == []
            return found

        wrong = await answer(7, type="add_point", segment="a")
        assert (wrong.code, wrong.id) == ("bad_message", 7)
        assert "point" in wrong.message
        assert (await answer(8, type="add_point", segment="a", point=[1, 2, 3])).code == "no_image"
        assert (await answer(5, type="undo", segment="a")).code == "bad_message", "ids must grow"
        # A request of an unknown type is ignored.
        await client.websocket.send(msgspec.msgpack.encode({"type": "dance", "id": 9}))
        assert (await answer(10, type="undo", segment="a")).code == "no_image"
        await client.close()

    run(work())


@pytest.mark.parametrize(
    "message",
    ["text", b"\xc1", msgspec.msgpack.encode({"type": "undo", "segment": "a"})],
    ids=["text", "garbage", "no id"],
)
def test_an_invalid_message_without_an_id_closes_the_connection(server: str, message: str | bytes) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)
        await client.websocket.send(message)
        error = await client.receive()
        assert (error.code, error.id) == ("bad_message", None)
        await client.websocket.wait_closed()
        assert client.websocket.close_code == CloseCode.NORMAL_CLOSURE

    run(work())


def test_bye_cancels_requests_and_ends_the_connection(server: str) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)
        await client.send(wire.SetImage(id=1, image="x", shape=(64, 64, 64), dtype="int16", mean=0.0, std=1.0))
        await client.receive_answer(1)
        for request in (2, 3):
            await client.send(wire.AddPoint(id=request, segment="a", point=(1, 2, 3)))
        await client.receive_until(wire.Progress)
        await client.send(wire.Bye())
        await client.send(wire.SetOptions(id=4))
        last: list[Any] = []
        with contextlib.suppress(ConnectionClosedOK):
            while True:
                last.append(await client.receive())
        answers = [(m.id, m.code) for m in last if isinstance(m, wire.ErrorMessage)]
        assert answers in ([], [(2, "cancelled")])
        assert not [m for m in last if isinstance(m, wire.Done)]

    run(work())


def test_encodings_may_be_mixed(server: str) -> None:
    """The server packs with the agreed one, and reads every one that it knows."""

    async def work() -> None:
        client = await PlainClient.open(server, encodings=["deflate", "raw"])
        volume = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
        await client.send(wire.SetImage(id=1, image="x", shape=(4, 4, 4), dtype="uint8", mean=31.5, std=18.0))
        await client.receive_answer(1)
        brick = wire.Brick(index=0, encoding="blosc2", data=arrays.pack(volume, "blosc2"))
        await client.send(wire.ImageBricks(image="x", bricks=[brick]))
        assert (await client.receive_until(wire.ImageProgress)).received == [0]
        drawn = masks.pack(masks.to_delta(volume > 40), "raw")
        await client.send(wire.SetMask(id=2, segment="a", mask=drawn))
        change = await client.receive_until(wire.MaskDelta)
        assert change.change.encoding == "deflate"
        assert change.voxels == 23
        await client.close()

    run(work())


@pytest.mark.slow
def test_a_repeated_request_is_applied_once(server: str) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)
        await client.set_image(phantom())
        point = wire.AddPoint(id=5, segment="a", point=(30, 30, 28))
        await client.send(point)
        await client.send(point)
        _, first = await client.receive_answer(5)
        await client.send(point)
        between, again = await client.receive_answer(5)
        await client.send(wire.Undo(id=6, segment="a"))
        more, undone = await client.receive_answer(6)
        assert isinstance(first, wire.Done)
        assert again == first
        assert not [m for m in between if isinstance(m, wire.MaskDelta)]
        # the answer to the second or the third request
        assert [m for m in more if isinstance(m, wire.Done)] in ([], [first])
        assert isinstance(undone, wire.Done)
        await client.send(wire.Undo(id=7, segment="a"))
        _, refused = await client.receive_answer(7)
        assert refused.code == "nothing_to_undo", "the point was added once"
        await client.close()

    run(work())


@pytest.mark.slow
def test_bricks_of_another_image_are_ignored(server: str) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)
        await client.set_image(phantom())
        brick = wire.Brick(index=0, encoding="raw", data=b"")
        await client.send(wire.ImageBricks(image="another", bricks=[brick]))
        await client.send(wire.AddPoint(id=2, segment="a", point=(30, 30, 28)))
        before, answer = await client.receive_answer(2)
        assert isinstance(answer, wire.Done)
        assert not [m for m in before if isinstance(m, wire.ErrorMessage | wire.ImageProgress)]
        await client.send(wire.ImageBricks(image="image", bricks=[msgspec.structs.replace(brick, index=99)]))
        error = await client.receive()
        assert (error.code, error.id) == ("bad_message", None)
        await client.websocket.wait_closed()

    run(work())


def layer(image: Any, kind: wire.Layer) -> wire.ImageBricks:
    """A layer of the first brick."""
    split = layers.base_layer if kind == "base" else layers.enhancement_layer
    data = arrays.pack(split(image[:32, :32, :32].copy(), 3), "raw")
    return wire.ImageBricks(
        image="image", bricks=[wire.Brick(index=0, encoding="raw", data=data, layer=kind, low_bits=3)]
    )


@pytest.mark.slow
def test_a_new_connection_forgets_base_layers(server: str) -> None:
    image = phantom()

    async def work() -> None:
        client = await PlainClient.open(server)
        shape: Any = image.shape
        await client.send(wire.SetImage(id=1, image="image", shape=shape, dtype=image.dtype.name, mean=0.0, std=300.0))
        await client.receive_answer(1)
        await client.send(layer(image, "base"))
        assert (await client.receive_until(wire.ImageProgress)).received_base == [0]
        first = client.welcome
        await client.websocket.close()
        again = await PlainClient.open(server, session_id=first.session_id, session_secret=first.session_secret)
        assert again.welcome.resumed
        await again.send(layer(image, "enhancement"))
        error = await again.receive_until(wire.ErrorMessage)
        assert (error.code, error.id) == ("bad_message", None)
        await again.websocket.wait_closed()

    run(work())


def announcement(volume: Any, request: int, name: str = "image") -> bytes:
    message = wire.SetImage(id=request, image=name, shape=volume.shape, dtype=volume.dtype.name, mean=0.0, std=300.0)
    return protocol.encode(message)


@pytest.mark.parametrize("kept", [True, False])
def test_an_announcement_that_arrives_forgets_earlier_base_layers(quick_model: Any, device: Any, kept: bool) -> None:
    """Those that arrive after it are kept, although the request itself is handled later."""
    volume = phantom()
    queue = RequestQueue("a", quick_model, device, "raw", boundless(), lambda: None)
    assert queue.receive(announcement(volume, 1))
    queue.run_next()
    base, second = protocol.encode(layer(volume, "base")), announcement(volume, 2)
    assert all(queue.receive(message) for message in ([second, base] if kept else [base, second]))
    answered = queue.run_next()
    assert answered is not None
    assert answered.code is None
    assert queue.receive(protocol.encode(layer(volume, "enhancement"))) is kept
    queue.close()


def test_an_announcement_of_another_image_forgets_no_base_layers(quick_model: Any, device: Any) -> None:
    """Requests before it may still wait for their enhancement layers."""
    volume = phantom()
    queue = RequestQueue("a", quick_model, device, "raw", boundless(), lambda: None)
    assert queue.receive(announcement(volume, 1))
    queue.run_next()
    assert queue.receive(protocol.encode(layer(volume, "base")))
    assert queue.receive(announcement(volume, 2, "other"))
    assert queue.receive(protocol.encode(layer(volume, "enhancement")))
    queue.close()


def test_a_failure_while_a_message_is_received_is_an_error_of_the_session(
    monkeypatch: pytest.MonkeyPatch, quick_model: Any, device: Any, caplog: pytest.LogCaptureFixture
) -> None:
    queue = RequestQueue("a", quick_model, device, "raw", boundless(), lambda: None)

    def put_bricks(self: Session, message: wire.ImageBricks) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Session, "put_bricks", put_bricks)
    message = wire.ImageBricks(image="x", bricks=[wire.Brick(index=0, encoding="raw", data=b"")])
    assert not queue.receive(protocol.encode(message))
    frame = queue.outbox.take()
    assert frame is not None
    error = protocol.decode_server(frame)
    assert isinstance(error, wire.ErrorMessage)
    assert (error.code, error.id) == ("internal", None)
    assert "CUDA error: out of memory" in caplog.text
    queue.close()


def test_requests_that_are_refused_between_others_are_limited(
    monkeypatch: pytest.MonkeyPatch, quick_model: Any, device: Any
) -> None:
    """While an early request is unanswered, all later answers are kept."""
    monkeypatch.setattr(module, "MAX_WAITING", 4)
    monkeypatch.setattr(module, "MAX_REFUSED", 20)
    monkeypatch.setattr(module, "ANSWERS_KEPT", 30)
    queue = RequestQueue("a", quick_model, device, "raw", boundless(), lambda: None)
    ends_after = 0
    while queue.receive(protocol.encode(wire.SetOptions(id=ends_after + 1))):
        ends_after += 1
        if ends_after % 10 == 9:
            with queue._lock:  # as if it were canceled
                _, _, memory = queue._waiting.pop()
                queue._waiting_bytes -= memory
        assert ends_after < 1000
    assert 30 < ends_after <= 55
    queue.close()


def test_requests_beyond_the_limit_in_flight_are_refused(server: str) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)
        # A prompt that waits for bricks which never arrive, and many behind it.
        await client.send(wire.SetImage(id=1, image="x", shape=SHAPE, dtype="int16", mean=0.0, std=1.0))
        last = 2 + 600
        for request in range(2, last + 1):
            await client.send(wire.AddPoint(id=request, segment="a", point=(1, 1, 1)))
        answers = [await client.receive_until(wire.ErrorMessage) for _ in range(last - 1 - 512 - 1)]
        assert {a.code for a in answers} == {"at_capacity"}
        assert "pending already" in answers[0].message
        await client.send(wire.Cancel())
        cancelled = {(await client.receive_until(wire.ErrorMessage)).id for _ in range(513)}
        assert cancelled | {a.id for a in answers} == set(range(2, last + 1))
        await client.send(wire.AddPoint(id=last + 1, segment="a", point=(99, 1, 1)))
        _, answer = await client.receive_answer(last + 1)
        assert answer.code == "out_of_bounds"
        await client.send(wire.Bye())

    run(work())
