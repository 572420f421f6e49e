"""Workers that join by themselves, impostors, launchers that fail, scale to zero, and a network that is cut."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
import os
from pathlib import Path
import signal
import subprocess
import sys
import textwrap
import threading
import time

from helpers.end_to_end import health, metrics, wait_until
from helpers.fast_server import NETWORK, SLOW_NETWORK, QuickServer, quick_server
from helpers.fault_script import State
from helpers.http import free_port
from helpers.networks import HERE, OtherMachine, other_machine
from helpers.worker_user import WORKER_TIMEOUT_S, worker_user, workers_of
import psutil
import pytest

import nninteractive_ws as nni
from nninteractive_ws.client import events
from nninteractive_ws.engine.worker import NotConnected, Worker
from nninteractive_ws.eviction import IDLE_S
from nninteractive_ws.server.worker_tls import make_certificate

TESTS = Path(__file__).parents[1]
SECRET = "the-secret-of-a-worker"
ENDED = "The worker process of this session was ended. Reconnect to restore the session."

pytestmark = pytest.mark.usefixtures("back_at_once")


@pytest.fixture(scope="module")
def expected() -> list[dict[str, State]]:
    """The result of one local worker, without a loss."""
    with quick_server(network=SLOW_NETWORK) as server, worker_user(server) as user:
        return user.run_undisturbed()


def script(path: Path, text: str) -> str:
    """Write a Python program, and return the command that runs it."""
    path.write_text(textwrap.dedent(text))
    return f"{sys.executable} {path}"


# ---- impostors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [True, False], ids=["the gateway", "an impostor"])
def test_a_worker_sends_its_secret_to_the_certified_gateway_alone(trusted: bool) -> None:
    ours, received = make_certificate(), bytearray()
    other = ours if trusted else make_certificate()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(65536))
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(record, "127.0.0.1", 0, ssl=other.server_context())
        async with server:
            address = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            worker = Worker(address, SECRET, ours.der, None, 1, 1, IDLE_S, False)
            await worker.run("demo", None, "cpu")

    with pytest.raises(NotConnected, match="refused this worker" if trusted else "another certificate"):
        asyncio.run(work())
    assert (SECRET.encode() in received) is trusted
    assert bool(received) is trusted, "an impostor received nothing that was encrypted"


def test_a_stolen_secret_raises_an_alarm(tmp_path: Path) -> None:
    """A thief connects with the secret before the worker does. The worker is refused, and the thief disconnected."""
    launch = script(
        tmp_path / "stolen.py",
        """\
        import asyncio, ssl, sys
        from nninteractive_ws import worker_protocol
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus

        async def main():
            secret, certificate = worker_protocol.read_credentials(sys.stdin)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.load_verify_locations(cadata=certificate)
            address = sys.argv[sys.argv.index("--gateway") + 1] + worker_protocol.WORKER_PATH
            options = {"additional_headers": worker_protocol.bearer(secret), "ssl": context}
            async with connect(address, **options) as thief:
                try:
                    await connect(address, **options)
                except InvalidStatus as e:
                    print("the worker was answered", e.response.status_code, file=sys.stderr, flush=True)
                await thief.wait_closed()
                print("the thief is disconnected", file=sys.stderr, flush=True)

        asyncio.run(main())
        """,
    )
    with quick_server("--launch", launch, "--worker-host", "127.0.0.1") as server:
        wait_until(lambda: "the thief is disconnected" in server.log.read_text(), 60)
        log = server.log.read_text()
        assert "the worker was answered 401" in log
        assert "CRITICAL" in log
        assert "a secret that was used before" in log
        assert health(server.address)["status"] == "loading"


# ---- launchers that fail ----------------------------------------------------------------------------------


def test_a_launcher_that_always_fails(tmp_path: Path) -> None:
    """Clients get a sentence, the gateway lives, and the attempts become rarer."""
    starts = tmp_path / "starts"
    launch = script(
        tmp_path / "fails.py",
        f"""\
        import sys, time
        with open({str(starts)!r}, "a") as file:
            file.write(f"{{time.monotonic()}}\\n")
        print("garbage on standard output")
        sys.exit("srun: error: invalid partition specified: gpus")
        """,
    )
    with quick_server("--launch", launch, "--worker-host", "127.0.0.1") as server:
        session = nni.PolledSession(server.address)
        notices: list[str] = []

        def two_failures() -> bool:
            notices.extend(e.message for e in session.poll() if isinstance(e, events.Notice))
            return any("next attempt is in 2 seconds" in message for message in notices)

        wait_until(two_failures, 60)
        assert any(
            message.endswith("Its last line: srun: error: invalid partition specified: gpus. The next attempt is in "
                             "1 seconds.")
            for message in notices
        ), notices  # fmt: skip
        wait_until(lambda: len(starts.read_text().splitlines()) == 3, 30)
        first, second, third = map(float, starts.read_text().split())
        assert second - first >= 1
        assert third - second >= 2
        assert health(server.address)["status"] == "loading"
        assert not session.closed
        session.close()
        assert server.process.poll() is None
        assert 'worker_failures_total{launcher="python' in metrics(server.address)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_launcher_that_prints_nonsense(tmp_path: Path, expected: list[dict[str, State]]) -> None:
    launch = script(
        tmp_path / "chatty.py",
        """\
        import os, sys
        os.write(1, b"ws://127.0.0.1:1 \\xff\\0 Last login: today\\n" * 10_000)
        os.write(2, b"module load \\xfe\\n" * 10_000)
        os.execv(sys.argv[1], sys.argv[1:])
        """,
    )
    options = ("--launch", launch, "--worker-host", "127.0.0.1")
    with quick_server(*options, network=SLOW_NETWORK) as server, worker_user(server) as user:
        assert user.run_undisturbed() == expected


# ---- workers that join ------------------------------------------------------------------------------------


@contextmanager
def joined(port: int, token: Path, model: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker that joins the server at a port."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "nninteractive_ws", "worker", f"wss://127.0.0.1:{port}"]
    command += ["--token-file", str(token), "--model", str(model), "--device", "cpu"]
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": path}
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(20)


@contextmanager
def open_to_workers(folder: Path, *arguments: str, network: str = SLOW_NETWORK) -> Iterator[tuple[QuickServer, int]]:
    """A server that workers can join, and the port for them."""
    port = free_port()
    with quick_server(
        *("--worker-token-file", str(folder / "token"), "--worker-host", "127.0.0.1", "--worker-port", str(port)),
        *arguments,
        network=network,
    ) as server:
        yield server, port


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_joins_and_leaves_and_joins_again(tmp_path: Path, expected: list[dict[str, State]]) -> None:
    token, log = tmp_path / "token", tmp_path / "log"
    with open_to_workers(tmp_path) as (server, port), ExitStack() as stack:
        assert token.stat().st_mode & 0o077 == 0
        starting = threading.Timer(
            1, lambda: stack.enter_context(joined(port, token, server.model, log))
        )  # after the client
        starting.start()
        with worker_user(server) as user:
            assert user.notices[0] == "The server waits for a worker to join."
            user.begin()
            (worker,) = workers_of(server)
            user.prompt_through(worker.kill)  # `nninteractive-ws worker` starts another
            print(user.losses)
            (again,) = workers_of(server)
            assert again.pid != worker.pid
            # It is asked to leave, and the session that is idle leaves it first.
            psutil.Process(again.ppid()).terminate()
            wait_until(lambda: not workers_of(server), 30)
            with joined(port, token, server.model, log):
                user.finish(expected)
        assert "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_announced_end_does_not_count_against_a_request(tmp_path: Path, expected: list[dict[str, State]]) -> None:
    """Two workers in a row say that they end, and are killed in the middle of a prompt, which is not the cause."""
    with (
        open_to_workers(tmp_path) as (server, port),
        joined(port, tmp_path / "token", server.model, tmp_path / "log"),
        worker_user(server) as user,
    ):
        user.begin()
        refining: list[int] = []
        user.session.on("progress", lambda event: event.state == "refining" and refining.append(event.request))

        def end_workers() -> None:
            for _ in range(2):
                wait_until(lambda: refining, WORKER_TIMEOUT_S)
                (worker,) = workers_of(server)
                worker.terminate()
                wait_until(lambda: 'state="draining"} 1.0' in metrics(server.address), 10)
                worker.kill()
                worker.wait()
                refining.clear()

        user.prompt_through(end_workers)
        user.finish(expected)
        assert [loss.reason for loss in user.losses] == [ENDED] * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda ours, theirs: ours.replace(read(ours), read(theirs)), "refused this worker"),
        (lambda ours, theirs: theirs, "certificate"),
    ],
    ids=["token", "certificate"],
)
def test_a_wrong_token_file(tmp_path: Path, forge: Callable[[str, str], str], message: str) -> None:
    other = tmp_path / "other"
    with open_to_workers(tmp_path) as (server, port):
        with open_to_workers(other_folder(other)):
            pass
        forged, log = tmp_path / "forged", tmp_path / "log"
        forged.touch(0o600)
        forged.write_text(forge((tmp_path / "token").read_text(), (other / "token").read_text()))
        with joined(port, forged, server.model, log):
            wait_until(lambda: "It starts again in" in log.read_text(), WORKER_TIMEOUT_S)
        text = log.read_text()
        assert message in text
        assert "Traceback" not in text
        assert health(server.address)["status"] == "idle"


def other_folder(path: Path) -> Path:
    path.mkdir()
    return path


def read(text: str) -> str:
    """Return the token in a worker token file."""
    return next(line for line in text.splitlines() if line.startswith("token "))


@pytest.mark.release
@pytest.mark.timeout(900)
def test_sessions_even_out_when_a_worker_joins(tmp_path: Path, expected: list[dict[str, State]]) -> None:
    """Two workers have three sessions each. After the third has joined, each has two."""
    options = ("--launch", "env", "--workers", "2")
    with open_to_workers(tmp_path, *options, network=NETWORK) as (server, port), ExitStack() as stack:
        wait_until(lambda: 'workers{launcher="env",state="ready"} 2.0' in metrics(server.address), WORKER_TIMEOUT_S)
        users = [stack.enter_context(worker_user(server)) for _ in range(6)]
        for user in users:
            user.begin()
        assert sessions_by_worker(server) == [3, 3]
        time.sleep(IDLE_S + 1)  # sessions in use stay where they are
        stack.enter_context(joined(port, tmp_path / "token", server.model, tmp_path / "log"))
        wait_until(lambda: "sessions_moved_total 2.0" in metrics(server.address), WORKER_TIMEOUT_S)
        assert sessions_by_worker(server) == [0, 2, 2]
        # The two that were moved are those that were not used for longest. If they were the first to be used again,
        # one of them would return to a worker without active sessions.
        for user in (*users[2:], *users[:2]):
            user.prompt_long()
        assert sessions_by_worker(server) == [2, 2, 2]
        for user in users:
            user.finish(expected)


def sessions_by_worker(server: QuickServer) -> list[int]:
    """Return the numbers of sessions. A worker has a connection for each, and one for itself."""
    return sorted(
        sum(c.status == psutil.CONN_ESTABLISHED for c in worker.net_connections("tcp")) - 1
        for worker in workers_of(server)
    )


# ---- nobody uses the server -------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.timeout(600)
def test_scale_to_zero_and_back(expected: list[dict[str, State]]) -> None:
    """The client only waits. Its next prompt starts a worker, and restores the session."""
    with quick_server("--workers", "0..1", "--idle-end", "0.05") as server:
        assert health(server.address)["status"] == "idle"
        assert not workers_of(server)
        with worker_user(server) as user:
            user.begin()
            wait_until(lambda: not workers_of(server), IDLE_S + 60)
            assert health(server.address)["status"] == "idle"
            first: list[float] = []
            user.session.on("mask_delta", lambda event: first.append(time.monotonic()))
            clicked = time.monotonic()
            user.prompt_long()
            cold = first[0] - clicked
            first.clear()
            clicked = time.monotonic()
            user.finish(expected)
            print(f"click to first mask: {cold:.2f} s without a worker, {first[0] - clicked:.2f} s with one")
            assert "worker_failures_total{" not in metrics(server.address)


# ---- a network that is cut --------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Iterator[OtherMachine]:
    with other_machine() as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are of Linux")
def test_a_cut_network_is_noticed(machine: OtherMachine, expected: list[dict[str, State]]) -> None:
    """In the middle of a prompt. The session goes on with another worker."""
    launchers = ("--launch", machine.command, "--launch", "env")
    with quick_server(*launchers, "--worker-host", HERE, network=SLOW_NETWORK) as server:
        wait_until(lambda: health(server.address)["device"] == "cpu, cpu", WORKER_TIMEOUT_S)
        with worker_user(server) as user:
            user.begin()
            noticed: list[float] = []
            user.on_lost = lambda: noticed.append(time.monotonic())
            cut: list[float] = []

            def pull() -> None:
                machine.cut()
                cut.append(time.monotonic())

            user.prompt_through(pull)
            seconds = noticed[0] - cut[0]
            print(f"noticed after {seconds:.1f} s, {user.losses}")
            assert seconds < 16
            user.finish(expected)
