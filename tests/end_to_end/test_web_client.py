"""The browser's client and the Python client: the same prompts give the same masks, also over failing connections."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
import random
import threading

from helpers.end_to_end import wait_until
from helpers.fast_server import QuickServer, quick_server
from helpers.fault_script import (
    Prompt,
    all_states,
    assert_same,
    disturb,
    kill_server,
    make_script,
    undisturbed,
)
from helpers.relay import relay
from helpers.shapes import ball
from helpers.web_client import PROGRAM, web_client
from helpers.web_sources import bundle, missing_program
import numpy as np
import pytest

import nninteractive_ws as nni

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


@pytest.mark.slow
def test_on_a_slow_link_the_first_preview_precedes_its_bricks(quick: QuickServer, program: Path) -> None:
    # The patch around the middle reads all bricks.
    middle, bricks = (64, 64, 48), 4 * 4 * 3
    noise = np.random.default_rng(0).integers(-100, 100, (128, 128, 96), np.int16)
    volume = noise + 2000 * ball(noise.shape, middle, 20).astype(np.int16)
    with nni.connect(quick.address) as session:
        session.set_image(volume)
        session.segment("a").add_point(middle)
        expected = session.segment("a").mask.copy()
    with relay(quick.address, bytes_per_second=5e5) as slow, web_client(slow.address, program) as client:
        client.set_image(volume)
        client.do([Prompt("add_point", "a", (middle,))])
        preview = client.first_preview
        print(f"{preview}, {np.count_nonzero(expected)} voxels in the result, {slow.bytes_up / 1e6:.1f} MB")
        assert preview["present"] < bricks
        assert preview["voxels"] > 0
        assert np.array_equal(client.core.segments["a"].mask, expected)


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
