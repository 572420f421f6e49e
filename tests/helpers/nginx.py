"""A real nginx in front of a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import subprocess

from helpers.end_to_end import listens, wait_until
from helpers.http import free_port
from helpers.programs import find_program

NGINX = find_program("nginx")
#: Settings of a location that forwards WebSockets.
UPGRADE = 'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'


@contextmanager
def nginx(folder: Path, target: str, settings: str) -> Iterator[str]:
    """A real nginx that forwards /nn/ to ``target``. Its files are in ``folder``, with the access log ``access``."""
    with nginx_server(folder, f"location /nn/ {{ proxy_pass http://{target}/; {settings} }}") as port:
        yield f"127.0.0.1:{port}/nn/"


@contextmanager
def nginx_server(folder: Path, locations: str, certificate: Path | None = None, upstream: str = "") -> Iterator[int]:
    """A real nginx with these locations, on a port of loopback. Its files are in ``folder``: the access log ``access``
    and the error log ``log``. ``certificate``: a PEM file with certificate and key, for TLS. ``upstream``: a block that
    the locations refer to."""
    assert NGINX is not None
    port = free_port()
    paths = "".join(f"{name}_temp_path {folder}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    listen = f"listen 127.0.0.1:{port};"
    if certificate is not None:
        listen = f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate};"
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
        f"http {{ access_log {folder}/access; {paths} {upstream} server {{ {listen}\n{locations} }} }}\n"
    )
    with subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as process:
        try:
            wait_until(lambda: listens(port), 20)
            yield port
        finally:
            process.terminate()
