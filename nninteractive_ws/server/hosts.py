"""Host names that a server without tokens accepts, as protection against DNS rebinding.

A web page of ``attacker.example`` can read the responses of a local server once that name resolves to 127.0.0.1,
because the browser then takes both for one site. The page cannot change the Host header, which still has that name.
"""

from collections.abc import Iterable
import re
import socket
import threading

from websockets.datastructures import Headers

from nninteractive_ws.ip_addresses import parse_ip

_HOST = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::\d*)?", re.ASCII)


class AllowedHosts:
    """Allowed hosts: loopback names, IP addresses (rebinding needs a name), this machine's names, and given names."""

    def __init__(self, names: Iterable[str]) -> None:
        own = socket.gethostname().lower()
        self._names = {*(_normalize(name) for name in names if name), own, f"{own.partition('.')[0]}.local"}
        # On a thread, because without a network a DNS lookup can take longer than the start of the server should.
        threading.Thread(target=self._add_full_name, name="own full name", daemon=True).start()

    def _add_full_name(self) -> None:
        self._names = self._names | {_normalize(socket.getfqdn())}

    def refused(self, headers: Headers) -> str | None:
        """Return a Host header that is not allowed, or None. Browsers always send the header."""
        return next((host for host in headers.get_all("Host") if not self._allows(host)), None)

    def _allows(self, host: str) -> bool:
        if (match := _HOST.fullmatch(host)) is None:
            return False
        name = _normalize(match["v6"] or match["name"] or "")
        return name in self._names or name == "localhost" or name.endswith(".localhost") or parse_ip(name) is not None


def _normalize(name: str) -> str:
    return name.strip().lower().removesuffix(".")
