"""A small web page to serve, and requests like those of a browser."""

from collections.abc import Iterator
import gzip
import http.client
from pathlib import Path
import ssl

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SCRIPT = "page.ABCD2345.js"
INDEX = f'<!doctype html><title>The page</title><script type="module" src="{SCRIPT}"></script>'


def write_page(folder: Path) -> Path:
    """Write a page like the built one, and return its folder."""
    folder.mkdir()
    (folder / "index.html").write_text(INDEX)
    content = b"console.log('the page');" * 1000
    (folder / SCRIPT).write_bytes(content)
    (folder / f"{SCRIPT}.gz").write_bytes(gzip.compress(content))
    return folder


class HttpResponse:
    """An HTTP response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers = response.status, response.headers
        self.body = b"" if self.status == 101 else response.read()

    @property
    def text(self) -> str:
        return self.body.decode()


def send(
    port: int, path: str, *headers: tuple[str, str], method: str = "GET", tls: ssl.SSLContext | None = None
) -> HttpResponse:
    """Send a request to a port of loopback, with these headers and no others."""
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=tls)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        return HttpResponse(connection.getresponse())
    finally:
        connection.close()


def upgrade(host: str, origin: str, *tokens: str, subprotocol: str = "nninteractive.v1") -> Iterator[tuple[str, str]]:
    """Return the headers with which a page opens a WebSocket."""
    yield from {"Host": host, "Origin": origin, **UPGRADE}.items()
    yield "Sec-WebSocket-Protocol", ", ".join((subprotocol, *(f"nninteractive.v1.bearer.{t}" for t in tokens)))
