"""``nninteractive-ws bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import tempfile
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
import typer

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.benchmark import Part
from nninteractive_ws.bricks import check_size
from nninteractive_ws.cli.console import fail, make_output_folder, stderr
from nninteractive_ws.cli.option_values import voxel
from nninteractive_ws.errors import Error
from nninteractive_ws.interrupts import INTERRUPTED, exit_on_interrupt
from nninteractive_ws.server.local_server import ServerDidNotStart

if TYPE_CHECKING:  # it needs the packages of nninteractive-ws[server]
    from nninteractive_ws.benchmark.measure import Measurement


def bench(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Output folder of bench.json, bench.md and bench.png."),
    ],
    part: Annotated[
        list[Part] | None,
        typer.Option(help="Part of the benchmark; may be repeated. Default: all that this machine supports."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="I,J,K",
            help="Size of the volume in voxels. Default: 512,512,256 for first-mask, memory and gpu, 160,128,112 for "
            "the others. Several clients and heavy users always have the latter.",
        ),
    ] = None,
    times: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of runs per system. Default: 5 where a run takes at most a few seconds (prompts, history, the "
            "HTTP API, gpu, first-mask on fast links), 1 beside a heavy user, 3 elsewhere. The part memory always has "
            "one run.",
        ),
    ] = None,
) -> None:
    """Benchmark this server against nnInteractive's own on the same workload.

    Examples:

        nninteractive-ws bench -o bench
        nninteractive-ws bench -o bench --part prompts --part history

    Both servers run on this machine with the same model, and alternate. Each has its own client, with the same volume
    and prompts; the part fairness also has nnInteractive's client on this server. A relay emulates slower links. Tables
    show both medians of each quantity, and the official value divided by ours. "Beyond the network" means without the
    time in which the network runs. Only the part gpu compiles the network. The part memory always uses the CPU. FOLDER
    gets bench.json with all measurements, bench.md with the tables, and bench.png with the most important values. All
    parts take about an hour on two cores. The machine should be idle otherwise.
    """
    try:
        with exit_on_interrupt():
            from nninteractive_ws.benchmark.report import charts, draw, tables, write_json, write_markdown
            from nninteractive_ws.benchmark.run import MeasurementFailed, NoGpu, machine, run
    except ModuleNotFoundError as e:
        fail(f"bench needs the package {e.name}. Install it with: pip install 'nninteractive-ws[server]'")
    measurements: list[Measurement] = []
    try:
        size = None if shape is None else _shape(shape)
        make_output_folder(output)
        about = machine()
        with tempfile.TemporaryDirectory() as folder, stderr.status("") as status:
            for measurement in run(part, Path(folder), size, times, lambda message: status.update(escape(message))):
                measurements.append(measurement)
                write_json(output / "bench.json", about, measurements)
                values = ", ".join(f"{name} {value:.3g}" for name, value in measurement.measured.items())
                stderr.print(
                    f"{measurement.part}, {measurement.case}, {measurement.system}: {values}",
                    soft_wrap=True,
                    highlight=False,
                )
    except KeyboardInterrupt:
        stderr.print("Stopped. The measurements so far follow.")
        raise typer.Exit(INTERRUPTED) from None
    except (Error, MeasurementFailed, NoGpu, ServerDidNotStart, OSError) as e:
        fail(e)
    finally:
        if measurements:
            _write(output / "bench.md", lambda path: write_markdown(path, about, measurements))
            if charts(measurements):
                _write(output / "bench.png", lambda path: draw(path, measurements))
            console = Console()
            for table in tables(measurements):
                console.print(table.for_console(), "")
            stderr.print(f"The results are in {escape(str(output))}.", soft_wrap=True)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file. A failure is reported, but does not hide the tables."""
    try:
        with atomic_write(path) as partial:
            write(partial)
    except OSError as e:
        stderr.print(f"[yellow]warning:[/] {escape(str(e))}", soft_wrap=True)


def _shape(text: str) -> tuple[int, int, int]:
    shape = voxel(text, "--shape")
    if min(shape) < 64:
        fail(f'--shape "{text}" is too small for the prompts. Expected at least 64 voxels along each axis.')
    check_size(shape)
    return shape
