"""The reference of the commands has exactly the existing options."""

import re

from helpers.documents import ROOT
import pytest

from nninteractive_ws.cli.main import COMMANDS
from tools.docs_hooks import command, command_reference

PAGE = (ROOT / "docs" / "reference" / "commands.md").read_text()


def option_names(name: str) -> set[str]:
    """Return the names of a command's options, with those of its subcommands."""
    of = command(name)
    below = getattr(of, "commands", {}).values()
    parameters = [p for c in (of, *below) for p in c.params]
    options = [p for p in parameters if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    return {option for p in options for option in (*p.opts, *p.secondary_opts)}


def section(name: str) -> str:
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_those_of_the_command(name: str) -> None:
    rows = re.findall(r"^\| (`-.*?) \|", command_reference(name), re.MULTILINE)
    written = {option for row in rows for option in re.findall(r"`(-[\w-]+)`", row)}
    assert written == option_names(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_describes_the_command_and_only_its_options(name: str) -> None:
    text = section(name)
    assert text.count(f"<!-- command {name} -->") == 1
    assert set(re.findall(r"`(--[\w-]+)", text)) <= option_names(name) | {"--server"}


def test_every_section_is_a_command() -> None:
    assert set(re.findall(r"^## ([a-z]\w*)$", PAGE, re.MULTILINE)) == set(COMMANDS)
