"""Lost connections, killed workers and unreachable servers, and the embedded model on images."""

import gzip
from pathlib import Path
import re

from helpers.relay import relay
from logic_harness import add_view, blobs
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
import numpy as np
import pytest
from scenes import OBLIQUE

CT = Path(__file__).parents[3] / "shared" / "data" / "ct_abdomen.nii.gz"

# ---- connections ---------------------------------------------------------------------------------------------------


def test_a_lost_connection(make_harness, server, add_volume):
    with relay(server.address) as way:
        harness = make_harness(way.address)
        harness.use(add_volume(blobs()), "A")
        harness.click(20, 20, 20)
        for ijk in ((24, 20, 20), (20, 24, 20), (20, 20, 24)):
            assert harness.logic.addPoint(harness.at(*ijk))
            harness.poll()
            way.cut()
            harness.wait(lambda: harness.logic.status.state == "lost")
            assert harness.logic.status.message
            harness.wait()
            harness.check()
        assert len(harness.marks()) == 4
        assert not any(isinstance(e, events.Failed) for e in harness.seen)
        harness.logic.close()


def test_a_killed_worker(harness, server):
    harness.click(20, 20, 20)
    assert harness.logic.addPoint(harness.at(24, 20, 20))
    harness.poll()
    server.kill_worker()
    harness.wait()
    harness.check()
    assert len(harness.logic.session.histories[harness.logic.segmentID].steps) == 2


def test_an_unreachable_server(make_harness, add_volume):
    harness = make_harness("ws://127.0.0.1:9")
    harness.use(add_volume(blobs()), "A")
    assert harness.logic.addPoint(harness.at(20, 20, 20))
    harness.wait()
    assert harness.logic.session is None
    assert harness.marks() == []
    assert harness.logic.status.message
    harness.logic.setServer("nonsense://")
    assert not harness.logic.addPoint(harness.at(20, 20, 20))
    assert harness.logic.status.state == "error"


def test_canceling(harness):
    harness.click(20, 20, 20)
    shown = harness.shown()
    for ijk in ((24, 20, 20), (20, 24, 20), (20, 20, 24)):
        assert harness.logic.addPoint(harness.at(*ijk))
    harness.logic.cancel()
    harness.wait()
    answered = [e for e in harness.seen if isinstance(e, events.Failed)]
    assert all(isinstance(e.error, errors.Cancelled) for e in answered)
    assert answered
    harness.check()
    assert len(harness.marks()) == 4 - len(answered)
    if len(answered) == 3:
        np.testing.assert_array_equal(harness.shown(), shown)


# ---- the embedded model ---------------------------------------------------------------------------------------------


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_phantoms_liver(scene, make_harness, demo, add_volume):
    phantom = make_phantom(seed=1, shape=(80, 64, 56), spacing=(5.0, 5.0, 5.0))
    harness = make_harness(demo)
    harness.use(add_volume(phantom.image, spacing=phantom.spacing, directions=OBLIQUE), "liver")
    liver = phantom.mask("liver")
    middle = np.argwhere(liver)[np.abs(np.argwhere(liver) - np.argwhere(liver).mean(axis=0)).sum(axis=1).argmin()]
    harness.click(*middle)
    harness.check()
    assert dice(harness.shown(), liver) > 0.5
    pale = []
    opacity = harness.logic.segmentation.GetDisplayNode().GetSegmentOpacity2DFill
    assert harness.logic.addPoint(harness.at(*np.add(middle, (0, 0, 4))))
    while harness.logic.busy:
        happened = harness.poll()
        isAnswered = any(isinstance(e, events.Done) for e in happened)  # a preview that arrives with it is the result
        if not isAnswered and any(isinstance(e, events.MaskDelta) and not e.final for e in happened):
            pale.append(opacity(harness.logic.segmentID))
    harness.check()
    assert all(p < 1 for p in pale)
    assert opacity(harness.logic.segmentID) == 1
    assert harness.logic.status.timings.passes > 0
    view = add_view(scene, harness.logic.volume, 2, middle)
    around = [harness.at(*np.add(middle, step)) for step in ((-6, -6, 0), (6, -6, 0), (6, 6, 0), (-6, 6, 0))]
    assert harness.logic.addLasso(view, around)
    harness.wait()
    harness.check()
    kinds = [re.sub(r"[\d.]+", "#", message).split(" to ws")[0] for message in harness.messages]
    assert kinds[0] == "Connecting"
    assert {"Predicting", "Done in # s"} <= set(kinds)


@pytest.mark.skipif(not CT.exists(), reason="the real CT is not beside the checkout")
def test_a_real_ct(make_harness, demo, add_volume):
    raw = gzip.decompress(CT.read_bytes())
    shape = np.frombuffer(raw, "<i2", 3, 42)
    offset, (kind,) = int(np.frombuffer(raw, "<f4", 1, 108)[0]), np.frombuffer(raw, "<i2", 1, 70)
    dtype = {4: "<i2", 16: "<f4", 64: "<f8", 2: "u1"}[int(kind)]
    voxels = np.frombuffer(raw, dtype, int(np.prod(shape.astype(int))), offset).reshape(shape, order="F")
    harness = make_harness(demo)
    harness.use(add_volume(np.ascontiguousarray(voxels), spacing=(3.0, 3.0, 3.0)), "organ")
    labels = gzip.decompress((CT.parent / "ct_abdomen_labels.nii.gz").read_bytes())
    liver = np.frombuffer(labels, "u1", int(np.prod(shape.astype(int))), 352).reshape(shape, order="F") == 5
    where = np.argwhere(liver)
    harness.click(*where[np.abs(where - where.mean(axis=0)).sum(axis=1).argmin()])
    harness.check()
    assert dice(harness.shown(), liver) > 0.3
    harness.logic.undo()
    harness.wait()
    assert not harness.shown().any()


def test_connecting_without_an_image(make_harness, server):
    harness = make_harness(server.address)
    harness.agrees = False
    assert not harness.logic.connect()
    assert harness.logic.session is None
    harness.agrees = True
    assert harness.logic.connect()
    assert harness.logic.active
    harness.wait(lambda: harness.logic.server is not None)
    harness.wait(lambda: harness.logic.session.round_trip is not None)
    assert 0 < harness.logic.session.round_trip < 60
    assert harness.logic.model is harness.logic.server.model
    assert harness.logic.connect()
    assert len(harness.asked) == 2, "the user was asked again although connected"
    harness.wait(lambda: not harness.logic.active)


def test_the_upload_continues_after_the_prompt(harness):
    harness.click(20, 20, 20)
    harness.wait(lambda: not harness.logic.active)
    progress = [e for e in harness.seen if isinstance(e, events.ImageProgress)]
    assert progress[-1].present == progress[-1].total
