"""``nninteractive-ws token`` as an administrator runs it: as a process, on a file."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from nninteractive_ws.server.access import TokenFile, add_user


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nninteractive_ws", "token", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def test_a_user_from_the_first_day_to_the_last(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    made = run("alice", "--file", file)
    assert made.returncode == 0, made.stderr
    (token,) = made.stdout.splitlines()
    assert token.startswith("nws_")
    assert token not in made.stderr
    assert "NNINTERACTIVE_WS_TOKEN" in made.stderr
    assert "this once" in made.stderr
    known = TokenFile(file)
    assert known.user_of(token) == "alice"

    assert run("bob", "--file", file).returncode == 0
    listed = run("--list", "--file", file)
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "alice\nbob\n", "")

    removed = run("alice", "--remove", "--file", file)
    assert (removed.returncode, removed.stdout) == (0, "")
    assert "alice can no longer connect" in removed.stderr
    assert known.user_of(token) is None
    assert run("--list", "--file", file).stdout == "bob\n"


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_file_that_others_may_write_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    assert "warning" not in run("alice", "--file", file).stderr
    file.chmod(0o666)
    for words in (["bob"], ["bob", "--remove"], ["--list"]):
        done = run(*words, "--file", file)
        assert done.returncode == 0
        assert f"chmod go-w {file}" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bob"], "bob has a token in tokens already"),
        (["a b"], '"a b" cannot be a name'),
        (["[red]x y"], '"[red]x y" cannot be a name'),
        (["carla", "--remove"], "There is no carla in tokens"),
        (["--list", "--file", "nothing"], "The token file nothing cannot be read (No such file or directory)"),
        (["bob", "--file", "nowhere/tokens"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, words: list[str], said: str) -> None:
    add_user(tmp_path / "tokens", "bob")
    before = (tmp_path / "tokens").read_text()
    done = run("--file", "tokens", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "tokens").read_text() == before


@pytest.mark.parametrize("words", [[], ["alice", "--list"], ["--remove"], ["--list", "--remove"]])
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: list[str]) -> None:
    done = run("--file", "tokens", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr
    assert list(tmp_path.iterdir()) == []
