"""The names by which a server without tokens may be addressed, against DNS rebinding.

A web page of ``attacker.example`` whose name is then resolved to 127.0.0.1 may read what the server answers: to the
browser both are one site. The request still names the page's host, and the page cannot change that.
"""

from collections.abc import Iterable
import ipaddress
import re
import socket
import threading

from websockets.datastructures import Headers

_HOST = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::\d*)?", re.ASCII)


class AllowedHosts:
    """Accepts loopback names, IP addresses (rebinding needs a name), this machine's own names, and those given."""

    def __init__(self, names: Iterable[str]) -> None:
        own = socket.gethostname().lower()
        self._names = {*(_normalize(name) for name in names if name), own, f"{own.partition('.')[0]}.local"}
        # Without a network, a DNS lookup can take longer than anybody wants to wait for the server.
        threading.Thread(target=self._add_full_name, name="own full name", daemon=True).start()

    def _add_full_name(self) -> None:
        self._names = self._names | {_normalize(socket.getfqdn())}

    def refused(self, headers: Headers) -> str | None:
        """The host of a request that is not accepted; None where all is well. A browser always sends one."""
        return next((host for host in headers.get_all("Host") if not self._accepts(host)), None)

    def _accepts(self, host: str) -> bool:
        if (found := _HOST.fullmatch(host)) is None:
            return False
        name = _normalize(found["v6"] or found["name"] or "")
        return name in self._names or name == "localhost" or name.endswith(".localhost") or _is_ip(name)


def _normalize(name: str) -> str:
    return name.strip().lower().removesuffix(".")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
