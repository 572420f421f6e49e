"""The trial of a GPU, with a tiny network on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any
import venv

from helpers.documents import ROOT
from helpers.end_to_end import wait_until
import numpy as np
import psutil
import pytest
import torch

from nninteractive_ws.engine.memory import MemoryPool, SessionAccount
from nninteractive_ws.errors import OutOfMemory
from tools import gpu_trial
from tools.gpu_trial import MINUTES, STEPS, Outcome, Trial

COMMAND = [sys.executable, "-m", "tools.gpu_trial"]
TINY = ["--network", "tiny", "--device", "cpu"]
#: An interpreter that prints a row and something else, and stops until the file "go" exists.
PRINTS_A_ROW = """
echo '["a case", "a quantity", 1.5]'
echo 'a library warns'
while [ ! -e go ]; do sleep 0.05; done
echo '["a case", "another quan'
"""
#: An interpreter that crashes, and leaves a process in a process group of its own, as servers do with workers.
LEAVES_A_PROCESS = """
set -m
sleep 600 >/dev/null 2>&1 &
echo $! > pid
exit 3
"""


def read_report(output: Path) -> dict[str, Any]:
    """Return the steps of a report by name."""
    return {step["name"]: step for step in json.loads((output / "report.json").read_text())["steps"]}


def run_trial(output: Path, minutes: float) -> tuple[int, dict[str, Any]]:
    """Run the trial. Return its exit status, and its report by step."""
    command = [*COMMAND, str(output), *TINY, "--minutes", str(minutes)]
    done = subprocess.run(command, cwd=ROOT, timeout=290, check=False)
    return done.returncode, read_report(output)


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """A trial in the working folder, whose only step is "a session"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_trial, "STEPS", {"a session": STEPS["a session"]})
    return Trial(tmp_path, tmp_path, "cpu", "tiny")


@pytest.fixture
def use_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes a shell script the interpreter of the steps."""

    def use(script: str) -> None:
        interpreter = tmp_path / "python"
        interpreter.write_text(f"#!/bin/sh\n{script}")
        interpreter.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(interpreter))

    return use


def run_step(trial: Trial, limit_s: float) -> Outcome:
    outcome = Outcome("a session", "running")
    gpu_trial.run_step(outcome, trial, limit_s, lambda: None)
    return outcome


def test_the_limits_of_the_steps_fit_into_the_default_time() -> None:
    preparation_s = 40
    assert sum(limit_s for _, limit_s in STEPS.values()) + preparation_s <= 60 * MINUTES


def test_rows_are_in_the_report_while_their_step_runs(
    trial: Trial, use_interpreter: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_interpreter(PRINTS_A_ROW)
    write, reports = gpu_trial.write_report, []

    def write_report(*arguments: Any) -> None:
        write(*arguments)
        reports.append(read_report(trial.output)["a session"])
        if reports[-1]["rows"]:
            assert "a quantity" in (trial.output / "report.md").read_text()
            (trial.output / "go").touch()

    monkeypatch.setattr(gpu_trial, "write_report", write_report)
    gpu_trial._run_steps(trial, time.monotonic() + 60)
    row = ["a case", "a quantity", 1.5]
    assert [(report["status"], report["rows"]) for report in reports[:2]] == [("running", []), ("running", [row])]
    assert (reports[-1]["status"], reports[-1]["rows"]) == ("ok", [row])
    assert reports[-1]["notes"] == ["a library warns", '["a case", "another quan']
    assert "a library warns" in (trial.output / "report.md").read_text()


def test_a_step_that_crashes_leaves_no_process(trial: Trial, use_interpreter: Callable[[str], None]) -> None:
    use_interpreter(LEAVES_A_PROCESS)
    assert run_step(trial, 60.0).status == "failed"
    assert not is_running(int(Path("pid").read_text()))


def test_torch_compiles_in_a_folder_without_spaces(trial: Trial, use_interpreter: Callable[[str], None]) -> None:
    """torch.compile passes its paths to a compiler in one string."""
    use_interpreter("""printf '["", "folder", "%s"]\\n' "$TORCHINDUCTOR_CACHE_DIR" """)
    ((_, _, folder),) = run_step(trial, 60.0).rows
    assert Path(str(folder)).is_relative_to(trial.work)
    assert " " not in str(folder)


def test_a_step_ends_at_its_limit(trial: Trial, use_interpreter: Callable[[str], None]) -> None:
    use_interpreter("sleep 600")
    assert run_step(trial, 0.5).status == "timed out"
    assert "600" not in {word for child in psutil.Process().children(recursive=True) for word in child.cmdline()}


def test_a_cut_trial_reports_each_step(
    trial: Trial, use_interpreter: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_interpreter("sleep 600")
    monkeypatch.setattr(gpu_trial, "STEPS", STEPS)
    monkeypatch.setattr(gpu_trial, "_MIN_STEP_S", 0.5)
    gpu_trial._run_steps(trial, time.monotonic() + 1.0)
    first, *others = STEPS
    statuses = {name: step["status"] for name, step in read_report(trial.output).items()}
    assert statuses == {first: "timed out"} | dict.fromkeys(others, "no time")
    assert "| serve --compile | no time | 0 |" in (trial.output / "report.md").read_text()


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def bare_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An interpreter without any package."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    venv.create(tmp_path / "bare", symlinks=True)
    return str(tmp_path / "bare" / "bin" / "python")


def test_a_missing_package_is_named(tmp_path: Path, bare_interpreter: str) -> None:
    command = [bare_interpreter, *COMMAND[1:], str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("The trial cannot start (No module named 'numpy'). Install the project as described")


def test_a_project_that_only_the_working_folder_has_is_not_enough(
    bare_interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", bare_interpreter)
    with pytest.raises(SystemExit, match=r"No module named 'nninteractive_ws'.* Install the project for .*gpu_trial"):
        gpu_trial.check_installation()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_network_of_the_official_size_needs_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_trial, "check_installation", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu_trial", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        gpu_trial.main()
    assert "finds no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class FakeSession:
    """A session that has each image at once, and is out of memory while ``limited``.

    Its prompts never give the same mask twice, as on a GPU.
    """

    limited = False
    _results = itertools.count()

    def __init__(self) -> None:
        self._segments: dict[str, Any] = {}
        self._callbacks: dict[str, Callable[[Any], None]] = {}

    def __enter__(self) -> "FakeSession":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def on(self, event: str, callback: Callable[[Any], None]) -> None:
        self._callbacks[event] = callback

    def set_image(self, image: object) -> None:
        self._check_memory()
        if "image_progress" in self._callbacks:
            self._callbacks["image_progress"](SimpleNamespace(present=1, total=1))

    def segment(self, name: str) -> Any:
        segment = SimpleNamespace(mask=np.zeros(64, bool), reset=lambda: None, session=self)
        return self._segments.setdefault(name, segment)

    def _check_memory(self) -> None:
        if FakeSession.limited:
            raise OutOfMemory("The device has no memory left.")

    @staticmethod
    def send(segment: Any) -> Any:
        segment.session._check_memory()
        segment.mask[next(FakeSession._results)] = True
        return SimpleNamespace(timings=SimpleNamespace(network=0.1, passes=1, total=0.2))


@contextmanager
def limited_memory(*_: object) -> Iterator[None]:
    FakeSession.limited = True
    try:
        yield
    finally:
        FakeSession.limited = False


def test_masks_that_do_not_repeat_themselves_pass_the_step_out_of_memory(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = SimpleNamespace(send=FakeSession.send)
    workload = SimpleNamespace(volume=None, prompts={("point", True): prompt, ("scribble", True): prompt})
    monkeypatch.setattr(Trial, "workload", lambda _: workload)
    monkeypatch.setattr(Trial, "server", lambda *_: nullcontext())
    monkeypatch.setattr(gpu_trial, "_connected", lambda _: FakeSession())
    monkeypatch.setattr(gpu_trial, "_oversized_image", lambda _: None)
    monkeypatch.setattr(gpu_trial, "_limited_memory", limited_memory)
    monkeypatch.setattr(gpu_trial, "_is_gpu", lambda _: True)
    rows = {(case, quantity): value for case, quantity, value in gpu_trial.out_of_memory(trial)}
    assert rows["a prompt meanwhile", "outcome"] == "out_of_memory"
    assert rows["a prompt meanwhile", "leaves its segment unchanged"] is True
    assert rows["afterwards", "differing voxels"] > 0
    assert rows["afterwards / before", "a pass"] == pytest.approx(1)
    assert not any(value is False for value in rows.values())


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu",)])
def test_the_memory_of_the_host_tells_where_the_image_is(devices: tuple[str, ...]) -> None:
    pools = [MemoryPool(torch.device(name), 2**30, lambda *_: False) for name in devices]
    location = SessionAccount(pools).reserve_image((64, 64, 64), 7)
    charged = pools[-1].used_by_purpose()["image"]
    assert gpu_trial._is_on_host(charged, 64**3) == (location.type == "cpu")


@pytest.mark.release
def test_every_step_of_the_trial_succeeds(tmp_path: Path) -> None:
    status, steps = run_trial(tmp_path, 4.5)
    assert {name: step["status"] for name, step in steps.items()} == dict.fromkeys(STEPS, "ok"), steps
    assert status == 0
    checks = {
        (name, case, check) for name, step in steps.items() for case, check, value in step["rows"] if value is True
    }
    assert ("a session", "large box", "has previews") in checks
    assert ("out of memory", "an oversized image", "is refused as out_of_memory") in checks
    assert ("out of memory", "afterwards", "equals the undisturbed mask") in checks
    assert ("a lost worker", "embedded, after prompt 3", "equals the undisturbed mask") in checks
    text = (tmp_path / "report.md").read_text()
    assert "## GPU, image on the device" in text
    assert "| without / with | a pass |" in text
    assert "| afterwards / before | a pass |" in text


@pytest.mark.release
def test_a_killed_trial_leaves_its_rows_and_no_process(tmp_path: Path) -> None:
    output = tmp_path / "out"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # it cannot delete its folder

    def has_rows() -> bool:
        return (output / "report.json").exists() and bool(read_report(output)["bench --part gpu"]["rows"])

    with subprocess.Popen([*COMMAND, str(output), *TINY], cwd=ROOT, env=environment) as trial:
        wait_until(has_rows)
        (step,) = psutil.Process(trial.pid).children()
        assert list(gpu_trial._others_in_session(step.pid))
        trial.kill()
    wait_until(lambda: not list(gpu_trial._others_in_session(step.pid)), 30)
    assert read_report(output)["bench --part gpu"]["status"] == "running"
    assert "official / ours" in (output / "report.md").read_text()
    assert json.loads((output / "bench.json").read_text())["records"]
