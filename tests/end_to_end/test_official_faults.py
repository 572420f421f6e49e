"""nnInteractive's own client while processes of the server are killed, and with tokens, TLS and limits."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
import os
from pathlib import Path
import signal
import time
from typing import Any

from helpers.end_to_end import (
    http,
    is_running,
    sessions,
    wait_until,
)
from helpers.engine import torso
from helpers.fast_server import QuickServer, quick_server
from helpers.http import free_port
from helpers.official_client import Call, RecordingClient, call, point, with_image
import httpx
from nnInteractive.inference.remote.remote_session import ServerAtCapacityError, SessionExpiredError
import numpy as np
import pytest
import trustme

from nninteractive_ws.server.access import add_user, remove_user

IMAGE = torso((40, 33, 27), spacing=6.0)
#: Two prompts, the second of which refers to the first.
FIRST, SECOND = point((20, 16, 13)), point((10, 16, 13), positive=False)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    """A server for this module."""
    with quick_server() as server:
        yield server


@pytest.fixture(scope="module")
def expected(quick: QuickServer) -> list[Any]:
    """The masks after each prompt, undisturbed."""
    with closing(with_image(http(quick.address), IMAGE)) as client:
        masks = [client.do(request).buffer for request in (FIRST, SECOND)]
    assert not np.array_equal(*masks)
    return masks


def assert_masks(client: RecordingClient, expected: list[Any], requests: tuple[Call, ...] = (FIRST, SECOND)) -> None:
    for request, mask in zip(requests, expected[-len(requests) :], strict=True):
        assert np.array_equal(client.do(request).buffer, mask)


def kill_official_api(server: QuickServer) -> None:
    (pid,) = server.official_api
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))


def count_sessions(server: QuickServer) -> int:
    return sessions(server.address, "connected") + sessions(server.address, "waiting")


# ---- processes that are killed --------------------------------------------------------------------------------


def test_the_worker_is_killed_between_prompts(quick: QuickServer, expected: list[Any]) -> None:
    with closing(with_image(http(quick.address), IMAGE)) as client:
        assert_masks(client, expected[:1], (FIRST,))
        quick.kill_worker()
        assert_masks(client, expected, (SECOND,))
        assert client.do(call("undo")).returned
        assert np.array_equal(client.buffer, expected[0])


def test_the_worker_is_killed_during_a_prompt(quick: QuickServer) -> None:
    image = torso((97, 51, 33), spacing=(3.0, 5.0, 8.0))
    drawn = np.zeros(image.shape, np.uint8)
    drawn[:, 25, 16] = 1  # longer than a patch, so that the prediction has many passes
    prompt = call("add_scribble_interaction", drawn, True)
    with closing(with_image(http(quick.address), image)) as client, ThreadPoolExecutor() as pool:
        started = time.monotonic()
        expected = client.do(prompt).buffer
        seconds = time.monotonic() - started
        assert expected is not None
        assert expected.any()
        client.do(call("undo"))
        worker = quick.worker
        running = pool.submit(client.do, prompt)
        time.sleep(seconds / 2)
        os.kill(worker, signal.SIGSTOP)  # so that it cannot answer before it is killed
        assert not running.done()
        os.kill(worker, signal.SIGKILL)
        assert np.array_equal(running.result().buffer, expected)


def test_the_process_of_the_http_api_is_killed(quick: QuickServer, expected: list[Any]) -> None:
    """The client continues with another session, and the gateway keeps nothing of the lost one."""
    with closing(with_image(http(quick.address), IMAGE)) as client:
        client.do(FIRST)
        assert count_sessions(quick) == 1
        kill_official_api(quick)
        wait_until(lambda: count_sessions(quick) == 0, timeout=5)
        with pytest.raises(SessionExpiredError, match="Start another one"):
            client.do(SECOND)
    with closing(with_image(http(quick.address), IMAGE)) as again:
        assert_masks(again, expected)
        assert count_sessions(quick) == 1


def test_the_server_is_restarted(quick: QuickServer, expected: list[Any]) -> None:
    client = with_image(http(quick.address), IMAGE)
    client.do(FIRST)
    quick.kill()
    with pytest.raises(httpx.ConnectError):
        client.do(SECOND)
    assert client.session.ping() is False
    quick.start()
    with pytest.raises(SessionExpiredError, match="Start another one"):
        client.do(SECOND)
    client.close()
    with closing(with_image(http(quick.address), IMAGE)) as again:
        assert_masks(again, expected)


def test_a_stopped_server_ends_its_processes() -> None:
    with quick_server() as own, closing(with_image(http(own.address), IMAGE)):
        children = own.workers + own.official_api
        assert len(children) == 2
        started = time.monotonic()
        own.stop()
        assert time.monotonic() - started < 10
        wait_until(lambda: not any(map(is_running, children)), timeout=5)


# ---- access ---------------------------------------------------------------------------------------------------


def test_tokens(tmp_path: Path, expected: list[Any]) -> None:
    tokens = tmp_path / "tokens"
    ada, ben = (add_user(tokens, name) for name in ("ada", "ben"))
    with quick_server("--token-file", str(tokens), "--max-sessions-per-user", "1", "--max-sessions", "3") as own:
        url = http(own.address)
        for wrong in (None, "wrong", ada[:-1]):
            with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized"):
                RecordingClient(url, api_key=wrong)
        with (
            closing(with_image(url, IMAGE, api_key=ada)) as client,
            closing(RecordingClient(url, api_key=ben)) as other,
        ):
            assert_masks(client, expected)
            # Each user may have one session.
            with pytest.raises(ServerAtCapacityError, match="user may have"):
                RecordingClient(url, api_key=ada)
            # A lease belongs to its user.
            own_lease = other.session._lease_token
            for lease in (client.session._lease_token, "unknown"):
                other.session._http.headers["X-Lease-Token"] = lease
                expects = httpx.HTTPStatusError if lease != "unknown" else SessionExpiredError
                for request in (FIRST, call("undo"), call("heartbeat"), call("lease_status")):
                    with pytest.raises(expects):
                        other.do(request)
            other.session._http.headers["X-Lease-Token"] = own_lease
            del client.session._http.headers["Authorization"]
            with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized"):
                client.do(SECOND)
            client.session._http.headers["Authorization"] = f"Bearer {ada}"
            # A removed token opens no session. Open ones are not closed.
            remove_user(tokens, "ben")
            assert other.do(call("heartbeat")).returned
        with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized"):
            RecordingClient(url, api_key=ben)


def test_tls(tmp_path: Path, expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    arguments = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with quick_server(*arguments, "--official-port", str(port)) as own:
        urls = (own.address.replace("wss://", "https://"), f"https://127.0.0.1:{port}")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            RecordingClient(urls[0])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        for url in urls:
            with closing(with_image(url, IMAGE)) as client:
                assert client.session.ping()
                assert client.do(call("lease_status")).returned == ["idle_timeout_seconds", "remaining_seconds"]
                assert_masks(client, expected)


def test_a_port_of_its_own(expected: list[Any]) -> None:
    """It answers everything that nnInteractive's server does. Both ports share the limit of sessions."""
    port = free_port()
    with quick_server("--official-port", str(port), "--max-sessions", "2") as own:
        url = f"http://127.0.0.1:{port}"
        with closing(with_image(url, IMAGE)) as client, closing(with_image(http(own.address), IMAGE)) as other:
            assert client.session.ping()
            assert client.session.supported_interactions == other.session.supported_interactions
            assert_masks(client, expected)
            assert_masks(other, expected)
            with pytest.raises(ServerAtCapacityError, match="All 2 sessions"):
                RecordingClient(url)
        with closing(with_image(url, IMAGE)) as client:
            assert_masks(client, expected)
