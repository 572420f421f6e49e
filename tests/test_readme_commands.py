"""The README's reference of the commands has every option, and none that is not there."""

from pathlib import Path
import re

import pytest
import typer

from nninteractive_ws.cli.main import COMMANDS, make_app

README = (Path(__file__).parents[1] / "README.md").read_text()
#: They have sections of their own.
ELSEWHERE = {"batch", "doctor"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_options_are_those_of_the_command(name: str) -> None:
    title = f"##+ {name.capitalize()}" if name in ELSEWHERE else f"### {name}"
    (section,) = re.findall(rf"^{title}\n(.*?)^##", README, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| (`-.*?) \|", section, re.MULTILINE)
    written = {option for row in rows for option in re.findall(r"`(-[\w-]+)`", row)}
    parameters = typer.main.get_command(make_app(name)).commands[name].params
    options = [p for p in parameters if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    assert written == {option for p in options for option in p.opts}
