"""A way to a server that listens on its own machine only: the user's own OpenSSH, which forwards a port to it.

So keys, agents, jump hosts and ``~/.ssh/config`` work as in a terminal. Passwords are never asked for.
"""

import contextlib
import re
import socket
import subprocess
import tempfile
from typing import IO

from nninteractive_ws.client.address import Address, SshTarget
from nninteractive_ws.errors import ConnectionFailed, Untrusted

#: ssh gives up on a machine that does not answer for so long, and notices a network that is gone as soon.
_CONNECT_S, _ALIVE_S = 15, 10
_OPTIONS = {
    "BatchMode": "yes",  # it has no terminal to ask on
    "ExitOnForwardFailure": "yes",
    "ConnectTimeout": str(_CONNECT_S),
    "ServerAliveInterval": str(_ALIVE_S),
    "ServerAliveCountMax": "3",
}
#: Between the choice of a free port and ssh's use of it, another program may take it.
_MOST_PORTS = 3


class Tunnel:
    """A local port that is forwarded to ``target.server_port`` of the machine behind ``target``. Nothing here waits."""

    def __init__(self, target: SshTarget) -> None:
        self.target = target
        self._process: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._port = 0
        self._ports_taken = 0
        self._was_ready = False
        self._heard = 0  # how much of what ssh said is from before the last time it was ready

    @property
    def local(self) -> Address:
        """This end of it."""
        return Address(False, "127.0.0.1", self._port)

    def ready(self) -> bool:
        """Whether connections pass; ssh is started where none runs. To be called again until it is true.

        Raises ConnectionFailed or Untrusted with what ssh said, in words; the next call tries again.
        """
        if self._process is None:
            self._start()
            return False
        if self._process.poll() is not None:
            words, was_ready = self._words(), self._was_ready
            self._end_ssh()
            if was_ready:
                return False  # it was lost, as the connection through it; whether there is another is to be seen
            if "Address already in use" in words and self._ports_taken < _MOST_PORTS:
                self._ports_taken += 1
                return False
            raise self._explained(words)
        # On loopback this is decided at once.
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        self._ports_taken = 0
        self._was_ready, self._heard = True, len(self._words())
        return True

    def _start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        # To be read while it is written, so that every write goes to its end. It lives as long as the process.
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115
        forward = f"127.0.0.1:{self._port}:127.0.0.1:{self.target.server_port}"
        self._process = self._ssh(["-N", "-L", forward], stdin=subprocess.DEVNULL)

    def _ssh(
        self, options: list[str], command: str | None = None, stdin: int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        settings = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        words = ["ssh", "-T", *settings, *options]
        if self.target.port is not None:
            words += ["-p", str(self.target.port)]
        words += ["--", self.target.host, *([command] if command else [])]
        try:
            return subprocess.Popen(words, stdin=stdin, stdout=subprocess.DEVNULL, stderr=self._said)
        except FileNotFoundError as e:
            raise ConnectionFailed(
                "There is no ssh on this machine. Install OpenSSH's client, or open a tunnel with another program and "
                "connect to its local port."
            ) from e

    # ---- the server on the other side -----------------------------------------------------------------------

    @property
    def nothing_listens(self) -> bool:
        """Whether ssh has said, since it was last ready, that nothing listens at the server's port."""
        return "open failed: connect failed" in self._words()[self._heard :]

    def start_server(self, command: str) -> None:
        """Start a server over there, which ends with this tunnel. ``command``: such as ``nninteractive-ws serve``."""
        self._server = self._ssh([], f"{command} --port {self.target.server_port} --end-with-stdin")

    def server_runs(self) -> bool:
        """Whether a server was started over there and has not ended. Raises ConnectionFailed where it has."""
        if self._server is not None and self._server.poll() is not None:
            status = self._server.returncode
            self._end_server()
            said = self._words().strip().splitlines()[-3:]
            raise ConnectionFailed(
                f"The server could not be started on {self.target.host} (status {status}): {' '.join(said)[:500]}"
            )
        return self._server is not None

    # ---- in words -------------------------------------------------------------------------------------------

    def _words(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def explain(self, error: ConnectionFailed) -> ConnectionFailed:
        """What a failure at the local port means: of the tunnel, or of what is behind it."""
        if self.nothing_listens:
            return ConnectionFailed(
                f"ssh reached {self.target.host}, but nothing listens at port {self.target.server_port} there. Start "
                "the server (nninteractive-ws serve), or give the port: ssh://user@host/PORT."
            )
        return ConnectionFailed(f"Through ssh to {self.target.host}: {error}")

    def _explained(self, words: str) -> ConnectionFailed:
        host = self.target.host
        for pattern, kind, sentence in _SAID:
            if re.search(pattern, words, re.IGNORECASE):
                return kind(sentence.format(host=host))
        return ConnectionFailed(f"ssh to {host} failed: {' '.join(words.split())[-500:] or 'it said nothing'}")

    # ---- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the tunnel, and the server that it started."""
        self._end_server()
        self._end_ssh()

    def _end_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            assert server.stdin is not None
            with contextlib.suppress(OSError):  # it has ended already
                server.stdin.close()
            _end(server)

    def _end_ssh(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            _end(process)
        if self._said is not None:
            self._said.close()
            self._said = None
        self._was_ready, self._heard = False, 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_SAID: list[tuple[str, type[ConnectionFailed], str]] = [
    (
        r"host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        Untrusted,
        "ssh does not know the machine {host}, or its key has changed. Run `ssh {host}` once in a terminal, and "
        "compare the key with what its administrator says.",
    ),
    (
        r"permission denied|too many authentication failures",
        ConnectionFailed,
        "{host} does not let you in. Run `ssh {host}` in a terminal: it has to work without a password, with a key "
        "(ssh-keygen, ssh-copy-id) or an agent (ssh-add).",
    ),
    (
        r"could not resolve hostname",
        ConnectionFailed,
        "The name {host} is not known to ssh. Check its spelling, ~/.ssh/config, or the VPN.",
    ),
    (
        r"connection refused",
        ConnectionFailed,
        "No ssh server listens at {host}. Check the machine's name, and the port: ssh://user@host:PORT.",
    ),
    (
        r"timed out|no route to host|network is unreachable|not responding",
        ConnectionFailed,
        "{host} does not answer. A firewall may be in between, or the machine is off.",
    ),
]
