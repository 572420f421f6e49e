"""``nninteractive-ws bench``."""

from __future__ import annotations

from pathlib import Path
import tempfile
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
import typer

from nninteractive_ws.benchmark import Part
from nninteractive_ws.cli.console import INTERRUPTED, fail, stderr
from nninteractive_ws.errors import Error
from nninteractive_ws.server.local import ServerDidNotStart

if TYPE_CHECKING:  # it needs packages of its own
    from nninteractive_ws.benchmark.measure import Record


def bench(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="For figures and raw numbers.")],
    part: Annotated[
        list[Part] | None,
        typer.Option(help="What to measure; may be repeated. Default: all that can be."),
    ] = None,
    shape: Annotated[str, typer.Option(metavar="I,J,K", help="Voxels of the volume.")] = "512,512,256",
    times: Annotated[int, typer.Option(min=1, help="How often each side is measured.")] = 3,
) -> None:
    """Measure this server against nnInteractive's own, on the same work.

    Examples:

        nninteractive-ws bench -o bench
        nninteractive-ws bench -o bench --part prompts --shape 160,128,112

    Both servers are started on this machine with the same model, and used in turns by clients of their own, with the
    same volume and prompts; a relay stands for slower links. Every figure is printed beside the official one, with
    their ratio. FOLDER gets bench.json with every single measurement, and bench.png. All of it takes about half an
    hour on two cores; the machine should have nothing else to do.
    """
    try:
        from nninteractive_ws.benchmark.report import draw, tables, write_json
        from nninteractive_ws.benchmark.run import NoGpu, machine, run
    except ModuleNotFoundError as e:
        fail(f"measuring needs the package {e.name}: pip install 'nninteractive-ws[server]'")
    records: list[Record] = []
    try:
        size = _shape(shape)
        output.mkdir(parents=True, exist_ok=True)
        about = machine()
        with tempfile.TemporaryDirectory() as folder, stderr.status("") as status:
            for record in run(part, Path(folder), size, times, lambda words: status.update(escape(words))):
                records.append(record)
                write_json(output / "bench.json", about, records)
                shown = ", ".join(f"{what} {value:.3g}" for what, value in record.measured.items())
                stderr.print(f"{record.part}, {record.case}, {record.side}: {shown}", soft_wrap=True, highlight=False)
    except KeyboardInterrupt:
        stderr.print("Stopped; what was measured until then follows.")
        raise typer.Exit(INTERRUPTED) from None
    except (Error, NoGpu, ServerDidNotStart, OSError) as e:
        fail(e)
    finally:
        if records:
            draw(output / "bench.png", records)
            console = Console()
            for table in tables(records):
                console.print(table)
            stderr.print(f"Figures and raw numbers are in {escape(str(output))}.", soft_wrap=True)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        i, j, k = (int(n) for n in text.split(","))
    except ValueError:
        fail(f'--shape {text}: three whole numbers, such as "512,512,256".')
    if min(i, j, k) < 64:
        fail(f"--shape {text}: at least 64 voxels along each axis, or there is nothing to prompt.")
    return i, j, k
