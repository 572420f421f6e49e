"""The file with which workers join."""

from pathlib import Path
import sys

import pytest

from nninteractive_ws.redaction import TOKEN_PREFIX
from nninteractive_ws.server.worker_token import BadWorkerToken, create_worker_token, read_worker_token

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")


def test_the_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    made = create_worker_token(path)
    assert made.token.startswith(TOKEN_PREFIX)
    assert create_worker_token(path) == made == read_worker_token(path)
    assert create_worker_token(tmp_path / "other").token != made.token
    made.certificate.server_context()


@posix
def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    create_worker_token(tmp_path / "workers")
    assert (tmp_path / "workers").stat().st_mode & 0o077 == 0


@posix
def test_a_file_that_others_may_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    create_worker_token(path)
    path.chmod(0o666)
    with pytest.raises(BadWorkerToken, match="chmod go-w"):
        create_worker_token(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("token ", "tokens "),
        lambda text: text.replace("BEGIN CERTIFICATE", "BEGIN"),
        lambda text: text.partition("-----BEGIN PRIVATE")[0],
        lambda text: "alice 0123\n",
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: object) -> None:
    path = tmp_path / "workers"
    create_worker_token(path)
    assert callable(change)
    path.write_text(change(path.read_text()))
    with pytest.raises(BadWorkerToken, match="no worker token file"):
        read_worker_token(path)


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(BadWorkerToken, match="cannot be read"):
        read_worker_token(tmp_path / "missing")
    with pytest.raises(BadWorkerToken, match="cannot be written"):
        create_worker_token(tmp_path / "no" / "folder")
