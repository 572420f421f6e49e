"""Contents of batch's output folder: results of several tables, of chosen volumes, and of failed writes."""

from collections.abc import Iterator
import errno
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

from helpers import image_files
from helpers.batch import INSIDE, results, voxels, write_image, write_series, write_table
from helpers.dicom import edited
from helpers.fast_server import QuickServer, quick_server
import nibabel as nib
import numpy as np
from pydicom.uid import generate_uid
import pytest
import SimpleITK as sitk

import nninteractive_ws as nni
from nninteractive_ws.errors import BadOutput
from nninteractive_ws.jobs import pipeline
from nninteractive_ws.jobs.results import VolumeResult

POINT = " ".join(map(str, INSIDE))


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server() as server:
        yield server


def rows_of(*images: Path, **columns: object) -> list[dict[str, object]]:
    return [{"image": image, "ijk": INSIDE, **columns} for image in images]


def run(quick: QuickServer, rows: Any, output: Path, **options: Any) -> dict[str, VolumeResult]:
    return {Path(r.image).name: r for r in nni.batch(rows, output, server=quick.address, **options)}


def lines(folder: Path) -> list[tuple[str, str, str]]:
    return [(Path(line["image"]).name, Path(line["output"]).name, line["table"]) for line in results(folder)]


# ---- several tables -----------------------------------------------------------------------------------------


def test_results_of_other_tables_are_kept(quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for n in range(3):
        write_image(tmp_path / f"{n}.nrrd", n)
    out = Path("out")
    run(quick, rows_of(Path("0.nrrd"), Path("1.nrrd")), out)
    batch = nni.batch(rows_of(Path("2.nrrd"), Path("missing.nrrd")), out, server=quick.address)
    assert sorted((r.image, r.earlier) for r in batch) == [("2.nrrd", False), ("missing.nrrd", False)]
    assert batch.kept == 2
    assert lines(out) == [
        ("2.nrrd", "2.seg.nrrd", "this"),
        ("missing.nrrd", "", "this"),
        ("0.nrrd", "0.seg.nrrd", "other"),
        ("1.nrrd", "1.seg.nrrd", "other"),
    ]
    assert {line["path"] for line in results(out)} == {str(tmp_path / f"{n}.nrrd") for n in (0, 1, 2, "missing")}
    # The first table again: its results are still known, and the failure of the second is forgotten.
    (out / "1.seg.nrrd").unlink()
    again = run(quick, rows_of(Path("0.nrrd")), out)
    assert again["0.nrrd"].earlier
    assert lines(out) == [("0.nrrd", "0.seg.nrrd", "this"), ("2.nrrd", "2.seg.nrrd", "other")]


def test_the_newer_of_two_results_in_a_file_wins(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    first, second = rows_of(tmp_path / "a.nrrd"), rows_of(tmp_path / "a.nrrd", segment="other")
    out = tmp_path / "out"
    run(quick, first, out)
    assert not run(quick, second, out)["a.nrrd"].earlier
    assert [line["segment"] for line in results(out)] == ["other"]
    assert not run(quick, first, out)["a.nrrd"].earlier
    # Another format is another file, and both are kept.
    run(quick, second, out, format="nii.gz")
    assert [(line["segment"], line["table"]) for line in results(out)] == [("other", "this"), ("segment", "other")]


def test_a_result_is_reused_until_its_file_is_replaced(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    out = tmp_path / "out"
    run(quick, rows_of(tmp_path / "a.nrrd"), out)
    with pytest.raises(nni.errors.ConnectionFailed):
        list(nni.batch(rows_of(tmp_path / "a.nrrd", segment="other"), out, server="127.0.0.1:9"))
    assert [(line["segment"], line["table"]) for line in results(out)] == [("segment", "other")]
    assert run(quick, rows_of(tmp_path / "a.nrrd"), out)["a.nrrd"].earlier


def test_a_killed_run_leaves_the_newer_line_last(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    out = tmp_path / "out"
    run(quick, rows_of(tmp_path / "a.nrrd"), out)
    (older,) = (out / "results.csv").read_text().splitlines()[1:]
    run(quick, rows_of(tmp_path / "a.nrrd", segment="other"), out)
    header, newer = (out / "results.csv").read_text().splitlines()
    (out / "results.csv").write_text("\n".join((header, older, newer, "")))
    assert not run(quick, rows_of(tmp_path / "a.nrrd"), out)["a.nrrd"].earlier
    assert [line["segment"] for line in results(out)] == ["segment"]


def test_two_tables_with_images_of_the_same_name(quick: QuickServer, tmp_path: Path) -> None:
    for folder, seed in (("x", 1), ("y", 2)):
        write_image(tmp_path / folder / "a.nrrd", seed)
        write_table(tmp_path / folder / "jobs.csv", f"a.nrrd,liver,point,{POINT},,,")
    out = tmp_path / "out"
    run(quick, tmp_path / "x" / "jobs.csv", out)
    before = (out / "a.seg.nrrd").read_bytes()
    refused = run(quick, tmp_path / "y" / "jobs.csv", out)["a.nrrd"]
    assert refused.errors == [
        f"{out}/a.seg.nrrd is already the output of another image of another table, {tmp_path}/x/a.nrrd. Choose "
        "another output folder."
    ]
    assert (out / "a.seg.nrrd").read_bytes() == before
    assert run(quick, tmp_path / "x" / "jobs.csv", out)["a.nrrd"].earlier


# ---- inputs -------------------------------------------------------------------------------------------------


def test_the_table_and_the_folder_of_a_series_are_not_overwritten(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    table = write_table(tmp_path / "results.csv", f"series,liver,point,{POINT},,,")
    with pytest.raises(BadOutput, match=r"would overwrite the input file .*results\.csv"):
        nni.batch(table, tmp_path)
    for rows in (rows_of(tmp_path / "series"), rows_of(tmp_path / "series" / "000.dcm")):
        for output in (tmp_path / "series", tmp_path / "series" / "new"):
            with pytest.raises(BadOutput, match="would become part of its DICOM series"):
                nni.batch(rows, output)
    assert len(list((tmp_path / "series").iterdir())) == voxels().shape[2]
    with pytest.raises(BadOutput, match="is not UTF-8 text"):
        nni.batch(rows_of(tmp_path / "series"), tmp_path / "out\udcff")


def test_prompt_files_are_not_overwritten(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    drawn = sitk.Image(list(voxels().shape), sitk.sitkUInt8)
    drawn.CopyInformation(sitk.ReadImage(str(tmp_path / "a.nrrd")))
    drawn[INSIDE] = 1
    sitk.WriteImage(drawn, str(tmp_path / "a.nii.gz"))
    rows = [{"image": tmp_path / "a.nrrd", "prompt": "scribble", "file": tmp_path / "a.nii.gz"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (result,) = nni.batch([{**rows[0], "image": "a.nrrd"}], ".", server=quick.address, format="nii.gz")
    assert "would overwrite the input file" in result.errors[0]


# ---- files of others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "read-only", "link", "dangling link"])
def test_a_file_that_batch_did_not_write_stays(
    quick: QuickServer, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a ground truth with the name of the image."""
    monkeypatch.chdir(tmp_path)
    for n in range(2):
        write_image(tmp_path / f"{n}.nii.gz", n)
    (tmp_path / "truth").mkdir()
    truth, target = tmp_path / "truth" / "0.nii.gz", tmp_path / "elsewhere.nii.gz"
    image_files.write(target if kind == "link" else truth, np.ones((3, 4, 5), np.uint8))
    if kind.endswith("link"):
        truth.unlink(missing_ok=True)
        truth.symlink_to(target)
    if kind == "read-only":
        truth.chmod(0o444)
    before = None if kind == "dangling link" else truth.read_bytes()
    rows = rows_of(Path("0.nii.gz"), Path("1.nii.gz"))
    for _ in range(2):
        found = run(quick, rows, tmp_path / "truth", format="nii.gz")
        assert found["0.nii.gz"].errors == [
            f"{tmp_path}/truth/0.nii.gz exists and is not a result of batch. Move it, or choose another output folder."
        ]
        assert found["1.nii.gz"].errors == []
        assert truth.is_symlink() == kind.endswith("link")
        assert (None if kind == "dangling link" else truth.read_bytes()) == before
    truth.rename(tmp_path / "moved.nii.gz")
    assert run(quick, rows, tmp_path / "truth", format="nii.gz")["0.nii.gz"].errors == []


def test_a_result_without_its_row_is_replaced(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a run that was killed between the segmentation and the row, and if the row is then edited."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.nrrd")
    out = tmp_path / "out"
    for rows in (rows_of(Path("a.nrrd")), rows_of(Path("a.nrrd"), segment="edited")):
        run(quick, rows_of(Path("a.nrrd")), out)
        before = (out / "a.seg.nrrd").stat().st_mtime_ns
        header = (out / "results.csv").read_text().splitlines()[0]
        (out / "results.csv").write_text(f"{header}\n")
        # It is still known if this run is stopped as well.
        with pytest.raises(nni.errors.ConnectionFailed):
            list(nni.batch(rows, out, server="127.0.0.1:9"))
        result = run(quick, rows, out)["a.nrrd"]
        assert (result.errors, result.earlier) == ([], False)
        assert (out / "a.seg.nrrd").stat().st_mtime_ns > before
    assert len(list((out / ".report").glob("*.json"))) == 1


def test_the_record_is_written_before_the_segmentation(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.nrrd")
    records = []

    def write(*_arguments: Any) -> None:
        records.extend((tmp_path / "out" / ".report").glob("*.json"))
        raise nni.errors.BadImage("Not written.")

    monkeypatch.setattr(pipeline, "write_segmentation", write)
    assert run(quick, rows_of(tmp_path / "a.nrrd"), tmp_path / "out")["a.nrrd"].errors == ["Not written."]
    assert len(records) == 1


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_an_image_is_processed_again_after_a_failed_record(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Such as with a quota that a picture exceeds, or with a volume that cannot be drawn."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.nrrd")
    rows, out = rows_of(Path("a.nrrd")), tmp_path / "out"
    with monkeypatch.context() as patched:

        def write(*_arguments: Any) -> None:
            raise error("No record.")

        patched.setattr(pipeline, "write_record", write)
        if error is OSError:
            with pytest.raises(OSError, match=r"No record\."):
                run(quick, rows, out)
        else:
            assert "No record." in run(quick, rows, out)["a.nrrd"].errors[0]
    assert (out / "a.seg.nrrd").exists()
    result = run(quick, rows, out)["a.nrrd"]
    assert (result.errors, result.earlier) == ([], False)


def test_without_a_record_no_segmentation_is_written(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, because the folder of the records belongs to another user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_image(tmp_path / "a.nrrd")
    rows, out = rows_of(Path("a.nrrd")), tmp_path / "out"
    out.mkdir()
    (out / ".report").write_text("a file in place of a folder")
    with pytest.raises(OSError, match=r"\.report cannot be created .* kept as .*/a\.seg\.nrrd\."):
        run(quick, rows, out)
    assert not (out / "a.seg.nrrd").exists()
    assert (tmp_path / "a.seg.nrrd").exists()
    (out / ".report").unlink()
    assert run(quick, rows, out)["a.nrrd"].errors == []


def test_a_segment_that_others_cover_has_a_warning(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    rows = [row for name in ("lesion", "liver") for row in rows_of(tmp_path / "a.nrrd", segment=name)]
    result = run(quick, rows, tmp_path / "labels", format="nii.gz")["a.nrrd"]
    assert result.output is not None
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(result.output)))
    size = result.segments[0].voxels
    assert size > 0
    assert [np.count_nonzero(labels == value) for value in (1, 2)] == [0, size]
    lost = f"lesion lost {size:,} of {size:,} voxels to other segments in the label map."
    warning = f"{lost} The format seg.nrrd keeps overlaps."
    assert result.warnings == (warning,)
    assert [line["warnings"] for line in results(tmp_path / "labels")] == [warning] * 2
    assert (tmp_path / "labels" / "report.html").read_text().count(warning) == 1  # on the card of the lesion
    assert run(quick, rows, tmp_path / "segments")["a.nrrd"].warnings == ()


def test_only_extensions_of_images_are_replaced(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of DICOM files are often UIDs. The content of a file decides on its format."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "source.nrrd")
    names = {
        "1.2.840.113.4": "1.2.840.113.4", "1.2.840.113.5.dcm": "1.2.840.113.5", "CT.1.2.IMA": "CT.1.2", "a.NRRD": "a",
        "a.b.mha": "a.b", "b.c": "b.c", "c.5mm.GZ": "c.5mm", "d.tiff": "d", "e.Nii.Gz": "e", ".nii.gz": ".nii",
        "x.y/z": "x.y/z",
    }  # fmt: skip
    (tmp_path / "x.y").mkdir()
    for name in names:
        (tmp_path / name).hardlink_to(tmp_path / "source.nrrd")
    found = nni.batch(rows_of(*map(Path, names)), "out", server=quick.address)
    outputs = {r.image: None if r.output is None else r.output.as_posix() for r in found}
    assert outputs == {name: f"out/{output}.seg.nrrd" for name, output in names.items()}


# ---- chosen volumes -----------------------------------------------------------------------------------------


def test_time_points_and_series_of_one_file_are_separate_jobs(quick: QuickServer, tmp_path: Path) -> None:
    image_files.write(tmp_path / "a.nii.gz", np.stack([voxels(n) for n in range(3)], axis=3))
    write_series(tmp_path / "s")
    add_series(tmp_path / "s", tmp_path / "more")
    table = tmp_path / "jobs.csv"
    table.write_text(
        f"image,ijk,time,series\na.nii.gz,{POINT},1,\na.nii.gz,{POINT},3,\ns,{POINT},,2\na.nii.gz,{POINT},4,\n"
        f"a.nii.gz,{POINT},x,\n"
    )
    out = tmp_path / "out"
    found = run(quick, table, out, format="nii.gz")
    assert {name: bool(r.errors) for name, r in found.items()} == {
        "a.nii.gz (time 1)": False,
        "a.nii.gz (time 3)": False,
        "s (series 2)": False,
        "a.nii.gz (time 4)": True,
        "a.nii.gz": True,
    }
    assert sorted(p.name for p in out.glob("*.gz")) == [
        "a-time1.nii.gz", "a-time3.nii.gz", "s-series2.nii.gz"
    ]  # fmt: skip
    assert "column time: expected a whole number from 1" in found["a.nii.gz"].errors[0]
    with nni.connect(quick.address) as session:
        for n, time in ((0, 1), (2, 3)):
            session.set_image(voxels(n))
            session.segment("segment").add_point(INSIDE)
            written = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"a-time{time}.nii.gz"))).transpose()
            np.testing.assert_array_equal(written != 0, session.segment("segment").mask)
    assert [r.earlier for r in run(quick, table, out, format="nii.gz").values()][:3] == [True] * 3


def add_series(series: Path, folder: Path) -> None:
    """Add copies of a series' slices to its folder as another series. ``folder``: for temporary files."""
    uid = generate_uid()

    def another(slice_: Any, _k: int) -> None:
        slice_.SeriesInstanceUID, slice_.SeriesNumber = uid, 7
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()

    for file in edited(series, folder, another).iterdir():
        file.rename(series / f"more-{file.name}")


def test_resampling_makes_another_result(quick: QuickServer, tmp_path: Path) -> None:
    sheared = np.diag([4.0, 4.5, 5.0, 1.0])
    sheared[0, 2] = 1.5
    image_files.write(tmp_path / "a.nii.gz", voxels(), sheared)
    rows = rows_of(tmp_path / "a.nii.gz")
    assert "--resample" in run(quick, rows, tmp_path / "out")["a.nii.gz"].errors[0]
    found = run(quick, rows, tmp_path / "out", resample=True)["a.nii.gz"]
    assert (found.errors, len(found.warnings)) == ([], 1)
    assert "was resampled" in found.warnings[0]
    again = run(quick, rows, tmp_path / "out", resample=True)["a.nii.gz"]
    assert (again.earlier, again.warnings) == (True, found.warnings)


# ---- warnings -----------------------------------------------------------------------------------------------


def test_warnings_are_kept_over_resumption(quick: QuickServer, tmp_path: Path) -> None:
    unusual = voxels().astype(np.float32)
    unusual[0, 0, 0] = np.nan
    image_files.write(tmp_path / "a.nii.gz", unusual)
    table = write_table(tmp_path / "jobs.csv", *[f"a.nii.gz,liver,point,{POINT},,,"] * 2)
    command = [sys.executable, "-m", "nninteractive_ws", "batch", str(table), "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, "--server", quick.address], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stderr.split())
    repeated = "jobs.csv, line 3 repeats jobs.csv, line 2. The prompt is sent twice. Delete one of the rows."
    assert f"note: a.nii.gz: {repeated}" in output
    assert "1 voxels are NaN or infinite" in output
    (line,) = results(tmp_path / "out")
    assert repeated in line["warnings"]
    for _ in range(2):
        (result,) = nni.batch(table, tmp_path / "out", server="127.0.0.1:9")
        assert result.earlier
        assert len(result.warnings) == 2
        assert results(tmp_path / "out") == [line]


def test_a_batch_with_thousands_of_invalid_rows_resumes(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    write_image(tmp_path / "b.nrrd")
    rows = rows_of(tmp_path / "a.nrrd") + rows_of(tmp_path / "b.nrrd", ijk=(1, 2)) * 3000
    assert [bool(r.errors) for r in run(quick, rows, tmp_path / "out").values()].count(True) == 1
    found = run(quick, rows, tmp_path / "out")
    assert found["a.nrrd"].earlier
    assert found["b.nrrd"].errors[0].endswith("Further such rows: 2,980.")


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no line breaks in names")
def test_a_folder_with_a_line_break_in_its_name(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two\nlines"
    write_image(folder / "a.nrrd")
    monkeypatch.chdir(folder)
    out = tmp_path / "out"
    assert run(quick, rows_of(Path("a.nrrd")), out)["a.nrrd"].errors == []
    assert run(quick, rows_of(Path("a.nrrd")), out)["a.nrrd"].earlier
    # The same image in another table.
    assert run(quick, rows_of(Path("a.nrrd"), segment="other"), out)["a.nrrd"].errors == []


# ---- failed writes ------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_does_not_end_the_batch(quick: QuickServer, tmp_path: Path) -> None:
    names = ["a.nrrd", "b.nrrd", "sub/c.nrrd"]
    for n, name in enumerate(names):
        write_image(tmp_path / name, n)
    out = tmp_path / "out"
    (out / "a.seg.nrrd" / "taken").mkdir(parents=True)
    (out / "sub").write_text("a file in place of a folder")
    table = write_table(tmp_path / "jobs.csv", *(f"{name},liver,point,{POINT},,," for name in names))
    found = run(quick, table, out)
    assert found["b.nrrd"].errors == []
    assert f"The file {out}/a.seg.nrrd cannot be written" in found["a.nrrd"].errors[0]
    assert f"{out}/sub/c.seg.nrrd cannot be written (Not a directory)" in found["c.nrrd"].errors[0]
    assert {line["image"]: bool(line["error"]) for line in results(out)} == {
        "a.nrrd": True, "b.nrrd": False, "sub/c.nrrd": True
    }  # fmt: skip
    assert not (out / "probe").exists()
    assert not list(out.glob(".partial-*"))


@pytest.mark.parametrize("name", ["probe", "results.txt"])
def test_files_of_the_user_stay_after_a_failed_write(quick: QuickServer, tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.nrrd")
    (tmp_path / "out" / "a.seg.nrrd").mkdir(parents=True)
    (tmp_path / "out" / name).write_text("of the user")
    table = write_table(tmp_path / "jobs.csv", f"a.nrrd,liver,point,{POINT},,,")
    assert run(quick, table, tmp_path / "out")["a.nrrd"].errors
    assert (tmp_path / "out" / name).read_text() == "of the user"


@pytest.mark.parametrize("error", [OSError, nni.errors.BadImage])
def test_the_path_of_a_rescued_result_is_recorded(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    for n in range(2):
        write_image(tmp_path / f"{n}.nrrd", n)
    real = pipeline.write_segmentation

    def write(path: Path, *arguments: Any) -> None:
        if path.name.startswith("0"):
            raise error(f"The file {path} cannot be written. The segmentation was kept as /tmp/0.seg.nrrd.")
        real(path, *arguments)

    monkeypatch.setattr(pipeline, "write_segmentation", write)
    found = run(quick, rows_of(tmp_path / "0.nrrd", tmp_path / "1.nrrd"), tmp_path / "out")
    assert found["0.nrrd"].errors[0].endswith("The segmentation was kept as /tmp/0.seg.nrrd.")
    assert found["1.nrrd"].errors == []


def test_a_folder_that_cannot_be_written_ends_the_batch(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(2):
        write_image(tmp_path / f"{n}.nrrd", n)

    def write(path: Path, *_arguments: Any) -> None:
        raise OSError(f"The file {path} cannot be written. The segmentation was kept as /tmp/0.seg.nrrd.")

    def write_bytes(path: Path, data: bytes) -> int:
        if path.parent.name == ".report":
            with path.open("wb") as file:
                return file.write(data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline, "write_segmentation", write)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match=r"kept as /tmp/0\.seg\.nrrd"):
        run(quick, rows_of(tmp_path / "0.nrrd", tmp_path / "1.nrrd"), tmp_path / "out", in_flight=1)
    assert results(tmp_path / "out") == []


@pytest.mark.parametrize(("image", "data"), [("a.mhd", "a.raw"), ("a.nhdr", "a.raw"), ("ct", "ct/1/007.dcm")])
def test_a_changed_data_file_changes_its_image(quick: QuickServer, tmp_path: Path, image: str, data: str) -> None:
    if image == "ct":
        write_series(tmp_path / "ct" / "1")
    else:
        write_image(tmp_path / image)
    rows = rows_of(tmp_path / image)
    assert [run(quick, rows, tmp_path / "out")[image].earlier for _ in range(2)] == [False, True]
    (tmp_path / data).write_bytes((tmp_path / data).read_bytes())
    assert not run(quick, rows, tmp_path / "out")[image].earlier


# ---- many files -----------------------------------------------------------------------------------------------


def write_good(folder: Path) -> dict[str, int]:
    """Write images with different seeds, and return the seeds by the names of their outputs."""
    seeds = {}
    for n, name in enumerate(("a.nii.gz", "b.nii", "c.nrrd", "d.mha", "e.mhd", "sub/f.nhdr", "sub/Ko\u0308ln.nrrd"), 1):
        write_image(folder / name, n)
        seeds[name.partition(".")[0]] = n
    write_series(folder / "series", 20)
    add_series(folder / "series", folder / "temporary")
    image_files.write(folder / "four.nii.gz", np.stack([voxels(30), voxels(31)], axis=3))
    sheared = np.diag([4.0, 4.5, 5.0, 1.0])
    sheared[0, 2] = 1e-3
    image_files.write(folder / "nearly.nii.gz", voxels(40), sheared)
    unusual = voxels(50).astype(np.float32)
    unusual[0, 0, 0] = np.inf
    image_files.write(folder / "infinite.nrrd", unusual)
    return {**seeds, "series-series1": 20, "four-time2": 31, "nearly": 40, "infinite": 50}


GOOD = [
    *(f"{name},,," for name in ("a.nii.gz", "b.nii", "c.nrrd", "d.mha", "e.mhd", "sub\\f.nhdr", "sub/K\u00f6ln.nrrd")),
    "series,,1,", "four.nii.gz,2,,", "nearly.nii.gz,,,", "infinite.nrrd,,,"
]  # fmt: skip


def write_bad(folder: Path) -> dict[str, str]:
    """Write invalid files, and return the row of each with a part of its error."""
    whole = (folder / "a.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nrrd").write_text("not an image")
    (folder / "empty.mha").touch()
    (folder / "zeros.nii").write_bytes(bytes(5000))
    (folder / "no series").mkdir()
    image_files.write(folder / "nan.nrrd", np.full((9, 9, 9), np.nan, np.float32))
    sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkVectorUInt8, 3), str(folder / "color.nrrd"))
    sitk.WriteImage(sitk.Image([9, 9], sitk.sitkUInt8), str(folder / "flat.nrrd"))
    gap = edited(folder / "series", folder / "gap", lambda slice_, k: k not in (20, 21) and slice_.SeriesNumber != 7)
    assert len(list(gap.iterdir())) > 20
    return {
        "cut.nii.gz,,,": "", "text.nrrd,,,": "", "empty.mha,,,": "is empty", "zeros.nii,,,": "filled with zeros",
        "no series,,,": "", "nan.nrrd,,,": "no finite voxel", "color.nrrd,,,": "", "flat.nrrd,,,": "dimensions",
        "gap,,,": "", "missing.nrrd,,,": "does not exist", "four.nii.gz,,,": "column time", "four.nii.gz,9,,": "",
        "c.nrrd,,2,": "not a DICOM series", "series,,,": "", "c.nrrd,x,,": "column time",
        "$HOME/a.nrrd,,,": "Environment", "C:\\a.nrrd,,,": "path of Windows",
        ",,,": "column image", "a.nii.gz,,,outside": "outside the volume",
    }  # fmt: skip


@pytest.mark.slow
def test_damaged_volumes_do_not_affect_the_others(quick: QuickServer, tmp_path: Path) -> None:
    """Exit status 1, an error for each damaged volume, and for the others the masks of a separate session."""
    seeds, bad = write_good(tmp_path), write_bad(tmp_path)
    rows = [f"{row},{POINT}" for row in GOOD]
    for row in bad:
        point = "99 99 99" if row.endswith("outside") else POINT
        rows.insert(len(rows) // 2, f"{row},{point}")
    (tmp_path / "JOBS.CSV").write_text("\n".join(("Image,time,series,segment,ijk", *rows)), "utf-16")
    command = [
        sys.executable,
        "-m",
        "nninteractive_ws",
        "batch",
        str(tmp_path / "JOBS.CSV"),
        "-o",
        str(tmp_path / "out"),
    ]
    command += ["--server", quick.address, "--format", "nii.gz", "--in-flight", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    table = results(tmp_path / "out")
    errors = [(line["image"], line["error"]) for line in table if line["error"]]
    for row, expected in bad.items():
        assert any(row.partition(",")[0] in image and expected in error for image, error in errors), (row, errors)
    assert len(errors) == len(bad), errors
    assert all(error.endswith(".") and len(error) < 1000 for _, error in errors)
    good = {line["output"].removesuffix(".nii.gz"): line for line in table if not line["error"]}
    outputs = {path.stem.removesuffix(".nii") for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert outputs == {Path(name).name for name in seeds}
    assert set(good) == set(seeds)
    assert "infinite" in good["infinite"]["warnings"]
    with nni.connect(quick.address) as session:
        for name, seed in seeds.items():
            image = voxels(seed).astype(np.float32) if name == "infinite" else voxels(seed)
            session.set_image(image)
            session.segment("segment").add_point(INSIDE)
            written = np.asarray(nib.load(tmp_path / "out" / f"{name}.nii.gz").dataobj)
            np.testing.assert_array_equal(written != 0, session.segment("segment").mask, err_msg=name)
