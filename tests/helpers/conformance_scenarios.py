"""The scenarios of the conformance suite. ``python -m helpers.conformance_scenarios`` writes the files."""

from collections.abc import Callable
import json

from helpers.conformance import FOLDER, Json
from helpers.conformance_builder import (
    Scenario,
    ServerSegment,
    add_point,
    error,
    hello,
    image_progress,
    mask_of,
    notice,
    numbers,
    packed,
    request,
    set_image,
    step_of,
    welcome,
)

A, B, C = (1, 0, 2), (1, 0, 3), (2, 2, 1)

SCENARIOS: dict[str, Callable[[], Scenario]] = {}


def scenario(make: Callable[[], Scenario]) -> Callable[[], Scenario]:
    SCENARIOS[make.__name__] = make
    return make


# ---- prompts and masks ------------------------------------------------------------------------------------


@scenario
def first_prompt() -> Scenario:
    s, liver = Scenario("A click with two previews and a result", "Masks", "Requests and answers"), ServerSegment()
    s.open()
    s.command("add_point", "click", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.receive({"type": "progress", "id": 2, "state": "predicting", "done": 0, "total": 0, "box": None})
    s.expect(progress=[{"label": "click", "state": "predicting", "done": 0, "total": 0}])
    s.receive(liver.flip(2, A, B), masks={"liver": liver.state()})
    s.receive(liver.flip(2, B, C, encoding="deflate"), masks={"liver": liver.state()})
    s.receive(liver.flip(2, B, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(2, A, B, C), answers=[liver.answer("click", A, B, C)], masks={"liver": liver.state()})
    s.expect(histories={"liver": {"steps": [step_of(add_point(2, A), liver.mask)], "undone": []}})
    return s


@scenario
def protocol_example() -> Scenario:
    """The mask_delta of protocol.md's examples."""
    s = Scenario("The change of protocol.md's example", "Examples")
    liver = ServerSegment()
    s.open()
    s.click(2, "first", (1, 0, 2), liver, (1, 0, 2), (1, 0, 3))
    liver.revision = 1
    s.command("add_point", "second", expect={"sends": [add_point(3, (1, 1, 2))]}, segment="liver", point=(1, 1, 2))
    s.receive(liver.flip(3, (1, 0, 2), (1, 1, 2), (2, 1, 3), final=True), masks={"liver": liver.state()})
    changed = ((1, 0, 2), (1, 1, 2), (2, 1, 3))
    s.receive(liver.done(3, *changed), answers=[liver.answer("second", *changed)])
    return s


# ---- files ------------------------------------------------------------------------------------------------


def to_text(scenario: Json) -> str:
    """Return the text of a file, with one step on each line."""
    lines = [f"  {json.dumps(step)}" for step in scenario["steps"]]
    head = {key: value for key, value in scenario.items() if key != "steps"}
    entries = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    return "{\n" + ",\n".join([*entries, ' "steps": [\n' + ",\n".join(lines) + "\n ]"]) + "\n}\n"


def texts() -> dict[str, str]:
    """Return the content of all files by their names in the folder."""
    return {f"scenarios/{name}.json": to_text(make().to_json()) for name, make in SCENARIOS.items()}


def main() -> None:
    for name, text in texts().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
