"""Hypothesis strategies for messages of every type, volumes, masks and boxes, and messages as plain values."""

from collections.abc import Mapping
import math
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import msgspec
import numpy as np
import numpy.typing as npt

from nninteractive_ws import messages
from nninteractive_ws.geometry import Box, Index

CLIENT_TYPES: tuple[type[messages.Message], ...] = get_args(messages.ClientMessage)
SERVER_TYPES: tuple[type[messages.Message], ...] = get_args(messages.ServerMessage)
PARTS: tuple[type[messages.Struct], ...] = (
    messages.RunLengthMask,
    messages.Brick,
    messages.Step,
    messages.Timings,
    messages.Model,
    messages.Limits,
    messages.FreeMemory,
)


def fields_of(kind: type) -> dict[str, Any]:
    """Return the annotations of a struct's fields, with their bounds."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}  # type: ignore[attr-defined]


def _bounds(meta: msgspec.Meta) -> dict[str, Any]:
    names = ("ge", "le", "min_length", "max_length")
    return {n: getattr(meta, n) for n in names if getattr(meta, n) is not None}


def values_of(annotation: Any, bounds: Mapping[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """Valid values of a field, small ones and those at its bounds."""
    bounds = bounds or {}
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(args[0], _bounds(args[1]))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.tuples(*map(values_of, args))
    if origin is list:
        return st.lists(values_of(args[0]), min_size=bounds.get("min_length", 0), max_size=3)
    if origin is dict:
        return st.dictionaries(values_of(args[0]), values_of(args[1]), max_size=3)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, args))
    if annotation is types.NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low, high = bounds.get("ge", -(2**63)), bounds.get("le", 2**64 - 1)
        near = st.integers(max(low, -100), min(high, 100))
        return near | st.integers(low, high) | st.sampled_from((low, high))
    if annotation is float:
        return st.floats(bounds.get("ge"), bounds.get("le"), allow_nan=False)
    if annotation is str:
        long = "x" * bounds.get("max_length", 5000)
        return st.text(min_size=bounds.get("min_length", 0), max_size=12) | st.just(long)
    if annotation is bytes:
        return st.binary(max_size=40)
    assert issubclass(annotation, msgspec.Struct), annotation
    return st.builds(annotation, **{name: values_of(field) for name, field in fields_of(annotation).items()})


def client_messages() -> st.SearchStrategy[messages.Message]:
    return st.one_of(*map(values_of, CLIENT_TYPES))


def server_messages() -> st.SearchStrategy[messages.Message]:
    return st.one_of(*map(values_of, SERVER_TYPES))


def plain(value: Any) -> Any:
    """Return a message as maps, arrays, strings and numbers, as a program without this package decodes it."""
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        named = {} if tag is None else {"type": tag}
        return named | {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


# ---- volumes and masks ------------------------------------------------------------------------------------


def shapes(largest: int = 9) -> st.SearchStrategy[Index]:
    side = st.integers(1, largest)
    return st.tuples(side, side, side)


@st.composite
def boxes(draw: st.DrawFn, shape: Index) -> Box:
    """Boxes inside a volume, often at its borders and often one voxel thick."""
    pairs = []
    for n in shape:
        a = draw(st.integers(0, n - 1))
        pairs.append((a, draw(st.integers(a + 1, n))))
    return Box.from_pairs(pairs)


@st.composite
def masks_of(draw: st.DrawFn, shape: Index) -> npt.NDArray[np.bool_]:
    """Masks of a shape: empty, full, one voxel, one box, or noise of any density, in any memory order."""
    kind = draw(st.sampled_from(("empty", "full", "voxel", "box", "noise", "any")))
    mask = np.zeros(shape, bool)
    if kind == "full":
        mask[:] = True
    elif kind == "voxel":
        mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
    elif kind == "box":
        mask[draw(boxes(shape)).slices] = True
    elif kind == "noise":
        seed, density = draw(st.integers(0, 2**32 - 1)), draw(st.floats(0, 1))
        mask = np.random.default_rng(seed).random(shape) < density
    elif kind == "any" and math.prod(shape) < 200:
        mask = draw(hnp.arrays(bool, shape))
    return np.asfortranarray(mask) if draw(st.booleans()) else np.ascontiguousarray(mask)


@st.composite
def same_shape_masks(draw: st.DrawFn, count: int) -> list[npt.NDArray[np.bool_]]:
    shape = draw(shapes())
    return [draw(masks_of(shape)) for _ in range(count)]
