"""The conformance suite, and that it is what its builder makes."""

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
from typing import Any, get_args

from helpers import conformance
from helpers.conformance import FOLDER, Json, Runner, from_json, run_lengths_to_mask, to_json
from helpers.conformance_scenarios import texts, to_text
import msgpack
import msgspec
import numpy as np
import pytest

from nninteractive_ws import arrays, masks, messages, protocol
from nninteractive_ws.bricks import Grid, Presence
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.errors import BadImage, BadMessage
from nninteractive_ws.geometry import Box
from nninteractive_ws.layers import base_layer, choose_low_bits, combine_layers, enhancement_layer
from nninteractive_ws.masks import Delta, Mask

SCENARIOS = conformance.scenarios()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_core_conforms(path: Path) -> None:
    Runner(json.loads(path.read_text())).run()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_frames_match_the_messages_beside_them(path: Path) -> None:
    for step in json.loads(path.read_text())["steps"]:
        if step.get("receive") is not None:
            message = msgpack.unpackb(bytes.fromhex(step["frame"]))
            assert to_json(message) == step["receive"]
            assert from_json(step["receive"]) == message


def test_the_files_are_those_of_the_builder() -> None:
    built = texts()
    assert {name: (FOLDER / name).read_text() for name in built} == built


def test_there_are_no_other_files() -> None:
    assert {path.name for path in SCENARIOS} == {Path(name).name for name in texts()} - {"arithmetic.json"} | {
        "recorded.json"
    }


@pytest.mark.slow
def test_a_new_recording_conforms(demo_model: Any, device: Any) -> None:
    from helpers.conformance_recorder import record

    Runner(json.loads(to_text(record(demo_model, device)))).run()


def test_the_defaults_are_those_of_the_messages() -> None:
    for kind in get_args(messages.ClientMessage):
        fields = {f.name: f for f in msgspec.structs.fields(kind) if not f.required}
        defaults = {
            n: f.default if f.default is not msgspec.NODEFAULT else f.default_factory() for n, f in fields.items()
        }
        assert conformance.DEFAULTS.get(str(kind.__struct_config__.tag), {}) == defaults


# ---- the runner ---------------------------------------------------------------------------------------------


ONE_VOXEL = {"box": [[0, 1], [0, 1], [0, 1]], "runs": [0, 1]}


def altered(key: str, value: Any) -> Any:
    """Return another expectation than ``value``."""
    if key in ("sends", "answers", "progress", "notices"):
        return value[:-1] if value else [{"type": "bye"}]
    if key == "closed":
        return "internal" if value is None else None
    if key in ("refused", "bricks_wait"):
        return not value
    (name, state), *others = value.items()
    if key == "histories":
        return {name: {"steps": state["undone"], "undone": [*state["steps"], *state["steps"]]}, **dict(others)}
    other = {"revision": 1, "voxels": 0, "mask": None} if state is None else {**state, "mask": ONE_VOXEL}
    return {name: other, **dict(others)}


def alterations() -> Iterator[tuple[str, Json]]:
    """Each scenario with its last expectation of each kind altered."""
    for path in SCENARIOS:
        scenario = json.loads(path.read_text())
        last = {key: n for n, step in enumerate(scenario["steps"]) for key in step.get("expect", {})}
        for key, n in last.items():
            if key == "bricks_wait":
                continue  # it is always true
            copied = json.loads(path.read_text())
            expect = copied["steps"][n]["expect"]
            expect[key] = altered(key, expect[key])
            yield f"{path.stem}, step {n}, {key}", copied


def is_met(scenario: Json) -> bool:
    try:
        Runner(scenario).run()
    except AssertionError:
        return False
    return True


def test_other_expectations_are_not_met() -> None:
    assert [name for name, scenario in alterations() if is_met(scenario)] == []


@pytest.mark.parametrize("field", ["bricks", "first"])
def test_other_bricks_are_not_accepted(field: str) -> None:
    scenario = json.loads((FOLDER / "scenarios" / "bricks_that_a_prompt_waits_for.json").read_text())
    (upload,) = (step["upload"] for step in scenario["steps"] if "upload" in step)
    upload[field] = upload[field][1:] if field == "bricks" else [0, 1]
    assert not is_met(scenario)


# ---- arithmetic -------------------------------------------------------------------------------------------

ARITHMETIC: dict[str, list[Json]] = json.loads((FOLDER / "arithmetic.json").read_text())


def cases(group: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", ARITHMETIC[group])


def mask_of(digits: str, shape: Sequence[int] | None = None) -> Mask:
    return np.array([digit == "1" for digit in digits]).reshape(shape or (1, 1, -1))


def change_of(numbers: Json | None) -> Delta:
    unpacked = run_lengths_to_mask(numbers)
    return masks.NO_CHANGE if unpacked is None else Delta(Box.from_pairs(unpacked[0]), unpacked[1])


@cases("bricks")
def test_bricks(case: Json) -> None:
    grid = Grid(tuple(case["shape"]))
    assert [grid.box(index) for index in range(len(grid))] == [Box.from_pairs(box) for box in case["boxes"]]


@cases("run_lengths")
def test_run_lengths(case: Json) -> None:
    mask = mask_of(case["voxels"])
    packed = masks.pack(Delta(Box.whole(mask.shape), mask), "raw")
    assert np.frombuffer(packed.data, "<u4").tolist() == case["runs"]
    assert np.array_equal(masks.unpack(packed, mask.shape).flips, mask)


@cases("checksums")
def test_checksums(case: Json) -> None:
    mask = mask_of(case["voxels"])
    assert masks.checksum(mask, Box.whole(mask.shape)) == case["checksum"]


@cases("changes")
def test_changes(case: Json) -> None:
    mask, change = mask_of(case["before"], case["shape"]), change_of(case["change"])
    masks.apply(change, mask)
    assert np.array_equal(mask, mask_of(case["after"], case["shape"]))
    assert change.box is not None
    assert masks.checksum(mask, change.box) == case["checksum"]
    assert np.count_nonzero(mask) == case["voxels"]


@cases("compositions")
def test_compositions(case: Json) -> None:
    found, expected = masks.compose(change_of(case["first"]), change_of(case["second"])), change_of(case["composed"])
    assert found.box == expected.box
    assert np.array_equal(found.flips, expected.flips)


@cases("presence")
def test_presence(case: Json) -> None:
    grid = Grid((1, 1, 32 * case["bricks"]))
    presence = Presence.from_bytes(grid, bytes.fromhex(case["present_bricks"]))
    assert presence.indices() == case["present"]
    assert presence.to_bytes().hex() == case["present_bricks"]


@cases("statistics")
def test_statistics(case: Json) -> None:
    volume = np.array([float(v) if isinstance(v, str) else v for v in case["voxels"]]).astype(case["dtype"])
    volume = volume.reshape(case["shape"])
    if "error" in case:
        with pytest.raises(BadImage) as caught:
            ImageSource.of(volume)
        assert caught.value.code == case["error"]
        return
    source = ImageSource.of(volume)
    assert source.dtype == case["sent_as"]
    assert (source.statistics.mean, source.statistics.std) == pytest.approx((case["mean"], case["std"]), rel=1e-9)


@cases("arrays")
def test_packed_arrays(case: Json) -> None:
    data, shape = bytes.fromhex(case["data"]), (len(case["elements"]),)
    found = arrays.unpack(data, case["encoding"], case["dtype"], shape)
    assert found.tolist() == case["elements"]
    packed = arrays.pack(found, case["encoding"])
    assert arrays.unpack(packed, case["encoding"], case["dtype"], shape).tolist() == case["elements"]


@cases("invalid_arrays")
def test_invalid_arrays_are_refused(case: Json) -> None:
    data = bytes.fromhex(case["data"])
    brick = {"index": 0, "encoding": case["encoding"], "data": data}

    def receive() -> None:
        message = protocol.decode_client(msgpack.packb({"type": "image_bricks", "image": "ct", "bricks": [brick]}))
        assert isinstance(message, messages.ImageBricks)
        (received,) = message.bricks
        arrays.unpack(received.data, received.encoding, case["dtype"], (case["count"],))

    with pytest.raises(BadMessage) as caught:
        receive()
    assert caught.value.code == case["error"]


@cases("layers")
def test_layers(case: Json) -> None:
    voxels, base, enhancement = (np.array(case[key], case["dtype"]) for key in ("voxels", "base", "enhancement"))
    assert base_layer(voxels, case["low_bits"]).tobytes() == base.tobytes()
    assert enhancement_layer(voxels, case["low_bits"]).tobytes() == enhancement.tobytes()
    assert combine_layers(base, enhancement).tobytes() == voxels.tobytes()


@cases("low_bits")
def test_low_bits(case: Json) -> None:
    assert choose_low_bits(np.dtype(case["dtype"]), case["std"], case["largest"]) == case["low_bits"]
