"""The lock of an output folder."""

import errno
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading

import filelock
from helpers.batch import INSIDE, results, write_image
from helpers.end_to_end import wait_until
import pytest

import nninteractive_ws as nni
from nninteractive_ws.errors import BadOutput
from nninteractive_ws.jobs.lock import LOCK_NAME, lock_folder

HOLD = """
import sys
from pathlib import Path
from nninteractive_ws.jobs.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    sys.stdin.read()
"""


def refused(folder: Path) -> str:
    with pytest.raises(BadOutput) as raised, lock_folder(folder):
        pass
    return str(raised.value)


def test_the_lock_file_is_removed(tmp_path: Path) -> None:
    for _ in range(3):
        with lock_folder(tmp_path):
            assert [p.name for p in tmp_path.iterdir()] == [LOCK_NAME]
        assert list(tmp_path.iterdir()) == []


def test_a_second_batch_is_refused_with_the_process_id(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        assert refused(tmp_path) == (
            f"Another batch (process {os.getpid()}) is running in the folder {tmp_path}. Wait until it ends or "
            "stop it, or choose another output folder."
        )
        # Old versions of filelock truncate the file when they are refused, and then the process is no longer known.
        assert refused(tmp_path).startswith("Another batch")
        (tmp_path / "other").mkdir()
        with lock_folder(tmp_path / "other"):
            pass
    with lock_folder(tmp_path):
        pass


def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE) as process:
        wait_until(lambda: (tmp_path / LOCK_NAME).exists() and (tmp_path / LOCK_NAME).stat().st_size > 0)
        assert f"(process {process.pid})" in refused(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK_NAME).exists()
    with lock_folder(tmp_path):
        assert f"(process {os.getpid()})" in refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_thread_can_release_the_lock(tmp_path: Path) -> None:
    held = lock_folder(tmp_path)
    held.__enter__()
    thread = threading.Thread(target=held.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def acquire(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with caplog.at_level(logging.WARNING), lock_folder(tmp_path):
        pass
    assert f"The file system of {tmp_path} has no locks. Do not start a second batch" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def acquire(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    message = refused(tmp_path)
    assert message.startswith(f"The output folder {tmp_path} cannot be written or locked ({os.strerror(number)}).")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_rejects_new_files() -> None:
    assert "/proc/self cannot be written or locked" in refused(Path("/proc/self"))


def test_a_batch_in_a_locked_folder_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    rows = [{"image": tmp_path / "a.nrrd", "ijk": INSIDE}]
    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out"), pytest.raises(BadOutput, match="Another batch"):
        list(nni.batch(rows, tmp_path / "out", server="127.0.0.1:9"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == []
    with pytest.raises(nni.errors.ConnectionFailed):
        list(nni.batch(rows, tmp_path / "out", server="127.0.0.1:9"))
    assert results(tmp_path / "out") == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "results.csv"]
