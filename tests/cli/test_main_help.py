"""Help texts and shell completion."""

from functools import cache
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile

import pytest
import typer

from nninteractive_ws.cli.console import fail
from nninteractive_ws.cli.main import COMMANDS, requested_command

PROGRAM = Path(sys.executable).with_name("nninteractive-ws")


def run(*message: str, **environment: str) -> str:
    settings = {**os.environ, "COLUMNS": "80", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "nninteractive_ws", *message], capture_output=True, text=True, env=settings, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_help_lists_all_commands() -> None:
    output = run("--help")
    assert all(f" {name} " in output for name in COMMANDS)
    modules = {path.stem for path in (Path(__file__).parents[2] / "nninteractive_ws" / "cli").glob("*.py")}
    assert set(COMMANDS) <= modules


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_the_summary_of_the_list(name: str) -> None:
    output = " ".join(run(name, "--help").split())
    assert f"Usage: python -m nninteractive_ws {name}" in output
    assert COMMANDS[name] in output
    assert "--help" in output


def test_the_help_imports_few_modules() -> None:
    code = (
        "import sys; from nninteractive_ws.cli.main import make_app; make_app(None); "
        "print(sorted({'numpy', 'blosc2', 'asyncio', 'SimpleITK', 'torch', 'websockets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def complete(line: str) -> set[str]:
    """Return bash's completions of the last word of a line, with the script that --show-completion prints."""
    message = line.split(" ")
    script = (
        'source "$SCRIPT"; '
        f"COMP_WORDS=({' '.join(message)}); COMP_CWORD={len(message) - 1}; _nninteractive_ws_completion {PROGRAM}; "
        'echo "${COMPREPLY[@]}"'
    )
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(completion_script())
        file.flush()
        command, environment = ["bash", "-c", script], {**os.environ, "SCRIPT": file.name}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@cache
def completion_script() -> str:
    # Named explicitly, because the tests may not run in a shell.
    settings = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [PROGRAM, "--show-completion", "bash"], capture_output=True, text=True, check=True, env=settings, timeout=60
    )
    return shown.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("bash") is None or not PROGRAM.exists(), reason="needs bash, and the program installed"
)
def test_completing_commands_and_options() -> None:
    assert complete("nninteractive-ws ") == set(COMMANDS)
    assert complete("nninteractive-ws se") == {"serve", "segment"}
    assert {"--json", "--ca"} <= complete("nninteractive-ws doctor --")
    assert complete("nninteractive-ws models dow") == {"download"}


@pytest.mark.parametrize(
    ("arguments", "environment", "asked"),
    [
        ([], {}, None),
        (["--help"], {}, None),
        (["doctor", "gpu-box"], {}, "doctor"),
        ([], {"COMP_WORDS": "nninteractive-ws doctor --"}, "doctor"),
        ([], {"_TYPER_COMPLETE_ARGS": "nninteractive-ws"}, None),
    ],
)
def test_requested_command(arguments: list[str], environment: dict[str, str], asked: str | None) -> None:
    assert requested_command(arguments, environment) == asked


def test_errors_with_file_names_are_not_parsed_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        fail("The file [bold].nii.gz does not exist.")
    assert capsys.readouterr().err == "error: The file [bold].nii.gz does not exist.\n"
