"""The headers and bodies of requests of the HTTP API."""

import asyncio
import math

from starlette.requests import Request
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader

from nninteractive_ws import errors
from nninteractive_ws.official_api import payloads
from nninteractive_ws.official_api.memory import Reservation
from nninteractive_ws.server.access import bearer_token

#: Size limit of a JSON body.
MAX_JSON_BYTES = 64 * 1024
#: Timeout for the next part of a body. nnInteractive's client gives up after 120 seconds without progress.
BODY_STALL_TIMEOUT_S = 60.0
#: Minimum rate of a body after that time, and its total timeout, because its memory is reserved meanwhile.
MIN_BYTES_PER_S, BODY_TIMEOUT_S = 16 * 1024, 900.0
# Memory is reserved in steps, so that a client reserves little more than it has sent.
_STEP_BYTES = 16 * 1024**2


class LengthRequired(Exception):
    """A request without the length of its body."""


class BodyTimeout(Exception):
    """The body of a request stopped arriving."""


class BodyTimer:
    """Timeouts of one body, which begin now. ``length``: its length; None if it is unknown."""

    def __init__(self, length: int | None) -> None:
        self._now = asyncio.get_running_loop().time
        allowed = math.inf if length is None else BODY_STALL_TIMEOUT_S + length / MIN_BYTES_PER_S
        self._end = self._now() + min(allowed, BODY_TIMEOUT_S)

    def next_part(self) -> asyncio.Timeout:
        """Return the timeout for the next part."""
        return asyncio.timeout_at(min(self._now() + BODY_STALL_TIMEOUT_S, self._end))


def headers_of(request: Request) -> Headers:
    """Return the headers. Raises BadMessage for a control character."""
    try:
        return Headers(request.headers.items())
    except InvalidHeader as e:
        raise errors.BadMessage("A header of the request has a control character. Send printable text.") from e


def token_of(request: Request) -> str:
    """Return the bearer token. Raises BadMessage."""
    return bearer_token(headers_of(request))


def content_length(request: Request) -> int:
    """Return the length of the body. Raises LengthRequired."""
    text = request.headers.get("Content-Length")
    # A chunked body may have any length, even in a request with a Content-Length.
    if text is None or "Transfer-Encoding" in request.headers:
        raise LengthRequired("The request has no Content-Length. Send the body without chunked transfer encoding.")
    return int(text)  # the HTTP server has checked it


async def read_json(request: Request, kind: type[payloads.Payload]) -> payloads.Payload:
    """Read a JSON body. Raises LengthRequired, BodyTimeout, TooLarge or BadMessage."""
    length = content_length(request)
    if length > MAX_JSON_BYTES:
        raise errors.TooLarge(f"A JSON body may have {MAX_JSON_BYTES:,} bytes, and this one has {length:,}.")
    return payloads.decode(await read_body(request, length), kind)


async def read_body(request: Request, length: int, reservation: Reservation | None = None) -> bytearray:
    """Read a body. Raises BodyTimeout, ClientDisconnect or OutOfMemory.

    ``reservation``: grows as parts arrive; None for a body that is too small to be counted.
    """
    # It grows as parts arrive. All of it at once would be written with zeros, even if the client sends nothing.
    body, parts, timer = bytearray(), request.stream(), BodyTimer(length)
    try:
        while True:
            async with timer.next_part():
                part = await anext(parts)
            arrived = len(body) + len(part)
            if reservation is not None and arrived > reservation.nbytes:
                reservation.grow(max(arrived, min(reservation.nbytes + _STEP_BYTES, length)) - reservation.nbytes)
            body += part
    except StopAsyncIteration:
        return body
    except TimeoutError as e:
        raise BodyTimeout(
            f"The body arrived too slowly: {len(body):,} of {length:,} bytes. Try again over a faster connection."
        ) from e
