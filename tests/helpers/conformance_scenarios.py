"""The scenarios of the conformance suite. ``python -m helpers.conformance_scenarios`` writes the files."""

from collections.abc import Callable
import json
import struct
from typing import Any

from helpers import conformance_arithmetic
from helpers.conformance import ANY_SESSION, FOLDER, Json
from helpers.conformance_builder import (
    CT,
    MR,
    NO_SEGMENT,
    Scenario,
    ServerSegment,
    Voxel,
    add_point,
    checksum,
    done,
    error,
    history,
    image_progress,
    mask_of,
    notice,
    numbers,
    packed,
    progress,
    request,
    resumed,
    run_lengths,
    set_image,
    step_of,
    stored,
    welcome,
    with_statistics,
)

A, B, C = (1, 0, 2), (1, 0, 3), (2, 2, 1)

SHAPE = (4, 4, 4)

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
    s.receive(progress(2, "predicting"))
    s.expect(progress=[{"label": "click", "state": "predicting", "done": 0, "total": 0}])
    s.receive(liver.flip(2, A, B), masks={"liver": liver.state()})
    s.receive(progress(2, "refining", 1, 3))
    s.expect(progress=[{"label": "click", "state": "refining", "done": 1, "total": 3}])
    s.receive(liver.flip(2, B, C, encoding="deflate"), masks={"liver": liver.state()})
    s.receive(liver.flip(2, B, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(2, A, B, C), answers=[liver.answer("click", A, B, C)], masks={"liver": liver.state()})
    s.expect(histories={"liver": history(step_of(add_point(2, A), liver.mask))})
    return s


@scenario
def protocol_example() -> Scenario:
    s, liver = Scenario("The change of protocol.md's example", "Examples"), ServerSegment(revision=2)
    first, second, changed = (1, 0, 3), (1, 1, 2), (A, (1, 1, 2), (2, 1, 3))
    s.open()
    s.command("add_point", "first", expect={"sends": [add_point(2, first)]}, segment="liver", point=first)
    # A merged change of three revisions.
    s.receive({**liver.flip(2, A, B), "base_revision": 0}, masks={"liver": liver.state()})
    s.receive(liver.done(2, A, B), answers=[liver.answer("first", A, B)])
    s.command("add_point", "second", expect={"sends": [add_point(3, second)]}, segment="liver", point=second)
    s.receive(liver.flip(3, *changed, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(3, *changed), answers=[liver.answer("second", *changed)])
    return s


@scenario
def several_segments() -> Scenario:
    s = Scenario("Two segments, whose requests are sent before the first answer", "Requests and answers", "Masks")
    liver, spleen = ServerSegment(), ServerSegment("spleen")
    s.open()
    s.command("add_point", "a", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.command("add_point", "b", expect={"sends": [add_point(3, B, "spleen")]}, segment="spleen", point=B)
    s.command("undo", "c", expect={"sends": [request("undo", 4)]}, segment="liver")
    s.receive(liver.flip(2, A, C), masks={"liver": liver.state(), "spleen": None})
    s.receive(liver.done(2, A, C), answers=[liver.answer("a", A, C)])
    s.receive(spleen.flip(3, B), masks={"liver": liver.state(), "spleen": spleen.state()})
    s.receive(spleen.done(3, B), answers=[spleen.answer("b", B)])
    s.receive(liver.flip(4, A, C, final=True), masks={"liver": liver.state(), "spleen": spleen.state()})
    s.receive(liver.done(4, A, C), answers=[liver.answer("c", A, C)])
    undone = step_of(add_point(2, A), mask_of(SHAPE, [A, C]))
    s.expect(
        histories={
            "liver": history(undone=[undone]),
            "spleen": history(step_of(add_point(3, B, "spleen"), spleen.mask)),
        }
    )
    return s


@scenario
def kinds_of_prompts() -> Scenario:
    s, liver = Scenario("Every kind of prompt, positive and negative", "Messages from the client"), ServerSegment()
    stroke = mask_of(SHAPE, [(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    outline = mask_of(SHAPE, [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2)])
    box = [[1, 3], [0, 4], [2, 3]]
    s.open()
    prompts: list[tuple[str, Json]] = [
        ("add_point", {"point": list(C), "positive": False}),
        ("add_bbox", {"box": box}),
        ("add_bbox", {"box": box, "positive": False}),
        ("add_scribble", {"mask": numbers(stroke)}),
        ("add_scribble", {"mask": numbers(stroke), "positive": False}),
        ("add_lasso", {"mask": numbers(outline)}),
        ("add_lasso", {"mask": numbers(outline), "positive": False, "run": False}),
    ]
    steps = []
    for n, (kind, fields) in enumerate(prompts, 2):
        sent = request(kind, n, **fields)
        s.command(kind, kind, expect={"sends": [sent]}, segment="liver", **fields)
        s.receive(liver.done(n), answers=[liver.answer(kind)])
        steps.append(step_of(sent))
    s.expect(histories={"liver": history(*steps)}, masks={"liver": liver.state()})
    return s


@scenario
def set_and_flip_mask() -> Scenario:
    s = Scenario("A mask is set, refined, changed by hand, and emptied", "Masks", "Messages from the client")
    liver = ServerSegment()
    drawn, flips = mask_of(SHAPE, [A, B]), mask_of(SHAPE, [B, C])
    s.open()
    steps = []
    commands: list[tuple[str, Json, Json, tuple[Voxel, ...]]] = [
        ("set_mask", {"mask": numbers(drawn)}, {}, (A, B)),
        ("flip_mask", {"mask": numbers(flips)}, {"flip": True}, (B, C)),
        ("set_mask", {"mask": numbers(drawn), "run": True}, {"run": True}, (B,)),
        ("set_mask", {"mask": None}, {}, (A, B, C)),
    ]
    for n, (command, arguments, fields, changed) in enumerate(commands, 2):
        sent = request("set_mask", n, mask=arguments["mask"], **fields)
        s.command(command, "edit", expect={"sends": [sent]}, segment="liver", **arguments)
        s.receive(liver.flip(n, *changed, final=True), masks={"liver": liver.state()})
        s.receive(liver.done(n, *changed), answers=[liver.answer("edit", *changed)])
        steps.append(step_of(sent, mask_of(SHAPE, changed)))
    s.expect(histories={"liver": history(*steps)})
    return s


@scenario
def no_change() -> Scenario:
    s, liver = Scenario("A prompt that changes nothing is a step", "History", "Masks"), ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.command("add_point", "second", expect={"sends": [add_point(3, A)]}, segment="liver", point=A)
    s.receive(liver.done(3), answers=[liver.answer("second")], masks={"liver": liver.state()})
    steps = step_of(add_point(2, A), liver.mask), step_of(add_point(3, A))
    s.expect(histories={"liver": history(*steps)})
    return s


@scenario
def unusual_run_lengths() -> Scenario:
    s, liver = Scenario("Boxes that are not cropped, and runs of 0, are read", "Masks"), ServerSegment()
    s.open()
    s.command("add_point", "click", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    delta = liver.flip(2, A, B)
    whole = packed(liver.mask, box=[[0, 4], [0, 4], [0, 4]])
    s.receive(
        {**delta, "change": whole, "checksum": checksum(liver.mask, whole["box"])}, masks={"liver": liver.state()}
    )
    delta = liver.flip(2, C)
    row = [[2, 3], [2, 3], [0, 4]]
    runs = run_lengths(row, [1, 0, 0, 1, 2])
    s.receive({**delta, "change": runs, "checksum": checksum(liver.mask, row)}, masks={"liver": liver.state()})
    s.receive(liver.done(2, A, B, C), answers=[liver.answer("click", A, B, C)])
    return s


@scenario
def get_another_image() -> Scenario:
    s = Scenario("Another image removes all segments", "The image")
    s.images = {name: with_statistics(image) for name, image in {"ct": CT, "mr": MR}.items()}
    liver, other = ServerSegment(), ServerSegment(shape=MR["shape"])
    s.open("ct")
    s.click(2, "click", A, liver, A, B)
    s.command(
        "set_image", "mr", expect={"sends": [set_image(3, s.images["mr"], "mr")], "bricks_wait": True}, image="mr"
    )
    s.receive(image_progress([], 0, 4, "mr"))
    s.receive(done(3), answers=[{"label": "mr", "done": NO_SEGMENT}], masks={"liver": None})
    s.upload([0, 1, 2, 3])
    s.click(4, "again", (32, 1, 34), other, (32, 1, 34))
    s.expect(masks={"liver": other.state()})
    return s


# ---- the history ------------------------------------------------------------------------------------------


@scenario
def undo_and_redo() -> Scenario:
    s, liver = Scenario("Undo, redo, and a step that discards the undone ones", "History"), ServerSegment()
    first, second = step_of(add_point(2, A), mask_of(SHAPE, [A])), step_of(add_point(3, B), mask_of(SHAPE, [B, C]))
    s.open()
    s.click(2, "first", A, liver, A)
    s.click(3, "second", B, liver, B, C)
    s.expect(histories={"liver": history(first, second)})
    s.move("undo", 4, liver, B, C)
    s.expect(histories={"liver": history(first, undone=[second])})
    s.move("undo", 5, liver, A)
    s.expect(histories={"liver": history(undone=[second, first])}, masks={"liver": liver.state()})
    s.move("redo", 6, liver, A)
    s.expect(histories={"liver": history(first, undone=[second])}, masks={"liver": liver.state()})
    s.click(7, "third", C, liver, C)
    third = step_of(add_point(7, C), mask_of(SHAPE, [C]))
    s.expect(histories={"liver": history(first, third)}, masks={"liver": liver.state()})
    return s


@scenario
def reset_is_a_step() -> Scenario:
    s, liver = Scenario("Reset empties the mask, and can be undone", "History"), ServerSegment()
    s.open()
    s.click(2, "click", A, liver, A, B)
    steps = [step_of(add_point(2, A), liver.mask), step_of(request("reset", 3), liver.mask)]
    s.move("reset", 3, liver, A, B)
    s.expect(histories={"liver": history(*steps)}, masks={"liver": liver.state()})
    s.move("undo", 4, liver, A, B)
    s.expect(histories={"liver": history(steps[0], undone=[steps[1]])}, masks={"liver": liver.state()})
    return s


@scenario
def remove_segment() -> Scenario:
    s, liver = Scenario("A removed segment starts from revision 0 again", "History", "Masks"), ServerSegment()
    s.open()
    s.click(2, "click", A, liver, A, B)
    s.command("remove_segment", "gone", expect={"sends": [request("remove_segment", 3)]}, segment="liver")
    answer = {**NO_SEGMENT, "segment": "liver"}
    s.receive({**done(3), "segment": "liver"}, answers=[{"label": "gone", "done": answer}], masks={"liver": None})
    liver = ServerSegment()
    s.click(4, "again", B, liver, B)
    s.expect(masks={"liver": liver.state()}, histories={"liver": history(step_of(add_point(4, B), liver.mask))})
    return s


@scenario
def run_makes_a_step_only_for_waiting_prompts() -> Scenario:
    s, liver = Scenario("Run makes a step only if prompts wait for it", "History"), ServerSegment()
    waiting = [step_of(add_point(n, at, run=False)) for n, at in ((2, A), (3, B))]
    s.open()
    s.ask("add_point", 2, liver, point=list(A), run=False)
    s.ask("add_point", 3, liver, point=list(B), run=False)
    s.expect(histories={"liver": history(*waiting)}, masks={"liver": liver.state()})
    s.move("run", 4, liver, A, B)
    ran = step_of(request("run", 4), mask_of(SHAPE, [A, B]))
    s.expect(histories={"liver": history(*waiting, ran)}, masks={"liver": liver.state()})
    s.ask("run", 5, liver)
    s.expect(histories={"liver": history(*waiting, ran)})
    # The prompts wait again after undo, and not after a reset.
    s.move("undo", 6, liver, A, B)
    s.move("run", 7, liver, A, C)
    ran = step_of(request("run", 7), mask_of(SHAPE, [A, C]))
    s.expect(histories={"liver": history(*waiting, ran)})
    s.move("undo", 8, liver, A, C)
    s.ask("reset", 9, liver)
    s.ask("run", 10, liver)
    s.expect(histories={"liver": history(*waiting, step_of(request("reset", 9)))})
    return s


# ---- failures of requests ---------------------------------------------------------------------------------


@scenario
def cancel_reverts_previews() -> Scenario:
    s, liver = Scenario("A cancelled request reverts its previews", "Requests and answers", "Masks"), ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.command("add_point", "second", expect={"sends": [add_point(3, B)]}, segment="liver", point=B)
    s.receive(liver.flip(3, B, C), masks={"liver": liver.state()})
    s.command("cancel", "second", expect={"sends": [{"type": "cancel", "request": 3}], "answers": []})
    s.receive(liver.flip(3, B, C, final=True), masks={"liver": liver.state()})
    s.receive(error("cancelled", 3), answers=[{"label": "second", "error": "cancelled"}])
    s.expect(histories={"liver": history(step_of(add_point(2, A), liver.mask))}, masks={"liver": liver.state()})
    s.click(4, "third", C, liver, C)
    s.expect(masks={"liver": liver.state()})
    return s


@scenario
def cancel_comes_too_late() -> Scenario:
    s, liver = (
        Scenario("A request that was done before the cancel arrived is done", "Requests and answers"),
        ServerSegment(),
    )
    s.open()
    s.command("add_point", "click", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.command("cancel", "click", expect={"sends": [{"type": "cancel", "request": 2}]})
    s.receive(liver.flip(2, A, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(2, A), answers=[liver.answer("click", A)])
    s.expect(histories={"liver": history(step_of(add_point(2, A), liver.mask))})
    return s


@scenario
def first_request_fails() -> Scenario:
    s = Scenario("If its first request fails, a segment starts from revision 0 again", "Requests and answers")
    liver = ServerSegment()
    s.open()
    s.command("add_point", "first", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.receive(liver.flip(2, A, B), masks={"liver": liver.state()})
    s.receive(liver.flip(2, A, B, final=True), masks={"liver": liver.state()})
    s.receive(error("internal", 2), answers=[{"label": "first", "error": "internal"}], masks={"liver": None})
    liver = ServerSegment()
    s.click(3, "second", B, liver, B)
    s.expect(masks={"liver": liver.state()}, histories={"liver": history(step_of(add_point(3, B), liver.mask))})
    return s


@scenario
def errors_of_requests() -> Scenario:
    s, liver = Scenario("Errors with an id concern one request", "Errors", "Requests and answers"), ServerSegment()
    codes = ["bad_message", "at_capacity", "too_large", "unsupported_prompt", "out_of_memory", "internal"]
    s.open()
    s.click(2, "first", A, liver, A)
    for n, code in enumerate([*codes, "a_code_of_later"], 3):
        s.command("add_point", code, expect={"sends": [add_point(n, B)]}, segment="liver", point=B)
        known = code if code in codes else "internal"
        s.receive(error(code, n), answers=[{"label": code, "error": known}], closed=None)
    s.expect(masks={"liver": liver.state()}, histories={"liver": history(step_of(add_point(2, A), liver.mask))})
    return s


@scenario
def image_is_refused() -> Scenario:
    s = Scenario("An image that the server refuses is not sent", "The image", "Errors")
    s.start()
    s.receive(welcome())
    s.command("set_image", "image", expect={"sends": [set_image(1, s.images["ct"])]}, image="ct")
    answers = [{"label": "image", "error": "too_large"}]
    s.receive(error("too_large", 1), answers=answers, closed=None, bricks_wait=True)
    return s


# ---- messages that a client ignores -----------------------------------------------------------------------


@scenario
def unknown_messages_and_fields() -> Scenario:
    s, liver = Scenario("Unknown messages and fields, and a second answer, are ignored", "Conventions"), ServerSegment()
    s.open()
    s.command("add_point", "click", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.receive({"type": "weather", "id": 2, "sun": True, "days": [1, {"data": b"\0"}]})
    delta = {**liver.flip(2, A), "color": "red"}
    s.receive({**delta, "change": {**delta["change"], "level": 3}}, masks={"liver": liver.state()})
    s.receive(image_progress([0], 1, name="another image"))
    s.receive({**notice("warning"), "urgent": True}, notices=["warning"])
    s.receive({**liver.done(2, A), "mood": None}, answers=[liver.answer("click", A)], closed=None, progress=[])
    s.receive(liver.done(2, A), answers=[])
    return s


# ---- bricks -----------------------------------------------------------------------------------------------


@scenario
def bricks_at_borders() -> Scenario:
    s = Scenario("Bricks at the far borders are smaller", "The image", mr=MR)
    s.open("mr", bricks=[0, 1, 2, 3])
    return s


@scenario
def bricks_of_two_bytes() -> Scenario:
    image = {**CT, "shape": [35, 34, 33], "dtype": "uint16", "factors": [1, 300, 7], "modulus": 65_000, "offset": 500}
    s = Scenario("Voxels are little-endian and in C order", "The image", "Packed arrays", ct=image)
    s.open("ct", bricks=range(8))
    return s


@scenario
def bricks_that_a_prompt_waits_for() -> Scenario:
    image = {**CT, "shape": [70, 40, 33]}
    s = Scenario("At most two bricks are in flight, those of a waiting prompt first", "The image", ct=image)
    s.start()
    s.receive(welcome(limit=2))
    s.command("set_image", "image", expect={"sends": [set_image(1, s.images["ct"])], "bricks_wait": True}, image="ct")
    s.command("add_point", "click", expect={"sends": [add_point(2, (60, 5, 32))]}, segment="liver", point=(60, 5, 32))
    s.receive(image_progress([], 0, 12))
    s.receive(done(1), answers=[{"label": "image", "done": NO_SEGMENT}])
    box = [[40, 70], [0, 32], [32, 33]]
    told = {"label": "click", "state": "waiting_for_image", "done": 0, "total": 2}
    s.receive({**progress(2, "waiting_for_image", 0, 2), "box": box}, progress=[told])
    s.upload(range(12), first=[5, 9])
    liver = ServerSegment(shape=image["shape"])
    s.receive(liver.flip(2, (60, 5, 32)))
    s.receive(liver.done(2, (60, 5, 32)), answers=[liver.answer("click", (60, 5, 32))])
    s.expect(masks={"liver": liver.state()})
    return s


@scenario
def bricks_that_the_server_has() -> Scenario:
    s = Scenario("Bricks that the server has are not sent", "The image", mr=MR)
    s.start()
    s.receive(welcome())
    s.command("set_image", "image", expect={"sends": [set_image(1, s.images["mr"], "mr")]}, image="mr")
    s.receive(image_progress([1, 2], 2, 4, "mr"))
    s.receive(done(1), answers=[{"label": "image", "done": NO_SEGMENT}])
    s.upload([0, 3], present=2)
    return s


# ---- the handshake, and other messages --------------------------------------------------------------------


@scenario
def nothing_before_welcome() -> Scenario:
    s = Scenario("Only hello is sent before welcome", "Handshake")
    s.start()
    s.receive(notice("loading_model"), notices=["loading_model"], sends=[])
    s.command("set_image", "image", expect={"sends": [], "bricks_wait": True}, image="ct")
    s.command("add_point", "click", expect={"sends": []}, segment="liver", point=A)
    s.receive(notice("loading_model"), notices=["loading_model"], sends=[])
    s.receive(welcome(), sends=[set_image(1, s.images["ct"]), add_point(2, A)], bricks_wait=True, answers=[])
    return s


@scenario
def hello_is_refused() -> Scenario:
    s = Scenario("An error in place of welcome ends the connection", "Handshake", "Errors")
    s.start(closed=None)
    s.receive(error("at_capacity"), closed="at_capacity", sends=[])
    return s


@scenario
def options_and_bye() -> Scenario:
    s = Scenario("Options are set, and the session ends", "Messages from the client")
    s.start()
    s.receive(welcome())
    s.command(
        "set_options", "a", expect={"sends": [{"type": "set_options", "id": 1, "previews": False}]}, previews=False
    )
    s.receive(done(1), answers=[{"label": "a", "done": NO_SEGMENT}])
    sends = [{"type": "set_options", "id": 2, "autozoom": False, "previews": True}]
    s.command("set_options", "b", expect={"sends": sends}, autozoom=False, previews=True)
    s.receive(done(2), answers=[{"label": "b", "done": NO_SEGMENT}])
    s.command("bye", expect={"sends": [{"type": "bye"}]})
    return s


@scenario
def error_without_id() -> Scenario:
    s, liver = Scenario("An error without an id ends the connection", "Errors"), ServerSegment()
    s.open()
    s.click(2, "click", A, liver, A)
    s.receive(notice("shutting_down"), notices=["shutting_down"], closed=None)
    s.receive(error("shutting_down"), closed="shutting_down", masks={"liver": liver.state()}, answers=[])
    return s


# ---- lost changes -----------------------------------------------------------------------------------------


@scenario
def wrong_checksum() -> Scenario:
    s = Scenario("After a wrong checksum, changes are ignored until the snapshot", "Masks", "History")
    liver = ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.command("add_point", "second", expect={"sends": [add_point(3, B)]}, segment="liver", point=B)
    delta = liver.flip(3, B)
    s.receive({**delta, "checksum": delta["checksum"] ^ 1}, sends=[request("get_mask", 4)])
    s.receive(liver.flip(3, C), sends=[])
    s.receive(liver.done(3, B, C))
    s.receive(liver.snapshot(4), masks={"liver": liver.state()})
    s.receive(liver.done(4), answers=[liver.answer("second", B, C)], sends=[])
    steps = step_of(add_point(2, A), mask_of(SHAPE, [A])), step_of(add_point(3, B), mask_of(SHAPE, [B, C]))
    s.expect(histories={"liver": history(*steps)})
    s.move("undo", 5, liver, B, C)
    s.expect(masks={"liver": liver.state()}, histories={"liver": history(steps[0], undone=[steps[1]])})
    return s


@scenario
def missing_change() -> Scenario:
    s, liver = Scenario("A change that starts from another revision is not applied", "Masks"), ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.command("add_point", "second", expect={"sends": [add_point(3, B)]}, segment="liver", point=B)
    liver.flip(3, B)  # does not arrive
    s.receive(liver.flip(3, C, final=True), sends=[request("get_mask", 4)])
    s.receive(liver.done(3, B, C))
    s.receive(liver.snapshot(4), masks={"liver": liver.state()})
    s.receive(liver.done(4), answers=[liver.answer("second", B, C)], sends=[])
    steps = step_of(add_point(2, A), mask_of(SHAPE, [A])), step_of(add_point(3, B), mask_of(SHAPE, [B, C]))
    s.expect(histories={"liver": history(*steps)})
    return s


@scenario
def missing_last_changes() -> Scenario:
    s = Scenario(
        "Changes that no later one reveals are missed at done, and credited to the last step", "Masks", "History"
    )
    liver = ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.command("add_point", "second", expect={"sends": [add_point(3, B)]}, segment="liver", point=B)
    s.command("add_point", "third", expect={"sends": [add_point(4, C)]}, segment="liver", point=C)
    liver.flip(3, B)  # does not arrive
    s.receive(liver.done(3, B), sends=[request("get_mask", 5)])
    second = liver.answer("second", B)
    s.receive(liver.flip(4, C), sends=[])
    s.receive(liver.done(4, C), sends=[])
    third = liver.answer("third", C)
    s.receive(liver.snapshot(5), masks={"liver": liver.state()})
    s.receive(liver.done(5), answers=[second, third])
    first = step_of(add_point(2, A), mask_of(SHAPE, [A]))
    unknown = step_of(add_point(3, B)), step_of(add_point(4, C), mask_of(SHAPE, [B, C]))
    s.expect(histories={"liver": history(first, *unknown)})
    # The changes of undo are those that the server made.
    s.move("undo", 6, liver, C)
    parts = step_of(add_point(3, B), mask_of(SHAPE, [B])), step_of(add_point(4, C), mask_of(SHAPE, [C]))
    s.expect(masks={"liver": liver.state()}, histories={"liver": history(first, parts[0], undone=[parts[1]])})
    s.move("undo", 7, liver, B)
    s.expect(masks={"liver": liver.state()}, histories={"liver": history(first, undone=[parts[1], parts[0]])})
    return s


@scenario
def empty_snapshot() -> Scenario:
    s, liver = Scenario("A snapshot without a mask empties it", "Masks", "Messages from the server"), ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.command("undo", "undo", expect={"sends": [request("undo", 3)]}, segment="liver")
    liver.flip(3, A)  # does not arrive
    s.receive(liver.done(3, A), sends=[request("get_mask", 4)])
    s.receive(liver.snapshot(4), masks={"liver": liver.state()})
    s.receive(liver.done(4), answers=[liver.answer("undo", A)])
    s.expect(histories={"liver": history(undone=[step_of(add_point(2, A), mask_of(SHAPE, [A]))])})
    return s


# ---- a lost connection ------------------------------------------------------------------------------------


@scenario
def resume_sends_again() -> Scenario:
    s = Scenario("A resumed session gets unanswered requests again, and replays their changes", "Handshake")
    liver = ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    before = liver.state()
    s.command("add_point", "second", expect={"sends": [add_point(3, B)]}, segment="liver", point=B)
    s.command("undo", "third", expect={"sends": [request("undo", 4)]}, segment="liver")
    preview = liver.flip(3, B, C)
    s.receive(preview, masks={"liver": liver.state()})
    s.start("s1", masks={"liver": before})
    s.receive(resumed(4, liver=3), sends=[add_point(3, B), request("undo", 4)])
    s.receive(preview, masks={"liver": liver.state()})
    s.receive(liver.flip(3, C, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(3, B), answers=[liver.answer("second", B)])
    s.receive(liver.flip(4, B, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(4, B), answers=[liver.answer("third", B)])
    steps = step_of(add_point(2, A), mask_of(SHAPE, [A])), step_of(add_point(3, B), mask_of(SHAPE, [B]))
    s.expect(histories={"liver": history(steps[0], undone=[steps[1]])})
    s.upload([])
    return s


@scenario
def resume_cancels_again() -> Scenario:
    s = Scenario("A request to be cancelled is sent again, and then cancelled again", "Handshake")
    liver = ServerSegment()
    s.open()
    s.command("add_point", "a", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.command("add_point", "b", expect={"sends": [add_point(3, B)]}, segment="liver", point=B)
    preview = liver.flip(2, A)
    s.receive(preview)
    s.command("cancel", "a", expect={"sends": [{"type": "cancel", "request": 2}]})
    s.start("s1", masks={"liver": None})
    cancel = {"type": "cancel", "request": 2}
    s.receive(resumed(3, liver=1), sends=[add_point(2, A), {"any_order": [cancel, add_point(3, B)]}])
    s.receive(preview, masks={"liver": liver.state()})
    s.receive(liver.flip(2, A, final=True))
    s.receive(error("cancelled", 2), answers=[{"label": "a", "error": "cancelled"}], masks={"liver": None})
    liver = ServerSegment()
    s.receive(liver.flip(3, B), masks={"liver": liver.state()})
    s.receive(liver.done(3, B), answers=[liver.answer("b", B)])
    return s


@scenario
def resume_compares_revisions() -> Scenario:
    s = Scenario("Segments without an unanswered request are compared with the server's", "Handshake", "History")
    liver, spleen, kidney = ServerSegment(), ServerSegment("spleen"), ServerSegment("kidney")
    s.open()
    s.click(2, "a", A, liver, A)
    s.click(3, "b", B, spleen, B)
    s.click(4, "c", C, kidney, C)
    s.click(5, "d", B, liver, B)
    s.start("s1")
    # The server has another mask of the liver, none of the spleen, and the same of the kidney.
    liver.flip(5, C)
    steps = [step_of(add_point(3, B, "spleen"), spleen.mask)]
    restore = request("restore", 7, "spleen", revision=1, steps=steps)
    sends = [{"any_order": [request("get_mask", 6), restore]}]
    s.receive(resumed(5, liver=3, kidney=1), sends=sends)
    s.receive(liver.snapshot(6), masks={"liver": liver.state()})
    s.receive(liver.done(6))
    s.receive(spleen.done(7), masks={"spleen": spleen.state(), "kidney": kidney.state()}, answers=[], closed=None)
    parts = step_of(add_point(2, A), mask_of(SHAPE, [A])), step_of(add_point(5, B), mask_of(SHAPE, [B, C]))
    s.expect(histories={"liver": history(*parts), "spleen": history(*steps)})
    return s


@scenario
def resume_continues_with_bricks() -> Scenario:
    s = Scenario("After resuming, the bricks are sent that the server does not have", "Handshake", "The image", mr=MR)
    s.start()
    s.receive(welcome())
    s.command("set_image", "image", expect={"sends": [set_image(1, s.images["mr"], "mr")]}, image="mr")
    s.receive(image_progress([0, 3], 2, 4, "mr"))
    s.receive(done(1), answers=[{"label": "image", "done": NO_SEGMENT}])
    s.start("s1", bricks_wait=True)
    s.receive(welcome(resumed=True, last_id=1, image="mr", present_bricks=b"\x09"), sends=[])
    s.upload([1, 2], present=2)
    return s


@scenario
def resume_with_unanswered_image() -> Scenario:
    s = Scenario("An unanswered set_image is sent again", "Handshake", "The image")
    s.start()
    s.receive(welcome())
    s.command("set_image", "image", expect={"sends": [set_image(1, s.images["ct"])]}, image="ct")
    s.start("s1", bricks_wait=True)
    s.receive(welcome(resumed=True), sends=[set_image(1, s.images["ct"])], bricks_wait=True)
    s.receive(image_progress([], 0))
    s.receive(done(1), answers=[{"label": "image", "done": NO_SEGMENT}])
    s.upload([0])
    return s


@scenario
def resume_with_a_pending_snapshot() -> Scenario:
    s, liver = Scenario("An unanswered get_mask is sent again", "Handshake", "Masks"), ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.command("add_point", "second", expect={"sends": [add_point(3, B)]}, segment="liver", point=B)
    liver.flip(3, B)  # does not arrive
    s.receive(liver.done(3, B), sends=[request("get_mask", 4)])
    s.start("s1")
    s.receive(resumed(4, liver=2), sends=[request("get_mask", 4)])
    s.receive(liver.snapshot(4), masks={"liver": liver.state()})
    s.receive(liver.done(4), answers=[liver.answer("second", B)])
    steps = step_of(add_point(2, A), mask_of(SHAPE, [A])), step_of(add_point(3, B), mask_of(SHAPE, [B]))
    s.expect(histories={"liver": history(*steps)})
    return s


@scenario
def answer_without_changes() -> Scenario:
    s = Scenario("A replayed answer whose changes the server no longer has", "Requests and answers", "Handshake")
    liver = ServerSegment()
    s.open()
    s.command("add_point", "click", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    liver.flip(2, A, B)  # does not arrive
    s.start("s1")
    s.receive(resumed(2, liver=1), sends=[add_point(2, A)])
    s.receive(liver.done(2, A, B), sends=[request("get_mask", 3)])
    s.receive(liver.snapshot(3), masks={"liver": liver.state()})
    s.receive(liver.done(3), answers=[liver.answer("click", A, B)])
    s.expect(histories={"liver": history(step_of(add_point(2, A), liver.mask))})
    return s


@scenario
def restore_in_a_new_session() -> Scenario:
    s = Scenario("A new session gets image, histories, and then the unanswered requests", "Handshake", "History")
    liver = ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.click(3, "second", B, liver, B, C)
    s.move("undo", 4, liver, B, C)
    before = liver.state()
    s.command("redo", "redo", expect={"sends": [request("redo", 5)]}, segment="liver")
    s.command("add_point", "third", expect={"sends": [add_point(6, C)]}, segment="liver", point=C)
    s.start("s1", masks={"liver": before})
    steps = [step_of(add_point(2, A), mask_of(SHAPE, [A]))]
    undone = [step_of(add_point(3, B), mask_of(SHAPE, [B, C]))]
    restore = request("restore", 8, revision=3, steps=steps, undone=undone)
    sends = [set_image(7, s.images["ct"]), restore, request("redo", 9), add_point(10, C)]
    s.receive(welcome("s2"), sends=sends, bricks_wait=True)
    s.receive(image_progress([], 0))
    s.receive(done(7))
    s.upload([0])
    s.receive(liver.done(8), answers=[], masks={"liver": before})
    s.receive(liver.flip(9, B, C, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(9, B, C), answers=[liver.answer("redo", B, C)])
    s.receive(liver.flip(10, C, final=True), masks={"liver": liver.state()})
    s.receive(liver.done(10, C), answers=[liver.answer("third", C)])
    s.expect(histories={"liver": history(*steps, *undone, step_of(add_point(6, C), mask_of(SHAPE, [C])))})
    return s


@scenario
def restore_several_segments() -> Scenario:
    s = Scenario("Every segment is restored, with masks in its history", "Handshake", "History")
    liver, spleen = ServerSegment(), ServerSegment("spleen")
    drawn = numbers(mask_of(SHAPE, [A, B]))
    s.open()
    s.command("set_mask", "a", expect={"sends": [request("set_mask", 2, mask=drawn)]}, segment="liver", mask=drawn)
    s.receive(liver.flip(2, A, B, final=True))
    s.receive(liver.done(2, A, B), answers=[liver.answer("a", A, B)])
    s.click(3, "b", C, spleen, C)
    s.command("remove_segment", "c", expect={"sends": [request("remove_segment", 4, "spleen")]}, segment="spleen")
    s.receive({**done(4), "segment": "spleen"}, answers=[{"label": "c", "done": {**NO_SEGMENT, "segment": "spleen"}}])
    spleen = ServerSegment("spleen")
    s.ask("add_point", 5, spleen, point=list(C), run=False)
    s.start("s1")
    restores = [
        request("restore", 7, revision=1, steps=[step_of(request("set_mask", 2, mask=drawn), liver.mask)]),
        request("restore", 8, "spleen", revision=0, steps=[step_of(add_point(5, C, "spleen", run=False))]),
    ]
    s.receive(welcome("s2"), sends=[set_image(6, s.images["ct"]), {"any_order": restores}])
    s.receive(image_progress([0], 1))
    s.receive(done(6), answers=[])
    s.upload([])
    return s


@scenario
def restore_options() -> Scenario:
    s = Scenario("A new session gets the options again", "Handshake", "Messages from the client")
    s.open()
    for n, option in ((2, "previews"), (3, "autozoom")):
        sends = [{"type": "set_options", "id": n, option: False}]
        s.command("set_options", option, expect={"sends": sends}, **{option: False})
        s.receive(done(n), answers=[{"label": option, "done": NO_SEGMENT}])
    s.start("s1")
    options = {"type": "set_options", "id": 4, "autozoom": False, "previews": False}
    s.receive(welcome("s2"), sends=[{"any_order": [options, set_image(5, s.images["ct"])]}])
    return s


@scenario
def restore_with_unanswered_image() -> Scenario:
    s = Scenario("An unanswered set_image is sent once in a new session, under a new id", "Handshake", "The image")
    s.start()
    s.receive(welcome())
    s.command("set_image", "image", expect={"sends": [set_image(1, s.images["ct"])]}, image="ct")
    s.command("add_point", "click", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.start("s1")
    s.receive(welcome("s2"), sends=[set_image(3, s.images["ct"]), add_point(4, A)])
    s.receive(image_progress([], 0))
    s.receive(done(3), answers=[{"label": "image", "done": NO_SEGMENT}])
    s.upload([0])
    return s


@scenario
def evicted_session_is_restored() -> Scenario:
    s, liver = Scenario("An evicted session is restored for the next request", "Handshake"), ServerSegment()
    s.open()
    s.click(2, "first", A, liver, A)
    s.receive(notice("evicted"), notices=["evicted"], closed="evicted", answers=[], sends=[])
    s.command("add_point", "second", expect={"sends": []}, segment="liver", point=B)
    s.start(ANY_SESSION)
    steps = [step_of(add_point(2, A), liver.mask)]
    sends = [set_image(3, s.images["ct"]), request("restore", 4, revision=1, steps=steps), add_point(5, B)]
    s.receive(welcome("s2"), sends=sends)
    s.receive(image_progress([], 0))
    s.receive(done(3))
    s.upload([0])
    s.receive(liver.done(4))
    s.receive(liver.flip(5, B), masks={"liver": liver.state()})
    s.receive(liver.done(5, B), answers=[liver.answer("second", B)])
    return s


@scenario
def worker_lost_twice() -> Scenario:
    s = Scenario("A request during which the worker was lost twice is not sent a third time", "Handshake", "Errors")
    s.open()
    s.command("add_point", "click", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
    s.receive(notice("worker_lost"), notices=["worker_lost"])
    s.receive(error("worker_lost"), closed="worker_lost", answers=[])
    s.start(ANY_SESSION)
    s.receive(welcome("s2"), sends=[set_image(3, s.images["ct"]), add_point(4, A)])
    s.receive(image_progress([], 0))
    s.receive(done(3))
    s.upload([0])
    s.receive(ServerSegment().flip(4, A))
    s.receive(error("worker_lost"), closed="worker_lost")
    s.start(ANY_SESSION, masks={"liver": None})
    lost = [{"label": "click", "error": "worker_lost"}]
    s.receive(welcome("s3"), sends=[set_image(5, s.images["ct"])], answers=lost, masks={"liver": None})
    return s


# ---- malformed messages -----------------------------------------------------------------------------------


def _malformed(title: str, *rules: str, change: Json | None = None, **fields: Any) -> Callable[[], Scenario]:
    """Return a scenario of a mask_delta with other fields. ``change``: fields of its RunLengthMask."""

    def make() -> Scenario:
        s, liver = Scenario(title, *rules), ServerSegment()
        s.open()
        s.command("add_point", expect={"sends": [add_point(2, A)]}, segment="liver", point=A)
        delta = {**liver.flip(2, A, B), **fields}
        s.receive({**delta, "change": {**delta["change"], **(change or {})}}, refused=True)
        return s

    return make


#: The box and the run lengths of A and B.
_BOX, _RUNS = [[1, 2], [0, 1], [2, 4]], struct.pack("<2I", 0, 2)

_MALFORMED: list[tuple[str, str, tuple[str, ...], Json]] = [
    ("box_outside", "A change outside the image", ("Masks",), {"change": {"box": [[1, 2], [0, 1], [3, 5]]}}),
    ("box_negative", "A change at a negative index", ("Masks",), {"change": {"box": [[-1, 0], [0, 1], [2, 4]]}}),
    ("box_empty", "An empty box", ("Conventions",), {"change": {"box": [[1, 2], [0, 1], [4, 4]]}}),
    ("runs_short", "Runs that are fewer voxels than the box", ("Masks",), {"change": run_lengths(_BOX, [0, 1])}),
    ("runs_long", "Runs that are more voxels than the box", ("Masks",), {"change": run_lengths(_BOX, [0, 3])}),
    ("runs_overflow", "Runs that add up only modulo 2^32", ("Masks",),
     {"change": run_lengths(_BOX, [2**32 - 1, 3])}),
    ("runs_many", "More runs than the voxels of the box plus one", ("Parts of messages",),
     {"change": run_lengths(_BOX, [0, 0, 0, 2])}),
    ("runs_wrong", "Another number of runs than announced", ("Packed arrays",), {"change": {"runs": 3}}),
    ("runs_none", "No runs", ("Types",), {"change": {"runs": 0, "data": b""}}),
    ("raw_long", "More bytes than announced", ("Packed arrays",), {"change": {"data": _RUNS + b"\0"}}),
    ("deflate_damaged", "A stream with a wrong Adler-32", ("Packed arrays",),
     {"change": {"encoding": "deflate", "data": stored(_RUNS)[:-1] + b"\0"}}),
    ("deflate_cut", "A stream that ends early", ("Packed arrays",),
     {"change": {"encoding": "deflate", "data": stored(_RUNS)[:-5]}}),
    ("deflate_trailing", "Bytes after a stream", ("Packed arrays",),
     {"change": {"encoding": "deflate", "data": stored(_RUNS) + b"\0"}}),
    ("deflate_long", "A stream of more bytes than announced", ("Packed arrays",),
     {"change": {"encoding": "deflate", "data": stored(_RUNS + b"\0\0\0\0")}}),
    ("deflate_headless", "Deflate without the header of zlib", ("Packed arrays",),
     {"change": {"encoding": "deflate", "data": stored(_RUNS)[2:-4]}}),
    ("encoding_unknown", "An encoding that the client did not offer", ("Packed arrays", "Handshake"),
     {"change": {"encoding": "blosc2"}}),
    ("data_text", "Text in place of bytes", ("Conventions",), {"change": {"data": "eight by"}}),
    ("other_segment", "A change of another segment than the request's", ("Masks",), {"segment": "spleen"}),
    ("revision_negative", "A negative revision", ("Types",), {"base_revision": -1}),
    ("revision_float", "A float in place of an integer", ("Conventions",), {"revision": 1.5}),
    ("field_nil", "A required field that is nil", ("Conventions",), {"voxels": None}),

]  # fmt: skip

SCENARIOS |= {f"malformed_{name}": _malformed(title, *rules, **fields) for name, title, rules, fields in _MALFORMED}


@scenario
def malformed_optional_nil() -> Scenario:
    s = Scenario('Nil for an optional field without "or null"', "Conventions")
    s.start()
    s.receive(welcome())
    s.command("set_options", expect={"sends": [{"type": "set_options", "id": 1, "previews": False}]}, previews=False)
    s.receive({**done(1), "revision": None}, refused=True)
    return s


@scenario
def malformed_frame() -> Scenario:
    s = Scenario("A frame that is no msgpack", "Transport")
    s.start()
    s.receive(welcome())
    s.receive(None, frame="c1", refused=True)
    return s


@scenario
def malformed_type() -> Scenario:
    s = Scenario("A map without a type", "Conventions")
    s.start()
    s.receive(welcome())
    s.receive({"code": "warning"}, refused=True)
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
    built = {f"scenarios/{name}.json": to_text(make().to_json()) for name, make in SCENARIOS.items()}
    return {"arithmetic.json": conformance_arithmetic.to_text(), **built}


def main() -> None:
    for name, text in texts().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
