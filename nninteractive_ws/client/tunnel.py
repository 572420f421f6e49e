"""A tunnel to a server that listens on its own machine only: the user's own OpenSSH forwards a socket to it.

Keys, agents, jump hosts and ``~/.ssh/config`` work as in a terminal. ssh never asks for a password.

This end is a Unix socket in a folder that only this user may enter. Every user of this machine could connect to a TCP
port. Another user could also bind the port between its choice and ssh's use of it, and would then receive the token.
OpenSSH on Windows does not forward Unix sockets, so this end is a TCP port there. It is used only after ssh has
reported that it listens at the port itself. Other users of the Windows machine can still connect to it, as to any port
on loopback, and only the server's tokens keep them out.
"""

from collections.abc import Mapping
from pathlib import Path
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import IO
import weakref

from nninteractive_ws.client.address import AF_UNIX, Address, SshTarget
from nninteractive_ws.client.ownership import Owner
from nninteractive_ws.errors import ConnectionFailed, Untrusted
from nninteractive_ws.processes import end_process, own_process_group
from nninteractive_ws.redaction import printable, redact

#: Seconds until ssh gives up on a machine that does not answer, and between its keepalives.
_CONNECT_S, _ALIVE_S = 15, 10
#: Seconds that ssh, or a server behind it, has to end by itself.
_END_TIMEOUT_S = 3.0
_OPTIONS = {
    "BatchMode": "yes",  # there is no terminal for questions
    "ControlMaster": "no",  # a new master would go to the background, and keep the tunnel
    "LogLevel": "INFO",  # a lower level in ~/.ssh/config would hide the messages that are parsed here
    "ExitOnForwardFailure": "yes",
    "ConnectTimeout": str(_CONNECT_S),
    "ServerAliveInterval": str(_ALIVE_S),
    "ServerAliveCountMax": "3",
    "StreamLocalBindMask": "0177",
    "StreamLocalBindUnlink": "yes",
}
#: Whether this end of the tunnel can be a Unix socket.
_UNIX_SOCKETS = sys.platform != "win32"
#: The longest path of a Unix socket, in bytes: macOS has 104 with the NUL at the end, Linux 108.
_MAX_SOCKET_PATH = 103
#: Paths without characters that are special to ssh, such as a colon or a percent sign.
_PLAIN_PATH = re.compile(r"[\w./+-]+", re.ASCII)
#: As long as the random names of tempfile.
_RANDOM_NAME = "nninteractive-12345678/socket"
#: Attempts without Unix sockets: another program may take the free port before ssh binds it.
_MAX_PORTS = 3


class Tunnel:
    """A local socket that ssh forwards to ``target.server_port`` on the machine of ``target``. No method blocks."""

    def __init__(self, target: SshTarget, environment: Mapping[str, str] | None = None) -> None:
        """``environment``: that of ssh; by default, this process's."""
        self.target, self._environment = target, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._end_at_exit: weakref.finalize[..., Tunnel]
        self._server: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._folder: _SocketFolder | None = None
        self._port = 0
        self._ports_taken = 0
        self._was_ready = False
        self._reported = 0  # length of ssh's output when the tunnel was ready last

    @property
    def local(self) -> Address:
        """This end of the tunnel, once it is :meth:`ready`. Raises ConnectionFailed if it is closed."""
        if self._folder is not None:
            # The address has the server's own port, which is the port in its Host header.
            return Address(False, "127.0.0.1", self.target.server_port, unix_socket=self._socket_path)
        if self._port == 0:
            raise ConnectionFailed(f"The ssh tunnel to {self.target.host} is closed.")
        return Address(False, "127.0.0.1", self._port)

    @property
    def _socket_path(self) -> str:
        assert self._folder is not None
        return str(self._folder.path / "socket")

    def ready(self) -> bool:
        """Return whether the tunnel is open; start ssh if it does not run. Call it again until it returns True.

        Raises ConnectionFailed or Untrusted if ssh failed. The next call tries again.
        """
        if self._process is None:
            self._start()
            return False
        if self._process.poll() is not None:
            stderr, was_ready = self._error_text(), self._was_ready
            self._end_ssh()
            if was_ready:
                return False  # the tunnel was lost; the next call opens another one
            if "Address already in use" in stderr and not _UNIX_SOCKETS and self._ports_taken < _MAX_PORTS:
                self._ports_taken += 1
                return False
            raise self._ssh_error(stderr)
        if not self._listens():
            return False
        self._ports_taken = 0
        self._was_ready, self._reported = True, len(self._error_text())
        return True

    def _listens(self) -> bool:
        """Return whether ssh accepts connections at this end, without waiting."""
        try:
            if self._folder is not None:
                with socket.socket(AF_UNIX) as probe:
                    probe.settimeout(1)
                    probe.connect(self._socket_path)
            # Another program may have the port. ssh reports its listener after it has bound the port. (The line "Local
            # forwarding listening on" comes before that.)
            elif "[port listener]" in self._error_text():
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            else:
                return False
        except OSError:
            if self._folder is not None and self._was_ready and not Path(self._socket_path).exists():
                self._end_ssh()  # the temporary folder was deleted; the next call makes another one
            return False
        return True

    def _start(self) -> None:
        # Read while ssh writes it, so every write appends. It lives as long as the process.
        self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115
        there = f"127.0.0.1:{self.target.server_port}"
        try:
            if _UNIX_SOCKETS:
                self._folder = _private_folder()
                options = ["-L", f"{self._socket_path}:{there}"]
            else:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    self._port = free.getsockname()[1]
                # At this level, ssh reports its listener.
                options = ["-o", "LogLevel=DEBUG1", "-L", f"127.0.0.1:{self._port}:{there}"]
            self._process = self._ssh(["-N", *options], stdin=subprocess.DEVNULL)
            self._end_at_exit = weakref.finalize(self, _terminate, self._process, Owner())
        except ConnectionFailed:
            self._end_ssh()
            raise

    def _ssh(
        self, options: list[str], command: str | None = None, stdin: int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        settings = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        arguments = ["ssh", "-T", *options, *settings]  # of two values, ssh uses the first
        if self.target.port is not None:
            arguments += ["-p", str(self.target.port)]
        arguments += ["--", self.target.host, *([command] if command else [])]
        try:
            return subprocess.Popen(
                arguments,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=self._environment,
                **own_process_group(),  # Ctrl-C cancels a prompt, and must not end the tunnel
            )
        except FileNotFoundError as e:
            raise ConnectionFailed(
                "There is no ssh on this machine. Install OpenSSH's client, or open a tunnel with another program and "
                "connect to its local port."
            ) from e

    # ---- the server on the remote machine -------------------------------------------------------------------

    @property
    def nothing_listens(self) -> bool:
        """Whether ssh has reported, since the tunnel was ready last, that nothing listens at the server's port."""
        return "open failed: connect failed" in self._error_text()[self._reported :]

    def start_server(self, command: str) -> None:
        """Start a server on the remote machine by a command such as ``nninteractive-ws serve``, until :meth:`close`."""
        self._server = self._ssh([], f"{command} --port {self.target.server_port} --end-with-stdin")

    def server_runs(self) -> bool:
        """Return whether :meth:`start_server` was called. Raises ConnectionFailed if that server has ended."""
        if self._server is not None and self._server.poll() is not None:
            status = self._server.returncode
            self._end_server()
            output = self._error_text().strip().splitlines()[-3:]
            raise ConnectionFailed(
                f"The server could not be started on {self.target.host} (status {status}): "
                f"{redact(printable(' '.join(output)))[:500]}"
            )
        return self._server is not None

    # ---- errors ---------------------------------------------------------------------------------------------

    def _error_text(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def connection_error(self, error: ConnectionFailed) -> ConnectionFailed:
        """Translate a failure at the local end into one of the tunnel, or of the server behind it."""
        if self.nothing_listens:
            return ConnectionFailed(
                f"ssh reached {self.target.host}, but nothing listens at port {self.target.server_port} there. Start "
                "the server (nninteractive-ws serve), or give the port: ssh://user@host/PORT."
            )
        return ConnectionFailed(f"Through ssh to {self.target.host}: {error}")

    def _ssh_error(self, stderr: str) -> ConnectionFailed:
        host = self.target.host
        # Lines of level DEBUG1 may report steps that failed before another one worked.
        stderr = "\n".join(line for line in stderr.splitlines() if not line.startswith("debug1:"))
        for pattern, kind, sentence in _SSH_MESSAGES:
            if re.search(pattern, stderr, re.IGNORECASE):
                return kind(sentence.format(host=host))
        output = printable(" ".join(stderr.split()))[-500:]
        return ConnectionFailed(redact(f"ssh to {host} failed: {output or 'it output nothing'}"))

    # ---- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the tunnel, and end the server that it started."""
        self._end_server()
        self._end_ssh()

    def _end_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            end_process(server, _END_TIMEOUT_S, terminate=False)

    def _end_ssh(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._end_at_exit.detach()
            end_process(process, _END_TIMEOUT_S)
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        self._port, self._was_ready, self._reported = 0, False, 0


def _terminate(process: "subprocess.Popen[bytes]", owner: Owner) -> None:
    """End ssh if the program has not closed its tunnel, but not at the end of a forked child."""
    if owner.is_this_process:
        process.terminate()


class _SocketFolder:
    """A folder that is removed with this object or at the end of this process, but not at the end of a forked child."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cleanup = weakref.finalize(self, _remove_folder, path, Owner())


def _remove_folder(path: Path, owner: Owner) -> None:
    if owner.is_this_process:
        shutil.rmtree(path, ignore_errors=True)


def _private_folder() -> _SocketFolder:
    """Make a folder that only this user may enter, with a path for a Unix socket. Raises ConnectionFailed."""
    failure = "no folder for temporary files has a path that is short enough, of ASCII letters and digits"
    for place in (tempfile.gettempdir(), "/tmp"):
        path = str(Path(place, _RANDOM_NAME))
        if len(path) > _MAX_SOCKET_PATH or not _PLAIN_PATH.fullmatch(path):
            continue
        try:
            return _SocketFolder(Path(tempfile.mkdtemp(prefix="nninteractive-", dir=place)))  # with the mode 0700
        except OSError as e:
            failure = f"in {place} no folder can be made ({e.strerror})"
    raise ConnectionFailed(
        f"There is no place for the socket of an ssh tunnel: {failure}. Set the environment variable TMPDIR to a "
        "folder with a short path in which you may write."
    )


_SSH_MESSAGES: list[tuple[str, type[ConnectionFailed], str]] = [
    (
        r"unix_listener:",
        ConnectionFailed,
        "ssh could not create the socket of the tunnel to {host} on this machine. Set the environment variable TMPDIR "
        "to a folder on a local disk, with a short path, in which you may write.",
    ),
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
