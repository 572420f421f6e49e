"""The headers and bodies of requests of the HTTP API."""

import asyncio

from starlette.requests import Request
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader

from nninteractive_ws import errors
from nninteractive_ws.official_api import payloads
from nninteractive_ws.server.access import bearer_token

#: Size limit of a JSON body.
MAX_JSON_BYTES = 64 * 1024
#: Timeout for the next part of a body. nnInteractive's client gives up after 120 seconds without progress.
BODY_STALL_TIMEOUT_S = 60.0
#: Minimum rate of a body after that time, because its memory is reserved until it has arrived.
MIN_BYTES_PER_S = 16 * 1024


class LengthRequired(Exception):
    """A request without the length of its body."""


class BodyTimeout(Exception):
    """The body of a request stopped arriving."""


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


async def read_body(request: Request, length: int) -> bytearray:
    """Read a body. Raises BodyTimeout or ClientDisconnect."""
    # It grows as parts arrive. All of it at once would be written with zeros, even if the client sends nothing.
    body, parts = bytearray(), request.stream()
    try:
        async with asyncio.timeout(BODY_STALL_TIMEOUT_S + length / MIN_BYTES_PER_S):
            while True:
                async with asyncio.timeout(BODY_STALL_TIMEOUT_S):
                    body += await anext(parts)
    except StopAsyncIteration:
        return body
    except TimeoutError as e:
        raise BodyTimeout(
            f"The body arrived too slowly: {len(body):,} of {length:,} bytes. Try again over a faster connection."
        ) from e
