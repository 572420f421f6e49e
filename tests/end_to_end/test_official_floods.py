"""Clients of the HTTP API that stall, send too much or never read: no harm to others, and no memory is lost."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
import json
import socket
import struct
import sys
import time
from typing import Any

from helpers.end_to_end import health, http, sessions, wait_until
from helpers.fast_server import QuickServer, quick_server, resident_bytes
from helpers.http_inputs import IMAGE, SHAPE
from helpers.neighbor import undisturbed_with_http
import httpx
from nnInteractive.inference.remote.serialization import pack_array
import numpy as np
import pytest

from nninteractive_ws.official_api.process import HEADER_TIMEOUT_S


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server("--memory", "2", "--max-sessions", "12", "--max-sessions-per-user", "12") as server:
        wait_until(lambda: health(server.address)["status"] == "ready")
        yield server


#: The attacker's. A server drops connections of the address that has the most without a WebSocket session.
ADDRESS = "127.0.0.2"
# Only Linux has other loopback addresses than 127.0.0.1 without setup.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses 127.0.0.2 and /proc")


class Attacker:
    """A client of the HTTP API with a lease and an image, at another address than the neighbors."""

    def __init__(self, address: str) -> None:
        self.address, self.http = (
            address,
            httpx.Client(base_url=http(address), transport=httpx.HTTPTransport(local_address=ADDRESS), timeout=60),
        )
        self.lease = self.http.post("/claim").json()["lease_token"]
        self.http.headers["X-Lease-Token"] = self.lease
        assert self.post("/set_image", pack_array(IMAGE)).status_code == 200
        assert self.http.post("/set_target_buffer", json={"shape": SHAPE, "dtype": "uint8"}).status_code == 200

    def post(self, path: str, body: bytes, **meta: Any) -> httpx.Response:
        return self.http.post(path, content=body, headers={"X-Meta": json.dumps(meta)})

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(
            ("127.0.0.1", int(self.address.rpartition(":")[2])), timeout=60, source_address=(ADDRESS, 0)
        )
        client.sendall(data)
        return client

    def start(self, path: str, length: int, body: bytes = b"", expect: bool = False) -> socket.socket:
        """Send the headers of a request, and the start of its body. ``expect``: ask whether to send the body."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Lease-Token: {self.lease}\r\nContent-Length: {length}\r\n"
        head += "Expect: 100-continue\r\n" if expect else ""
        return self.connect(head.encode() + b'X-Meta: {"include_interaction": true}\r\n\r\n' + body)

    def close(self) -> None:
        with suppress(httpx.HTTPError):
            self.http.post("/release")
        self.http.close()


@contextmanager
def attacker(server: QuickServer) -> Iterator[Attacker]:
    """An attacker, after whom the memory budget has to be unused."""
    made = Attacker(server.address)
    try:
        yield made
    finally:
        made.close()
    wait_until(lambda: budget_is_unused(server), timeout=30)


def budget_is_unused(server: QuickServer) -> bool:
    """Whether a body as large as the whole budget would be accepted.

    The budget's size is the largest Content-Length that is not refused with 413. A body that fits is asked for with
    100; one that does not fit at present is refused with 503.
    """
    made = Attacker(server.address)
    # Its own image and mask, and the packed image that was received.
    own = IMAGE.nbytes + IMAGE.size
    try:

        def status(length: int) -> int:
            with made.start("/set_image", length, expect=True) as client:
                return int(client.recv(4096).split()[1])

        low, high = 0, 2**45
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if status(middle) == 413 else (middle, high)
        return status(low - own) == 100 and status(low) == 503
    finally:
        made.close()


def closed(client: socket.socket, within: float) -> bool:
    client.settimeout(within)
    try:
        while client.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


# ---- stalled requests ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_requests_without_a_lease_cost_nothing(quick: QuickServer) -> None:
    with attacker(quick) as made, undisturbed_with_http(quick):
        made.lease = "0" * 32
        for _ in range(200):
            with made.start("/set_image", 2**40, bytes(1000)) as client:
                assert client.recv(4096).startswith(b"HTTP/1.1 410 ")


@pytest.mark.slow
def test_headers_that_never_end(quick: QuickServer) -> None:
    with attacker(quick) as made, undisturbed_with_http(quick), ExitStack() as stack:
        started = time.monotonic()
        slow = [stack.enter_context(made.connect(b"POST /claim HTTP/1.1\r\n")) for _ in range(60)]
        while time.monotonic() - started < HEADER_TIMEOUT_S - 2:
            for client in slow:
                client.sendall(b"x")
            time.sleep(1)
        assert all(closed(client, 10) for client in slow)
        assert time.monotonic() - started < HEADER_TIMEOUT_S + 15


@pytest.mark.slow
@pytest.mark.parametrize("held", [100, 300])
def test_bodies_that_are_never_sent(quick: QuickServer, held: int) -> None:
    """On a lease, the requests wait for each other."""
    with attacker(quick) as made, undisturbed_with_http(quick), ExitStack() as stack:
        for _ in range(held):
            stack.enter_context(made.start("/set_image", 10_000_000, b"NNIA"))
        time.sleep(10)


def test_bodies_that_end_early(quick: QuickServer) -> None:
    with attacker(quick) as made, undisturbed_with_http(quick):
        for _ in range(100):
            made.start("/set_image", 10_000_000, bytes(100_000)).close()


# ---- large requests -----------------------------------------------------------------------------------------


def test_headers_that_state_any_size(quick: QuickServer) -> None:
    with attacker(quick) as made, undisturbed_with_http(quick):
        packed = bytearray(pack_array(IMAGE))
        struct.pack_into("<3q", packed, 8 + 5 + 8, 20_000, 20_000, 10_000)  # 12 TB with the mask
        answer = made.post("/set_image", bytes(packed))
        assert answer.status_code == 413
        assert "12,000 GB" in answer.json()["detail"]
        struct.pack_into("<3q", packed, 8 + 5 + 8, 2**62, 2**62, 2**62)
        assert made.post("/set_image", bytes(packed)).status_code == 413
        with made.start("/set_image", 8 * 10**12) as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
        with made.start("/add_scribble_interaction", 10**19) as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
        # The previous image is still there.
        assert made.http.post(
            "/add_point_interaction", json={"coordinates": [20, 18, 16], "include_interaction": True}
        ).is_success


@pytest.mark.slow
def test_arrays_that_unpack_to_a_thousand_times_their_size(quick: QuickServer) -> None:
    """They are in the budget, and gone afterwards."""
    with attacker(quick) as made, undisturbed_with_http(quick):
        zeros = pack_array(np.zeros((1, 512, 512, 512), np.int16))
        assert len(zeros) < 10_000
        answer = made.post("/set_image", zeros)
        assert answer.status_code == 400
        assert "nothing to segment" in answer.json()["detail"]
        masks = pack_array(np.zeros((512, 512, 512), np.uint8))
        for _ in range(20):
            assert made.post("/add_lasso_interaction", masks, include_interaction=True).status_code == 400


def test_a_body_that_is_not_sent_takes_no_memory(quick: QuickServer) -> None:
    with attacker(quick) as made, undisturbed_with_http(quick):
        (api,) = quick.official_api
        before = resident_bytes(api)
        with made.start("/set_image", 2 * 10**9, b"NNIA", expect=True) as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 100 ")
            time.sleep(0.5)
            assert resident_bytes(api) < before + 10**8


# ---- answers that nobody reads ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_never_reads(quick: QuickServer) -> None:
    point = json.dumps({"coordinates": [20, 18, 16], "include_interaction": True}).encode()
    with attacker(quick) as made, undisturbed_with_http(quick):
        request = made_request(made, "/add_point_interaction", point)
        with made.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(1)
            with suppress(TimeoutError):
                for _ in range(2000):
                    client.sendall(request)
        # The lease still works on another connection.
        assert made.http.post("/undo").status_code == 200


def made_request(made: Attacker, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Lease-Token: {made.lease}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


# ---- leases in a loop ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_leases_claimed_in_a_loop(quick: QuickServer) -> None:
    """Those in use are not taken from others, and the rest is refused."""
    with undisturbed_with_http(quick), httpx.Client(base_url=http(quick.address), timeout=60) as client:
        leases = []
        for _ in range(60):
            answer = client.post("/claim")
            if answer.status_code == 200:
                leases.append(answer.json()["lease_token"])
            else:
                assert answer.status_code == 503
                assert "in use" in answer.json()["detail"]
                assert answer.headers["Retry-After"]
            while len(leases) > 8:
                assert client.post("/release", headers={"X-Lease-Token": leases.pop()}).status_code == 200
        for lease in leases:
            client.post("/release", headers={"X-Lease-Token": lease})
    wait_until(lambda: sessions(quick.address, "connected") == 0, timeout=30)
