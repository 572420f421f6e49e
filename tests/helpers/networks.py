"""Two machines on one network: this one, and a network namespace. The cable between them can be pulled."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
import subprocess

import pytest

#: Addresses of this machine and of the other one, from a block for tests.
HERE, THERE = "198.51.100.1", "198.51.100.2"


class OtherMachine:
    """A network namespace behind a switch. After a cut, packets vanish, and nobody is told."""

    def __init__(self) -> None:
        self._name, self._switch = f"nws-there-{os.getpid()}", f"nws-switch-{os.getpid()}"

    @property
    def command(self) -> str:
        """The command that runs its arguments on the other machine."""
        return f"ip netns exec {self._name}"

    def start(self) -> None:
        """Make the machine. Raises CalledProcessError."""
        for name in (self._name, self._switch):
            _ip("netns", "add", name)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        self._connect("nws-here", HERE, None)
        self._connect("nws-there", THERE, self._name)

    def _connect(self, interface: str, address: str, namespace: str | None) -> None:
        """Connect a machine to the switch."""
        where = [] if namespace is None else ["-n", namespace]
        _ip(*where, "link", "add", interface, "type", "veth", "peer", "name", interface, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", interface, "master", "bridge", "up")
        _ip(*where, "address", "add", f"{address}/24", "dev", interface)
        _ip(*where, "link", "set", interface, "up")

    def cut(self) -> None:
        """Pull the cable out of the switch, at the far side."""
        _ip("-n", self._switch, "link", "set", "nws-there", "nomaster")

    def stop(self) -> None:
        for name in (self._name, self._switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def other_machine() -> Iterator[OtherMachine]:
    """Another machine. Skips the test if this system lets nobody make one."""
    machine = OtherMachine()
    try:
        try:
            machine.start()
        except (OSError, subprocess.CalledProcessError) as e:
            pytest.skip(f"no network namespaces here: {getattr(e, 'stderr', None) or e}")
        yield machine
    finally:
        machine.stop()
