"""Figures of an evaluation: which structures they show, and what happens if one cannot be drawn."""

from pathlib import Path

from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from nninteractive_ws.evaluation.cases import Scan
from nninteractive_ws.evaluation.pictures import MAX_STRUCTURES, WorstCases, curves_figure, draw_figures
from nninteractive_ws.evaluation.run import EvaluatedObject, ObjectResult, PromptResult


def result_of(structure: str, *dice: float) -> ObjectResult:
    steps = tuple(PromptResult("point", True, "4 4 4", 9, 0, True, d, d, 1, 1.0, 0.0, 1.0) for d in dice)
    return ObjectResult("ct", structure, len(dice), 27, steps)


def evaluated(structure: str, dice: float) -> EvaluatedObject:
    truth = np.zeros((9, 9, 9), bool)
    truth[3:6, 3:6, 3:6] = True
    scan = Scan(truth.astype(np.int16), truth.astype(np.uint8), (1.0, 1.0, 1.0), np.eye(3), {structure: 1})
    return EvaluatedObject(result_of(structure, dice), scan, truth, np.roll(truth, 1, 0))


def titles(figure: Figure) -> list[str]:
    return [panel.get_title().split()[0] for panel in figure.axes if panel.axison]


def test_structures_are_in_the_order_of_the_table() -> None:
    results = [result_of(str(n), 0.5, (n * 7 % MAX_STRUCTURES) / MAX_STRUCTURES) for n in range(MAX_STRUCTURES)]
    figure = curves_figure([*results, *results], "a title")
    assert titles(figure) == ["all", *map(str, range(MAX_STRUCTURES))]
    assert figure.get_suptitle() == "a title"


def test_of_many_structures_the_worst_are_drawn() -> None:
    # The second prompt decides, and the mean of the cases.
    results = [result_of(str(n), n / 1000, 1 - n / 1000) for n in range(1000)]
    others = [result_of("999", 0.0, 1.0)]
    figure = curves_figure([*results, *others], "a title")
    assert titles(figure) == ["all", *(str(998 - n) for n in range(MAX_STRUCTURES))]
    assert figure.get_suptitle() == "a title\n39 of 1,000 structures, those with the lowest final Dice"
    assert figure.get_figheight() < 25


def test_a_figure_that_cannot_be_drawn_does_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = WorstCases()
    found = [evaluated("liver", 0.5), evaluated("kidney", 0.2), evaluated("spleen", 0.7)]
    for each in found:
        worst.add(each)
    (tmp_path / "dice.png").mkdir()
    (tmp_path / "worst-4.png").touch()
    savefig = Figure.savefig

    def fail_for_one(figure: Figure, path: Path, **options: object) -> None:
        if "worst-2" in path.name:
            raise MemoryError
        savefig(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", fail_for_one)
    problems = draw_figures([each.result for each in found], worst, tmp_path, "a title")
    assert [problem.partition(" (")[0] for problem in problems] == [
        "dice.png could not be drawn", "worst-2.png could not be drawn"
    ]  # fmt: skip
    assert problems[1].endswith(" (MemoryError).")
    assert sorted(path.name for path in tmp_path.glob("*")) == ["dice.png", "worst-1.png", "worst-3.png"]
    with Image.open(tmp_path / "worst-1.png") as picture:
        assert picture.width > 1000
