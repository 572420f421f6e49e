"""The codec and the handshake."""

import random
import tracemalloc
from typing import Any, get_args

from helpers.strategies import CLIENT_TYPES, SERVER_TYPES, client_messages, fields_of, plain, server_messages, values_of
from hypothesis import example, given
from hypothesis import strategies as st
import msgpack
import msgspec
import pytest

from nninteractive_ws import errors, messages, protocol
from nninteractive_ws.errors import BadMessage, TooLarge, UnsupportedVersion

POINT: dict[str, Any] = {"type": "add_point", "id": 1, "segment": "liver", "point": [1, 2, 3]}
BITS: dict[str, Any] = {"box": [[0, 1], [0, 1], [0, 1]], "runs": 1, "encoding": "raw", "data": bytes(4)}
IMAGE: dict[str, Any] = {
    "type": "set_image", "id": 1, "image": "ct", "shape": [4, 5, 6], "dtype": "int16", "mean": 0.5, "std": 2.0,
}  # fmt: skip


def decode(fields: object) -> messages.ClientMessage | None:
    return protocol.decode_client(msgpack.packb(fields))


# ---- round trips ------------------------------------------------------------------------------------------


@given(client_messages())
def test_a_client_message_round_trips(message: messages.Message) -> None:
    data = protocol.encode(message)
    assert protocol.decode_client(data) == message
    assert msgpack.unpackb(data) == plain(message)
    assert msgspec.msgpack.encode(message) == data


@given(server_messages())
def test_a_server_message_round_trips(message: messages.Message) -> None:
    data = protocol.encode(message)
    assert protocol.decode_server(data) == message
    assert msgpack.unpackb(data) == plain(message)
    assert msgspec.msgpack.encode(message) == data


@pytest.mark.parametrize("kind", CLIENT_TYPES + SERVER_TYPES)
def test_every_type_of_message_is_generated_and_decoded(kind: type[messages.Message]) -> None:
    @given(values_of(kind))
    def check(message: messages.Message) -> None:
        assert type(message) is kind
        decode = protocol.decode_client if kind in CLIENT_TYPES else protocol.decode_server
        assert decode(protocol.encode(message)) == message

    check()


@given(client_messages(), st.randoms(use_true_random=False))
def test_the_order_of_fields_and_unknown_fields_do_not_matter(
    message: messages.Message, shuffler: random.Random
) -> None:
    def stir(value: Any) -> Any:
        if isinstance(value, dict):
            pairs = [(k, stir(v)) for k, v in value.items()] + [("of a later version", [{"a": b""}, 1.5, None])]
            shuffler.shuffle(pairs)
            return dict(pairs)
        return [stir(v) for v in value] if isinstance(value, list) else value

    assert protocol.decode_client(msgpack.packb(stir(plain(message)))) == message


@given(client_messages() | server_messages())
def test_fields_left_out_have_their_defaults(message: messages.Message) -> None:
    fields = plain(message)
    defaults = {f.encode_name: f.default for f in msgspec.structs.fields(message) if not f.required}
    required = {name: value for name, value in fields.items() if name not in defaults}
    decode = protocol.decode_client if isinstance(message, messages.ClientMessage) else protocol.decode_server
    short = decode(msgpack.packb(required))
    assert short is not None
    for name in fields_of(type(message)):
        if name in required:
            assert getattr(short, name) == getattr(message, name)
        elif defaults[name] is not msgspec.NODEFAULT:
            assert getattr(short, name) == defaults[name]
        else:
            assert plain(getattr(short, name)) in ([], {}, plain(messages.Timings()))


def test_nil_does_not_mean_the_default() -> None:
    """Unless the field may be null."""
    assert decode({**POINT, "run": True}) == decode(POINT)
    with pytest.raises(BadMessage):
        decode({**POINT, "run": None})
    assert decode({"type": "cancel", "request": None}) == messages.Cancel()


@given(client_messages())
def test_a_message_without_a_required_field_is_invalid(message: messages.Message) -> None:
    fields = plain(message)
    for field in msgspec.structs.fields(message):
        if field.required:
            with pytest.raises(BadMessage, match=f"missing required field `{field.encode_name}`"):
                decode({k: v for k, v in fields.items() if k != field.encode_name})


def test_integers_serve_as_floats() -> None:
    message = decode(IMAGE | {"mean": 3, "std": 1})
    assert isinstance(message, messages.SetImage)
    assert (message.mean, message.std) == (3.0, 1.0)
    assert type(message.mean) is float


def test_a_message_of_an_unknown_type_is_none() -> None:
    assert decode({"type": "of_a_later_version", "id": 3}) is None
    # Each side accepts only the other's messages.
    assert decode(plain(messages.Done(id=1))) is None
    assert protocol.decode_server(protocol.encode(messages.Bye())) is None


# ---- invalid messages -------------------------------------------------------------------------------------


MASK: dict[str, Any] = {"type": "set_mask", "id": 1, "segment": "a", "mask": BITS}
BRICKS: dict[str, Any] = {"type": "image_bricks", "image": "ct", "bricks": []}
BRICK: dict[str, Any] = {"index": 0, "encoding": "raw", "data": b"", "layer": "whole", "low_bits": 0}
HELLO: dict[str, Any] = {"type": "hello", "version": 1, "encodings": ["raw"]}
RESTORE: dict[str, Any] = {"type": "restore", "id": 1, "segment": "a", "revision": 0}


@pytest.mark.parametrize("fields", [POINT, IMAGE, MASK, BRICKS | {"bricks": [BRICK] * 64}, HELLO, RESTORE])
def test_the_invalid_messages_have_one_wrong_field(fields: dict[str, Any]) -> None:
    assert plain(decode(fields)).items() >= fields.items()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (POINT | {"id": 0}, "id"),
        (POINT | {"id": 2**53 + 1}, "id"),
        (POINT | {"id": -1}, "id"),
        (POINT | {"id": True}, "id"),
        (POINT | {"id": "1"}, "id"),
        (POINT | {"id": 1.0}, "id"),
        (POINT | {"segment": ""}, "segment"),
        (POINT | {"segment": "x" * 257}, "segment"),
        (POINT | {"segment": b"liver"}, "segment"),
        (POINT | {"point": [1, 2]}, "point"),
        (POINT | {"point": [1, 2, 3, 4]}, "point"),
        (POINT | {"point": [1, 2, 2**31]}, "point[2]"),
        (POINT | {"point": [1, None, 3]}, "point[1]"),
        (POINT | {"point": {"0": 1}}, "point"),
        (POINT | {"positive": 1}, "positive"),
        (POINT | {"run": None}, "run"),
        (IMAGE | {"shape": [0, 5, 6]}, "shape[0]"),
        (IMAGE | {"shape": [4, 5, -6]}, "shape[2]"),
        (IMAGE | {"dtype": "float64"}, "dtype"),
        (IMAGE | {"dtype": "<i2"}, "dtype"),
        *((IMAGE | {"mean": mean}, "mean") for mean in (float("nan"), float("inf"), -float("inf"), 3.5e38, -3.5e38)),
        *((IMAGE | {"std": std}, "std") for std in (float("nan"), float("inf"), 0.0, -1.0, 1e-45, 3.5e38)),
        (MASK | {"mask": BITS | {"data": "AAAA"}}, "mask.data"),
        (MASK | {"mask": BITS | {"runs": 0}}, "mask.runs"),
        (MASK | {"mask": BITS | {"encoding": "pickle"}}, "mask.encoding"),
        (MASK | {"mask": None}, "mask"),
        (BRICKS, "bricks"),
        (BRICKS | {"bricks": [BRICK] * 65}, "bricks"),
        (BRICKS | {"bricks": [BRICK | {"index": -1}]}, "bricks[0].index"),
        (BRICKS | {"bricks": [BRICK | {"layer": "lower"}]}, "bricks[0].layer"),
        (BRICKS | {"bricks": [BRICK | {"low_bits": 32}]}, "bricks[0].low_bits"),
        (HELLO | {"encodings": ["x" * 65]}, "encodings[0]"),
        (HELLO | {"encodings": ["raw"] * 65}, "encodings"),
        (HELLO | {"version": "1"}, "version"),
        (RESTORE | {"steps": [{"request": {"type": "undo", "id": 1, "segment": "a"}}]}, "steps[0].request.type"),
        (RESTORE | {"undone": [{"change": None}]}, "undone[0]"),
    ],
)
def test_errors_of_invalid_fields_name_type_and_field(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadMessage) as raised:
        decode(fields)
    assert f'"{fields["type"]}"' in str(raised.value)
    assert f"`$.{path}`" in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81\xa4type",
        msgpack.packb({"type": "bye"}) + b"\0",
        msgpack.packb([1, 2]),
        msgpack.packb("bye"),
        msgpack.packb({}),
        msgpack.packb({"type": None}),
        msgpack.packb({"type": 3}),
        msgpack.packb({"type": b"bye"}),
        msgpack.packb({b"type": "bye"}),
        b"\x81\xa4type\xa3\xff\xfe\xfd",
        b"GET / HTTP/1.1\r\n\r\n",
        # A map and an array that claim 2^32 - 1 entries.
        b"\xdf\xff\xff\xff\xff\xa4type\xa3bye",
        b"\x82\xa4type\xa3bye\xa1x\xdd\xff\xff\xff\xff",
        b"\x82\xa4type\xa3bye\xa1x" + b"\x91" * 100_000 + b"\0",
    ],
)
def test_other_values_are_bad_messages(data: bytes) -> None:
    for decode in (protocol.decode_client, protocol.decode_server):
        with pytest.raises(BadMessage):
            decode(data)
    assert protocol.request_id(data) is None


def test_a_message_over_the_limit_is_too_large_and_not_read() -> None:
    start = protocol.encode(messages.Bye())
    for decode in (protocol.decode_client, protocol.decode_server):
        with pytest.raises(TooLarge, match="67,108,865 bytes"):
            decode(start + bytes(protocol.MAX_MESSAGE_BYTES + 1 - len(start)))


def test_a_message_at_the_limit_is_read() -> None:
    def sent(count: int) -> bytes:
        data = bytes(count)
        return protocol.encode(
            messages.ImageBricks(image="ct", bricks=[messages.Brick(index=0, encoding="raw", data=data)])
        )

    room = protocol.MAX_MESSAGE_BYTES - len(sent(2**17)) + 2**17
    data = sent(room)
    assert len(data) == protocol.MAX_MESSAGE_BYTES
    message = protocol.decode_client(data)
    assert isinstance(message, messages.ImageBricks)
    assert len(message.bricks[0].data) == room


@pytest.mark.parametrize("filler", [b"\x80", b"\x90", b"\xa0"])
@pytest.mark.parametrize("kind", [b"\xa3bye", b"\xa5later"])
def test_skipped_fields_take_no_memory(filler: bytes, kind: bytes) -> None:
    """As Python objects, a million empty maps would take 64 MB."""
    count = 2**20
    data = b"\x82\xa1x\xdd" + count.to_bytes(4, "big") + filler * count + b"\xa4type" + kind
    tracemalloc.start()
    try:
        protocol.decode_client(data)
        protocol.request_id(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def attempt(data: bytes) -> None:
    """Check that any bytes are a message, None, or an error of the protocol."""
    for decode, kinds in ((protocol.decode_client, CLIENT_TYPES), (protocol.decode_server, SERVER_TYPES)):
        try:
            message = decode(data)
        except (BadMessage, TooLarge) as e:
            answer = protocol.encode(protocol.to_error_message(e, None))
            message = None
        else:
            answer = protocol.encode(messages.Done(id=1))
        assert message is None or type(message) in kinds
        # Every error can be sent.
        assert protocol.decode_server(answer) is not None
    found = protocol.request_id(data)
    assert found is None or 1 <= found <= 2**53


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    attempt(data)


@given(client_messages() | server_messages(), st.data())
def test_mutated_messages(message: messages.Message, data: st.DataObject) -> None:
    packed = bytearray(protocol.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(packed) - 1)) if packed else 0
        what = data.draw(st.sampled_from(("flip", "cut", "insert", "remove")))
        if what == "flip" and packed:
            packed[at] ^= data.draw(st.integers(1, 255))
        elif what == "cut":
            del packed[at:]
        elif what == "insert":
            packed[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            del packed[at : at + 1]
    attempt(bytes(packed))


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**33), st.integers(0, 10**9 - 1)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner),
    max_leaves=8,
)


@given(VALUES)
def test_random_values(value: object) -> None:
    attempt(msgpack.packb(value))


@given(client_messages() | server_messages(), st.data())
@example(messages.Hello(version=1, encodings=[]), None)
def test_a_message_with_a_field_of_any_value(message: messages.Message, data: st.DataObject | None) -> None:
    fields = plain(message)
    names = sorted(fields)
    fields["version" if data is None else data.draw(st.sampled_from(names))] = 7 if data is None else data.draw(VALUES)
    attempt(msgpack.packb(fields))


# ---- requests and errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLIENT_TYPES)
def test_requests_are_the_clients_messages_with_a_required_id(kind: type[messages.Message]) -> None:
    has_id = any(f.name == "id" and f.required for f in msgspec.structs.fields(kind))
    assert (kind in get_args(messages.Request)) == has_id


@given(values_of(messages.RequestId), st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3))
def test_the_id_of_an_invalid_message_is_found(number: int, others: dict[str, Any]) -> None:
    others = {k: v for k, v in others.items() if not isinstance(v, int) or -(2**63) <= v < 2**64}
    assert protocol.request_id(msgpack.packb(others | {"type": "add_point", "id": number})) == number


@pytest.mark.parametrize("number", [0, -1, 2**53 + 1, 2**64 - 1, 1.0, "1", True, None, [1], {"id": 1}, b"1"])
def test_an_invalid_id_is_ignored(number: object) -> None:
    assert protocol.request_id(msgpack.packb({"type": "add_point", "id": number})) is None
    assert protocol.request_id(msgpack.packb({"type": "add_point"})) is None


@pytest.mark.parametrize("kind", errors.WIRE_ERRORS.values())
@pytest.mark.parametrize("request_id", [None, 5])
def test_an_error_arrives_as_it_was_raised(kind: type[errors.Error], request_id: int | None) -> None:
    sent = protocol.to_error_message(kind("A sentence."), request_id)
    arrived = protocol.decode_server(protocol.encode(sent))
    assert isinstance(arrived, messages.ErrorMessage)
    assert arrived.id == request_id
    error = errors.error_from_wire(arrived.code, arrived.message)
    assert type(error) is kind
    assert str(error) == "A sentence."


@pytest.mark.parametrize("kind", [errors.Error, errors.ServerError, errors.ConnectionFailed, errors.BadAddress])
def test_an_error_without_a_wire_code_becomes_internal(kind: type[errors.Error]) -> None:
    assert protocol.to_error_message(kind("x"), None).code == "internal"


@pytest.mark.parametrize("message", ["x" * 10_000, "file \udcff.nii", "", "é" * 5000])
def test_any_error_text_can_be_encoded(message: str) -> None:
    sent = protocol.to_error_message(errors.InternalError(message), 1)
    arrived = protocol.decode_server(protocol.encode(sent))
    assert isinstance(arrived, messages.ErrorMessage)
    assert arrived.message == message.replace("\udcff", "?")[:4096]


# ---- the handshake ----------------------------------------------------------------------------------------


def hello(version: int) -> messages.Hello:
    return messages.Hello(version=version, encodings=["raw"])


def test_the_same_version_is_accepted() -> None:
    protocol.check_version(hello(protocol.PROTOCOL_VERSION))


@pytest.mark.parametrize(("version", "to_update"), [(0, "client"), (-5, "client"), (2, "server"), (2**60, "server")])
def test_an_unsupported_version_error_names_the_side_to_update(version: int, to_update: str) -> None:
    with pytest.raises(UnsupportedVersion, match=f"version {version} .*server version 1. Update the {to_update} "):
        protocol.check_version(hello(version))


@pytest.mark.parametrize(
    ("theirs", "agreed"),
    [
        (["blosc2", "deflate", "raw"], "blosc2"),
        (["deflate", "raw"], "deflate"),
        (["raw", "blosc2"], "raw"),
        (["zstd-of-a-later-version", "deflate"], "deflate"),
    ],
)
def test_the_first_common_encoding_of_the_client_is_used(theirs: list[str], agreed: str) -> None:
    assert protocol.agree_on_encoding(theirs, ("blosc2", "deflate", "raw")) == agreed


@pytest.mark.parametrize("theirs", [[], ["zstd"], ["RAW"]])
def test_no_common_encoding_is_refused(theirs: list[str]) -> None:
    with pytest.raises(UnsupportedVersion, match="encodings"):
        protocol.agree_on_encoding(theirs, ("blosc2", "deflate", "raw"))
