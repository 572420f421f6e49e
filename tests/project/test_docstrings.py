"""Docstrings of the public API: numpy style, complete, and with examples that run."""

import asyncio
from dataclasses import fields, is_dataclass
import doctest
import inspect
from pathlib import Path
import re

import numpy as np
from numpydoc.validate import validate
import pytest

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom

ADDRESS = "ws://127.0.0.1:1528"

#: numpydoc's checks that hold for every public object: a summary that begins with a capital and ends with a period
#: (SS), sections in order (GL), all parameters documented, in order and under their names (PR), and results (RT).
CHECKS = {
    "GL03", "GL05", "GL06", "GL07", "GL08", "SS01", "SS02", "SS03", "SS04", "SS06", "PR01", "PR02", "PR03", "PR06",
    "PR07", "PR10", "RT01", "RT03",
}  # fmt: skip


#: Created by connect, aconnect and their methods. Users do not call the constructor.
MADE_BY_METHODS = {"Session", "Segment", "AsyncSession", "AsyncSegment", "PolledSegment"}
#: A form of another method, whose docstring is complete.
REFERENCE = re.compile(r"See ``(Session|Segment)\.(\w+)``\.")


def public_classes_and_functions() -> dict[str, object]:
    found = {name: getattr(nni, name) for name in nni.__all__}
    modules = {nni.events, nni.errors}
    classes = {name: value for module in modules for name, value in vars(module).items() if inspect.isclass(value)}
    of_modules = {name: value for name, value in classes.items() if value.__module__ in {m.__name__ for m in modules}}
    return {name: value for name, value in {**found, **of_modules}.items() if not inspect.ismodule(value)}


def public_objects() -> dict[str, object]:
    """Classes and functions, and the documented members of the classes, by qualified name."""
    found = {}
    for name, value in public_classes_and_functions().items():
        place = f"{value.__module__}.{name}"
        found[place] = value
        for member, of_class in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and (callable(of_class) or isinstance(of_class, property | classmethod)):
                found[f"{place}.{member}"] = getattr(value, member)
    return found


OBJECTS = public_objects()


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_a_docstring_is_complete(name: str) -> None:
    text = inspect.getdoc(OBJECTS[name]) or ""
    if (reference := REFERENCE.search(text)) is not None:
        complete = inspect.getdoc(getattr(getattr(nni, reference[1]), reference[2]))
        assert "Raises" in str(complete) or "Returns" in str(complete)
        return
    left_out = set()
    if name.rpartition(".")[2] in MADE_BY_METHODS or is_dataclass(OBJECTS[name]):
        left_out = {"PR01"}
    errors = [(code, sentence) for code, sentence in validate(name)["errors"] if code in CHECKS - left_out]
    assert errors == []


@pytest.mark.parametrize("name", sorted(name for name, value in OBJECTS.items() if is_dataclass(value)))
def test_every_field_is_documented(name: str) -> None:
    text = inspect.getdoc(OBJECTS[name]) or ""
    for field in fields(OBJECTS[name]):  # type: ignore[arg-type]
        if not field.name.startswith("_"):
            assert re.search(rf"^(\w+, )*{field.name}(, \w+)* : ", text, re.MULTILINE), field.name


class Examples(doctest.DocTestParser):
    """Examples of the docstrings, with the address of a server of the test."""

    def __init__(self, server: str) -> None:
        self._server = server

    def parse(self, string: str, name: str = "<string>") -> list[str | doctest.Example]:
        return super().parse(string.replace(ADDRESS, self._server), name)


@pytest.mark.slow
def test_the_examples_run(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    volume = make_phantom(seed=1).image
    finder = doctest.DocTestFinder(parser=Examples(server), recurse=False)
    runner = doctest.DocTestRunner()
    with nni.connect(server) as session:
        session.set_image(volume)
        names = {"nni": nni, "np": np, "asyncio": asyncio, "volume": volume}
        in_source_order = sorted(OBJECTS, key=lambda name: (name.count("."), line_of(OBJECTS[name])))
        for name in in_source_order:
            for test in finder.find(OBJECTS[name], name, globs={**names, "session": session}):
                runner.run(test)
    assert runner.summarize(verbose=False).attempted > 20
    assert runner.summarize(verbose=False).failed == 0


def line_of(value: object) -> int:
    target = value.fget if isinstance(value, property) else value
    return inspect.getsourcelines(target)[1]  # type: ignore[arg-type]
