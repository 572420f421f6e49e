"""``nninteractive-ws evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
import typer

from nninteractive_ws.cli.console import fail, make_output_folder, print_notes, stderr
from nninteractive_ws.cli.progress import SessionProgress, session_progress
from nninteractive_ws.cli.read_options import Resample
from nninteractive_ws.cli.server_options import Ca, Model, Server, Start, server_options
from nninteractive_ws.client.blocking import connect
from nninteractive_ws.errors import Error
from nninteractive_ws.files.overwrites import InputFiles
from nninteractive_ws.interrupts import INTERRUPTED, exit_on_interrupt
from nninteractive_ws.server.local_server import ServerDidNotStart

if TYPE_CHECKING:  # they need the packages of nninteractive-ws[evaluate]
    from collections.abc import Sequence

    from nninteractive_ws.client.blocking import Session
    from nninteractive_ws.evaluation.cases import Case
    from nninteractive_ws.evaluation.run import ObjectResult


class PromptKinds(StrEnum):
    """Kinds of prompts of the simulated user."""

    POINT = "point"
    SCRIBBLE = "scribble"
    BBOX = "bbox"
    LASSO = "lasso"
    MIXED = "mixed"


def evaluate(
    cases: Annotated[
        str,
        typer.Argument(
            metavar="CASES",
            help="Table of images and label maps, .csv, .tsv or .jsonl, or phantoms such as phantom:10-13.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder of tables and figures.")
    ],
    prompts: Annotated[
        PromptKinds,
        typer.Option(help="Kind of all prompts; mixed: drawn for each prompt from those that the model supports."),
    ] = PromptKinds.POINT,
    prompts_per_object: Annotated[int, typer.Option(min=1, help="Maximum number of prompts per object.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the kinds of prompts with mixed.")] = 0,
    resample: Resample = False,
    server: Server = None,
    ca: Ca = None,
    start: Start = None,
    model: Model = None,
) -> None:
    """Evaluate a model with a simulated user on images with known ground truth.

    Examples:

        nninteractive-ws evaluate phantom:10-13 -o report
        nninteractive-ws evaluate cases.csv -o report --prompts mixed \\
            --server ssh://user@gpu-box

    Columns of CASES: image, labels (a label map on the image's grid), label (the value of a structure; empty: each
    value in the map), name, series and time (numbers from 1, of an image with several). The first prompt of a structure
    is at its deepest voxel or in its largest cross-section, each following one at the largest error. FOLDER gets
    prompts.csv, objects.csv, dice.png, and figures of the worst objects.

    The exit status is 1 if a case, prompt or figure failed. The token for the server is read from the environment
    variable NNINTERACTIVE_WS_TOKEN.
    """
    try:
        with exit_on_interrupt():
            import meshmetrics  # noqa: F401

            from nninteractive_ws.demo.cases import phantom_cases
            from nninteractive_ws.evaluation.cases import read_cases
            from nninteractive_ws.evaluation.pictures import CURVES, WORST
            from nninteractive_ws.evaluation.report import TABLES, curve_table, obedience_table, structures_table
    except ModuleNotFoundError as e:
        fail(f"evaluate needs the package {e.name}. Install it with: pip install 'nninteractive-ws[evaluate]'")
    seeds = cases.removeprefix("phantom:")
    try:
        files = read_cases(Path(cases), resample) if seeds == cases else []
        found: list[Case] = [*(files or phantom_cases(seeds))]
        inputs = InputFiles([Path(cases), *(path for case in files for path in (case.image, case.labels))])
        for name in (*TABLES, CURVES, *WORST):
            inputs.check(output / name)
        make_output_folder(output)
        options = server_options(server, ca, start, model)
        with (
            session_progress() as progress,
            options.running(progress.set_status) as address,
            connect(address, **options.connect_arguments, on=progress.callbacks) as session,
        ):
            results, problems = _run(session, found, output, prompts, prompts_per_object, seed, progress)
    except KeyboardInterrupt:
        stderr.print(f"Stopped. The results so far are in {escape(str(output))}.", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except (Error, ServerDidNotStart, OSError) as e:
        fail(e)
    console = Console()
    for table in (structures_table(results), curve_table(results), obedience_table(results)):
        console.print(table)
    failed = sum(bool(r.error) for r in results)
    message = f"; {failed} of {len(results)} failed, see objects.csv" if failed else ""
    stderr.print(f"Tables and figures are in {escape(str(output))}{message}.", soft_wrap=True)
    if failed or problems:
        raise typer.Exit(1)


def _run(
    session: Session,
    cases: Sequence[Case],
    output: Path,
    prompts: PromptKinds,
    prompts_per_object: int,
    seed: int,
    progress: SessionProgress,
) -> tuple[list[ObjectResult], list[str]]:
    """Evaluate, and return the results, and sentences about figures that could not be drawn.

    Tables are updated after each object. Figures are drawn at the end, and after an interruption.
    """
    from nninteractive_ws.evaluation.pictures import WorstCases, draw_figures
    from nninteractive_ws.evaluation.report import write_tables
    from nninteractive_ws.evaluation.run import Plan, evaluate, supported_kinds
    from nninteractive_ws.evaluation.simulated_user import KINDS

    model = session.server.model
    requested = [kind for kind in KINDS if prompts in (kind, PromptKinds.MIXED)]
    plan = Plan(supported_kinds(requested, model.prompts), prompts_per_object, seed)
    results: list[ObjectResult] = []
    problems: list[str] = []
    worst = WorstCases()

    def on_status(message: str, done: int) -> None:
        progress.set_overall(message, done, len(cases))

    try:
        for evaluated in evaluate(session, cases, plan, on_status):
            results.append(evaluated.result)
            worst.add(evaluated)
            write_tables(output, results, model.name, model.license, seed)
            _print_result(evaluated.result, is_first=[r.case for r in results].count(evaluated.result.case) == 1)
    finally:
        if results:
            problems = draw_figures(results, worst, output, f"{model.name} ({model.license}), prompts: {prompts}")
            for problem in problems:
                stderr.print(f"[bold red]failed:[/] {escape(problem)}", soft_wrap=True)
    return results, problems


def _print_result(result: ObjectResult, is_first: bool) -> None:
    """Print a result above the progress. ``is_first``: of its case, whose warnings are printed once."""
    if is_first:
        print_notes(result.warnings, result.case)
    name = escape(": ".join(filter(None, (result.case, result.structure))))
    if result.steps:
        dice = " ".join(f"{s.dice:.2f}" for s in result.steps)
        seconds = sum(s.seconds for s in result.steps)
        stderr.print(f"{name}: Dice {dice} ({seconds:.1f} s)", soft_wrap=True)
    if result.left_out:
        stderr.print(f"{name}: skipped ({result.left_out})", soft_wrap=True)
    if result.error:
        stderr.print(f"[bold red]failed:[/] {name}: {escape(result.error)}", soft_wrap=True)
