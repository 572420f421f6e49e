"""Connections that are cut, workers that are killed, servers that are not there; and the embedded model on images."""

import gzip
from pathlib import Path
import re

from conftest import OBLIQUE
from desk import add_view, blobs
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
import numpy as np
import pytest
from relay import relay

CT = Path(__file__).parents[3] / "shared" / "data" / "ct_abdomen.nii.gz"

# ---- connections ---------------------------------------------------------------------------------------------------


def test_the_connection_is_cut(sit, server, add_volume):
    with relay(server.address) as way:
        desk = sit(way.address)
        desk.use(add_volume(blobs()), "A")
        desk.click(20, 20, 20)
        for ijk in ((24, 20, 20), (20, 24, 20), (20, 20, 24)):
            assert desk.logic.addPoint(desk.at(*ijk))
            desk.poll()
            way.cut()
            desk.wait(lambda: desk.logic.status.state == "lost")
            assert desk.logic.status.words
            desk.wait()
            desk.check()
        assert len(desk.marks()) == 4
        assert not any(isinstance(e, events.Failed) for e in desk.seen)
        desk.logic.close()


def test_the_worker_is_killed(desk, server):
    desk.click(20, 20, 20)
    assert desk.logic.addPoint(desk.at(24, 20, 20))
    desk.poll()
    server.kill_worker()
    desk.wait()
    desk.check()
    assert len(desk.logic.session.core.segments[desk.logic.segmentID].steps) == 2


def test_the_server_is_not_there(sit, add_volume):
    desk = sit("ws://127.0.0.1:9")
    desk.use(add_volume(blobs()), "A")
    assert desk.logic.addPoint(desk.at(20, 20, 20))
    desk.wait()
    assert desk.logic.session is None
    assert desk.marks() == []
    assert desk.logic.status.words
    desk.logic.setServer("nonsense://")
    assert not desk.logic.addPoint(desk.at(20, 20, 20))
    assert desk.logic.status.state == "error"


def test_cancelled(desk):
    desk.click(20, 20, 20)
    shown = desk.shown()
    for ijk in ((24, 20, 20), (20, 24, 20), (20, 20, 24)):
        assert desk.logic.addPoint(desk.at(*ijk))
    desk.logic.cancel()
    desk.wait()
    answered = [e for e in desk.seen if isinstance(e, events.Failed)]
    assert all(isinstance(e.error, errors.Cancelled) for e in answered)
    assert answered
    desk.check()
    assert len(desk.marks()) == 4 - len(answered)
    if len(answered) == 3:
        np.testing.assert_array_equal(desk.shown(), shown)


# ---- the embedded model ---------------------------------------------------------------------------------------------


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_phantoms_liver(scene, sit, demo, add_volume):
    phantom = make_phantom(seed=1, shape=(80, 64, 56), spacing=(5.0, 5.0, 5.0))
    desk = sit(demo)
    desk.use(add_volume(phantom.image, spacing=phantom.spacing, directions=OBLIQUE), "liver")
    liver = phantom.mask("liver")
    middle = np.argwhere(liver)[np.abs(np.argwhere(liver) - np.argwhere(liver).mean(axis=0)).sum(axis=1).argmin()]
    desk.click(*middle)
    desk.check()
    assert dice(desk.shown(), liver) > 0.5
    pale = []
    opacity = desk.logic.segmentation.GetDisplayNode().GetSegmentOpacity2DFill
    assert desk.logic.addPoint(desk.at(*np.add(middle, (0, 0, 4))))
    while desk.logic.busy:
        happened = desk.poll()
        isAnswered = any(isinstance(e, events.Done) for e in happened)  # a preview that comes with it is the result
        if not isAnswered and any(isinstance(e, events.MaskDelta) and not e.final for e in happened):
            pale.append(opacity(desk.logic.segmentID))
    desk.check()
    assert all(p < 1 for p in pale)
    assert opacity(desk.logic.segmentID) == 1
    assert desk.logic.status.timings.passes > 0
    view = add_view(scene, desk.logic.volume, 2, middle)
    around = [desk.at(*np.add(middle, step)) for step in ((-6, -6, 0), (6, -6, 0), (6, 6, 0), (-6, 6, 0))]
    assert desk.logic.addLasso(view, around)
    desk.wait()
    desk.check()
    kinds = [re.sub(r"[\d.]+", "#", words).split(" to ws")[0] for words in desk.said]
    assert kinds[0] == "Connecting"
    assert {"Predicting", "Done in # s"} <= set(kinds)


@pytest.mark.skipif(not CT.exists(), reason="the real CT is not beside the checkout")
def test_a_real_ct(sit, demo, add_volume):
    raw = gzip.decompress(CT.read_bytes())
    shape = np.frombuffer(raw, "<i2", 3, 42)
    offset, (kind,) = int(np.frombuffer(raw, "<f4", 1, 108)[0]), np.frombuffer(raw, "<i2", 1, 70)
    dtype = {4: "<i2", 16: "<f4", 64: "<f8", 2: "u1"}[int(kind)]
    voxels = np.frombuffer(raw, dtype, int(np.prod(shape.astype(int))), offset).reshape(shape, order="F")
    desk = sit(demo)
    desk.use(add_volume(np.ascontiguousarray(voxels), spacing=(3.0, 3.0, 3.0)), "organ")
    labels = gzip.decompress((CT.parent / "ct_abdomen_labels.nii.gz").read_bytes())
    liver = np.frombuffer(labels, "u1", int(np.prod(shape.astype(int))), 352).reshape(shape, order="F") == 5
    where = np.argwhere(liver)
    desk.click(*where[np.abs(where - where.mean(axis=0)).sum(axis=1).argmin()])
    desk.check()
    assert dice(desk.shown(), liver) > 0.3
    desk.logic.undo()
    desk.wait()
    assert not desk.shown().any()


def test_connecting_without_an_image(sit, server):
    desk = sit(server.address)
    desk.agrees = False
    assert not desk.logic.connect()
    assert desk.logic.session is None
    desk.agrees = True
    assert desk.logic.connect()
    assert desk.logic.active
    desk.wait(lambda: desk.logic.server is not None)
    desk.wait(lambda: desk.logic.session.round_trip is not None)
    assert 0 < desk.logic.session.round_trip < 60
    assert desk.logic.model is desk.logic.server.model
    assert desk.logic.connect()
    assert len(desk.asked) == 2, "who has a connection is asked again"
    desk.wait(lambda: not desk.logic.active)


def test_the_image_travels_after_the_prompt_is_done(desk):
    desk.click(20, 20, 20)
    desk.wait(lambda: not desk.logic.active)
    progress = [e for e in desk.seen if isinstance(e, events.ImageProgress)]
    assert progress[-1].present == progress[-1].total
