"""nnInteractive's napari plug-in, unmodified, with this server.

A real napari on a virtual display is operated by mouse and keyboard. Its label layer must be equal, bit for bit, to the
mask that the Python client gets from the same server for the same prompts.
"""

from collections.abc import Iterator, Sequence
import os
from pathlib import Path
import signal
from typing import Any

from helpers.end_to_end import SHAPE, ServerProcess, http, phantom, server_process
from helpers.napari_process import PYTHON, Napari, napari
from helpers.programs import find_program
import numpy as np
import pytest

import nninteractive_ws as nni
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.access import add_user

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PYTHON is None, reason="NNINTERACTIVE_WS_NAPARI_PYTHON names no Python with napari"),
    pytest.mark.skipif(find_program("Xvfb") is None, reason="Xvfb is not installed"),
]

#: In the liver. The other prompts are in and around it.
INSIDE = (26, 30, 30)
BOX = (26, 18, 18), (26, 42, 42)
STROKE = [(30, 26, 24), (30, 34, 24), (30, 34, 34)]
OUTLINE = [(22, 24, 24), (22, 38, 24), (22, 38, 38), (22, 24, 38), (22, 24, 24)]


class Both:
    """The same prompts in napari and in the Python client. The masks are compared after each."""

    def __init__(self, napari: Napari, session: nni.Session) -> None:
        self.napari, self._session = napari, session
        self._segments = 0
        self.next_segment()

    def next_segment(self) -> None:
        """Continue with an empty segment in the Python client."""
        self._segments += 1
        self.segment = self._session.segment(str(self._segments))

    def point(self, at: Sequence[int], positive: bool = True, run: bool = True) -> Mask:
        point = self.napari.do("point", at, positive)
        assert point == list(at)
        self.segment.add_point(point, positive=positive, run=run)
        return self.mask()

    def bbox(self, first: Sequence[int], last: Sequence[int], positive: bool = True) -> Mask:
        box = self.napari.do("bbox", first, last, positive)
        assert box == [[a, max(a + 1, b)] for a, b in zip(first, last, strict=True)]
        self.segment.add_bbox(box, positive=positive)
        return self.mask()

    def scribble(self, path: Sequence[Sequence[int]], positive: bool = True) -> Mask:
        drawn = _to_mask(self.napari.do("scribble", path, positive))
        assert all(drawn[tuple(voxel)] for voxel in path)
        self.segment.add_scribble(drawn, positive=positive)
        return self.mask()

    def lasso(self, path: Sequence[Sequence[int]], positive: bool = True) -> Mask:
        drawn = _to_mask(self.napari.do("lasso", path, positive))
        assert drawn[tuple(np.mean(path[:-1], axis=0).astype(int))]
        self.segment.add_lasso(drawn, positive=positive)
        return self.mask()

    def undo(self) -> Mask:
        self.napari.do("undo")
        self.segment.undo()
        return self.mask()

    def mask(self) -> Mask:
        """Return the mask, which is the same for both. napari has shown no error."""
        assert not [note for note in self.napari.do("notes") if note.startswith("error")]
        mask = self.napari.mask()
        assert np.array_equal(mask, self.segment.mask)
        return mask


def _to_mask(voxels: Any) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(np.transpose(voxels))] = True
    return mask


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A token file and the token in it."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    return file, add_user(file, "alice")


@pytest.fixture(scope="module")
def server(token: tuple[Path, str]) -> Iterator[ServerProcess]:
    with server_process("--log-level", "warning", "--token-file", str(token[0])) as process:
        yield process


@pytest.fixture(scope="module")
def running(
    server: ServerProcess, token: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Napari]:
    """A napari that is connected to the server."""
    url = http(server.address)
    with napari(phantom(), tmp_path_factory.mktemp("napari")) as process:
        process.do("enter_server", url, "nws_wrong")
        assert process.do("initialize")["status"] == "Invalid API key."
        process.do("enter_server", url, token[1])
        process.do("notes")
        assert process.do("initialize") == {"status": f"connected ({url})", "license": "Model license: Apache-2.0"}
        assert process.do("notes") == []
        yield process


@pytest.fixture
def both(server: ServerProcess, token: tuple[Path, str], running: Napari) -> Iterator[Both]:
    """Empty segments of both."""
    with nni.connect(server.address, token=token[1]) as session:
        session.set_image(phantom())
        running.do("reset")
        running.do("notes")
        yield Both(running, session)


def test_prompts_undo_and_reset(both: Both) -> None:
    first = both.point(INSIDE)
    assert first[INSIDE]
    edge = (INSIDE[0], *np.argwhere(first[INSIDE[0]])[0].tolist())
    masks = [
        first,
        both.point(edge, positive=False),
        both.bbox(*BOX),
        both.scribble(STROKE, positive=False),
        both.lasso(OUTLINE),
    ]
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    for before in reversed(masks[:-1]):  # nnInteractive's own server has one level
        assert np.array_equal(both.undo(), before)
    assert not both.undo().any()
    both.napari.do("undo")
    assert both.napari.do("notes") == ["warning: Nothing to undo."]
    assert both.point(INSIDE).any()
    both.napari.do("reset")
    both.next_segment()
    assert not both.mask().any()
    assert np.array_equal(both.point(INSIDE), masks[0])


def test_the_next_object_starts_empty(both: Both) -> None:
    first = both.point(INSIDE)
    both.napari.do("next_object")
    both.next_segment()
    assert not both.mask().any()
    assert np.array_equal(both.point(INSIDE), first)


def test_prompts_that_wait_for_the_button_run(both: Both) -> None:
    both.napari.do("run_by_hand", True)
    assert not both.point((26, 56, 30), positive=False, run=False).any()
    assert not both.point(INSIDE, run=False).any()
    both.napari.do("run")
    both.segment.run()
    assert both.mask().any()
    both.napari.do("run_by_hand", False)


def test_a_click_beside_the_image_is_refused(both: Both) -> None:
    before = both.point(INSIDE)
    both.napari.do("point", (26, 30, SHAPE[2] + 3))
    (note,) = both.napari.do("notes")
    assert note.startswith("error")
    assert "400" in note
    assert np.array_equal(both.mask(), before)
    both.bbox(*BOX)


def test_a_killed_worker_is_not_noticed(server: ServerProcess, both: Both) -> None:
    before = both.point(INSIDE)
    os.kill(server.worker, signal.SIGKILL)
    after = both.scribble(STROKE, positive=False)
    assert not np.array_equal(after, before)
    assert np.array_equal(both.undo(), before)


def test_a_copy_of_the_mask_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    """The way that the documentation describes. Without a copy, version 2.5.4 of the plug-in drops the mask."""
    with napari(phantom(), tmp_path) as process:
        with server_process("--log-level", "warning") as server:
            address = server.address
            process.do("enter_server", http(address))
            process.do("initialize")
            process.do("point", INSIDE)
            before = process.mask()
            assert before.any()
        with server_process("--log-level", "warning", "--port", address.rpartition(":")[2]):
            process.do("bbox", *BOX)
            (note,) = process.do("notes")
            assert note.startswith("warning: Server session lost.")
            assert np.array_equal(process.mask(), before)
            copy = process.do("duplicate_mask")
            process.do("initialize")
            process.do("initialize_with_mask", copy)
            with nni.connect(address) as session:
                session.set_image(phantom())
                both = Both(process, session)
                both.segment.set_mask(before)
                assert np.array_equal(both.mask(), before)
                assert not np.array_equal(both.scribble(STROKE, positive=False), before)
