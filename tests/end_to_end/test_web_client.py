"""The browser's client and the Python client: the same prompts give the same masks, also over failing connections."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
import random
import threading

from helpers.end_to_end import wait_until
from helpers.fast_server import QuickServer, quick_server
from helpers.fault_script import (
    all_states,
    assert_same,
    disturb,
    kill_server,
    make_script,
    undisturbed,
)
from helpers.web_client import PROGRAM, web_client
from helpers.web_sources import bundle, missing_program
import pytest

MISSING = missing_program()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(PROGRAM, tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server() as server:
        yield server


def test_the_same_masks_and_histories(quick: QuickServer, program: Path) -> None:
    script = make_script(seed=5, count=40)
    expected = undisturbed(quick.address, script)
    with web_client(quick.address, program) as client:
        client.set_image()
        assert client.do(script) == expected.outcomes
        assert_same(all_states(client), expected.after)
        assert client.fetched == 0


@pytest.mark.slow
def test_a_failing_network(quick: QuickServer, program: Path) -> None:
    script = make_script(seed=6, count=60)
    expected = undisturbed(quick.address, script)
    disturb(quick, script, expected, random.Random(6), partial(web_client, program=program), at_once=4)


@pytest.mark.release
def test_processes_that_die(quick: QuickServer, program: Path) -> None:
    """The server between two prompts, and the worker during some. The client restores its segments in a new session."""
    script = make_script(seed=7, count=40)
    expected = undisturbed(quick.address, script)
    with web_client(quick.address, program) as client:
        client.set_image()
        sessions = {client.session_id}
        assert client.do(script[:20]) == expected.outcomes[:20]
        kill_server(quick)
        assert client.do(script[20:25]) == expected.outcomes[20:25]
        assert client.session_id not in sessions, "the session survived the end of its server"
        sessions.add(client.session_id)
        timer = threading.Timer(0.2, quick.kill_worker)
        timer.start()
        assert client.do(script[25:]) == expected.outcomes[25:]
        timer.join()
        # On a fast machine, all answers may be there before the worker ends.
        wait_until(lambda: (welcome := client.core.welcome) and welcome.session_id not in sessions)
        assert_same(all_states(client), expected.after)
        assert client.fetched == 0
