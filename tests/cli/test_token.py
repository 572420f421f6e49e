"""``nninteractive-ws token``, run as a process on a token file."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from nninteractive_ws.server.access import TokenFile, add_user


def run(*message: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nninteractive_ws", "token", *map(str, message)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


@pytest.mark.slow
def test_a_token_is_added_listed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    made = run("alice", "--file", file)
    assert made.returncode == 0, made.stderr
    (token,) = made.stdout.splitlines()
    assert token.startswith("nws_")
    assert token not in made.stderr
    assert "NNINTERACTIVE_WS_TOKEN" in made.stderr
    assert "shown only once" in made.stderr
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


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_writable_token_file_causes_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    assert "warning" not in run("alice", "--file", file).stderr
    file.chmod(0o666)
    for message in (["bob"], ["bob", "--remove"], ["--list"]):
        done = run(*message, "--file", file)
        assert done.returncode == 0
        assert f"chmod go-w {file}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (["bob"], "bob already has a token in tokens"),
        (["a b"], '"a b" cannot be a user name'),
        (["[red]x y"], '"[red]x y" cannot be a user name'),
        (["carla", "--remove"], "There is no user carla in tokens"),
        (["--list", "--file", "nothing"], "The token file nothing cannot be read (No such file or directory)"),
        (["bob", "--file", "nowhere/tokens"], "The folder nowhere does not exist"),
    ],
)
def test_errors_are_reported(tmp_path: Path, message: list[str], expected: str) -> None:
    add_user(tmp_path / "tokens", "bob")
    before = (tmp_path / "tokens").read_text()
    done = run("--file", "tokens", *message, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "tokens").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("message", [[], ["alice", "--list"], ["--remove"], ["--list", "--remove"]])
def test_usage_errors_are_refused(tmp_path: Path, message: list[str]) -> None:
    done = run("--file", "tokens", *message, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr
    assert list(tmp_path.iterdir()) == []
