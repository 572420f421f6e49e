"""Numbers in options: valid values and usage errors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import typer
from typer.testing import CliRunner

from nninteractive_ws.cli import option_values
from nninteractive_ws.cli.main import make_app
from nninteractive_ws.geometry import Box


def test_numbers_are_read() -> None:
    assert option_values.voxel("60,50,12", "--point") == (60, 50, 12)
    assert option_values.voxel(" +1, -2 ,003", "--point") == (1, -2, 3)
    assert option_values.position("-31.5,12,+800.", "--lps") == (-31.5, 12.0, 800.0)
    assert option_values.position("1e2, -2.5E-3,.5", "--lps") == (100.0, -0.0025, 0.5)
    assert option_values.box("40:80,30:70, 12 : 13", "--bbox") == Box.from_pairs(((40, 80), (30, 70), (12, 13)))


@pytest.mark.parametrize("number", [0.1, -1e-300, 123456789.12345678, 1 / 3, -0.0, 2.5e-7])
def test_a_number_that_python_prints_is_read_back(number: float) -> None:
    text = f"{number},{number!r},{number:.30f}"
    if abs(number) != 1e-300:
        assert option_values.position(text, "--lps") == (number,) * 3
    else:
        with pytest.raises(typer.BadParameter):
            option_values.position(text, "--lps")


#: Replacements for one number.
NO_NUMBERS = [
    "", " ", "x", "nan", "inf", "-Infinity", "1e400", "0x10", "1_0", "0b1", "1,5", "1;5", "1 5", "--1", "+", "1.2.3",
    "1e", "\u0661", "\uff11", "\u00b2", "\u22121", "9" * 10, "9" * 5000, "True", "None", "1\u00a05", "1:2:3",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_others_are_usage_errors_with_an_example(text: str) -> None:
    readers: list[tuple[Callable[[str, str], object], str, str, str]] = [
        (option_values.voxel, f"{text},2,3", "whole numbers", "60,50,12"),
        (option_values.position, f"1,2,{text}", "decimal point", "-31.5,12,800"),
        (option_values.box, f"1:{text},1:2,1:2", "end-exclusive", "40:80,30:70,12:13"),
    ]
    for reader, given, expected, example in readers:
        with pytest.raises(typer.BadParameter) as caught:
            reader(given, "--name")
        assert expected in caught.value.message
        assert example in caught.value.message
        assert len(caught.value.message) < 400
        assert caught.value.param_hint == "'--name'"


@pytest.mark.parametrize("text", ["1.5,2,3", "1e1,2,3", "1,2", "1,2,3,4", "60,5,70,2,12", "1;2;3", ""])
def test_invalid_voxels(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="three whole numbers"):
        option_values.voxel(text, "--point")


@pytest.mark.parametrize("text", ["1e12,2,3", "1,1000000000,3", "1,5;2;3", "1e98,0,0"])
def test_invalid_positions(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="three numbers of millimeters"):
        option_values.position(text, "--lps")


@pytest.mark.parametrize("text", ["5:2,1:2,1:2", "1:1,1:2,1:2", "1:2,1:2", "1.0:2,1:2,1:2", "1-2,1-2,1-2"])
def test_invalid_boxes(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="three ranges"):
        option_values.box(text, "--bbox")


# ---- in the commands ---------------------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str]:
    """Return the exit status and the output on one line."""
    app = make_app(str(arguments[0]))
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume whose voxels are so small that the index of a far position needs more than 32 bits."""
    path = tmp_path_factory.mktemp("images") / "a.nrrd"
    image = sitk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(6, 5, 4))
    image.SetSpacing((1e-3, 1e-3, 1e-3))
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("option", ["--point", "--negative-point", "--lps", "--negative-lps", "--bbox"])
def test_segment_names_the_option(image: Path, tmp_path: Path, option: str) -> None:
    status, output = invoke("segment", image, f"{option}=1,5;2;3", "-o", tmp_path / "a.nrrd", "--server", "127.0.0.1:9")
    assert status == 2
    assert f"Invalid value for '{option}': Expected three" in output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--lps=900000000,0,0"], "The point (900000000000, 0, 0) is outside the volume"),
        (["--lps=0,0,0", "--negative-lps=0,0,-5e8"], "The point (0, 0, -500000000000) is outside the volume"),
        (["--lps=1,0,0"], "The point (1000, 0, 0) is outside the volume of shape (4, 5, 6)"),
        (["--point=0,0,999999999"], "The point (0, 0, 999999999) is outside"),
        (["--point=0,0,0", "--negative-point=0,-1,0"], "The point (0, -1, 0) is outside"),
        (["--bbox=0:5,0:1,0:1"], "The box ((0, 5), (0, 1), (0, 1)) is not inside the volume"),
    ],
)
def test_positions_outside_the_volume_are_refused_before_a_server_is_reached(
    image: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    status, output = invoke("segment", image, *options, "-o", tmp_path / "a.nrrd", "--server", "127.0.0.1:9")
    assert status == 1
    assert expected in output
    assert "Nothing listens" not in output


def test_positions_inside_the_volume_reach_the_server(image: Path, tmp_path: Path) -> None:
    options = ["--bbox=0:4,0:5,5:6", "--lps=0.003,0.004,0.005", "--negative-point=0,0,0", "-o", tmp_path / "a.nrrd"]
    status, output = invoke("segment", image, *options, "--server", "127.0.0.1:9")
    assert status == 1
    assert "Nothing listens" in output


@pytest.mark.parametrize("shape", ["512", "64,64", "1e2,64,64", "64,64,64_0", "\uff16,64,64", "", "64,64,9999999999"])
def test_an_invalid_shape_of_bench(tmp_path: Path, shape: str) -> None:
    status, output = invoke("bench", "-o", tmp_path / "out", f"--shape={shape}")
    assert status == 2
    assert "Invalid value for '--shape': Expected three whole numbers" in output
    assert not (tmp_path / "out").exists()


def test_a_volume_of_bench_that_no_server_accepts(tmp_path: Path) -> None:
    status, output = invoke("bench", "-o", tmp_path / "out", "--shape=64,64,999999999")
    assert status == 1
    assert "at most 1,073,741,824 are accepted" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--seed=-1"],
        ["serve", "--memory=inf"],
        ["serve", "--memory=1e400"],
        ["serve", "--memory=nan"],
    ],
    ids=" ".join,
)
def test_numbers_beyond_their_range_are_usage_errors(arguments: list[str]) -> None:
    status, output = invoke(*arguments)
    assert status == 2
    assert f"Invalid value for '{arguments[1].partition('=')[0]}'" in output
