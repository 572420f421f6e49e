"""Connections without a session: floods, silence and half-open handshakes against a real server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
import http.client
import json
from pathlib import Path
import socket
import ssl
import sys
import threading
import time
from typing import Any

from helpers.end_to_end import PlainClient, ServerProcess, phantom, run, server_process, wait_until
from helpers.fast_server import count_descriptors
import psutil
import pytest
import trustme
from websockets.asyncio.client import connect

from nninteractive_ws import messages as wire
from nninteractive_ws.server.access import add_user
from nninteractive_ws.server.admission import MAX_PENDING

# Only Linux has other loopback addresses than 127.0.0.1 without setup, and counts under /proc.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses 127.0.0.2 and /proc")

#: More connections than a server keeps of one address, and in total.
MANY = 2 * MAX_PENDING
#: Limit of open files, low enough that an attacker uses it up quickly.
FEW_DESCRIPTORS = 352

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
# The start of a TLS handshake: the header of a record whose 512 bytes are never sent.
CLIENT_HELLO = b"\x16\x03\x01\x02\x00"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def dial(address: str, source: str, first: bytes = b"") -> socket.socket:
    """Open a connection that sends these bytes and then stays silent."""
    dialled = socket.create_connection(("127.0.0.1", port_of(address)), timeout=30, source_address=(source, 0))
    dialled.sendall(first)
    return dialled


@contextmanager
def silent(address: str, source: str, first: bytes = b"", count: int = MANY) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(dial(address, source, first)) for _ in range(count)]


def health_from(address: str, source: str, context: ssl.SSLContext | None = None) -> Any:
    """The answer of /healthz to a client at another loopback address."""
    route: dict[str, Any] = {"timeout": 30, "source_address": (source, 0)}
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(address), **route)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port_of(address), context=context, **route)
    try:
        connection.request("GET", "/healthz")
        return json.load(connection.getresponse())
    finally:
        connection.close()


@contextmanager
def flood(address: str, source: str, first: bytes = b"") -> Iterator[list[int]]:
    """Open connections from one address as fast as possible, and keep the last 1000 open. The list has their number."""
    over, opened = threading.Event(), [0]

    def attack() -> None:
        held: list[socket.socket] = []
        while not over.is_set() and opened[0] < 20_000:
            try:
                held.append(dial(address, source, first))
            except OSError:
                continue  # dropped during the send
            opened[0] += 1
            if len(held) > 1000:
                held.pop(0).close()
            time.sleep(0.0003)  # the machine may be busy
        for one in held:
            one.close()

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        yield opened
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def small(log: Path) -> Iterator[ServerProcess]:
    """A server with a low limit of open files."""
    with log.open("w") as file, server_process(stderr=file, limit=f"-n {FEW_DESCRIPTORS}") as server:
        wait_until(lambda: health_from(server.address, "127.0.0.1")["status"] == "ready")
        yield server


def prompt(address: str, meanwhile: Callable[[], object]) -> None:
    """Open a session, do something else, and use the session."""

    async def work() -> None:
        client = await PlainClient.open(address)
        meanwhile()
        await client.set_image(phantom())
        await client.send(wire.AddPoint(id=2, segment="a", point=(30, 30, 28)))
        _, answer = await client.receive_answer(2)
        assert isinstance(answer, wire.Done)
        await client.leave()

    run(work())


# ---- floods -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("attacker", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n", UPGRADE], ids=["nothing", "half a request", "upgrade"])
def test_health_is_answered_during_a_flood(small: ServerProcess, log: Path, attacker: str, first: bytes) -> None:
    """Also to the attacker's own address, which may be a reverse proxy with other clients."""
    before, logged = count_descriptors(small.process.pid), log.stat().st_size
    with flood(small.address, attacker, first) as opened:
        wait_until(lambda: opened[0] > FEW_DESCRIPTORS)
        for _ in range(5):
            assert health_from(small.address, "127.0.0.1")["status"] == "ready"
            assert count_descriptors(small.process.pid) < FEW_DESCRIPTORS
        if attacker != "127.0.0.1":  # a handshake takes longer, and the attacker's address displaces its own
            prompt(small.address, lambda: None)
    output = log.read_text()[logged:]
    assert "Traceback" not in output
    assert len(output) < 100_000
    wait_until(lambda: count_descriptors(small.process.pid) <= before)


@pytest.mark.slow
def test_suppressed_log_lines_are_counted(small: ServerProcess, log: Path) -> None:
    """After the floods above, in which many connections were dropped."""
    wait_until(lambda: " more in " in log.read_text())
    assert "dropped a connection without a session" in log.read_text()


@pytest.mark.slow
def test_metrics_are_answered_during_a_flood(tmp_path: Path) -> None:
    token = add_user(tmp_path / "tokens", "alice")
    with (
        server_process("--token-file", str(tmp_path / "tokens"), "--log-level", "critical") as server,
        flood(server.address, "127.0.0.2", UPGRADE) as opened,
    ):
        wait_until(lambda: opened[0] > MAX_PENDING)
        connection = http.client.HTTPConnection("127.0.0.1", port_of(server.address), timeout=30)
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert b"nninteractive_ws_sessions" in answer.read()
        connection.close()


@pytest.mark.slow
def test_a_session_continues_during_a_flood(server: str) -> None:
    """From its own address, too."""
    with ExitStack() as stack:

        def attack() -> None:
            opened = stack.enter_context(flood(server, "127.0.0.1", UPGRADE))
            wait_until(lambda: opened[0] > MANY)

        prompt(server, attack)


@pytest.mark.slow
def test_the_worker_port_withstands_a_flood(small: ServerProcess) -> None:
    """Other users of the machine can reach it."""
    (connection,) = psutil.Process(small.worker).net_connections("tcp")
    with flood(f"ws://127.0.0.1:{connection.raddr.port}", "127.0.0.1", UPGRADE) as opened:
        wait_until(lambda: opened[0] > FEW_DESCRIPTORS)
        assert health_from(small.address, "127.0.0.1")["status"] == "ready"
    prompt(small.address, lambda: None)


@pytest.mark.slow
def test_the_server_survives_running_out_of_descriptors(tmp_path: Path) -> None:
    """The last resort: the server runs out of descriptors, but neither spins nor stops answering."""
    log = tmp_path / "log"
    with log.open("w") as file, server_process("--max-sessions", "1", stderr=file, limit="-n 24") as server:
        wait_until(lambda: health_from(server.address, "127.0.0.1")["status"] == "ready")
        assert "too few" in log.read_text()
        process = psutil.Process(server.process.pid)
        before = process.cpu_times()
        for _ in range(3):
            with silent(server.address, "127.0.0.2", count=50), silent(server.address, "127.0.0.3", count=50):
                assert health_from(server.address, "127.0.0.1")["status"] == "ready"
                time.sleep(1)
        after = process.cpu_times()
        assert after.user + after.system - before.user - before.system < 2
        output = log.read_text()
        assert "cannot accept a connection: Too many open files" in output
        assert "Traceback" not in output
        assert len(output) < 100_000


# ---- silence ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", UPGRADE], ids=["nothing", "upgrade"])
@pytest.mark.parametrize("attacker", ["127.0.0.1", "127.0.0.2"])
def test_silent_connections_do_not_block_other_clients(server: str, attacker: str, first: bytes) -> None:
    with silent(server, attacker, first):
        assert health_from(server, "127.0.0.1")["status"]
        prompt(server, lambda: None)
        with silent(server, "127.0.0.3", first):
            assert health_from(server, "127.0.0.1")["status"]


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: a", UPGRADE], ids=["nothing", "half", "upgrade"])
def test_silent_connections_are_closed(server: str, first: bytes) -> None:
    with dial(server, "127.0.0.1", first) as dialled:
        while dialled.recv(4096):
            pass


@pytest.mark.slow
def test_the_newest_connections_are_kept(server: str) -> None:
    """A client that is slow to send hello is accepted if there are not too many others."""

    async def work() -> None:
        client = PlainClient(await connect(server, proxy=None))
        with silent(server, "127.0.0.2"), silent(server, "127.0.0.3"):
            await client.send(wire.Hello(version=1, encodings=["raw"]))
            await client.receive_until(wire.Welcome)
            await client.leave()

    run(work())


def test_probes_leak_no_descriptors(small: ServerProcess) -> None:
    """Probes that connect and close, that reset, and that ask without waiting for the answer."""
    wait_until(lambda: health_from(small.address, "127.0.0.1")["status"] == "ready")
    before = count_descriptors(small.process.pid)
    for n in range(300):
        with dial(
            small.address, "127.0.0.1", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" if n % 3 == 0 else b""
        ) as one:
            if n % 3 == 1:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close resets
    wait_until(lambda: count_descriptors(small.process.pid) <= before)
    with silent(small.address, "127.0.0.2", count=20) as quiet:  # they are not dropped
        assert health_from(small.address, "127.0.0.1")
        for one in quiet:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)


# ---- TLS --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_open_tls_handshakes_do_not_block_other_clients(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with server_process("--tls-cert", str(cert), "--tls-key", str(key), "--log-level", "critical") as server:
        before = count_descriptors(server.process.pid)
        resident = psutil.Process(server.process.pid).memory_info().rss
        with silent(server.address, "127.0.0.1", CLIENT_HELLO), silent(server.address, "127.0.0.2", CLIENT_HELLO):
            assert health_from(server.address, "127.0.0.1", context)["status"]
            assert health_from(server.address, "127.0.0.3", context)["status"]
            assert psutil.Process(server.process.pid).memory_info().rss - resident < MAX_PENDING * 600_000
            wait_until(lambda: count_descriptors(server.process.pid) <= before + 2)


# ---- the limit of open files ------------------------------------------------------------------------------


def test_the_soft_limit_is_raised(tmp_path: Path) -> None:
    with server_process("--log-level", "critical", limit="-S -n 128") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text().partition("Max open files")[2]
        soft, hard = limits.split()[:2]
        assert soft == hard != "128"
