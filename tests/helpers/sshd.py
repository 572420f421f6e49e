"""A real sshd on loopback, with its own keys."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import getpass
import os
from pathlib import Path
import shutil
import subprocess

import psutil
import pytest

from helpers.end_to_end import listens, wait_until
from helpers.http import free_port
from helpers.programs import find_program

SSHD = find_program("sshd")


class Sshd:
    """An sshd for this user only. ``home``: the user's home as ssh sees it, with the client's configuration."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.port = folder, free_port()
        for name in ("host_key", "user_key", "stranger_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
        (folder / "known_hosts").write_text(
            f"[127.0.0.1]:{self.port} {' '.join((folder / 'host_key.pub').read_text().split()[:2])}\n"
        )
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host_key'}\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            + "".join(f"SetEnv {name}={value}\n" for name, value in environment.items())
        )
        self.client()

    def client(self, key: str = "user_key", known: str = "known_hosts") -> None:
        """Write the client's configuration, which a test may have changed."""
        (self.folder / "client").write_text(
            f"Host gpu-box\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder / key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder / known}\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # for sshd as root, which drops its privileges
        command = [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "sshd.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                wait_until(lambda: listens(self.port), 10)
                yield
            finally:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.terminate()


@contextmanager
def sshd_in_path(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Sshd]:
    """An sshd, and an ssh earlier in PATH that reads the test's configuration instead of the user's.

    ``environment``: of the commands that sshd runs.
    """
    made = Sshd(folder, environment or {})
    front = folder / "bin" / "ssh"
    front.parent.mkdir()
    front.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "client"} "$@"\n')
    front.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{front.parent}{os.pathsep}{os.environ['PATH']}")
        with made.running():
            yield made
