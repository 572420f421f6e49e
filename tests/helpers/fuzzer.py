"""A client that sends invalid input to a server and checks every answer."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import State

from helpers.end_to_end import PlainClient
from helpers.fuzz_inputs import IMAGE, SEGMENT, SHAPE, Input, with_id
from nninteractive_ws import errors, protocol
from nninteractive_ws import messages as wire

#: Connections that fuzz at a time.
AT_ONCE = 3
ANSWER_TIMEOUT_S = 30
#: Without the internal error, which is a fault of the server.
DOCUMENTED = {code for code in errors.WIRE_ERRORS if code != "internal"}
#: By the server after an error or bye, by its WebSocket library for an invalid frame, too large a message, or text
#: that is not UTF-8.
CLOSE_CODES = {
    CloseCode.NORMAL_CLOSURE,
    CloseCode.POLICY_VIOLATION,
    CloseCode.TRY_AGAIN_LATER,
    CloseCode.MESSAGE_TOO_BIG,
    CloseCode.PROTOCOL_ERROR,
    CloseCode.INVALID_DATA,
}


class FuzzedClient(PlainClient):
    """``error_codes``: of errors without a request, since the last input."""

    error_codes: list[str]


class Fuzzer:
    """Feeds inputs to a server. It keeps one connection for each state until it closes."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._open: dict[str, FuzzedClient] = {}
        self._last_id = 0
        self.seen: Counter[str] = Counter()

    async def feed(self, item: Input) -> None:
        """Send one input and check the answers."""
        if item.state == "tcp":
            await self._feed_tcp(item)
            return
        client = await self._client(item.state)
        closed = False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                if item.state == "handshake":
                    await self._feed_handshake(client, item)
                else:
                    await self._feed_session(client, item)
        except ConnectionClosed:
            closed = True
        except TimeoutError as e:
            raise AssertionError(f"no answer to {item}") from e
        if closed or item.state == "handshake":
            await client.websocket.wait_closed()
            self._open.pop(item.state, None)
            if closed:
                self._check_close(client, item)

    async def close(self) -> None:
        for client in self._open.values():
            with suppress(ConnectionClosed):
                await client.send(wire.Bye())
            await client.close()

    # ---- connections --------------------------------------------------------------------------------------

    async def _client(self, state: str) -> FuzzedClient:
        if state == "handshake":
            websocket = await connect(self._address, compression=None, max_size=None, proxy=None)
            client = FuzzedClient(websocket)
        elif state in self._open:
            client = self._open[state]
        else:
            client = self._open[state] = await FuzzedClient.open(self._address)
            if state == "image":
                await self._set_image(client)
        client.error_codes = []
        return client

    async def _set_image(self, client: FuzzedClient) -> None:
        image = np.random.default_rng(0).integers(-100, 100, SHAPE, np.int16)
        await client.set_image(image, IMAGE, self._next_id())
        await client.send(wire.AddPoint(id=self._next_id(), segment=SEGMENT, point=(20, 18, 16)))
        _, answer = await client.receive_answer(self._last_id)
        assert isinstance(answer, wire.Done), answer

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # ---- inputs -------------------------------------------------------------------------------------------

    async def _feed_tcp(self, item: Input) -> None:
        parts = urlsplit(self._address)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with suppress(ConnectionError):
            for n, data in enumerate(item.frames):
                if n:
                    await reader.readuntil(b"\r\n\r\n")
                assert isinstance(data, bytes)
                writer.write(data)
                await writer.drain()
            with suppress(TimeoutError):
                # The server waits for the rest of some inputs, and closes the connection for others.
                answer = await asyncio.wait_for(reader.read(4096), 0.05)
                self.seen["answered below" if answer else "hung up below"] += 1
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _feed_handshake(self, client: FuzzedClient, item: Input) -> None:
        """Check that the first message is answered by welcome, or by an error and a close."""
        for frame in item.frames:
            await self._send(client, frame)
        message = await client.receive()
        if isinstance(message, wire.Welcome):
            self.seen["welcome"] += 1
            assert not message.resumed
            await client.send(wire.Bye())
            await client.websocket.wait_closed()
        else:
            self._check(client, message, item)
            await client.receive()
            raise AssertionError(f"more than one answer to {item}")

    async def _feed_session(self, client: FuzzedClient, item: Input) -> None:
        """Send the input and then a valid request, whose answer comes last. Pending requests are cancelled."""
        for frame in item.frames:
            await self._send(client, with_id(frame, self._next_id()) if isinstance(frame, bytes) else frame)
        probe = self._next_id()
        await self._send(client, protocol.encode(wire.SetOptions(id=probe, autozoom=True)))
        while True:
            message = await client.receive()
            if isinstance(message, wire.Done | wire.ErrorMessage) and message.id == probe:
                break
            self._check(client, message, item)
            if isinstance(message, wire.Progress) and message.state == "waiting_for_image":
                await client.send(wire.Cancel(request=message.id))
        if isinstance(message, wire.ErrorMessage):
            # The input may have used the maximum id.
            assert message.code == "bad_message", message
            assert "must increase" in message.message, message
            await self._leave(client, item)
        elif any(isinstance(frame, bytes) and b"set_image" in frame for frame in item.frames):
            await self._leave(client, item)
        else:
            self.seen["session goes on"] += 1

    @staticmethod
    async def _send(client: FuzzedClient, frame: bytes | str) -> None:
        try:
            await client.websocket.send(frame)
        except AttributeError:
            # Python 3.11's transports raise this if they are aborted after a close with pending bytes.
            assert client.websocket.state is State.CLOSED
            raise client.websocket.protocol.close_exc from None

    async def _leave(self, client: FuzzedClient, item: Input) -> None:
        await client.send(wire.Bye())
        await client.websocket.wait_closed()
        del self._open[item.state]

    # ---- checks -------------------------------------------------------------------------------------------

    def _check(self, client: FuzzedClient, message: object, item: Input) -> None:
        self.seen[type(message).__name__] += 1
        if isinstance(message, wire.ErrorMessage):
            assert message.code in DOCUMENTED, (message, item)
            assert message.message
            self.seen[f"{message.code}{'' if message.id is None else ' of a request'}"] += 1
            if message.id is None:
                client.error_codes.append(message.code)
        else:
            assert not isinstance(message, wire.Welcome), item

    def _check_close(self, client: FuzzedClient, item: Input) -> None:
        code, reason = client.websocket.close_code, client.websocket.close_reason
        assert code in CLOSE_CODES, (code, reason, client.error_codes, item)
        self.seen[f"closed with {code}"] += 1


async def feed(address: str, items: Iterable[Input], at_once: int = AT_ONCE) -> Counter[str]:
    """Feed all inputs over concurrent connections. Return the answers."""
    queue, fuzzers = iter(items), [Fuzzer(address) for _ in range(at_once)]

    async def work(fuzzer: Fuzzer) -> None:
        for item in queue:
            try:
                await fuzzer.feed(item)
            except Exception as e:
                e.add_note(f"while feeding {str(item)[:1000]}")
                raise
        await fuzzer.close()

    await asyncio.gather(*map(work, fuzzers))
    return sum((fuzzer.seen for fuzzer in fuzzers), Counter())
