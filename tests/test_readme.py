"""The README's Python blocks run, and its commands exist."""

from pathlib import Path
import re
import shlex
import subprocess
import sys

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
ADDRESS = "ws://127.0.0.1:1528"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_block_runs(code: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ADDRESS in code
    monkeypatch.chdir(tmp_path)  # for the files it writes
    exec(compile(code.replace(ADDRESS, server), "README.md", "exec"), {"__name__": "readme"})


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).replace("&&", "\n").splitlines()
    return [line.strip() for line in lines if "nninteractive-ws " in line]


@pytest.mark.parametrize("command", commands())
def test_the_options_of_a_command_exist(command: str) -> None:
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.endswith("nninteractive-ws"))
    subcommands = [w for w in words[at + 1 : at + 3] if re.fullmatch(r"[a-z]+", w)]
    program = [sys.executable, "-m", "nninteractive_ws", *subcommands, "--help"]
    helped = subprocess.run(program, capture_output=True, text=True, check=True)
    for option in (w for w in words[at + 1 :] if w.startswith("-")):
        assert re.search(rf"(^|\s){re.escape(option)}\b", helped.stdout), f"{option} is not an option of {subcommands}"


def test_pictures_and_links_lead_somewhere() -> None:
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert targets
    assert [t for t in targets if not (root / t).exists()] == []
