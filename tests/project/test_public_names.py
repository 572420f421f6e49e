"""The public names. A change here is a change for users, and belongs in the changelog."""

import inspect
import subprocess
import sys

import pytest

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom

SESSION = {
    "bytes_received", "bytes_sent", "cancel", "close", "on", "save", "segment", "segments", "server", "set_image",
    "set_options", "view",
}  # fmt: skip
#: Members of the blocking session alone.
BLOCKING = {"bytes_sent", "bytes_received", "view"}
SEGMENT = {
    "add_bbox", "add_lasso", "add_point", "add_scribble", "can_redo", "can_undo", "mask", "name", "redo", "remove",
    "reset", "run", "set_mask", "undo", "voxels",
}  # fmt: skip


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_package() -> None:
    assert set(nni.__all__) == {
        "AsyncSegment", "AsyncSession", "Box", "Error", "Journal", "PolledSegment", "PolledSession", "Result",
        "Segment", "Session", "aconnect", "batch", "connect", "errors", "events", "load",
    }  # fmt: skip
    modules = {"errors", "events"}
    assert {name for name in nni.__all__ if inspect.ismodule(getattr(nni, name))} == modules
    assert all(callable(getattr(nni, name)) for name in set(nni.__all__) - modules)


def test_the_blocking_session_and_segment() -> None:
    assert public(nni.Session) == SESSION
    assert public(nni.Segment) == SEGMENT


def test_the_asyncio_session_and_segment() -> None:
    assert public(nni.AsyncSession) - {"wait_open"} == SESSION - BLOCKING
    assert public(nni.AsyncSegment) == SEGMENT - {"name"}  # an attribute of the instance


def test_the_polled_session_and_segment() -> None:
    more = {"fileno", "histories", "image", "is_dormant", "journal", "pending_requests", "poll", "round_trip"}
    assert public(nni.PolledSession) == SESSION - BLOCKING - {"on"} | more
    assert public(nni.PolledSegment) == SEGMENT - {"name"} | {"flip_mask"}


def test_events_and_errors_are_modules_of_the_package() -> None:
    code = "import nninteractive_ws as nni; print(nni.events.Done.__name__, nni.errors.BadImage.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Done BadImage\n"


def test_the_phantom_of_the_demo() -> None:
    phantom = make_phantom(seed=1)
    assert {"image", "labels", "mask", "organs", "spacing", "hu"} == public(type(phantom)) | set(vars(phantom))


@pytest.mark.parametrize("name", sorted(SEGMENT - {"name"}))
def test_methods_have_equal_parameters_in_both_apis(name: str) -> None:
    blocking, awaited = getattr(nni.Segment, name), getattr(nni.AsyncSegment, name)
    if callable(blocking):
        assert inspect.signature(blocking).parameters == inspect.signature(awaited).parameters


def test_a_result_has_the_documented_fields() -> None:
    assert set(nni.Result.__dataclass_fields__) == {"request", "segment", "changed", "voxels", "revision", "timings"}
