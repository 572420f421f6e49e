"""``nninteractive-ws evaluate``."""

from __future__ import annotations

from enum import StrEnum
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
import typer

from nninteractive_ws.cli.console import INTERRUPTED, fail, stderr
from nninteractive_ws.cli.progress import SessionProgress, session_progress
from nninteractive_ws.cli.segment import TOKEN_VARIABLE, Ca, Model, Server, Start, server_or_own
from nninteractive_ws.client.blocking import connect
from nninteractive_ws.errors import Error
from nninteractive_ws.server.local import ServerDidNotStart

if TYPE_CHECKING:  # they need packages of their own
    from collections.abc import Sequence

    from nninteractive_ws.client.blocking import Session
    from nninteractive_ws.evaluation.cases import Case
    from nninteractive_ws.evaluation.run import ObjectResult


class Prompts(StrEnum):
    """The kinds of prompt."""

    POINT = "point"
    SCRIBBLE = "scribble"
    BBOX = "bbox"
    LASSO = "lasso"
    MIXED = "mixed"


def evaluate(
    cases: Annotated[
        str,
        typer.Argument(
            metavar="CASES", help="A .csv or .jsonl file of images and label maps, or phantoms by their seeds."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="For tables and pictures.")],
    prompts: Annotated[
        Prompts, typer.Option(help="What the user gives, from the first prompt to the last; mixed: drawn each time.")
    ] = Prompts.POINT,
    clicks: Annotated[int, typer.Option(min=1, help="How many prompts an object gets at most.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="From which the kinds of mixed are drawn.")] = 0,
    server: Server = None,
    ca: Ca = None,
    start: Start = None,
    model: Model = None,
) -> None:
    """Measure how good a model is: a simulated user prompts it where the truth is known.

    Examples:

        nninteractive-ws evaluate phantom:10-13 -o report
        nninteractive-ws evaluate cases.csv -o report --prompts mixed \\
            --server ssh://user@gpu-box

    The columns of CASES: image, labels (a label map on the image's grid), label (the value of a structure; empty: each
    there is) and name. Every structure is prompted in its middle, and then in the middle of the largest error, or drawn
    on where that is largest. FOLDER gets prompts.csv, objects.csv, dice.png and pictures of the worst objects.

    The exit status is 1 where something failed. A token for the server is taken from the environment variable
    NNINTERACTIVE_WS_TOKEN.
    """
    try:
        import meshmetrics  # noqa: F401

        from nninteractive_ws.demo.cases import phantom_cases
        from nninteractive_ws.evaluation.cases import read_cases
        from nninteractive_ws.evaluation.report import curve_table, obedience_table, structures_table
    except ModuleNotFoundError as e:
        fail(f"evaluating needs the package {e.name}: pip install 'nninteractive-ws[evaluate]'")
    seeds = cases.removeprefix("phantom:")
    try:
        found: list[Case] = [*(read_cases(Path(cases)) if seeds == cases else phantom_cases(seeds))]
        output.mkdir(parents=True, exist_ok=True)
        with (
            session_progress() as progress,
            server_or_own(server, model, progress) as address,
            connect(
                address, token=os.environ.get(TOKEN_VARIABLE), ca=ca, start=start, on=progress.callbacks
            ) as session,
        ):
            results = _run(session, found, output, prompts, clicks, seed, progress)
    except KeyboardInterrupt:
        stderr.print(f"Stopped. What was measured until then is in {escape(str(output))}.", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except (Error, ServerDidNotStart, OSError) as e:
        fail(e)
    console = Console()
    for table in (structures_table(results), curve_table(results), obedience_table(results)):
        console.print(table)
    failed = sum(bool(r.error) for r in results)
    words = f"; {failed} of {len(results)} failed, see objects.csv" if failed else ""
    stderr.print(f"Tables and pictures are in {escape(str(output))}{words}.", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _run(
    session: Session,
    cases: Sequence[Case],
    output: Path,
    prompts: Prompts,
    clicks: int,
    seed: int,
    progress: SessionProgress,
) -> list[ObjectResult]:
    """Evaluate, with tables that are up to date after every object, and pictures also where it is stopped."""
    from nninteractive_ws.evaluation.pictures import Worst, draw_curves
    from nninteractive_ws.evaluation.report import write_tables
    from nninteractive_ws.evaluation.run import Plan, evaluate, supported_kinds
    from nninteractive_ws.evaluation.user import KINDS

    model = session.server.model
    asked = [kind for kind in KINDS if prompts in (kind, Prompts.MIXED)]
    plan = Plan(supported_kinds(asked, model.prompts), clicks, seed)
    results: list[ObjectResult] = []
    worst = Worst()

    def say(words: str, done: int) -> None:
        progress.whole(words, done, len(cases))

    try:
        for evaluated in evaluate(session, cases, plan, say):
            results.append(evaluated.result)
            worst.consider(evaluated)
            write_tables(output, results, model.name, model.license, seed)
            _tell(evaluated.result)
    finally:
        draw_curves(results, output / "dice.png", f"{model.name} ({model.license}), prompts: {prompts}")
        worst.draw(output)
    return results


def _tell(result: ObjectResult) -> None:
    """A result in words, above the progress."""
    name = escape(": ".join(filter(None, (result.case, result.structure))))
    if result.steps:
        dice = " ".join(f"{s.dice:.2f}" for s in result.steps)
        seconds = sum(s.seconds for s in result.steps)
        stderr.print(f"{name}: Dice {dice} ({seconds:.1f} s)", soft_wrap=True)
    if result.left_out:
        stderr.print(f"{name}: left out ({result.left_out})", soft_wrap=True)
    if result.error:
        stderr.print(f"[bold red]failed:[/] {name}: {escape(result.error)}", soft_wrap=True)
