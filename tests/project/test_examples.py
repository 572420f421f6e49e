"""The examples, run as users start them, against a real server."""

import csv
from pathlib import Path
import re
import subprocess
import sys
from typing import Any

from nbclient import NotebookClient
import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ADDRESS = "ws://127.0.0.1:1528"


def run(script: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_live_previews_and_the_result_are_printed(server: str, tmp_path: Path) -> None:
    output = run("live_preview.py", server, cwd=tmp_path)
    assert re.search(r"preview +liver: [1-9]", output)
    assert re.search(r"\n[1-9][\d,]* voxels; sent", output)


@pytest.mark.slow
def test_two_segments_are_prompted_at_once(server: str, tmp_path: Path) -> None:
    output = run("two_at_once.py", server, cwd=tmp_path)
    assert {"right kidney", "left kidney"} == set(re.findall(r"^(.+): [1-9][\d,]* voxels after", output, re.MULTILINE))


@pytest.mark.slow
def test_a_timer_loop_receives_its_mask(server: str, tmp_path: Path) -> None:
    output = run("timer_loop.py", server, cwd=tmp_path)
    assert output.startswith("connected\n")
    assert re.search(r"^(preview|result): [1-9]", output, re.MULTILINE)


@pytest.mark.slow
def test_many_volumes_are_segmented_once(server: str, tmp_path: Path) -> None:
    run("many_volumes.py", server, tmp_path / "x", cwd=tmp_path)
    with (tmp_path / "x" / "segmented" / "results.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 4
    assert all(int(row["voxels"]) > 0 for row in rows)
    assert run("many_volumes.py", server, tmp_path / "x", cwd=tmp_path).count("(earlier)") == 4


def run_notebook(name: str, server: str, folder: Path) -> list[dict[str, Any]]:
    """Run a notebook, and return its outputs."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(ADDRESS in cell.source for cell in code) == 1
    for cell in code:
        cell.source = cell.source.replace(ADDRESS, server)
        cell.outputs = []
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in code for output in cell.outputs]


# The kernel's own packages cause warnings.
@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_the_first_steps_run(server: str, tmp_path: Path) -> None:
    outputs = run_notebook("first_steps.ipynb", server, tmp_path)
    text = "".join(output.get("text", "") for output in outputs)
    assert "previews: 0" not in text
    assert text.count("the same mask: True") == 2
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_the_interactive_view_is_shown(server: str, tmp_path: Path) -> None:
    pytest.importorskip("ipyniivue", reason="the extra notebook is not installed")
    outputs = run_notebook("interactive_view.ipynb", server, tmp_path)
    data = [output.get("data", {}) for output in outputs]
    assert sum("application/vnd.jupyter.widget-view+json" in one for one in data) == 1
    assert any(re.search(r"'left kidney': '[1-9]\d*\.\d ml'", one.get("text/plain", "")) for one in data)


def test_every_example_is_listed() -> None:
    listed = set(re.findall(r"\]\((\S+?)\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb")}
