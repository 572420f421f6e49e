"""Batch on real files with a real server, as a command and as a function."""

from collections.abc import Iterator
import hashlib
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
from typing import Any

from helpers.batch import INSIDE, SHAPE, SLICER_FILES, results, write_image, write_series, write_table
from helpers.end_to_end import wait_until
from helpers.fast_server import QuickServer, quick_server
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import slicerio

import nninteractive_ws as nni
from nninteractive_ws.errors import BadOutput, ConnectionFailed, InvalidTable

#: Fields that differ between two runs of the same batch.
TIMES = ("predict_s", "waiting_s", "network_s", "read_s", "write_s", "total_s")
#: Session limit of the server.
MAX_SESSIONS = 3
POINT = " ".join(map(str, INSIDE))


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server("--max-sessions", str(MAX_SESSIONS)) as server:
        yield server


def command(*message: object) -> list[str]:
    return [sys.executable, "-m", "nninteractive_ws", "batch", *map(str, message)]


def run(*message: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command(*message), capture_output=True, text=True, timeout=100, env=environment)


def labels(path: Path) -> npt.NDArray[Any]:
    """A label map, indexed (i, j, k)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose()


def lps(image: sitk.Image, *ijk: float) -> str:
    return " ".join(f"{x:.4f}" for x in image.TransformContinuousIndexToPhysicalPoint(ijk))


# ---- outputs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_of_three_formats_of_images(quick: QuickServer, tmp_path: Path) -> None:
    """An oblique NIfTI, an NRRD and a DICOM series with equal voxels get equal masks at equal positions."""
    image = write_image(tmp_path / "in" / "a.nii.gz")
    write_image(tmp_path / "in" / "b.nrrd")
    write_series(tmp_path / "in" / "c")
    rows = [
        row
        for name in ("a.nii.gz", "b.nrrd", "c")
        for row in (
            f"{name},liver,point,{POINT},,,",
            f"{name},spine,point,20 26 15,,,",
            f"{name},liver,point,30 9 9,,,negative",
        )
    ]
    table = write_table(tmp_path / "in" / "jobs.csv", *rows)
    done = run(table, "-o", tmp_path / "out", "--server", quick.address, "--format", "nii.gz")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "all done" in done.stderr
    found = [labels(tmp_path / "out" / f"{name}.nii.gz") for name in "abc"]
    assert set(np.unique(found[0])) == {0, 1, 2}
    for other, name in zip(found[1:], "bc", strict=True):
        np.testing.assert_array_equal(other, found[0])
        written = sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz"))
        np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-4)
        np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-3)
    lines = results(tmp_path / "out")
    assert [(line["image"], line["segment"], line["label"], line["prompts"]) for line in lines] == [
        (name, segment, label, prompts)
        for name in ("a.nii.gz", "b.nrrd", "c")
        for segment, label, prompts in (("liver", "1", "2"), ("spine", "2", "1"))
    ]
    for line in lines[:2]:
        voxels = np.count_nonzero(found[0] == int(line["label"]))
        overlaps = int(line["label"]) == 1  # in a label map, later segments overwrite earlier ones
        assert int(line["voxels"]) >= voxels if overlaps else int(line["voxels"]) == voxels
        assert float(line["ml"]) == pytest.approx(int(line["voxels"]) * 4.0 * 4.5 * 5.0 / 1000, abs=1e-3)
        assert (line["model"], line["error"], line["output"]) == ("quick", "", "a.nii.gz")
        assert float(line["total_s"]) >= float(line["predict_s"]) >= float(line["network_s"]) > 0


def test_prompts_in_millimeters_and_files_equal_those_in_voxels(quick: QuickServer, tmp_path: Path) -> None:
    """Every kind of prompt, in voxels, and in millimeters or a file."""
    image = write_image(tmp_path / "a.nii.gz")
    write_image(tmp_path / "b.nii.gz")
    corners = [image.TransformIndexToPhysicalPoint(p) for p in ((8, 12, 15), (16, 22, 15))]
    box = " ".join(f"{a:.4f}:{b:.4f}" for a, b in zip(*corners, strict=True))
    position = image.TransformIndexToPhysicalPoint(INSIDE)
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [{"position": position}]}
    (tmp_path / "p.mrk.json").write_text(json.dumps({"markups": [markup]}))
    table = write_table(
        tmp_path / "jobs.csv",
        f"a.nii.gz,point,point,{POINT},,,",
        f"b.nii.gz,point,point,,{lps(image, *INSIDE)},,",
        f"a.nii.gz,markups,point,{POINT},,,",
        "b.nii.gz,markups,markups,,,p.mrk.json,",
        "a.nii.gz,box,bbox,8:17 12:23 15:16,,,",
        f"b.nii.gz,box,bbox,,{box},,",
        "a.nii.gz,box,point,30 9 9,,,negative",
        f"b.nii.gz,box,point,,{lps(image, 30, 9, 9)},,negative",
    )
    made = {r.image: r for r in nni.batch(table, tmp_path / "out", server=quick.address)}
    a, b = (slicerio.read_segmentation(str(made[f"{name}.nii.gz"].output)) for name in "ab")
    assert slicerio.segment_names(a) == slicerio.segment_names(b) == ["point", "markups", "box"]
    for name in ("point", "markups", "box"):
        assert slicerio.segment_mask(a, name).any()
        np.testing.assert_array_equal(slicerio.segment_mask(a, name), slicerio.segment_mask(b, name))


def test_markups_prompt_like_their_masks(quick: QuickServer, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.nii.gz")
    volume = sitk.GetArrayFromImage(image).transpose()
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[9:16, 17, 15] = 3
    i, j = np.ogrid[: SHAPE[0], : SHAPE[1]]
    disc = np.zeros(SHAPE, np.uint8)
    disc[:, :, 15] = (i - 12) ** 2 + (j - 17) ** 2 <= 5.3**2
    for name, marked in (("strokes", strokes), ("disc", disc)):
        drawn = sitk.GetImageFromArray(marked.transpose())
        drawn.CopyInformation(image)
        sitk.WriteImage(drawn, str(tmp_path / f"{name}.nrrd"))
    turns = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = [(12 + 5.3 * np.cos(t), 17 + 5.3 * np.sin(t), 15.0) for t in turns]
    controls = [{"position": image.TransformContinuousIndexToPhysicalPoint(p)} for p in circle]
    markup = {"type": "ClosedCurve", "coordinateSystem": "LPS", "controlPoints": controls}
    (tmp_path / "c.mrk.json").write_text(json.dumps({"markups": [markup]}))
    given: list[dict[str, object]] = [
        {"segment": "s", "prompt": "scribble", "file": tmp_path / "strokes.nrrd"},
        {"segment": "c", "prompt": "markups", "file": tmp_path / "c.mrk.json"},
        {"segment": "l", "prompt": "lasso", "file": tmp_path / "disc.nrrd"},
        # A sequence of all kinds.
        {"segment": "m", "prompt": "point", "ijk": INSIDE},
        {"segment": "m", "prompt": "lasso", "file": tmp_path / "disc.nrrd"},
        {"segment": "m", "prompt": "bbox", "ijk": ((5, 30), (6, 30), (20, 21))},
        {"segment": "m", "prompt": "scribble", "file": tmp_path / "strokes.nrrd", "polarity": "negative"},
    ]
    rows = [{"image": tmp_path / "a.nii.gz", **row} for row in given]
    batch = nni.batch(rows, tmp_path / "out", server=quick.address)
    assert len(batch) == 1
    (result,) = batch
    assert result.output is not None
    assert [(s.name, s.prompts, s.error) for s in result.segments] == [(n, 1, None) for n in "scl"] + [("m", 4, None)]
    made = slicerio.read_segmentation(str(result.output))
    with nni.connect(quick.address) as session:
        session.set_image(volume)
        session.segment("s").add_scribble(strokes != 0)
        session.segment("c").add_lasso(disc)
        session.segment("l").add_lasso(disc)
        mixed = session.segment("m")
        mixed.add_point(INSIDE)
        mixed.add_lasso(disc)
        mixed.add_bbox(((5, 30), (6, 30), (20, 21)))
        mixed.add_scribble(strokes, positive=False)
        for name in "sclm":
            assert session.segment(name).voxels > 0
            np.testing.assert_array_equal(slicerio.segment_mask(made, name), session.segment(name).mask)


@pytest.mark.slicer_core
@pytest.mark.slow
def test_a_seg_nrrd_in_the_real_slicer(quick: QuickServer, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.nii.gz")
    rows = [
        {"image": tmp_path / "a.nii.gz", "segment": "Läsion 腫瘍", "ijk": INSIDE},
        {"image": tmp_path / "a.nii.gz", "segment": "spine", "ijk": (20, 26, 15)},
    ]
    (result,) = nni.batch(rows, tmp_path / "out", server=quick.address)
    program = [sys.executable, str(SLICER_FILES), "read", str(result.output), str(tmp_path / "read.json")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    read = json.loads((tmp_path / "read.json").read_text())["segments"]
    assert [segment["name"] for segment in read] == ["Läsion 腫瘍", "spine"]
    assert [len(segment["voxels"]) for segment in read] == [s.voxels for s in result.segments]
    hues = [np.argmax(segment["color"]) for segment in read]
    assert hues[0] != hues[1]
    made = slicerio.read_segmentation(str(result.output))
    names = slicerio.segment_names(made)  # always read as ASCII
    for segment, name in zip(read, names, strict=True):
        mask = np.zeros(SHAPE, bool)
        mask[tuple(np.array(segment["voxels"]).T)] = True
        np.testing.assert_array_equal(mask, slicerio.segment_mask(made, name))
        corner = np.array(segment["ijk_to_ras"]) @ (*INSIDE, 1)
        np.testing.assert_allclose(corner[:3] * (-1, -1, 1), image.TransformIndexToPhysicalPoint(INSIDE), atol=1e-3)


@pytest.mark.slow
def test_a_dicom_series_becomes_a_dicom_seg(quick: QuickServer, tmp_path: Path) -> None:
    write_series(tmp_path / "P1.2" / "CT.1")
    write_image(tmp_path / "a.nii.gz")
    table = write_table(tmp_path / "jobs.csv", f"P1.2/CT.1,liver,point,{POINT},,,", f"a.nii.gz,liver,point,{POINT},,,")
    done = run(table, "-o", tmp_path / "out", "--server", quick.address, "--format", "dcm")
    assert done.returncode == 1
    assert "a.nii.gz: A DICOM SEG (.dcm) requires a DICOM image" in done.stderr
    assert "Warning" not in done.stderr
    (line, _) = results(tmp_path / "out")
    assert line["output"] == "P1.2/CT.1.dcm"
    program = Path(sys.executable).with_name("segimage2itkimage")
    message = [program, "--inputDICOM", tmp_path / "out" / line["output"], "--outputDirectory", tmp_path]
    subprocess.run([*map(str, message), "--outputType", "nrrd"], check=True, capture_output=True, timeout=60)
    assert np.count_nonzero(labels(tmp_path / "1.nrrd")) == int(line["voxels"])


# ---- errors -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_invalid_rows_and_files_are_reported_and_skipped(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "good.nii.gz")
    (tmp_path / "text.nii.gz").write_text("not an image")
    sitk.WriteImage(sitk.Image([5, 5, 5], sitk.sitkUInt8), str(tmp_path / "small.nrrd"))
    two = sitk.Image(list(SHAPE), sitk.sitkUInt8)
    two[1, 1, 1], two[2, 2, 2] = 1, 2
    sitk.WriteImage(two, str(tmp_path / "elsewhere.nrrd"))
    two.CopyInformation(sitk.ReadImage(str(tmp_path / "good.nii.gz")))
    sitk.WriteImage(two, str(tmp_path / "two.nrrd"))
    two[2, 2, 2] = 1
    sitk.WriteImage(two, str(tmp_path / "thick.nrrd"))
    table = write_table(
        tmp_path / "jobs.csv",
        f"good.nii.gz,fine,point,{POINT},,,",
        "good.nii.gz,outside,point,99 5 5,,,",
        "good.nii.gz,outside box,bbox,30:50 3:4 5:6,,,",
        "good.nii.gz,unwritten,point,,,,",
        "good.nii.gz,size,scribble,,,small.nrrd,",
        "good.nii.gz,place,scribble,,,elsewhere.nrrd,",
        "good.nii.gz,labels,scribble,,,two.nrrd,",
        "good.nii.gz,none,markups,,,none.mrk.json,",
        f"text.nii.gz,a,point,{POINT},,,",
        f"missing.nii.gz,a,point,{POINT},,,",
        f"{'x' * 300},a,point,{POINT},,,",
        f",a,point,{POINT},,,",
        "good.nii.gz,fine,point,14 17 15,,,",
        "good.nii.gz,thick,lasso,,,thick.nrrd,",
    )
    done = run(table, "-o", tmp_path / "out", "--server", quick.address)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = results(tmp_path / "out")
    errors = {(line["image"][:20], line["segment"]): line["error"] for line in lines}
    folder = str(tmp_path)
    expected = {
        ("good.nii.gz", "outside"): "jobs.csv, line 3: The point (99, 5, 5) is outside the volume",
        ("good.nii.gz", "outside box"): "jobs.csv, line 4: The box ((30, 50), (3, 4), (5, 6)) is not inside",
        ("good.nii.gz", "unwritten"): "jobs.csv, line 5, column ijk: expected a value here",
        ("good.nii.gz", "size"): f"jobs.csv, line 6: {folder}/small.nrrd has (5, 5, 5) voxels. Expected (40, 36, 30)",
        ("good.nii.gz", "place"): f"jobs.csv, line 7: {folder}/elsewhere.nrrd is not on the grid of the image",
        ("good.nii.gz", "labels"): f"jobs.csv, line 8: {folder}/two.nrrd has the labels 1, 2. Expected exactly one",
        ("good.nii.gz", "none"): f"jobs.csv, line 9: {folder}/none.mrk.json cannot be read (No such file",
        (
            "good.nii.gz",
            "thick",
        ): f"jobs.csv, line 15: {folder}/thick.nrrd marks a region of 2 x 2 x 2 voxels. Expected a filled outline",
        ("text.nii.gz", "a"): f"{folder}/text.nii.gz cannot be read: it is of an unknown format",
        ("missing.nii.gz", "a"): f"The file {folder}/missing.nii.gz does not exist",
        ("x" * 20, "a"): f"{'x' * 300} cannot be read (File name too long)",
        ("", ""): "jobs.csv, line 13, column image: expected the path of an image",
    }
    assert {key for key, error in errors.items() if error} == set(expected)
    for key, message in expected.items():
        assert message in errors[key], key
        assert message[:60] in done.stderr
    (fine,) = (line for line in lines if not line["error"])
    assert (fine["segment"], fine["prompts"], fine["label"]) == ("fine", "2", "1")
    assert slicerio.segment_names(slicerio.read_segmentation(str(tmp_path / "out" / "good.seg.nrrd"))) == ["fine"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".report", "good.seg.nrrd", "report.html", "results.csv",
    ]  # fmt: skip
    assert "5 of 5 failed" in done.stderr


def test_inputs_are_not_overwritten(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz")
    write_image(tmp_path / "b" / "a.nii.gz")
    write_image(tmp_path / "b" / "a.nrrd")
    before = (tmp_path / "a.nii.gz").read_bytes()
    names = ("a.nii.gz", "b/a.nii.gz", "b/a.nrrd")
    table = write_table(tmp_path / "jobs.csv", *(f"{name},liver,point,{POINT},,," for name in names))
    inside = {r.image: r for r in nni.batch(table, tmp_path, server=quick.address, format="nii.gz")}
    assert all("would overwrite the input file" in inside[name].errors[0] for name in names)
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    beside = {r.image: r for r in nni.batch(table, tmp_path / "out", server=quick.address, format="nii.gz")}
    assert [beside[name].errors for name in names[:2]] == [[], []]
    assert "is already the output of b/a.nii.gz" in beside["b/a.nrrd"].errors[0]


@pytest.mark.slow
def test_a_fatal_error_is_raised_and_records_no_failure(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz")
    rows = [{"image": tmp_path / "a.nii.gz", "ijk": INSIDE}]
    with pytest.raises(ConnectionFailed):
        list(nni.batch(rows, tmp_path / "out", server="127.0.0.1:9"))
    assert results(tmp_path / "out") == []
    done = run(write_table(tmp_path / "jobs.csv", f"a.nii.gz,,point,{POINT},,,"), "-o", tmp_path, "--server", "x:y:z")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (tmp_path / "results.csv").write_text("mine\n1\n")
    with pytest.raises(InvalidTable, match="not a results table"):
        list(nni.batch(rows, tmp_path, server="127.0.0.1:9"))
    assert (tmp_path / "results.csv").read_text() == "mine\n1\n"


@pytest.mark.slow
def test_without_a_server_one_is_started(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz")
    table = write_table(tmp_path / "jobs.csv", f"a.nii.gz,liver,point,{POINT},,,")
    done = run(table, "-o", tmp_path / "out", "--model", "demo")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")[0]["model"] == "demo"


def test_at_capacity_reduces_the_jobs_in_flight(quick: QuickServer, tmp_path: Path) -> None:
    images = [tmp_path / f"{n}.nrrd" for n in range(MAX_SESSIONS + 3)]
    for n, image in enumerate(images):
        write_image(image, n)
    output: list[str] = []
    found = nni.batch(
        [{"image": image, "ijk": INSIDE} for image in images],
        tmp_path / "out",
        server=quick.address,
        in_flight=MAX_SESSIONS + 2,
        on_activity=lambda activity: output.append(activity.message),
    )
    assert [(r.errors, r.segments[0].voxels > 0) for r in found] == [([], True)] * len(images)
    assert (
        len([message for message in output if message == "opening a session"]) == MAX_SESSIONS + 1
    )  # the last one was refused


# ---- interrupt and resume -----------------------------------------------------------------------------------


def same_bytes(folder: Path) -> dict[str, str]:
    """Return every file's digest, without creation times and durations."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "results.csv":
            lines = [{key: value for key, value in line.items() if key not in TIMES} for line in results(folder)]
            content = json.dumps(lines).encode()
        elif path.name == "report.html":
            content = b"".join(sorted(re.findall(rb"<img [^>]*>", content)))
        elif path.name.endswith(".nrrd"):
            content = b"\n".join(line for line in content.split(b"\n") if not line.startswith(b"# on "))
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty volumes of two segments, with an invalid file, a missing image and an invalid row."""
    folder = tmp_path_factory.mktemp("thirty")
    rows = []
    for n in range(30):
        name = f"case{n % 3}/{n:02}.nrrd"
        if n != 8:
            write_image(folder / name, n)
        rows += [f"{name},liver,point,{POINT},,,", f"{name},spine,point,20 26 {'x' if n == 25 else 15},,,"]
    (folder / "case2" / "17.nrrd").write_text("NRRD0004\nnothing else\n")
    write_table(folder / "jobs.csv", *rows)
    return folder


@pytest.mark.slow
def test_killed_twice_and_continued_equals_undisturbed(quick: QuickServer, thirty: Path, tmp_path: Path) -> None:
    message = (thirty / "jobs.csv", "--server", quick.address, "--in-flight", 2, "-o")
    undisturbed = run(*message, tmp_path / "undisturbed")
    assert undisturbed.returncode == 1
    assert "3 of 30 failed" in undisturbed.stderr
    expected = same_bytes(tmp_path / "undisturbed")
    # Segmentations and pictures of 27 volumes and of the valid part of one, the table, and the report.
    assert len(expected) == 28 + 28 + 2

    out = tmp_path / "killed"
    before: dict[str, str] = {}
    for least in (6, 16):
        with subprocess.Popen(command(*message, out), stderr=subprocess.DEVNULL) as process:
            wait_until(lambda n=least: (out / "results.csv").exists() and len(results(out)) >= 2 * n)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        now = same_bytes(out)
        whole = {n: digest for n, digest in now.items() if not Path(n).name.startswith((".partial-", ".batch.lock"))}
        del whole["results.csv"], whole["report.html"]
        assert {name: expected[name] for name in whole} == whole  # no partial file under a final name
        assert len(whole) < 28 + 28
        assert before.items() <= whole.items()
        before = whole
    kept = {name: (out / name).stat().st_mtime_ns for name in before}

    continued = run(*message, out)
    assert continued.returncode == 1
    assert "3 of 30 failed" in continued.stderr
    assert same_bytes(out) == expected
    finished_before = {line["output"] for line in results(out)} & set(kept) - {"case1/25.seg.nrrd"}
    again = [name for name in finished_before if (out / name).stat().st_mtime_ns != kept[name]]
    assert len(again) <= 2  # written before the kill, but not yet in the table


@pytest.mark.slow
def test_an_interrupted_batch_can_be_resumed(quick: QuickServer, tmp_path: Path) -> None:
    many = 400  # takes a minute, so it is not finished before the interrupt
    write_image(tmp_path / "0.nrrd", 0)
    for n in range(1, many):
        (tmp_path / f"{n}.nrrd").hardlink_to(tmp_path / "0.nrrd")
    table = write_table(tmp_path / "jobs.csv", *(f"{n}.nrrd,liver,point,{POINT},,," for n in range(many)))
    message = (table, "--server", quick.address, "-o", tmp_path)
    with subprocess.Popen(command(*message), stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: (tmp_path / "results.csv").exists() and len(results(tmp_path)) >= 4)
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Run the same command again to resume" in output
    assert "Traceback" not in output
    assert list(tmp_path.rglob(".partial*")) == []
    done = [line for line in results(tmp_path) if not line["error"]]
    assert 4 <= len(done) < many


def test_finished_jobs_are_skipped_until_their_rows_change(quick: QuickServer, tmp_path: Path) -> None:
    for n in range(2):
        write_image(tmp_path / f"{n}.nrrd", n)
    rows: list[dict[str, object]] = [{"image": tmp_path / f"{n}.nrrd", "ijk": INSIDE} for n in range(2)]

    def batch() -> dict[str, bool]:
        found = nni.batch(rows, tmp_path / "out", server=quick.address)
        return {Path(r.image).name: r.earlier for r in found}

    assert batch() == {"0.nrrd": False, "1.nrrd": False}
    with (tmp_path / "out" / "results.csv").open("a") as file:
        file.write("a line that was not finished")
    assert batch() == {"0.nrrd": True, "1.nrrd": True}
    # Nothing is left to do, so no server is needed.
    assert [r.segments[0].voxels > 0 for r in nni.batch(rows, tmp_path / "out", server="127.0.0.1:9")] == [True, True]
    rows[0]["ijk"] = (13, 17, 15)
    assert batch() == {"0.nrrd": False, "1.nrrd": True}
    write_image(tmp_path / "1.nrrd", 5)
    assert batch() == {"0.nrrd": True, "1.nrrd": False}
    next((tmp_path / "out").rglob("0.seg.nrrd")).unlink()
    assert batch() == {"0.nrrd": False, "1.nrrd": True}


def test_a_replaced_slice_invalidates_its_series(quick: QuickServer, tmp_path: Path) -> None:
    """The series is beside its table, and is referred to by its folder's name."""
    write_series(tmp_path / "Fall 7")
    table = write_table(tmp_path / "Fall 7" / "jobs.csv", f".,liver,point,{POINT},,,")

    def batch() -> tuple[str, bool]:
        (result,) = nni.batch(table, tmp_path / "out", server=quick.address)
        assert result.output is not None
        return result.output.name, result.earlier

    assert batch() == ("Fall 7.seg.nrrd", False)
    assert batch() == ("Fall 7.seg.nrrd", True)
    replaced = tmp_path / "Fall 7" / "007.dcm"
    replaced.write_bytes(replaced.read_bytes())
    assert batch() == ("Fall 7.seg.nrrd", False)


def test_an_unusable_output_folder_is_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz")
    with pytest.raises(BadOutput, match=r"a.nii.gz cannot be created \(File exists\)"):
        nni.batch([{"image": tmp_path / "a.nii.gz", "ijk": INSIDE}], tmp_path / "a.nii.gz")
    (tmp_path / "out" / "results.csv").mkdir(parents=True)
    with pytest.raises(InvalidTable, match=r"results.csv cannot be read \(Is a directory\)"):
        list(nni.batch([{"image": tmp_path / "a.nii.gz", "ijk": INSIDE}], tmp_path / "out", server="127.0.0.1:9"))


def test_closing_the_iterator_stops_the_batch(quick: QuickServer, thirty: Path, tmp_path: Path) -> None:
    batch = nni.batch(thirty / "jobs.csv", tmp_path, server=quick.address)
    first = next(batch)
    # These results are not consumed, but are finished anyway.
    wait_until(lambda: len(results(tmp_path)) >= 10)
    finished = {line["image"] for line in results(tmp_path)}
    batch.close()
    assert not first.earlier
    with pytest.raises(StopIteration):
        next(batch)
    images = {line["image"] for line in results(tmp_path)}
    assert {first.image} < finished <= images
    assert len(images) < 30
    assert list(tmp_path.rglob(".partial*")) == []


def test_the_base_install_names_missing_packages(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['SimpleITK'] = None\n"
        "import nninteractive_ws as nni\n"
        "try: nni.batch('jobs.csv', 'out')\n"
        "except ModuleNotFoundError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "batch needs the package SimpleITK. Install it with: pip install 'nninteractive-ws[cli]'\n"
    brings = "import sys, nninteractive_ws; print({'SimpleITK', 'highdicom', 'pydicom', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", brings], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
