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
    assert NGINX is not None
    port = free_port()
    paths = "".join(f"{name}_temp_path {folder}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
        f"http {{ access_log {folder}/access; {paths} server {{ listen 127.0.0.1:{port};\n"
        f"location /nn/ {{ proxy_pass http://{target}/; {settings} }} }} }}\n"
    )
    with subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as process:
        try:
            wait_until(lambda: listens(port), 20)
            yield f"127.0.0.1:{port}/nn/"
        finally:
            process.terminate()
