"""report.html of real batches: written, resumed, interrupted, and in folders without write access."""

from base64 import b64decode
from collections.abc import Iterator
import io
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import tempfile
import threading

from helpers.batch import INSIDE, results, write_image
from helpers.end_to_end import wait_until
from helpers.fast_server import QuickServer, quick_server
import numpy as np
from PIL import Image
import pytest

import nninteractive_ws as nni
from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.jobs import pipeline

Rows = list[dict[str, object]]


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server("--max-sessions", "3") as server:
        yield server


def pictures(folder: Path) -> dict[str, bytes]:
    """Return the pictures of the report by their descriptions."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    found = re.findall(r'<img src="data:image/webp;base64,([^"]+)"[^>]* alt="([^"]+)">', html)
    return {description: b64decode(data) for data, description in found}


def names(folder: Path) -> list[str]:
    """Segment and image of each picture."""
    return sorted(re.sub(r"Outline of (.+), axial slice.*", r"\1", description) for description in pictures(folder))


def rows_of(folder: Path, count: int) -> Rows:
    for n in range(count):
        write_image(folder / f"{n}.nrrd", n)
    return [{"image": str(folder / f"{n}.nrrd"), "segment": "liver", "ijk": INSIDE} for n in range(count)]


def test_the_function_writes_a_picture_of_every_segment(quick: QuickServer, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 2)
    rows.append({**rows[0], "segment": "spine", "ijk": (20, 26, 15)})
    rows.append({"image": "missing.nrrd", "segment": "liver", "ijk": INSIDE})
    list(nni.batch(rows, tmp_path / "out", server=quick.address))
    assert names(tmp_path / "out") == [
        f"{s} in {tmp_path}/{n}.nrrd" for s, n in (("liver", 0), ("liver", 1), ("spine", 0))
    ]
    for data in pictures(tmp_path / "out").values():
        with Image.open(io.BytesIO(data)) as image:
            rgb = np.asarray(image.convert("RGB")).astype(int)
        assert (np.ptp(rgb, axis=2) > 60).sum() > 50  # an outline in color
        assert np.ptp(rgb[..., 0]) > 100
    assert "missing.nrrd does not exist" in (tmp_path / "out" / "report.html").read_text()


def test_a_resumed_batch_shows_the_volumes_of_earlier_runs(quick: QuickServer, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 3)
    out = tmp_path / "out"
    list(nni.batch(rows[:2], out, server=quick.address))
    first = pictures(out)
    list(nni.batch(rows, out, server=quick.address))
    assert len(pictures(out)) == 3
    assert first.items() <= pictures(out).items()
    # Nothing is left to do, so no server is needed. A lost report is written again.
    (out / "report.html").unlink()
    list(nni.batch(rows, out, server="127.0.0.1:9"))
    assert len(pictures(out)) == 3
    # Other rows get other pictures. Pictures of other images are kept with their results, except replaced ones.
    rows[0]["ijk"] = (20, 26, 15)
    list(nni.batch(rows[:1], out, server=quick.address))
    assert names(out) == [f"liver in {tmp_path}/0.nrrd"]
    assert len(list((out / ".report").iterdir())) == 3
    assert not pictures(out).items() & first.items()


def test_the_report_exists_during_the_batch_and_after_an_early_exit(quick: QuickServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch = nni.batch(rows_of(tmp_path, 4), out, server=quick.address, in_flight=1)
    next(batch)
    assert "of 4 images are finished" in (out / "report.html").read_text()
    batch.close()
    assert len(pictures(out)) == len(results(out)) >= 1


def test_pictures_are_drawn_off_the_event_loop(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = {}
    write_record, write_segmentation = pipeline.write_record, pipeline.write_segmentation

    def recorded(name: str, function: object) -> object:
        def call(*arguments: object) -> None:
            threads[name] = threading.current_thread().name
            function(*arguments)  # type: ignore[operator]

        return call

    monkeypatch.setattr(pipeline, "write_record", recorded("record", write_record))
    monkeypatch.setattr(pipeline, "write_segmentation", recorded("segmentation", write_segmentation))
    list(nni.batch(rows_of(tmp_path, 1), tmp_path / "out", server=quick.address))
    assert threads["record"] == threads["segmentation"]
    assert threads["record"].startswith("asyncio")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot kill with SIGKILL")
def test_the_report_has_all_finished_volumes_after_a_kill(quick: QuickServer, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 12)
    table = tmp_path / "jobs.csv"
    table.write_text("image,segment,ijk\n" + "".join(f"{n}.nrrd,liver,12 17 15\n" for n in range(len(rows))))
    command = [sys.executable, "-m", "nninteractive_ws", "batch", str(table), "-o", str(tmp_path / "out")]
    with subprocess.Popen([*command, "--server", quick.address], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: (tmp_path / "out" / "results.csv").exists() and len(results(tmp_path / "out")) >= 3)
        process.send_signal(signal.SIGKILL)
    done = subprocess.run([*command, "--server", quick.address], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert f"Pictures of all segments: {tmp_path / 'out' / 'report.html'}" in done.stderr
    assert len(pictures(tmp_path / "out")) == 12
    assert list(tmp_path.rglob(".partial*")) == []


# ---- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "another page"])
def test_another_report_is_not_replaced(quick: QuickServer, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if kind == "folder":
        (out / "report.html").mkdir()
    else:
        (out / "report.html").write_text("<html>mine</html>")
    with pytest.raises(InvalidTable, match=r"report\.html (cannot be read|is not a report of batch)"):
        list(nni.batch(rows_of(tmp_path, 1), out, server=quick.address))
    assert not (out / "results.csv").exists()


def test_a_folder_for_pictures_that_cannot_be_created_ends_the_batch(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # in which the segmentation is kept
    out = tmp_path / "out"
    out.mkdir()
    (out / ".report").write_text("a file")
    with pytest.raises(OSError, match=r"\.report cannot be (created|cleaned up)"):
        list(nni.batch(rows_of(tmp_path, 1), out, server=quick.address))


def test_an_image_in_a_folder_named_report_html_is_refused(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "report.html" / "a.nrrd")
    write_image(tmp_path / ".report" / "a.nrrd")
    (tmp_path / "jobs.csv").write_text("image,ijk\nreport.html/a.nrrd,12 17 15\n.report/a.nrrd,12 17 15\n")
    found = {r.image: r for r in nni.batch(tmp_path / "jobs.csv", tmp_path / "out", server=quick.address)}
    assert "needs a folder in place of the file report.html" in found["report.html/a.nrrd"].errors[0]
    assert found[".report/a.nrrd"].errors == []
    assert names(tmp_path / "out") == ["segment in .report/a.nrrd"]
