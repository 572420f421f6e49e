"""Whether the user needs instructions on how to get a server."""

import select
import socket
import time

from nninteractive_ws.client.address import DEFAULT_PORT
import qt

from .serverForm import DEFAULT_SERVER, SETTINGS
from .status import _

_PROBE_INTERVAL_S = 3.0


class FirstRun:
    """State of the first run. It ends for good when a server was used.

    While the module is open, ``poll()`` probes whether a server listens at the default address.
    """

    def __init__(self):
        self._used = bool(qt.QSettings().value(f"{SETTINGS}/serverUsed"))
        self._found = None  # whether a server listens, or None before the first result
        self._probe, self._nextProbeTime = None, 0.0

    @property
    def needsGuide(self):
        """Whether no server was used yet, and none listens at the default address."""
        return not self._used and self._found is False

    def reasonNotToConnect(self, address):
        """A message for the user, or None if a server was used or found, or if the address is not the default one."""
        if self._used or self._found or address != DEFAULT_SERVER:
            return None
        if self._found is None:
            return _(
                "Nothing was sent yet. The module is looking for a server on this computer. Try again in a second."
            )
        return _("Nothing was sent, because there is no server yet. Choose a server first.")

    def poll(self):
        """Continue or start a probe, unless a server was found or used."""
        if self._used or self._found:
            return
        if self._probe is not None:
            found = self._probe.result()
            if found is not None:
                self._found = found
                self.close()
        elif time.monotonic() > self._nextProbeTime:
            self._nextProbeTime = time.monotonic() + _PROBE_INTERVAL_S
            self._probe = _Probe("127.0.0.1", DEFAULT_PORT)

    def onServerUsed(self):
        """Remember that a server was used."""
        if not self._used:
            self._used = True
            qt.QSettings().setValue(f"{SETTINGS}/serverUsed", 1)
            self.close()

    def close(self):
        """End a probe."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None


class _Probe:
    """A TCP connection attempt that does not block and sends nothing."""

    def __init__(self, host, port):
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.connect_ex((host, port))

    def result(self):
        """Whether the connection succeeded, or None while that is unknown."""
        _readable, writable, failed = select.select([], [self._socket], [self._socket], 0)
        if not writable and not failed:
            return None
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def close(self):
        self._socket.close()
