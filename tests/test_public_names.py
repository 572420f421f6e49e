"""What users may import and call. A change here is a change for them, and belongs in the changelog."""

import inspect

import pytest

import nninteractive_ws as nni

SESSION = {
    "bytes_received", "bytes_sent", "cancel", "close", "on", "save", "segment", "segments", "server", "set_image",
    "set_options",
}  # fmt: skip
SEGMENT = {
    "add_bbox", "add_lasso", "add_point", "add_scribble", "can_redo", "can_undo", "mask", "name", "redo", "remove",
    "reset", "run", "set_mask", "undo", "voxels",
}  # fmt: skip


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_package() -> None:
    assert set(nni.__all__) == {
        "AsyncSegment", "AsyncSession", "Box", "Error", "Journal", "PolledSession", "Result", "Segment", "Session",
        "aconnect", "batch", "connect", "load",
    }  # fmt: skip
    assert all(hasattr(nni, name) for name in nni.__all__)


def test_the_blocking_session_and_segment() -> None:
    assert public(nni.Session) == SESSION
    assert public(nni.Segment) == SEGMENT


def test_the_asyncio_ones_offer_the_same() -> None:
    assert public(nni.AsyncSession) - {"wait_open"} == SESSION - {"bytes_sent", "bytes_received"}
    assert public(nni.AsyncSegment) == SEGMENT - {"name"}  # an attribute of the instance


@pytest.mark.parametrize("name", sorted(SEGMENT - {"name"}))
def test_a_method_takes_the_same_in_both(name: str) -> None:
    blocking, awaited = getattr(nni.Segment, name), getattr(nni.AsyncSegment, name)
    if callable(blocking):
        assert inspect.signature(blocking).parameters == inspect.signature(awaited).parameters


def test_a_result_has_what_is_documented() -> None:
    assert set(nni.Result.__dataclass_fields__) == {"request", "segment", "changed", "voxels", "revision", "timings"}
