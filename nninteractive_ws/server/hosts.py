"""The names by which a server without tokens may be addressed, against DNS rebinding.

A web page of ``attacker.example`` may read the answers of a local server once that name resolves to 127.0.0.1: for the
browser, both are one site. The Host header of the request still has the name, and the page cannot change it.
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
        # On a thread: without a network, a DNS lookup can take longer than the start of the server should.
        threading.Thread(target=self._add_full_name, name="own full name", daemon=True).start()

    def _add_full_name(self) -> None:
        self._names = self._names | {_normalize(socket.getfqdn())}

    def refused(self, headers: Headers) -> str | None:
        """The Host header that is not accepted, if there is one. Browsers always send the header."""
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
