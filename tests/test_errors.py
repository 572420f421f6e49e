"""The tree of errors and their codes."""

import re

import pytest

from nninteractive_ws import errors

CODES = {
    "bad_message": errors.BadMessage,
    "unsupported_version": errors.UnsupportedVersion,
    "unauthorized": errors.Unauthorized,
    "forbidden_origin": errors.ForbiddenOrigin,
    "at_capacity": errors.AtCapacity,
    "too_large": errors.TooLarge,
    "bad_image": errors.BadImage,
    "no_image": errors.NoImage,
    "out_of_bounds": errors.OutOfBounds,
    "unsupported_prompt": errors.UnsupportedPrompt,
    "unknown_segment": errors.UnknownSegment,
    "nothing_to_undo": errors.NothingToUndo,
    "cancelled": errors.Cancelled,
    "out_of_memory": errors.OutOfMemory,
    "worker_lost": errors.WorkerLost,
    "shutting_down": errors.ShuttingDown,
    "internal": errors.InternalError,
}


def test_the_codes_on_the_wire_are_these_and_never_change() -> None:
    assert errors.WIRE_ERRORS == CODES


@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_an_error_is_recreated_from_code_and_message(code: str, kind: type[errors.Error]) -> None:
    error = errors.error_from_wire(code, "What happened.")
    assert type(error) is kind
    assert error.code == code
    assert str(error) == "What happened."


@pytest.mark.parametrize(
    "code", ["", "teapot", "connection_failed", "bad_address", "untrusted", "bad_mask", "BAD_MESSAGE"]
)
def test_a_code_without_a_wire_form_becomes_an_internal_error(code: str) -> None:
    error = errors.error_from_wire(code, "What happened.")
    assert type(error) is errors.InternalError
    assert str(error) == "What happened."


def test_the_tree_in_the_documentation_is_the_real_one() -> None:
    assert errors.__doc__ is not None
    branch = re.compile(r"^ {4}(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)\s*(?P<rest>.*)$")
    path: list[str] = []
    documented: dict[str, tuple[str, str]] = {}
    for line in errors.__doc__.splitlines():
        found = branch.match(line)
        if found is None:
            continue
        depth = len(found["indent"]) // 4
        path[depth:] = [found["name"]]
        documented[found["name"]] = (path[depth - 1] if depth else "Exception", found["rest"])
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in vars(errors).values() if isinstance(kind, type)}
    assert {name: parent for name, (parent, _) in documented.items()} == real
    for code, kind in CODES.items():
        assert documented[kind.__name__][1] == code


def test_every_error_has_a_docstring() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type):
            assert kind.__doc__, kind
            assert issubclass(kind, errors.Error)
