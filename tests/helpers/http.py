"""HTTP servers with one answer to every request, and free ports."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
import socket

from helpers.threads import run_in_thread


def answers(status: int, body: str, kind: str = "text/plain") -> type[BaseHTTPRequestHandler]:
    """Return a request handler with one answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with (
        HTTPServer(("127.0.0.1", 0), handler) as server,
        run_in_thread(lambda: server.serve_forever(poll_interval=0.02), server.shutdown),
    ):
        yield f"127.0.0.1:{server.server_port}"


def free_port() -> int:
    """Return a port of this machine without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
