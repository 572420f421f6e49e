"""protocol.md matches the code: fields, types, bounds, codes, limits and examples."""

import json
from pathlib import Path
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from helpers.strategies import CLIENT_TYPES, PARTS, SERVER_TYPES, boxes, fields_of, plain, same_shape_masks, shapes
from hypothesis import given
from hypothesis import strategies as st
import msgpack
import msgspec
import numpy as np
import pytest

from nninteractive_ws import arrays, bricks, errors, masks, messages, protocol
from nninteractive_ws.client import image_source
from nninteractive_ws.geometry import Box, Index

DOCUMENT = (Path(__file__).parents[2] / "protocol.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: list[tuple[str, str, str]] = FENCED.findall(DOCUMENT)
PROSE = FENCED.sub("", DOCUMENT)

Row = list[str]


def section(title: str, level: int = 2) -> str:
    """The text under a heading, up to the next one of its level or above."""
    mark = "#" * level
    found = re.findall(rf"^{mark} {re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)", PROSE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} sections {title}"
    return str(found[0])


def headings(text: str, level: int) -> list[str]:
    return re.findall(rf"^{'#' * level} (.+)$", text, re.MULTILINE)


def table(text: str) -> list[Row]:
    """Return the rows of the only table in a text, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set(rows[1]) == {"---"}
    assert all(len(row) == len(rows[0]) for row in rows)
    assert sum(set(row) == {"---"} for row in rows) == 1
    return rows[2:]


def in_quotes(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def number(text: str) -> float:
    assert re.fullmatch(r"[-+*^() \d]+", text), text
    return float(eval(text.replace("^", "**")))


# ---- types ------------------------------------------------------------------------------------------------

#: The document's names for the types of messages.py.
WORDS: dict[str, Any] = {
    "id": messages.RequestId,
    "count": messages.Count,
    "revision": messages.Revision,
    "coordinate": messages.Coordinate,
    "size": messages.Size,
    "checksum": messages.Checksum,
    "real": messages.Real,
    "deviation": messages.Deviation,
    "name": messages.Name,
    "text": messages.Text,
    "words": messages.Words,
    "index": messages.Index,
    "shape": messages.Shape,
    "range": messages.Range,
    "box": messages.Pairs,
    "encoding": messages.Encoding,
    "layer": messages.Layer,
    "low bits": messages.LowBits,
    "dtype": messages.DType,
    "state": messages.ProgressState,
    "notice code": messages.NoticeCode,
    "bool": bool,
    "int": int,
    "float": float,
    "bytes": bytes,
}


def word(annotation: Any) -> str:
    """Return a type in the notation of the document."""
    for name, known in WORDS.items():
        if annotation == known:
            return name
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if types.NoneType in args:
            (other,) = (a for a in args if a is not types.NoneType)
            return f"{word(other)} or null"
        return "one of " + ", ".join(a.__struct_config__.tag for a in args)
    if origin is Annotated and get_origin(args[0]) is list:
        of, meta = word(get_args(args[0])[0]), args[1]
        many = f"{meta.min_length} to {meta.max_length}" if meta.min_length else f"at most {meta.max_length}"
        return f"array of {of}, {many}"
    if origin is tuple and len(set(args)) == 1:
        return f"array of {len(args)} {word(args[0])}"
    if origin is dict:
        return f"map of {word(args[0])} to {word(args[1])}"
    assert annotation in PARTS, f"no word for {annotation}"
    return str(annotation.__name__)


def default(field: msgspec.structs.FieldInfo) -> str:
    """Return a default value in the notation of the document."""
    if field.required:
        return "required"
    if field.default == b"":
        return "empty"
    if field.default is not msgspec.NODEFAULT and not isinstance(field.default, msgspec.Struct):
        value = field.default
        return f"`{json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)}`"
    made = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if made == messages.Timings():
        assert set(plain(made).values()) == {0}
        return "all 0"
    return f"`{json.dumps(made)}`"


@pytest.mark.parametrize("kind", CLIENT_TYPES + SERVER_TYPES + PARTS)
def test_a_table_lists_exactly_the_fields(kind: type[msgspec.Struct]) -> None:
    part = kind in PARTS
    group = "Parts of messages" if part else f"Messages from the {'client' if kind in CLIENT_TYPES else 'server'}"
    title = kind.__name__ if part else str(kind.__struct_config__.tag)
    assert title in headings(section(group), 3)
    rows = table(section(title, 3))
    infos = {field.name: field for field in msgspec.structs.fields(kind)}
    expected = [[f"`{name}`", word(of), default(infos[name])] for name, of in fields_of(kind).items()]
    assert [row[:3] for row in rows] == expected
    assert all(field.name == field.encode_name for field in infos.values())
    for row in rows:
        assert len(row) == 4
        assert row[3], f"{title}.{row[0]} has no meaning"


def test_the_sections_are_exactly_the_messages_in_the_order_of_the_code() -> None:
    def tags(kinds: tuple[type[messages.Message], ...]) -> list[str]:
        in_code = [k for k in vars(messages).values() if isinstance(k, type) and k in kinds]
        return [str(k.__struct_config__.tag) for k in in_code]

    assert headings(section("Messages from the client"), 3) == tags(CLIENT_TYPES)
    assert headings(section("Messages from the server"), 3) == tags(SERVER_TYPES)
    assert headings(section("Parts of messages"), 3) == [kind.__name__ for kind in PARTS]


def test_all_other_structs_are_listed_as_parts() -> None:
    structs = [k for k in vars(messages).values() if isinstance(k, type) and issubclass(k, messages.Struct)]
    plain_structs = [k for k in structs if not issubclass(k, messages.Message) and k is not messages.Struct]
    assert plain_structs == list(PARTS)


def _bounds(annotation: Any) -> list[float]:
    """Return the numbers of a type's bounds, from the outside inward."""
    if get_origin(annotation) is Annotated:
        of, *metas = get_args(annotation)
        found = []
        for meta in metas:
            for at in ("ge", "gt", "le", "lt", "min_length", "max_length"):
                if getattr(meta, at) is not None:
                    assert at not in ("gt", "lt"), "the table has no way to say this"
                    found.append(float(getattr(meta, at)))
        return found + (_bounds(get_args(of)[0]) if get_origin(of) is list else [])
    return []


def test_the_table_of_types_has_every_word_with_its_bounds() -> None:
    rows = {in_quotes(row[0])[0]: row for row in table(section("Types").partition("### ")[0])}
    assert set(rows) == set(WORDS)
    for name, annotation in WORDS.items():
        _, on_the_wire, bounds = rows[name]
        if get_origin(annotation) is Literal:
            assert on_the_wire == "str"
            assert tuple(in_quotes(bounds)) == get_args(annotation)
        elif get_origin(annotation) is tuple:
            inner = get_args(annotation)
            assert on_the_wire == f"array of {len(inner)} `{word(inner[0])}`"
        else:
            assert [number(text) for text in in_quotes(bounds)] == _bounds(annotation), name


# ---- errors, limits, features -----------------------------------------------------------------------------


def test_the_table_of_errors_has_every_code_and_no_other() -> None:
    rows = table(section("Errors"))
    assert [in_quotes(row[0])[0] for row in rows] == list(errors.WIRE_ERRORS)
    assert all(all(row) for row in rows)


def test_requests_list_their_errors_and_every_code_is_used() -> None:
    client = section("Messages from the client")
    mentioned: set[str] = set()
    for kind in CLIENT_TYPES:
        text = section(str(kind.__struct_config__.tag), 3)
        lines = re.findall(r"^Errors: (.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        assert len(lines) == (kind in get_args(messages.Request)), kind
        for line in lines:
            codes = re.sub(r"\(.*?\)", "", line, flags=re.DOTALL)
            assert set(in_quotes(codes)) <= set(errors.WIRE_ERRORS)
            mentioned |= set(in_quotes(codes))
            if kind not in (messages.SetImage, messages.SetOptions):
                assert "no_image" in codes
    before_the_sections = client.partition("### ")[0]
    mentioned |= set(in_quotes(before_the_sections)) | set(in_quotes(section("hello", 3)))
    assert mentioned >= set(errors.WIRE_ERRORS)


def test_the_limits_are_those_of_the_code() -> None:
    modules = {"protocol": protocol, "arrays": arrays, "bricks": bricks, "messages": messages}
    rows = table(section("Limits"))
    for row in rows:
        module, constant = in_quotes(row[0])[0].split(".")
        assert number(in_quotes(row[1])[0]) == getattr(modules[module], constant)
    assert len(rows) == 9


def test_the_version_and_the_features_are_those_of_the_code() -> None:
    assert DOCUMENT.startswith(f"# The protocol of nninteractive-ws, version {protocol.PROTOCOL_VERSION}\n")
    assert (protocol.FEATURES == ()) == section("Features").strip().startswith("There are none yet.")
    for feature in protocol.FEATURES:
        assert f"`{feature}`" in section("Features")


def test_every_link_has_a_target() -> None:
    anchors = {h.lower().replace(" ", "-") for level in (2, 3) for h in headings(PROSE, level)}
    targets = re.findall(r"\]\(#([^)]*)\)", DOCUMENT)
    assert targets
    assert set(targets) <= anchors
    top = section("Transport")  # the table of contents precedes it
    assert top
    listed = re.findall(r"\]\(#([^)]*)\)", DOCUMENT.partition("## Transport")[0])
    assert listed == [h.lower().replace(" ", "-") for h in headings(PROSE, 2)]


# ---- examples ---------------------------------------------------------------------------------------------


def examples(language: str) -> dict[str, str]:
    return {name: text for kind, name, text in BLOCKS if kind == language}


def hex_of(text: str) -> bytes:
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


@pytest.mark.parametrize("name", ["add_point", "mask_delta"])
def test_the_hex_examples_are_the_messages_shown(name: str) -> None:
    data = hex_of(examples("hex")[name])
    shown = json.loads(examples("json")[name])
    if name == "mask_delta":
        shown["change"]["data"] = bytes.fromhex(shown["change"]["data"])
    assert msgpack.unpackb(data) == shown
    decode = protocol.decode_client if name == "add_point" else protocol.decode_server
    message = decode(data)
    assert message is not None
    assert plain(message) == shown
    assert protocol.encode(message) == data


def test_the_short_form_of_the_point_is_equivalent() -> None:
    data = hex_of(examples("hex")["add_point"])
    short = b"\x84" + data[1:].partition(b"\xa8positive")[0]
    assert protocol.decode_client(short) == protocol.decode_client(data)


def test_the_example_delta_matches_the_text() -> None:
    delta = protocol.decode_server(hex_of(examples("hex")["mask_delta"]))
    assert isinstance(delta, messages.MaskDelta)
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 0, 2] = mask[1, 0, 3] = True
    before = mask.copy()
    change = masks.unpack(delta.change, (4, 4, 4))
    masks.apply(change, mask)
    assert np.argwhere(mask).tolist() == [[1, 0, 3], [1, 1, 2], [2, 1, 3]]
    assert np.argwhere(mask ^ before).tolist() == [[1, 0, 2], [1, 1, 2], [2, 1, 3]]
    assert change.box is not None
    assert masks.checksum(mask, change.box) == delta.checksum
    assert delta.voxels == np.count_nonzero(mask)


def test_every_json_and_hex_block_is_tested_above() -> None:
    assert {kind for kind, _, _ in BLOCKS} == {"python", "hex", "json"}
    assert set(examples("hex")) == set(examples("json")) == {"add_point", "mask_delta"}


# ---- the document's Python blocks as a second implementation ----------------------------------------------


@pytest.fixture(scope="module")
def code() -> dict[str, Any]:
    """The names that the Python blocks define, after running them with their assertions."""
    names: dict[str, Any] = {}
    for n, text in enumerate(text for kind, _, text in BLOCKS if kind == "python"):
        exec(compile(text, f"protocol.md, Python block {n}", "exec"), names)
    return names


@given(shapes(300))
def test_the_documented_bricks_match_the_package(code: dict[str, Any], shape: Index) -> None:
    grid = bricks.Grid(shape)
    for index in range(len(grid)):
        assert Box.from_pairs(code["brick_box"](index, shape)) == grid.box(index)


@given(st.data())
def test_the_documented_masks_match_the_package(code: dict[str, Any], data: st.DataObject) -> None:
    before, after = data.draw(same_shape_masks(2))
    delta = masks.diff(before, after)
    if delta.box is None:
        return
    for encoding in ("raw", "deflate"):
        message = messages.MaskDelta(
            segment="a",
            request=1,
            base_revision=0,
            revision=1,
            change=masks.pack(delta, encoding),
            checksum=masks.checksum(after, delta.box),
            voxels=0,
            final=True,
        )
        received = msgpack.unpackb(protocol.encode(message))
        mask = before.copy()
        assert code["apply_delta"](mask, received)
        assert np.array_equal(mask, after)


@given(st.data())
def test_the_documented_checksum_detects_a_wrong_mask(code: dict[str, Any], data: st.DataObject) -> None:
    shape = data.draw(shapes())
    box = data.draw(boxes(shape))
    flips = masks.Delta(box, np.ones(box.shape, bool))
    after = np.zeros(shape, bool)
    delta = {"change": plain(masks.pack(flips, "raw")), "checksum": masks.checksum(after, box)}
    mask = ~after
    assert code["apply_delta"](mask, delta)
    assert not code["apply_delta"](mask, delta)


@given(st.integers(0, 2**32 - 1), shapes(80), st.sampled_from(get_args(messages.DType)))
def test_the_documented_statistics_match_the_package(code: dict[str, Any], seed: int, shape: Index, dtype: str) -> None:
    random = np.random.default_rng(seed)
    volume = (random.integers(0, 100, shape) * (random.random(shape) < 0.3)).astype(dtype)
    if len(np.unique(volume)) < 3:
        return
    theirs, ours = code["statistics"](volume), image_source.statistics(volume)
    assert theirs == pytest.approx((ours.mean, ours.std), rel=1e-12)
