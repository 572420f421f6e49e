"""The trial of a GPU, with a tiny network on the CPU."""

import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from helpers.documents import ROOT
import pytest

from tools.gpu_trial import STEPS


def run_trial(output: Path, minutes: float) -> tuple[int, dict[str, Any]]:
    """Run the trial. Return its exit status, and its report by step."""
    command = [sys.executable, "-m", "tools.gpu_trial", str(output), "--network", "tiny", "--device", "cpu"]
    done = subprocess.run([*command, "--minutes", str(minutes)], cwd=ROOT, timeout=290, check=False)
    content = json.loads((output / "report.json").read_text())
    return done.returncode, {step["name"]: step for step in content["steps"]}


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


@pytest.mark.release
def test_a_cut_trial_reports_each_step(tmp_path: Path) -> None:
    status, steps = run_trial(tmp_path, 0.25)
    assert status == 1
    assert list(steps) == list(STEPS)
    assert steps["bench --part gpu"]["status"] == "timed out"
    assert steps["serve --compile"]["status"] == "no time"
    assert "serve --compile" in (tmp_path / "report.md").read_text()
