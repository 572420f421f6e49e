"""A client that sends invalid requests to a server's HTTP API and checks every response."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
import json
from urllib.parse import urlsplit

from nnInteractive.inference.remote.serialization import pack_array

from helpers.http_inputs import IMAGE, LEASE, SHAPE, HttpInput, RecordedRequest, encode
from nninteractive_ws.official_api.leases import LIVENESS_TIMEOUT_S

#: Connections that fuzz at a time.
AT_ONCE = 3
ANSWER_TIMEOUT_S = 60
#: Wait for a response that may not come, because the server waits for the rest of the request.
PATIENCE_S = 0.05
#: Inputs after which a client claims another lease and sets the image again, because inputs may change it.
INPUTS_PER_LEASE = 40
#: The status codes that the documentation lists. 500 would be a fault of the server.
DOCUMENTED = {200, 400, 401, 403, 404, 405, 408, 410, 411, 413, 421, 503}
#: Of the gateway, to requests that are not for the HTTP API.
OF_THE_GATEWAY = DOCUMENTED | {426, 431}
#: The only error that is no JSON: bytes that are not HTTP.
NOT_HTTP = b"Invalid HTTP request received."
#: The first bytes by which the gateway recognizes the HTTP API.
FIRST_BYTES = (b"POST ", b"GET /lease_status")


class Response:
    """A response. ``whole``: whether all of its body arrived."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, whole: bool) -> None:
        self.status, self.headers, self.body, self.whole = status, headers, body, whole


class HttpFuzzer:
    """Sends inputs to a server, each on a connection of its own, and keeps a lease for them."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._lease = b""
        self._used = 0
        self.seen: Counter[str] = Counter()

    async def feed(self, item: HttpInput) -> None:
        """Send one input, and check the responses."""
        if not self._lease or self._used == INPUTS_PER_LEASE:
            await self.close()
            await self._claim()
        self._used += 1
        parts = [part.replace(LEASE, self._lease) for part in item.parts]
        # An incomplete request has no answer. Others have one soon, if the server does not wait for more.
        patience = PATIENCE_S if item.kind == "truncated" else 10 * PATIENCE_S
        responses = await self._exchange(parts, item.ends, patience)
        official = b"".join(parts).startswith(FIRST_BYTES)
        if item.ends and official:
            assert responses, f"no answer to {item}"
        if not responses:
            self.seen["no answer"] += 1
        for response in responses:
            await self._check(response, item, official)

    async def close(self) -> None:
        """Release the lease."""
        if self._lease:
            await self._release(self._lease)
            self._lease = b""

    async def _check(self, response: Response, item: HttpInput, official: bool) -> None:
        self.seen[f"{response.status}"] += 1
        assert response.status in (DOCUMENTED if official else OF_THE_GATEWAY), (response.status, response.body, item)
        if not response.whole or not official:
            return
        if response.status == 200:
            with suppress(ValueError, TypeError, KeyError):
                lease = json.loads(response.body)["lease_token"].encode()
                if lease != self._lease:
                    await self._release(lease)
        elif NOT_HTTP not in response.body and b"HEAD " not in b"".join(item.parts):
            assert response.headers["content-type"] == "application/json", response.body
            detail = json.loads(response.body)["detail"]
            assert detail.endswith("."), detail
            assert len(detail) > 20, detail
        if response.status == 410 and (await self._post(b"/heartbeat", self._lease, b"")).status == 410:
            self._used = INPUTS_PER_LEASE  # an input has released it

    # ---- connections --------------------------------------------------------------------------------------

    async def _exchange(self, parts: list[bytes], ends: bool, patience: float = PATIENCE_S) -> list[Response]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        responses = []
        try:
            with suppress(ConnectionError):
                for n, part in enumerate(parts):
                    if n:
                        await asyncio.sleep(0.001)  # so that it arrives on its own
                    writer.write(part)
                await asyncio.wait_for(writer.drain(), ANSWER_TIMEOUT_S)
            timeout = ANSWER_TIMEOUT_S if ends else patience
            while (response := await _read_response(reader, timeout)) is not None:
                if response.status != 100:
                    responses.append(response)
                    timeout = PATIENCE_S
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        return responses

    async def _post(self, path: bytes, lease: bytes, body: bytes) -> Response:
        request = RecordedRequest(b"POST", path, ((b"Host", b"127.0.0.1"), (b"X-Lease-Token", lease)), body)
        (response,) = await self._exchange([encode(request)], ends=True)
        return response

    async def _claim(self) -> None:
        async with asyncio.timeout(2 * LIVENESS_TIMEOUT_S):
            while (claimed := await self._post(b"/claim", b"", b"")).status == 503:
                await asyncio.sleep(1)  # inputs that did not wait for the answer to a claim have leases, which expire
        assert claimed.status == 200, claimed.body
        self._lease, self._used = json.loads(claimed.body)["lease_token"].encode(), 0
        for path, body in (
            (b"/set_image", pack_array(IMAGE)),
            (b"/set_target_buffer", json.dumps({"shape": SHAPE, "dtype": "uint8"}).encode()),
        ):
            response = await self._post(path, self._lease, body)
            assert response.status == 200, response.body

    async def _release(self, lease: bytes) -> None:
        released = await self._post(b"/release", lease, b"")
        # A lease that was claimed with a token needs the token. It expires.
        assert released.status in (200, 401), released.body


async def _read_response(reader: asyncio.StreamReader, timeout: float) -> Response | None:
    """Return the next response, or None if the server closes the connection or sends none in time."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout)
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        return None
    status, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    assert status.startswith("HTTP/1.1 "), status
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    code = int(status.split()[1])
    if code == 100:
        return Response(code, headers, b"", True)
    try:
        if "content-length" in headers:
            body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 1)
        else:
            body = await asyncio.wait_for(reader.read(), 1)
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        return Response(code, headers, b"", False)  # of HEAD, or cut off
    return Response(code, headers, body, True)


async def feed_http(address: str, items: Iterable[HttpInput], at_once: int = AT_ONCE) -> Counter[str]:
    """Send all inputs over concurrent connections. Return the responses."""
    queue, fuzzers = iter(items), [HttpFuzzer(address) for _ in range(at_once)]

    async def work(fuzzer: HttpFuzzer) -> None:
        for item in queue:
            try:
                await fuzzer.feed(item)
            except Exception as e:
                e.add_note(f"while feeding {str(item)[:2000]}")
                raise
        await fuzzer.close()

    await asyncio.gather(*map(work, fuzzers))
    return sum((fuzzer.seen for fuzzer in fuzzers), Counter())
