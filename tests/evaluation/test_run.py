"""The command evaluate and the functions below it, on volumes of phantoms with real servers."""

from collections.abc import Iterator
import csv
from dataclasses import dataclass
from functools import cache
import json
from pathlib import Path

from helpers.fast_server import quick_server
import numpy as np
from PIL import Image
import pytest
from rich.table import Table
import SimpleITK as sitk
from typer.testing import CliRunner

from nninteractive_ws.cli.main import make_app
from nninteractive_ws.client.blocking import connect
from nninteractive_ws.demo.cases import phantom_cases
from nninteractive_ws.demo.phantom import ORGANS, Phantom, make_phantom
from nninteractive_ws.errors import BadImage, InvalidTable, UnsupportedPrompt
from nninteractive_ws.evaluation.cases import Scan, read_cases
from nninteractive_ws.evaluation.pictures import ReorientedCase
from nninteractive_ws.evaluation.report import curve_table, obedience_table, structures_table
from nninteractive_ws.evaluation.run import EvaluatedObject, ObjectResult, Plan, PromptResult, evaluate, supported_kinds
from nninteractive_ws.evaluation.simulated_user import KINDS

#: Direction matrix (LPS) of a volume with i to the right, j to the head, and k to the back.
TURNED = ((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class Small:
    """A small case, a phantom with voxels of 5 mm."""

    structures: tuple[str, ...] = ("liver",)
    name: str = "small"

    def read(self) -> Scan:
        phantom = small()
        structures = {name: ORGANS[name] for name in self.structures}
        return Scan(phantom.image, phantom.labels, phantom.spacing, np.eye(3), structures)


@cache
def small() -> Phantom:
    return make_phantom(11, (64, 52, 40), (5.0, 5.0, 5.0))


def write(folder: Path, name: str, voxels: np.ndarray, origin: float = 0.0, flip: bool = False) -> None:
    image = sitk.GetImageFromArray(voxels.transpose(), isVector=voxels.ndim > 3)
    image.SetSpacing((5.0, 4.0, 3.0))
    image.SetOrigin((origin, 2.0, 3.0))
    image.SetDirection(np.ravel(TURNED).tolist())
    if flip:
        image = sitk.Flip(image, [True, False, False])
    sitk.WriteImage(image, str(folder / name))


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    """A server with a fast, deterministic network and little memory for images."""
    with quick_server("--memory", "0.05") as server:
        yield server.address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and with valid and invalid label maps."""
    folder, phantom = tmp_path_factory.mktemp("cases"), small()
    write(folder, "ct.nii.gz", phantom.image)
    write(folder, "copy.nii.gz", phantom.image)
    write(folder, "organs.nii.gz", phantom.labels)
    write(folder, "elsewhere.nii.gz", phantom.labels, origin=9.0)
    write(folder, "smaller.nii.gz", phantom.labels[1:])
    write(folder, "soft.nrrd", phantom.labels.astype(np.float32) / 2)
    for name, dtype in (("rounded.nrrd", np.float32), ("rounded64.nii.gz", np.float64)):
        write(folder, name, phantom.labels.astype(dtype) * dtype(1.0000002))
    write(folder, "almost.nrrd", np.where(phantom.labels, 1.0002, 0.0))
    write(folder, "gap.nrrd", np.where(phantom.labels, np.nan, 0.0))
    write(folder, "mirrored.nrrd", phantom.labels, flip=True)
    write(folder, "color.nrrd", np.stack([phantom.labels.astype(np.uint8)] * 3))
    write(folder, "nothing.nii.gz", np.zeros_like(phantom.labels))
    write(folder, "flat.nii.gz", np.zeros_like(phantom.image))
    return folder


def nobody(message: str, done: int) -> None:
    """Ignore all progress."""


def command(*message: object) -> tuple[int, str]:
    """Run the command. Return the exit status and the output."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(make_app("evaluate"), ["evaluate", *map(str, message)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(folder: Path, name: str, *lines: str) -> Path:
    (folder / name).write_text("\n".join(("image,labels,label,name", *lines)) + "\n")
    return folder / name


# ---- the embedded model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(server: str) -> list[EvaluatedObject]:
    with connect(server) as session:
        found = list(evaluate(session, [Small()], Plan(["point"], 3, 0), nobody))
        assert session.segments == []
    return found


@pytest.mark.slow
def test_replayed_prompts_reproduce_the_measures(server: str, embedded: list[EvaluatedObject]) -> None:
    phantom = small()
    with connect(server) as session:
        session.set_image(phantom.image)
        for evaluated in embedded:
            truth, segment = phantom.mask(evaluated.result.structure), session.segment("again")
            for step in evaluated.result.steps:
                before = segment.mask.copy()
                point = tuple(int(n) for n in step.at.split())
                assert (truth[point], before[point]) == (step.positive, not step.positive)
                segment.add_point(point, positive=step.positive)
                assert step.dice == pytest.approx(simpleitk_dice(truth, segment.mask))
                assert step.region_voxels <= np.count_nonzero(before ^ truth)
            assert (segment.mask == evaluated.mask).all()
            segment.remove()


def simpleitk_dice(a: np.ndarray, b: np.ndarray) -> float:
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)))
    return measure.GetDiceCoefficient()


@pytest.mark.slow
def test_the_embedded_model_segments_the_liver(embedded: list[EvaluatedObject]) -> None:
    assert [e.result.structure for e in embedded] == ["liver"]
    for result in (e.result for e in embedded):
        assert not result.error
        assert result.dice[-1] > 0.7
        assert 0 < result.nsd[-1] <= 1
        assert all(s.obeyed is not None and s.region_left <= s.region_voxels and s.passes for s in result.steps)
        assert all(0 < s.network_s <= s.seconds for s in result.steps)


# ---- the command --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_failed_cases_are_recorded_and_the_others_evaluated(quick: str, folder: Path, tmp_path: Path) -> None:
    cases = table(
        folder,
        "cases.csv",
        "ct.nii.gz,organs.nii.gz,1,liver",
        "ct.nii.gz,organs.nii.gz,200,",
        "ct.nii.gz,organs.nii.gz,11,spine",
        "gone.nii.gz,organs.nii.gz,1,liver",
        "copy.nii.gz,elsewhere.nii.gz,1,liver",
        "flat.nii.gz,organs.nii.gz,1,liver",
    )
    status, output = command(
        cases, "-o", tmp_path / "out", "--server", quick, "--prompts-per-object", 4, "--prompts", "mixed"
    )
    assert status == 1, output
    assert "4 of 6 failed" in output
    found = {(r["case"], r["structure"]): r for r in rows(tmp_path / "out" / "objects.csv")}
    assert list(found) == [
        ("ct.nii.gz", "liver"), ("ct.nii.gz", "200"), ("ct.nii.gz", "spine"), ("gone.nii.gz", ""),
        ("copy.nii.gz", ""), ("flat.nii.gz", ""),
    ]  # fmt: skip
    assert "has no voxel of label 200" in found["ct.nii.gz", "200"]["error"]
    assert "does not exist" in found["gone.nii.gz", ""]["error"]
    assert "is not on the grid of the image" in found["copy.nii.gz", ""]["error"]
    assert found["flat.nii.gz", ""]["error"]
    prompts = rows(tmp_path / "out" / "prompts.csv")
    for structure in ("liver", "spine"):
        measured, given = found["ct.nii.gz", structure], [p for p in prompts if p["structure"] == structure]
        assert measured["voxels"] == str(np.count_nonzero(small().mask(structure)))
        assert [p["prompt"] for p in given] == ["1", "2", "3", "4"]
        assert [given[n]["dice"] for n in (0, -1)] == [measured["dice_first"], measured["dice_final"]]
        d = [float(p["dice"]) for p in given]
        assert float(measured["dice_auc"]) == pytest.approx((d[0] / 2 + d[1] + d[2] + d[3] / 2) / 3, abs=1e-4)
        assert measured["error"] == ""
    assert {p["structure"] for p in prompts} == {"liver", "spine"}
    pictures = sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".png")
    assert pictures == ["dice.png", "worst-1.png", "worst-2.png"]
    for name in pictures:
        with Image.open(tmp_path / "out" / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 50, name
    assert not list((tmp_path / "out").glob(".partial-*"))


@pytest.mark.slow
def test_an_evaluation_without_results_removes_the_old_picture(quick: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "worst-1.png").touch()
    (tmp_path / "dice.png").touch()
    status, output = command(
        table(folder, "gone.csv", "gone.nii.gz,organs.nii.gz,,"), "-o", tmp_path, "--server", quick
    )
    assert status == 1
    assert "1 of 1 failed" in output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["objects.csv", "prompts.csv"]


@pytest.mark.slow
def test_a_figure_that_cannot_be_drawn_is_an_error_after_the_summary(quick: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dice.png").mkdir()
    cases = table(folder, "drawn.csv", "ct.nii.gz,organs.nii.gz,1,liver")
    status, output = command(cases, "-o", tmp_path, "--server", quick, "--prompts-per-object", 1)
    assert status == 1
    assert "failed: dice.png could not be drawn (" in output
    assert "expected minimum on phantoms" in " ".join(output.split())
    assert (tmp_path / "worst-1.png").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_tables(quick: str, folder: Path, tmp_path: Path) -> None:
    cases = table(folder, "one.csv", "ct.nii.gz,organs.nii.gz,1,liver")
    for name in "ab":
        message = ("--prompts-per-object", 4, "--prompts", "mixed", "--seed", 5, "--server", quick)
        assert command(cases, "-o", tmp_path / name, *message)[0] == 0
    for name in ("prompts.csv", "objects.csv"):
        a, b = (timeless(tmp_path / folder / name) for folder in "ab")
        assert a
        assert a == b


def timeless(path: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in rows(path)]


@pytest.mark.slow
def test_every_prompt_kind_occurs_with_both_polarities(quick: str) -> None:
    given = set()
    with connect(quick) as session:
        for kind in KINDS:
            (found,) = evaluate(session, [Small()], Plan([kind], 3, 0), nobody)
            assert not found.result.error
            assert {(s.kind, s.obeyed is None) for s in found.result.steps} == {(kind, kind != "point")}
            given |= {s.positive for s in found.result.steps}
    assert given == {True, False}


def test_a_finished_object_repeats_its_last_measures() -> None:
    step = PromptResult("point", True, "1 2 3", 50, 0, True, 1.0, 0.9, 1, 0.5, 0.0, 0.4)
    result = ObjectResult("a", "b", budget=5, voxels=50, steps=(step,))
    assert (result.dice, result.nsd, result.dice_auc) == ([1.0] * 5, [0.9] * 5, 1.0)
    assert result.prompts_to == (1, 1, 1)


def test_printed_tables() -> None:
    def step(dice: float, obeyed: bool | None, positive: bool = True, left: int = 5) -> PromptResult:
        return PromptResult("point", positive, "1 2 3", 10, left, obeyed, dice, dice / 2, 1, 2.0 * dice, 0.0, 0.4)

    def lines(table: Table) -> dict[str, list[object]]:
        rows = zip(*(column.cells for column in table.columns), strict=True)
        return {str(first): list(others) for first, *others in rows}

    kidney = (step(0.5, True), step(0.87, False, left=10), step(0.82, True, positive=False))
    results = [
        ObjectResult("one", "kidney", 4, 50, kidney),
        ObjectResult("two", "kidney", 4, 50, (step(1.0, True),)),
        ObjectResult("two", "cyst", 4, 3, left_out="3 voxels"),
        ObjectResult("two", "spleen", 4, 50, error="No memory."),
        ObjectResult("three", "", 4, error="There is no file."),
    ]
    table = lines(structures_table(results))
    # Means of (0.5, 0.87, 0.82, 0.82) and (1, 1, 1, 1). NSD is half of them.
    assert table["kidney"][:6] == ["2", "0.750", "0.910", "0.892", "0.455", "0.446"]
    assert table["kidney"][6:] == ["1.5", "1.5", "2.5 (1)", "1.69"]
    assert table["spleen"] == ["1", "0.000", "0.000", "0.000", "0.000", "0.000", *["4.0 (1)"] * 3, ""]
    assert table["all"][:3] == ["3", "0.500", "0.607"]
    assert list(table) == ["kidney", "spleen", "all"]
    assert lines(curve_table(results))["Dice"] == ["0.500", "0.623", "0.607", "0.607"]
    after, what, *held = (list(column.cells) for column in obedience_table(results).columns)
    assert [(a.split()[-2:], *row) for a, *row in zip(after, *held, strict=True)] == [
        (["positive", "point"], "0.667", "3", "0.95"),
        (["negative", "point"], "1.000", "1", "0.95"),
        (["a", "correction"], "0.500", "2", "0.85"),
        (["a", "correction"], "0.500", "2", ""),
    ]
    assert what[2:] == ["the prompted error is smaller", "Dice is higher"]


def test_pictures_are_oriented_as_by_simpleitk(folder: Path) -> None:
    (case,) = read_cases(table(folder, "turned.csv", "ct.nii.gz,organs.nii.gz,1,liver"))
    scan = case.read()
    point, liver = (40, 20, 30), scan.labels == 1
    step = PromptResult("point", True, " ".join(map(str, point)), 9, 0, True, 0.5, 0.5, 1, 1.0, 0.0, 1.0)
    result = ObjectResult("ct", "liver", 1, int(liver.sum()), (step,))
    turned = ReorientedCase(EvaluatedObject(result, scan, liver, liver))
    image = sitk.DICOMOrient(sitk.ReadImage(str(folder / "ct.nii.gz")), "LPS")
    assert (turned.image == sitk.GetArrayFromImage(image).transpose()).all()
    assert tuple(turned.spacing) == image.GetSpacing()
    ((at, positive),) = turned.points
    assert positive
    assert turned.image[tuple(at)] == scan.voxels[point]
    back = sitk.DICOMOrient(image[tuple(slice(int(n), int(n) + 1) for n in at)], "LPS").GetOrigin()
    assert back == pytest.approx(sitk.ReadImage(str(folder / "ct.nii.gz")).TransformIndexToPhysicalPoint(point))


@dataclass(frozen=True)
class Large:
    """A case that exceeds the server's memory."""

    name: str = "large"

    def read(self) -> Scan:
        labels = np.zeros((200, 200, 200), np.uint8)
        labels[50:60, 50:60, 50:60] = 1
        labels[90:99, 90:99, 90:99] = 2
        return Scan(labels, labels, (1.0, 1.0, 1.0), np.eye(3), {"a": 1, "b": 2})


def test_server_errors_count_as_empty_masks(quick: str) -> None:
    with connect(quick) as session:
        found = [e.result for e in evaluate(session, [Large(), Small()], Plan(["point"], 2, 0), nobody)]
    assert [(r.structure, r.voxels, r.counts, r.dice) for r in found[:2]] == [
        ("a", 1000, True, [0, 0]),
        ("b", 729, True, [0, 0]),
    ]
    assert all("0.0" in r.error for r in found[:2]), found[0].error
    assert (found[2].case, found[2].error, len(found[2].steps)) == ("small", "", 2)


# ---- invalid input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("elsewhere.nii.gz", "is not on the grid of the image. Its voxels are up to 1.80 voxels away"),
        ("smaller.nii.gz", r"has \(63, 52, 40\) voxels. Expected \(64, 52, 40\)"),
        ("soft.nrrd", "is not a label map. Expected whole numbers from 0, found 0.5"),
        ("almost.nrrd", r"is not a label map. Expected whole numbers from 0, found 1.0002\.$"),
        ("gap.nrrd", r"is not a label map. Expected whole numbers from 0, found nan"),
        ("mirrored.nrrd", r"has the grid of the image, but flipped along i\. Resample it"),
        ("color.nrrd", "has 3 components per voxel, like a color image"),
        ("copy.nii.gz", "is not a label map. Expected whole numbers from 0, found -"),
        ("nothing.nii.gz", "has no labels. Expected at least one voxel that is not 0"),
    ],
)
def test_labels_that_do_not_fit_the_image_are_refused(folder: Path, labels: str, expected: str) -> None:
    (case,) = read_cases(table(folder, "bad.csv", f"ct.nii.gz,{labels},,"))
    with pytest.raises(BadImage, match=expected):
        case.read()


def test_all_labels_are_evaluated_by_default(folder: Path) -> None:
    (case,) = read_cases(table(folder, "all.csv", "ct.nii.gz,organs.nii.gz,,"))
    scan, phantom = case.read(), small()
    assert scan.structures == {str(ORGANS[name]): ORGANS[name] for name in phantom.organs()}
    assert (scan.labels == phantom.labels).all()
    assert scan.spacing == (5.0, 4.0, 3.0)
    assert (scan.direction == TURNED).all()


@pytest.mark.parametrize("labels", ["rounded.nrrd", "rounded64.nii.gz"])
def test_rounding_errors_of_labels_are_removed(folder: Path, labels: str) -> None:
    (case,) = read_cases(table(folder, "rounded.csv", f"ct.nii.gz,{labels},,"))
    scan, phantom = case.read(), small()
    assert scan.labels.dtype.kind == "u"
    assert (scan.labels == phantom.labels).all()
    assert scan.structures == {str(ORGANS[name]): ORGANS[name] for name in phantom.organs()}


def test_a_missing_label_is_a_failure(quick: str, folder: Path) -> None:
    cases = table(folder, "absent.csv", "ct.nii.gz,organs.nii.gz,1,liver", "ct.nii.gz,organs.nii.gz,77,gallstone")
    status, output = command(cases, "-o", folder / "absent", "--server", quick, "--prompts-per-object", 1)
    assert status == 1
    present = ", ".join(str(label) for label in np.unique(small().labels) if label)
    sentence = f"The label map has no voxel of label 77. Its labels are {present}."
    assert f"failed: ct.nii.gz: gallstone: {sentence}" in " ".join(output.split())
    assert [row["error"] for row in rows(folder / "absent" / "objects.csv")] == ["", sentence]


def test_json_lines_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({"image": "a.nrrd", "labels": "b.nrrd", "label": 3, "name": "left kidney"}))
    (case,) = read_cases(path)
    assert (case.name, case.image, case.labels) == ("a.nrrd", tmp_path / "a.nrrd", tmp_path / "b.nrrd")
    assert case.structures == {"left kidney": 3}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a,b,0,x"], 'line 2, column label: expected a whole number from 1, found "0"'),
        (["a,b,1,x", "a,b,2.5,y"], 'line 3, column label: expected a whole number from 1, found "2.5"'),
        (["a,,1,x"], "column labels: expected the path of a label map, found nothing"),
        (["a,b,1,x", "a,c,2,y"], "column labels: expected b as in the first row of the image, found c"),
        (["a,b,1,x", "a,b,2,x"], 'expected a unique name for each structure of an image, found "x" again'),
        (["a,b,1,x", "a,b,,"], "expected a value in each row of an image with several rows"),
        (["a,b,,x"], "expected the value of the structure that is named in column name"),
        (["a,a,1,x"], "line 2, column labels: expected the path of a label map, found the image itself"),
        (
            ["a,b,1,x", "b/../a,./a,,"],
            "line 3, column labels: expected the path of a label map, found the image itself",
        ),
        (["a,b,1,x,y"], "expected 4 cells as in the header, found 5"),
        ([], "has no rows"),
    ],
)
def test_an_invalid_row_is_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    with pytest.raises(InvalidTable) as caught:
        read_cases(table(tmp_path, "cases.csv", *lines))
    assert expected in str(caught.value)


@pytest.mark.slow
def test_phantoms_by_their_seeds() -> None:
    assert [case.seed for case in phantom_cases("10-12, 3,11")] == [10, 11, 12, 3]
    for wrong in ("", "x", "1-", "5-3", "1.5"):
        with pytest.raises(InvalidTable, match="phantom:"):
            phantom_cases(wrong)
    scan = phantom_cases("4")[0].read()
    assert set(scan.structures) == set(make_phantom(4).organs())


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("1_0", "is invalid"),
        ("\u0661", "is invalid"),
        ("1e3", "is invalid"),
        ("-3", "is invalid"),
        ("9" * 5000, "is invalid"),
        ("1-99999999999", "is invalid"),
        ("3,5-4", "has an empty range"),
        ("0-999999999", "has too many seeds. Expected at most 10,000"),
        ("0-9998,20000-20003", "has too many seeds"),
    ],
)
def test_invalid_seeds_of_phantoms(seeds: str, expected: str) -> None:
    with pytest.raises(InvalidTable, match=expected) as caught:
        phantom_cases(seeds)
    assert len(str(caught.value)) < 300


def test_only_prompts_supported_by_the_model() -> None:
    assert supported_kinds(KINDS, ["point", "bbox2d", "mask"]) == ["point", "bbox"]
    assert supported_kinds(["bbox"], ["bbox3d"]) == ["bbox"]
    with pytest.raises(UnsupportedPrompt, match=r"does not support lasso prompts\. Supported kinds: point, bbox"):
        supported_kinds(["lasso"], ["point", "bbox2d"])


def test_an_invalid_table_ends_the_command(tmp_path: Path) -> None:
    for message, text in (
        (tmp_path / "gone.csv", "cannot be read"),
        ("[bold].txt", "error: The name of the table [bold].txt must end with .csv, .tsv or .jsonl"),
        ("phantom:x", "Expected seeds such as phantom:10-13"),
    ):
        status, output = command(message, "-o", tmp_path / "out", "--server", "127.0.0.1:9")
        assert status == 1
        assert text in " ".join(output.split())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())
