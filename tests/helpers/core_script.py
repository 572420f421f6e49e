"""A script of commands for the client's core, and checks that the client and the server hold the same history."""

from collections.abc import Callable
from typing import Any

import numpy as np

from helpers.core_link import MemoryServer
from helpers.shapes import ball
from nninteractive_ws import masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client.core import Core
from nninteractive_ws.geometry import Index
from nninteractive_ws.masks import Mask

SHAPE = (96, 80, 72)


def lasso(margin: int = 16, axis: int = 1) -> Mask:
    """A filled outline through most of the volume, larger than a patch, so that it is refined in several passes."""
    drawn = np.zeros(SHAPE, bool)
    inside = [slice(margin, n - margin) for n in SHAPE]
    inside[axis] = slice(SHAPE[axis] // 2, SHAPE[axis] // 2 + 1)
    drawn[tuple(inside)] = True
    return drawn


Command = Callable[[Core], int]
SCRIPT: list[Command] = [
    lambda c: c.add_point("a", (30, 40, 36)),
    lambda c: c.add_lasso("b", lasso()),
    lambda c: c.add_point("a", (60, 40, 36), positive=False),
    lambda c: c.undo("a"),
    lambda c: c.add_bbox("a", ((20, 50), (30, 31), (20, 50)), run=False),
    lambda c: c.add_scribble("a", ball(SHAPE, (30, 40, 36), 4)),
    lambda c: c.set_mask("b", ball(SHAPE, (50, 40, 30), 12)),
    lambda c: c.add_point("b", (50, 40, 30)),
    lambda c: c.undo("a"),
    lambda c: c.redo("a"),
    lambda c: c.add_point("d", (32, 40, 36), run=False),
    lambda c: c.run("d"),
    lambda c: c.reset("b"),
    lambda c: c.undo("b"),
    lambda c: c.add_point("c", (30, 40, 40)),
    lambda c: c.remove_segment("c"),
    lambda c: c.set_mask("b", ball(SHAPE, (40, 40, 36), 12), run=True),
    lambda c: c.add_point("a", (34, 40, 36)),
]

# The same kinds of steps with less computation, for many repetitions.
SHORT_SCRIPT = [*SCRIPT[:7], *SCRIPT[8:14], SCRIPT[17]]

Snapshot = dict[str, tuple[bytes, int, int, int]]


def snapshot(core: Core) -> Snapshot:
    """Return masks and history lengths. Revisions are omitted, because an interrupted preview increments them."""
    return {
        name: (np.packbits(s.mask).tobytes(), s.voxels, len(s.steps), len(s.undone))
        for name, s in core.segments.items()
    }


def changed(step: wire.Step, shape: Index) -> Mask:
    """Return the voxels that a step flips."""
    mask = np.zeros(shape, bool)
    if step.change is not None:
        masks.apply(masks.unpack(step.change, shape), mask)
    return mask


def check_journal(core: Core, server: MemoryServer) -> None:
    """Check that the client's journal equals the server's history, and adds up to the mask."""
    theirs = server.session._segments
    assert set(core.segments) == set(theirs)
    for name, mine in core.segments.items():
        other = theirs[name]
        assert np.array_equal(mine.mask, other.mask)
        assert (mine.revision, mine.voxels) == (other.revision, other.voxels)
        assert mine.voxels == int(mine.mask.sum())
        assert np.array_equal(mine.composed(), mine.mask)
        for a, b in ((mine.steps, other.steps), (mine.undone, other.undone)):
            assert [type(s.request) for s in a] == [type(s.request) for s in b]
            for x, y in zip(a, b, strict=True):
                assert np.array_equal(changed(x, mine.shape), changed(y, mine.shape))


def sent(core: Core) -> list[Any]:
    """Return the pending control messages."""
    frames = iter(core.next_control, None)
    return [protocol.decode_client(frame) for frame in frames]
