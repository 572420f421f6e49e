"""Results as tables: two CSV files, and the printed summary."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.evaluation.measures import BALL_RADIUS, TARGETS
from nninteractive_ws.evaluation.run import ObjectResult
from nninteractive_ws.files.cells import csv_text

PROMPT_COLUMNS = (
    "case", "structure", "prompt", "kind", "polarity", "ijk", "region_voxels", "region_left", "obeyed", "dice", "nsd",
    "passes", "prompt_s", "waiting_s", "network_s",
)  # fmt: skip
OBJECT_COLUMNS = (
    "case", "structure", "voxels", "prompts", "dice_first", "dice_final", "dice_auc", "nsd_first", "nsd_final",
    "nsd_auc", *(f"prompts_to_{target:.2f}" for target in TARGETS), "points", "obeyed", "corrections", "lowered",
    "prompt_s", "model", "license", "seed", "left_out", "warnings", "error",
)  # fmt: skip
#: Names of the written files.
TABLES = ("prompts.csv", "objects.csv")
#: Numbers of prompts for which means are printed.
_PRINTED_PROMPTS = (1, 2, 3, 4, 5, 7, 10, 15, 20)


def write_tables(folder: Path, results: Sequence[ObjectResult], model: str, license: str, seed: int) -> None:
    """Write ``prompts.csv``, a line for each prompt, and ``objects.csv``, a line for each structure of each case.

    The files are replaced atomically. Columns with the suffix ``_s`` are seconds. All others are reproducible with the
    same cases, model, options and seed, if the model is deterministic.
    """
    prompts, objects = (folder / name for name in TABLES)
    _write(prompts, PROMPT_COLUMNS, (line for result in results for line in _prompt_lines(result)))
    provenance = (model, license, seed)
    _write(objects, OBJECT_COLUMNS, (_object_line(result, provenance) for result in results))


def _write(path: Path, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(csv_text([columns, *lines]), encoding="utf-8", newline="")


def _prompt_lines(result: ObjectResult) -> Iterable[Sequence[object]]:
    for number, s in enumerate(result.steps, start=1):
        obeyed = "" if s.obeyed is None else int(s.obeyed)
        shares, seconds = (s.dice, s.nsd), (s.seconds, s.waiting_s, s.network_s)
        yield (
            result.case, result.structure, number, s.kind, "positive" if s.positive else "negative", s.at,
            s.region_voxels, s.region_left, obeyed, *(f"{share:.4f}" for share in shares), s.passes,
            *(f"{second:.3f}" for second in seconds),
        )  # fmt: skip


def _object_line(result: ObjectResult, provenance: tuple[object, ...]) -> Sequence[object]:
    measured: list[object] = [""] * 9
    if result.counts:
        dice, nsd = result.dice, result.nsd
        shares = (dice[0], dice[-1], result.dice_auc, nsd[0], nsd[-1], result.nsd_auc)
        reached = ("" if n is None else n for n in result.prompts_to)
        measured = [*(f"{share:.4f}" for share in shares), *reached]
    points = [s.obeyed for s in result.steps if s.obeyed is not None]
    corrections = [s.region_left < s.region_voxels for s in result.steps[1:]]
    seconds = f"{np.median([s.seconds for s in result.steps]):.3f}" if result.steps else ""
    counts = (len(points), sum(points), len(corrections), sum(corrections))
    error = " ".join(result.error.split())  # one line per result
    return (
        result.case, result.structure, result.voxels, len(result.steps), *measured, *counts, seconds, *provenance,
        result.left_out, " ".join(" ".join(result.warnings).split()), error,
    )  # fmt: skip


def structures_table(results: Sequence[ObjectResult]) -> Table:
    """Return a table of means over the cases: a row for each structure, and one for all objects."""
    budget = results[0].budget
    table = Table(
        title="Dice and normalized surface Dice (NSD, 2 mm)",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption=f"to: prompts until a Dice is reached; objects that never reach it count as {budget}, their number is "
        "in parentheses; AUC: area under the curve over the prompts; s: median seconds of a prompt",
    )
    table.add_column("\nstructure")
    headers = ("\nn", "Dice\nfirst", "Dice\nfinal", "Dice\nAUC", "NSD\nfinal", "NSD\nAUC")
    for word in (*headers, *(f"to\n{target:.2f}" for target in TARGETS), "\ns"):
        table.add_column(word, justify="right", no_wrap=True)
    counting = [r for r in results if r.counts]
    for name in dict.fromkeys(r.structure for r in counting):
        table.add_row(name, *_cells([r for r in counting if r.structure == name]))
    if counting:
        table.add_section()
        table.add_row("all", *_cells(counting), style="bold")
    return table


def _cells(results: Sequence[ObjectResult]) -> Iterable[str]:
    yield str(len(results))
    shares = [(r.dice[0], r.dice[-1], r.dice_auc, r.nsd[-1], r.nsd_auc) for r in results]
    yield from (f"{share:.3f}" for share in np.mean(shares, 0))
    for column in zip(*(r.prompts_to for r in results), strict=True):
        missed = column.count(None)
        mean = np.mean([r.budget if n is None else n for r, n in zip(results, column, strict=True)])
        yield f"{mean:.1f}" + (f" ({missed})" if missed else "")
    seconds = [s.seconds for r in results for s in r.steps]
    yield f"{np.median(seconds):.2f}" if seconds else ""


def curve_table(results: Sequence[ObjectResult]) -> Table:
    """Return a table of means over all objects by number of prompts."""
    counting = [r for r in results if r.counts]
    table = Table(title="Mean over all objects", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("prompts")
    numbers = [n for n in _PRINTED_PROMPTS if n <= results[0].budget]
    for n in numbers:
        table.add_column(str(n), justify="right")
    if counting:
        for word, curves in (("Dice", [r.dice for r in counting]), ("NSD", [r.nsd for r in counting])):
            means = np.mean(curves, 0)
            table.add_row(word, *(f"{means[n - 1]:.3f}" for n in numbers))
    return table


def obedience_table(results: Sequence[ObjectResult]) -> Table:
    """Return a table of how often the model followed prompts, with the minimum expected on phantoms."""
    points = [s for r in results for s in r.steps if s.obeyed is not None]
    corrections = [s for r in results for s in r.steps[1:]]
    caption = f"bar: expected minimum on phantoms; ball: all voxels within {BALL_RADIUS} voxels of the point"
    if corrections:
        corrected = np.mean([1 - s.region_left / s.region_voxels for s in corrections])
        caption += f"; {corrected:.0%} of the voxels of the prompted errors were corrected"
    table = Table(title="Obedience", box=SIMPLE_HEAD, show_edge=False, caption=caption)
    table.add_column("after")
    table.add_column("expected")
    for word in ("held", "of", "bar"):
        table.add_column(word, justify="right")
    positive, negative = ([bool(p.obeyed) for p in points if p.positive is kind] for kind in (True, False))
    smaller = [s.region_left < s.region_voxels for s in corrections]
    better = [after.dice > before.dice for r in results for before, after in pairwise(r.steps)]
    for after, expected, held, bar in (
        ("a positive point", "its ball within the object is in the mask", positive, "0.95"),
        ("a negative point", "its ball outside the object is not in the mask", negative, "0.95"),
        ("a correction", "the prompted error is smaller", smaller, "0.85"),
        ("a correction", "Dice is higher", better, ""),
    ):
        table.add_row(after, expected, f"{np.mean(held):.3f}" if held else "-", str(len(held)), bar)
    return table
