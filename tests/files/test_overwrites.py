"""No output replaces an input, regardless of the name and the place of the input."""

from collections.abc import Callable
from pathlib import Path

from helpers.batch import write_image, write_series
import pytest
import SimpleITK as sitk

from nninteractive_ws.atomic_files import partial_path
from nninteractive_ws.errors import BadOutput
from nninteractive_ws.files.overwrites import InputFiles


def refused(output: Path, *inputs: Path) -> str:
    with pytest.raises(BadOutput) as raised:
        InputFiles(inputs).check(output)
    return str(raised.value)


def same(folder: Path) -> Path:
    return folder / "in.nrrd"


def upwards(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return folder / "sub" / ".." / "in.nrrd"


def symbolic(folder: Path) -> Path:
    (folder / "link.nrrd").symlink_to("in.nrrd")
    return folder / "link.nrrd"


def linked_folder(folder: Path) -> Path:
    (folder / "elsewhere").symlink_to(folder)
    return folder / "elsewhere" / "in.nrrd"


def hard(folder: Path) -> Path:
    (folder / "hard.nrrd").hardlink_to(folder / "in.nrrd")
    return folder / "hard.nrrd"


def other_case(folder: Path) -> Path:
    return folder / "IN.nrrd"


@pytest.mark.parametrize("spell", [same, upwards, symbolic, linked_folder, hard, other_case])
def test_an_output_that_is_the_input(tmp_path: Path, spell: Callable[[Path], Path]) -> None:
    write_image(tmp_path / "in.nrrd")
    output = spell(tmp_path)
    assert refused(output, tmp_path / "in.nrrd") == (
        f"{output} would overwrite the input file {tmp_path}/in.nrrd. Choose another output."
    )
    InputFiles([tmp_path / "in.nrrd"]).check(tmp_path / "out.nrrd")


def test_a_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    write_image(tmp_path / "in.nrrd")
    (tmp_path / "link.nrrd").symlink_to("in.nrrd")
    refused(tmp_path / "in.nrrd", tmp_path / "link.nrrd")


def test_unicode_normalization_names_the_same_file(tmp_path: Path) -> None:
    refused(tmp_path / "Ko\u0308ln.nrrd", tmp_path / "K\u00f6ln.nrrd")
    refused(tmp_path / "K\u00f6ln.nrrd", tmp_path / "Ko\u0308ln.nrrd")


def test_the_temporary_file_replaces_no_input(tmp_path: Path) -> None:
    refused(tmp_path / "a.nrrd", partial_path(tmp_path / "a.nrrd"))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("a.hdr", "a.img"),
        ("a.img", "a.hdr"),
        ("A.HDR", "A.IMG"),
        ("a.mhd", "a.raw"),
        ("a.mhd", "a.zraw"),
        ("a.nhdr", "a.raw"),
        ("a.nhdr", "a.raw.gz"),
    ],
)
def test_the_data_file_of_an_image(tmp_path: Path, header: str, data: str) -> None:
    image = sitk.Image([5, 5, 5], sitk.sitkUInt8)
    names = {"a.img": "a.hdr", "A.HDR": "a.hdr"}
    sitk.WriteImage(image, str(tmp_path / names.get(header, header)), useCompression="z" in data)
    for written in list(tmp_path.iterdir()):
        if header == "A.HDR":
            written.rename(tmp_path / written.name.upper())
    assert (tmp_path / data).exists()
    assert f"the input file {tmp_path / data}." in refused(tmp_path / data, tmp_path / header)
    InputFiles([tmp_path / header]).check(tmp_path / "b.raw")


@pytest.mark.parametrize(
    ("name", "header", "data"),
    [
        ("a.mhd", "ObjectType = Image\nNDims = 3\nElementDataFile = sub/data.nii.gz\n", ["sub/data.nii.gz"]),
        ("a.mhd", "ObjectType = Image\r\nNDims = 3\r\nElementDataFile = b.raw\r\n", ["b.raw"]),
        ("a.mha", "NDims = 3\nElementDataFile = LIST\n1.raw\n2.raw\n", ["1.raw", "2.raw"]),
        ("a.mhd", "NDims = 3\nElementDataFile = s%03d.raw 1 5 2\n", ["s001.raw", "s003.raw", "s005.raw"]),
        ("a.nhdr", "NRRD0004\ndimension: 3\ndata file: ../b.nrrd\n\n", ["../b.nrrd"]),
        ("a.nrrd", "NRRD0004\ndatafile: b.raw\n\n", ["b.raw"]),
        ("a.nhdr", "NRRD0004\ndata file: LIST 2\none.raw\ntwo.raw\n", ["one.raw", "two.raw"]),
        ("a.nhdr", "NRRD0004\ndata file: I.%02d 9 10 1 2\n\n", ["I.09", "I.10"]),
        ("named wrongly.dat", "NRRD0004\nData File: Läsion.raw\n\n", ["Läsion.raw"]),
    ],
)
def test_the_data_files_that_a_header_names(tmp_path: Path, name: str, header: str, data: list[str]) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).write_text(header, newline="")
    for file in data:
        refused(tmp_path / "x" / file, tmp_path / "x" / name)
    InputFiles([tmp_path / "x" / name]).check(tmp_path / "x" / "other.raw")


NONSENSE = (
    "",
    "NRRD0004\ndata file: \n\n",
    "NRRD0004\ndata file: %d 5 1\n\n",
    "NRRD0004\ndata file: a\0b\n\n",
    "NDims = 3\nElementDataFile = LOCAL\nx\n",
    "NDims = 3\nElementDataFile = %d 0 999 0\n",
)


def test_headers_with_invalid_data_files(tmp_path: Path) -> None:
    for n, text in enumerate(NONSENSE):
        (tmp_path / f"{n}.nhdr").write_text(text)
    odd = [tmp_path / "missing.mhd", Path("x" * 300), Path("a\0b")]
    InputFiles([*tmp_path.iterdir(), *odd]).check(tmp_path / "out.nrrd")


def test_a_dicom_series_and_its_folder(tmp_path: Path) -> None:
    series, outside = tmp_path / "series", tmp_path / "slice.dcm"
    write_series(series)
    (series / "003.dcm").rename(outside)
    (series / "003.dcm").symlink_to(outside)
    (tmp_path / "link").symlink_to(series)
    for source in (series, series / "000.dcm", tmp_path / "link"):
        assert "would overwrite the input file" in refused(series / "000.dcm", source)
        assert "would overwrite the input file" in refused(outside, source)
        for output in (series / "new.nii.gz", series / "sub" / "results.csv", tmp_path / "link" / "new.dcm"):
            assert "would become part of its DICOM series" in refused(output, source)
        InputFiles([source]).check(tmp_path / "series.seg.nrrd")
        InputFiles([source]).check(tmp_path / "series 2" / "a.dcm")


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    for output in (tmp_path / "a\udcff.nrrd", Path("\udcfe") / "a.nrrd"):
        message = refused(output, tmp_path / "a.nrrd")
        assert "is not UTF-8 text" in message
        assert message.isprintable()


def test_many_inputs_and_outputs(tmp_path: Path) -> None:
    for n in range(300):
        (tmp_path / f"{n}.nrrd").write_text("NRRD0004\n\n")
    inputs = InputFiles(tmp_path / f"{n}.nrrd" for n in range(300))
    for n in range(300):
        inputs.check(tmp_path / "out" / f"{n}.nrrd")
        with pytest.raises(BadOutput):
            inputs.check(tmp_path / f"{n}.nrrd")
