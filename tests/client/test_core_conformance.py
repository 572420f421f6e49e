"""The conformance suite, and that it is what its builder makes."""

import json
from pathlib import Path
from typing import get_args

from helpers import conformance
from helpers.conformance import FOLDER, Runner, from_json, to_json
from helpers.conformance_scenarios import texts
import msgpack
import msgspec
import pytest

from nninteractive_ws import messages

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


def test_the_defaults_are_those_of_the_messages() -> None:
    for kind in get_args(messages.ClientMessage):
        fields = {f.name: f for f in msgspec.structs.fields(kind) if not f.required}
        defaults = {
            n: f.default if f.default is not msgspec.NODEFAULT else f.default_factory() for n, f in fields.items()
        }
        assert conformance.DEFAULTS.get(str(kind.__struct_config__.tag), {}) == defaults
