"""The rules for unusual segments."""

import numpy as np
import pytest

from nninteractive_ws.jobs.measures import Measures
from nninteractive_ws.jobs.oddities import RULES, Entry, find_oddities, format_ml, group_by_name
from nninteractive_ws.jobs.records import SegmentRecord
from nninteractive_ws.jobs.results import SegmentResult


def entry(
    ml: float = 100.0,
    *,
    name: str = "liver",
    voxels: int = 1000,
    share: float = 0.01,
    parts: int = 1,
    sides: tuple[str, ...] = (),
    seconds: float = 1.0,
    error: str | None = None,
    warnings: tuple[str, ...] = (),
) -> Entry:
    measures = Measures(ml, share, parts, 0.9, sides) if voxels else None
    record = None if error else SegmentRecord(b"", 1, 1, "", measures)
    result = SegmentResult(name, voxels=voxels, ml=ml if voxels else 0.0, predict_s=seconds, error=error)
    return Entry("a.nii.gz", "a.seg.nrrd", result, record, warnings)


def words(entries: list[Entry]) -> list[list[str]]:
    return [[o.word for o in found] for found in find_oddities(entries, group_by_name(entries))]


def first_of(odd: Entry, others: list[Entry]) -> list[str]:
    return words([odd, *others])[0]


USUAL = [entry(100.0 * (1 + n / 50)) for n in range(9)]


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (entry(), []),
        (entry(error="No."), ["failed"]),
        (entry(voxels=0), ["empty"]),
        (entry(voxels=29), ["tiny"]),
        (entry(voxels=30), []),
        (entry(share=0.26), ["huge"]),
        (entry(300.0), ["outlier"]),
        (entry(30.0), ["outlier"]),
        (entry(parts=6), ["parts"]),
        (entry(parts=5), []),
        (entry(sides=("superior",)), ["border"]),
        (entry(seconds=6.1), ["slow"]),
        (entry(seconds=5.9), []),
        (entry(warnings=("Slices are missing.", "Another.")), ["warning", "warning"]),
        (entry(300.0, voxels=3, parts=9, seconds=60.0), ["tiny", "outlier", "parts", "slow"]),
        (entry(error="No.", warnings=("Slices are missing.",)), ["failed", "warning"]),
    ],
)
def test_each_rule(odd: Entry, expected: list[str]) -> None:
    assert first_of(odd, USUAL) == expected
    assert not any(words([odd, *USUAL])[1:])  # one unusual segment does not make others unusual
    ranks = [list(RULES).index(word) for word in expected]
    assert ranks == sorted(ranks)


def test_volumes_are_compared_with_those_of_the_same_name() -> None:
    lesions = [entry(2.0 + n / 20, name="lesion") for n in range(9)]
    assert first_of(entry(100.0, name="lesion"), [*USUAL, *lesions]) == ["outlier"]
    assert first_of(entry(2.1, name="lesion"), [*USUAL, *lesions]) == []
    assert first_of(entry(1e6, name="another"), [*USUAL, *lesions]) == []


@pytest.mark.parametrize("count", [3, 4])
def test_four_segments_have_no_outlier(count: int) -> None:
    assert first_of(entry(1e6), [entry() for _ in range(count)]) == (["outlier"] if count == 4 else [])


def test_many_failures_and_empty_segments_do_not_move_the_median() -> None:
    others = [entry(error="No.") for _ in range(50)] + [entry(voxels=0) for _ in range(50)] + USUAL
    assert first_of(entry(110.0), others) == []
    assert first_of(entry(500.0), others) == ["outlier"]


def test_a_wide_distribution_has_no_outliers() -> None:
    rng = np.random.default_rng(1)
    found = words([entry(ml) for ml in np.exp(rng.normal(3, 1.2, 300)).tolist()])
    assert sum(map(bool, found)) <= 3  # 3.5 standard deviations: one of 2,000


def test_microscopic_volumes_are_compared_too() -> None:
    """results.csv rounds them to zero, unlike their measures."""
    assert first_of(entry(1e-6), [entry(1e-8) for _ in range(9)]) == ["outlier"]


def test_long_structures_may_touch_the_border_and_ribs_may_have_many_parts() -> None:
    aortas = [entry(sides=("superior", "inferior")) for _ in range(9)]
    assert first_of(aortas[0], aortas) == []
    assert first_of(aortas[0], [*aortas[:2], *USUAL]) == ["border"]
    ribs = [entry(parts=24) for _ in range(9)]
    assert first_of(entry(parts=26), ribs) == []
    assert first_of(entry(parts=60), ribs) == ["parts"]


def test_results_without_records_are_judged() -> None:
    bare = [Entry(e.image, e.output, e.result) for e in (*USUAL, entry(voxels=0), entry(700.0))]
    assert words(bare)[-2:] == [["empty"], ["outlier"]]


@pytest.mark.parametrize(
    ("ml", "expected"),
    [
        (0.0, "0 ml"), (1432.4, "1,432 ml"), (100.0, "100 ml"), (99.96, "100 ml"), (99.94, "99.9 ml"),
        (62.0, "62.0 ml"), (9.999, "10.0 ml"), (1.0, "1.00 ml"), (0.25, "0.25 ml"), (0.000012, "0.000012 ml"),
        (1e-9, "0.000000001 ml"),
    ],
)  # fmt: skip
def test_volumes_have_three_digits(ml: float, expected: str) -> None:
    assert format_ml(ml) == expected
