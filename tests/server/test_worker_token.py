"""The file with which workers join."""

from pathlib import Path
import sys

import pytest

from nninteractive_ws.redaction import TOKEN_PREFIX
from nninteractive_ws.server.worker_token import BadWorkerToken, read_worker_token, serve_worker_token

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")


def test_the_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    token, certificate = serve_worker_token(path)
    assert token.startswith(TOKEN_PREFIX)
    assert serve_worker_token(path) == (token, certificate)
    found = read_worker_token(path)
    assert (found.token, found.der) == (token, certificate.der)
    assert serve_worker_token(tmp_path / "other")[0] != token
    certificate.server_context()


def test_workers_do_not_get_the_key(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    serve_worker_token(path)
    assert "PRIVATE KEY" not in path.read_text()
    assert "PRIVATE KEY" in (tmp_path / "workers.key").read_text()
    (tmp_path / "workers.key").unlink()
    read_worker_token(path)
    with pytest.raises(BadWorkerToken, match=r"workers\.key cannot be read"):
        serve_worker_token(path)


@posix
def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    serve_worker_token(tmp_path / "workers")
    for name in ("workers", "workers.key"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


@posix
@pytest.mark.parametrize("name", ["workers", "workers.key"])
def test_a_file_that_others_may_change_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "workers"
    serve_worker_token(path)
    (tmp_path / name).chmod(0o666)
    with pytest.raises(BadWorkerToken, match="chmod go-w"):
        serve_worker_token(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("token ", "tokens "),
        lambda text: text.replace("BEGIN CERTIFICATE", "BEGIN"),
        lambda text: "alice 0123\n",
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: object) -> None:
    path = tmp_path / "workers"
    serve_worker_token(path)
    assert callable(change)
    path.write_text(change(path.read_text()))
    with pytest.raises(BadWorkerToken, match="no worker token file"):
        read_worker_token(path)


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(BadWorkerToken, match="cannot be read"):
        read_worker_token(tmp_path / "missing")
    with pytest.raises(BadWorkerToken, match="cannot be written"):
        serve_worker_token(tmp_path / "no" / "folder")
