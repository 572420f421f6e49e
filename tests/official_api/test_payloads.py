"""JSON of requests: that of nnInteractive's clients, and invalid JSON."""

import json
from typing import Any

import msgspec
import pytest

from nninteractive_ws.errors import BadMessage, UnsupportedPrompt
from nninteractive_ws.official_api import payloads

POINT = {"coordinates": [1, 2.5, 3], "include_interaction": True}
BOX = {"bbox_coords": [[0, 4], [1.5, 5], [2, 3]], "include_interaction": False}


def decode(kind: type[msgspec.Struct], value: Any) -> Any:
    return payloads.decode(json.dumps(value), kind)


def test_a_point_with_defaults() -> None:
    payload = decode(payloads.AddPoint, POINT)
    assert payload.coordinates == (1.0, 2.5, 3.0)
    assert (payload.include_interaction, payload.run_prediction) == (True, True)
    payload.check()


def test_a_box() -> None:
    payload = decode(payloads.AddBbox, BOX | {"run_prediction": False})
    assert payload.bbox_coords == ((0, 4), (1.5, 5), (2, 3))
    assert (payload.include_interaction, payload.run_prediction) == (False, False)


def test_a_mask_without_and_with_a_box() -> None:
    assert decode(payloads.AddMask, {"include_interaction": True}).interaction_bbox is None
    assert decode(payloads.AddMask, {"include_interaction": True, "interaction_bbox": None}).interaction_bbox is None
    boxed = decode(payloads.AddMask, {"include_interaction": True, "interaction_bbox": [[0, 1], [2, 4], [3, 9]]})
    assert boxed.interaction_bbox == ((0, 1), (2, 4), (3, 9))


def test_an_initial_segmentation_and_a_prediction_need_nothing() -> None:
    assert not decode(payloads.AddInitialSegmentation, {}).run_prediction
    decode(payloads.Predict, {}).check()


def test_a_target_buffer() -> None:
    payload = decode(payloads.SetTargetBuffer, {"shape": [3, 4, 5], "dtype": "uint8"})
    assert (payload.shape, payload.dtype) == ((3, 4, 5), "uint8")


def test_other_fields_are_ignored() -> None:
    assert decode(payloads.SetDoAutozoom, {"do_autozoom": True, "later": 1}).do_autozoom


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (payloads.AddPoint, {"include_interaction": True}),
        (payloads.AddPoint, POINT | {"coordinates": [1, 2]}),
        (payloads.AddPoint, POINT | {"coordinates": [1, 2, 3, 4]}),
        (payloads.AddPoint, POINT | {"coordinates": [1, 2, "x"]}),
        (payloads.AddPoint, POINT | {"coordinates": None}),
        (payloads.AddPoint, POINT | {"include_interaction": 5}),
        (payloads.AddBbox, BOX | {"bbox_coords": [[0, 1], [0, 1]]}),
        (payloads.AddBbox, BOX | {"bbox_coords": [[0], [0, 1], [0, 1]]}),
        (payloads.AddMask, {"include_interaction": True, "interaction_bbox": [[0, 1.5], [0, 1], [0, 1]]}),
        (payloads.SetTargetBuffer, {"shape": [1, 2], "dtype": "uint8"}),
        (payloads.SetTargetBuffer, {"shape": [1, 2, 3]}),
        (payloads.SetDoAutozoom, {}),
        (payloads.SetDoAutozoom, []),
        (payloads.Predict, 1),
    ],
)
def test_a_missing_or_wrong_field_is_refused(kind: type[msgspec.Struct], value: Any) -> None:
    with pytest.raises(BadMessage, match="JSON of this request is not valid"):
        decode(kind, value)


def test_a_number_too_long_for_a_message_is_refused() -> None:
    data = '{"shape": [' + "9" * 5000 + ', 2, 3], "dtype": "uint8"}'
    with pytest.raises(BadMessage, match="out of range"):
        payloads.decode(data, payloads.SetTargetBuffer)


@pytest.mark.parametrize(
    "data",
    [
        "", "{", "nul", '{"do_autozoom": tru', b"\xff\xfe", b'{"do_autozoom": "\xff"}', '{"do_autozoom": "\\ud800"}',
        "{" * 100, '{"a":' * 20_000, "[" * 60_000, '{"do_autozoom": ' + "9" * 60_000 + "}", '{"do_autozoom": 1e999}',
        "\0", "\u00e9",
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(data: bytes | str) -> None:
    with pytest.raises(BadMessage, match="JSON of this request is not valid"):
        payloads.decode(data, payloads.SetDoAutozoom)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (payloads.AddPoint, POINT | {"override_capability_checks": True}),
        (payloads.AddBbox, BOX | {"override_capability_checks": True}),
        (payloads.AddMask, {"include_interaction": True, "override_capability_checks": True}),
        (payloads.AddInitialSegmentation, {"override_capability_checks": True}),
        (payloads.Predict, {"force_full_refine": True}),
    ],
)
def test_options_that_this_server_does_not_have(kind: type[msgspec.Struct], value: Any) -> None:
    with pytest.raises(UnsupportedPrompt, match="not supported"):
        decode(kind, value).check()
