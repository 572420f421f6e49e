"""``nninteractive-ws demo``."""

from __future__ import annotations

import os
from pathlib import Path
import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn
import webbrowser

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
import typer

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.cli.console import fail, make_output_folder, stderr
from nninteractive_ws.cli.progress import session_progress
from nninteractive_ws.client.blocking import Session, connect
from nninteractive_ws.errors import Error
from nninteractive_ws.interrupts import exit_on_interrupt
from nninteractive_ws.server.local_server import ServerDidNotStart, local_server
from nninteractive_ws.server.web_page import MISSING_PAGE, PAGE_FOLDER, WebPage

if TYPE_CHECKING:  # they need the packages of nninteractive-ws[server]
    from nninteractive_ws.demo.phantom import Phantom
    from nninteractive_ws.demo.walkthrough import OrganResult


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the phantom.")] = 0,
    open_page: Annotated[
        bool,
        typer.Option("--open", help="Instead, open the phantom in the browser, on a server that runs until Ctrl-C."),
    ] = False,
) -> None:
    """Run server, client and previews on an embedded phantom and model, and draw a figure.

    The demo needs neither a GPU nor a download. It takes half a minute.
    """
    if open_page:
        _open_page(seed)
    make_output_folder(output)
    try:
        with exit_on_interrupt():
            from nninteractive_ws.demo.phantom import make_phantom
            from nninteractive_ws.demo.picture import draw
            from nninteractive_ws.demo.walkthrough import walk_through
    except ModuleNotFoundError as e:
        fail(f"demo needs the package {e.name}. Install it with: pip install 'nninteractive-ws[server]'")
    started = time.monotonic()
    phantom = make_phantom(seed)
    i, j, k = phantom.image.shape
    stderr.print(f"phantom {seed}: {i} x {j} x {k} voxels of {phantom.spacing[0]} mm, synthetic, no real patient")
    results: list[OrganResult] = []
    try:
        with session_progress() as progress, local_server("--model", "demo", "--log-level", "warning") as address:
            progress.set_status(f"server started at {address}")
            with connect(address, on=progress.callbacks) as session:
                stderr.print(_describe(session))
                session.set_image(phantom.image)
                for result in walk_through(session, phantom, stderr.print):
                    results.append(result)
        Console().print(results_table(results))
        with atomic_write(output / "demo.png") as partial:
            draw(phantom, results, partial)
        _write_volumes(phantom, results, output)
    except (Error, ServerDidNotStart, OSError) as e:
        fail(e)
    stderr.print(
        f"Finished in {time.monotonic() - started:.0f} s. Figure: {output / 'demo.png'}. Volumes: "
        f"{output / 'phantom.nii.gz'}, {output / 'segments.nii.gz'} and (for 3D Slicer) "
        f"{output / 'segments.seg.nrrd'}.",
        soft_wrap=True,
    )


def _open_page(seed: int) -> NoReturn:
    """Serve the web page, and open it on the phantom. Raises KeyboardInterrupt."""
    if seed:
        raise typer.BadParameter("The web page shows the phantom of seed 0.", param_hint="'--seed'")
    if not WebPage(PAGE_FOLDER).is_built:
        fail(MISSING_PAGE)
    try:
        with local_server("--model", "demo", "--log-level", "warning") as address:
            page = f"{address.replace('ws', 'http', 1)}/?example"
            if _has_browser() and webbrowser.open(page):
                stderr.print(f"The browser opens {page}", soft_wrap=True)
            else:
                port = address.rpartition(":")[2]
                stderr.print(
                    f"No browser was found. Open {page} with a browser on this machine. On another one, run first: "
                    f"ssh -L {port}:127.0.0.1:{port} USER@THIS_MACHINE",
                    soft_wrap=True,
                )
            stderr.print("The server runs until Ctrl-C.")
            while True:
                time.sleep(3600)
    except ServerDidNotStart as e:
        fail(e)


def _has_browser() -> bool:
    """Return whether a browser with windows may be here. A browser of text would take the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _describe(session: Session) -> str:
    server = session.server
    return (
        f"connected to {server.server_version}: model {server.model.name} ({server.model.license}) on {server.device}"
    )


def results_table(results: list[OrganResult]) -> Table:
    """Return a table of one line for each organ, which fits a terminal of 60 columns."""
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        caption="preview, result: of the first prompt; sent, received: all messages, and image parts sent meanwhile",
    )
    table.add_column("organ", no_wrap=True)
    for column in ("prompts", "Dice", "preview\ns", "result\ns", "sent\nkB", "received\nkB"):
        table.add_column(column, justify="right", no_wrap=True)
    for s in results:
        times = (f"{t:.2f}" for t in (s.first_preview, s.first_result))
        sizes = (f"{n / 1000:,.1f}" for n in (s.sent, s.received))
        table.add_row(s.organ, str(len(s.prompts)), f"{s.dice:.3f}", *times, *sizes)
    return table


def _write_volumes(phantom: Phantom, results: list[OrganResult], folder: Path) -> None:
    from nninteractive_ws.demo.phantom_file import phantom_volume, write_phantom
    from nninteractive_ws.files.images import write_segmentation

    with atomic_write(folder / "phantom.nii.gz") as partial:
        write_phantom(partial, phantom)
    for name in ("segments.nii.gz", "segments.seg.nrrd"):
        write_segmentation(folder / name, {s.organ: s.mask for s in results}, phantom_volume(phantom))
