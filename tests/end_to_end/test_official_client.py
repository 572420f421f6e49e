"""nnInteractive's own client, unmodified, at this server and at nnInteractive's own server.

The results of all calls are equal, and so is every voxel of the masks. The reference is patched as in
``test_parity.py``.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import json
import os
from pathlib import Path
import pickle
import subprocess
import sys
from typing import Any
import urllib.request

from helpers.end_to_end import http, phantom, server_process, sessions
from helpers.engine import torso
from helpers.fast_server import quick_server, write_model
from helpers.official_client import (
    Array,
    Call,
    RecordingClient,
    Result,
    all_calls,
    call,
    point,
    results,
    with_image,
)
from helpers.official_server import official_server
import httpx
from nnInteractive.inference.remote.remote_session import SessionExpiredError
import numpy as np
import pytest

from nninteractive_ws.engine.model_registry import MODEL_FOLDER

#: The oldest client whose calls this server answers.
OLD_CLIENT = "nninteractive-client==2.5.1"
IMAGE = torso((40, 33, 27), spacing=6.0)
CENTER, OTHER = (20, 16, 13), (10, 16, 13)


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    """The URL of our server with the quick network."""
    with quick_server() as server:
        yield http(server.address)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of nnInteractive's server with the quick network."""
    model = tmp_path_factory.mktemp("model") / "quick"
    write_model(model)
    with official_server(model) as url:
        yield url


@pytest.fixture
def client(ours: str) -> Iterator[RecordingClient]:
    """A client of our server with an image and an empty target buffer."""
    opened = with_image(ours, IMAGE)
    yield opened
    opened.close()


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def assert_equal(found: list[Result], expected: list[Result]) -> None:
    """Compare results, voxel by voxel, and check that they are not trivial."""
    assert [one.call for one in found] == [one.call for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.status, one.ran, one.returned) == (other.status, other.ran, other.returned), one.call
        if other.buffer is not None:
            assert one.buffer is not None
            assert one.buffer.dtype == other.buffer.dtype, one.call
            differing = int((one.buffer != other.buffer).sum())
            assert differing == 0, f"{differing} voxels differ after {one.call}"
    filled = [one for one in expected if one.buffer is not None and one.buffer.any()]
    assert len({one.buffer.tobytes() for one in filled if one.buffer is not None}) > len(expected) / 3


# ---- parity -------------------------------------------------------------------------------------------------


def test_small_image(ours: str, reference: str) -> None:
    calls = list(all_calls(IMAGE, ["uint8"]))
    assert_equal(results(ours, calls), results(reference, calls))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((97, 51, 33), (3.0, 5.0, 8.0)), ((90, 84, 80), 3.0)],
    ids=["odd", "larger than the patch"],
)
def test_all_target_buffers(ours: str, reference: str, shape: Any, spacing: Any) -> None:
    calls = list(all_calls(torso(shape, spacing=spacing)))
    assert_equal(results(ours, calls), results(reference, calls))


@pytest.mark.slow
def test_embedded_model() -> None:
    calls = list(all_calls(phantom(), ["uint8"]))
    with server_process("--log-level", "warning") as own, official_server(MODEL_FOLDER) as reference:
        assert_equal(results(http(own.address), calls), results(reference, calls))


@pytest.mark.slow
def test_old_client(ours: str, reference: str, old_client: Path, tmp_path: Path) -> None:
    """The sequence in a process that has the old client."""
    np.save(tmp_path / "image.npy", IMAGE)
    found = []
    for n, url in enumerate((ours, reference)):
        result = tmp_path / f"{n}.pickle"
        path = os.pathsep.join([str(old_client), str(Path(__file__).parents[1])])
        subprocess.run(
            [sys.executable, "-m", "helpers.official_client", url, str(tmp_path / "image.npy"), str(result)],
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )
        file, fields = pickle.loads(result.read_bytes())
        assert Path(file).is_relative_to(old_client)
        found.append([Result(**one) for one in fields])
    assert_equal(*found)


@pytest.fixture(scope="module")
def old_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed old client."""
    folder = tmp_path_factory.mktemp("client")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), OLD_CLIENT]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{OLD_CLIENT} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_capabilities(ours: str, reference: str) -> None:
    assert fetch(f"{ours}/capabilities") == fetch(f"{reference}/capabilities")


# ---- state --------------------------------------------------------------------------------------------------


def test_two_clients_at_once(ours: str, reference: str) -> None:
    """Each has an image and prompts of its own."""
    sequences = [list(all_calls(image, ["uint8"])) for image in (IMAGE, np.ascontiguousarray(IMAGE.T))]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda calls: results(ours, calls), sequences))
    for mine, calls in zip(found, sequences, strict=True):
        assert_equal(mine, results(reference, calls))


def test_a_closed_client_leaves_nothing(ours: str, client: RecordingClient) -> None:
    """Another one of the same user starts with an empty session."""
    mask = client.do(point(CENTER)).buffer
    lease = client.session._lease_token
    client.close()
    assert sessions(ours, "connected") == sessions(ours, "waiting") == 0
    again = with_image(ours, IMAGE)
    try:
        assert again.session._lease_token != lease
        assert again.do(call("undo")).returned is False
        assert np.array_equal(again.do(point(CENTER)).buffer, mask)
        again.session._http.headers["X-Lease-Token"] = lease
        with pytest.raises(SessionExpiredError, match="session has ended"):
            again.do(point(OTHER))
    finally:
        again.close()


def test_a_second_image_forgets_the_first(client: RecordingClient) -> None:
    expected = client.do(point(CENTER)).buffer
    assert client.do(call("set_image", IMAGE[None, ::-1])).status == [200]
    client.do(call("set_target_buffer", np.zeros(IMAGE.shape, np.uint8)))
    assert client.do(call("undo")).returned is False
    client.do(point(OTHER))
    client.do(call("set_image", IMAGE[None]))
    client.do(call("set_target_buffer", np.zeros(IMAGE.shape, np.uint8)))
    assert np.array_equal(client.do(point(CENTER)).buffer, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool"])
def test_a_new_target_buffer_receives_the_whole_mask(client: RecordingClient, dtype: str) -> None:
    """With the next prompt, even if that changes only a small part of the mask."""
    client.do(point(CENTER))
    expected = client.do(point(OTHER)).buffer
    client.do(call("undo"))
    client.do(call("set_target_buffer", np.zeros(IMAGE.shape, dtype)))
    assert not client.buffer.any()
    found = client.do(point(OTHER)).buffer
    assert found is not None
    assert found.dtype == dtype
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(np.stack([IMAGE, IMAGE]), "one channel", id="two channels"),
        pytest.param(np.zeros((1, 5, 5, 5), np.uint8), "Every voxel", id="uniform"),
        pytest.param(np.full((1, 5, 5, 5), np.nan), "NaN", id="not finite"),
    ],
)
def test_a_refused_image_leaves_the_previous_one(client: RecordingClient, image: Array, message: str) -> None:
    client.do(point(CENTER))
    expected = client.do(point(OTHER, positive=False)).buffer
    client.do(call("undo"))
    with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request") as caught:
        client.do(call("set_image", image))
    assert message in caught.value.response.json()["detail"]
    assert np.array_equal(client.do(point(OTHER, positive=False)).buffer, expected)
    client.do(call("set_target_buffer", np.zeros(IMAGE.shape, np.uint8)))
    client.do(call("undo"))
    assert np.array_equal(client.do(point(OTHER, positive=False)).buffer, expected)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (point((40, 0, 0)), "outside"),
        (point((0, -1, 0)), "outside"),
        (call("add_bbox_interaction", [[5, 2], [0, 9], [3, 4]], True), "no voxel"),
        (call("add_bbox_interaction", [[50, 60], [0, 9], [3, 4]], True), "no voxel"),
        (call("add_bbox_interaction", [[2, 20], [2, 20], [2, 20]], True), "one slice"),
        (call("add_scribble_interaction", np.ones((3, 3, 3), np.uint8), True), "shape"),
        (call("_predict", force_full_refine=True), "force_full_refine"),
        (point(CENTER, override_capability_checks=True), "override_capability_checks"),
        (call("set_target_buffer", np.zeros((3, 3, 3), np.uint8)), "shape"),
    ],
    ids=str,
)
def test_an_invalid_call_changes_nothing(client: RecordingClient, request_: Call, message: str) -> None:
    before = client.do(point(CENTER)).buffer
    buffer = client.session.target_buffer
    with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request") as caught:
        client.do(request_)
    assert message in caught.value.response.json()["detail"]
    client.session.target_buffer = buffer
    assert np.array_equal(client.buffer, before)
    assert client.do(call("undo")).returned
    assert not client.buffer.any()


# ---- documented differences from nnInteractive's server -------------------------------------------------------


def test_undo_has_many_levels(client: RecordingClient) -> None:
    masks = [client.do(point(at, positive)).buffer for at, positive in ((CENTER, True), (OTHER, False))]
    assert client.do(call("undo")).returned
    assert np.array_equal(client.buffer, masks[0])
    assert client.do(call("undo")).returned
    assert not client.buffer.any()
    assert client.do(call("undo")).returned is False


def test_a_reset_discards_pending_prompts(client: RecordingClient) -> None:
    """nnInteractive's server runs a prediction without prompts."""
    client.do(point(CENTER, run_prediction=False))
    client.do(call("reset_interactions"))
    assert client.do(call("_predict")).ran is False
