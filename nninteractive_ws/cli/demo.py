"""``nninteractive-ws demo``."""

from __future__ import annotations

from pathlib import Path
import time
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
import typer

from nninteractive_ws.cli.console import fail, stderr
from nninteractive_ws.cli.progress import session_progress
from nninteractive_ws.client.blocking import Session, connect
from nninteractive_ws.errors import Error
from nninteractive_ws.server.local import ServerDidNotStart, local_server

if TYPE_CHECKING:  # the demo's parts need the server's packages
    from nninteractive_ws.demo.phantom import Phantom
    from nninteractive_ws.demo.tour import Stop


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the picture and the volumes.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Another number, another patient.")] = 0,
) -> None:
    """The whole chain on an embedded phantom and model: server, client, previews, a table, a picture.

    It needs neither a GPU nor a download, takes half a minute, and ends by itself.
    """
    try:
        from nninteractive_ws.demo.phantom import make_phantom
        from nninteractive_ws.demo.picture import draw
        from nninteractive_ws.demo.tour import tour
    except ModuleNotFoundError as e:
        fail(f"the demo needs the package {e.name}: pip install 'nninteractive-ws[server]'")
    started = time.monotonic()
    phantom = make_phantom(seed)
    i, j, k = phantom.image.shape
    stderr.print(f"phantom {seed}: {i} x {j} x {k} voxels of {phantom.spacing[0]} mm, made by code; no real patient")
    stops: list[Stop] = []
    try:
        with session_progress() as progress, local_server("--model", "demo", "--log-level", "warning") as address:
            progress.say(f"server started at {address}")
            with connect(address, on=progress.callbacks) as session:
                stderr.print(_describe(session))
                session.set_image(phantom.image)
                for stop in tour(session, phantom, stderr.print):
                    stops.append(stop)
    except (Error, ServerDidNotStart) as e:
        fail(e)
    output.mkdir(parents=True, exist_ok=True)
    Console().print(_table(stops))
    draw(phantom, stops, output / "demo.png")
    _write_volumes(phantom, stops, output)
    stderr.print(
        f"{time.monotonic() - started:.0f} s in all. Look at {output / 'demo.png'}; {output / 'phantom.nii.gz'} and "
        f"{output / 'segments.nii.gz'} (and .seg.nrrd, for Slicer) hold the volumes.",
        soft_wrap=True,
    )


def _describe(session: Session) -> str:
    server = session.server
    return f"connected to {server.server}: model {server.model.name} ({server.model.license}) on {server.device}"


def _table(stops: list[Stop]) -> Table:
    table = Table(
        "organ",
        "prompts",
        caption="times: from an organ's first prompt; bytes: of all its messages, and of the image while it travelled",
    )
    for column in ("Dice", "first preview", "first result", "sent", "received"):
        table.add_column(column, justify="right")
    for s in stops:
        times = (f"{t:.2f} s" for t in (s.first_preview, s.first_result))
        sizes = (f"{n / 1000:,.1f} kB" for n in (s.sent, s.received))
        table.add_row(s.organ, ", ".join(s.prompts), f"{s.dice:.3f}", *times, *sizes)
    return table


def _write_volumes(phantom: Phantom, stops: list[Stop], folder: Path) -> None:
    import SimpleITK as sitk

    from nninteractive_ws.files.images import Volume, write_segmentation

    image = sitk.GetImageFromArray(phantom.image.transpose())
    image.SetSpacing(phantom.spacing)
    sitk.WriteImage(image, str(folder / "phantom.nii.gz"), useCompression=True)
    volume = Volume(phantom.image, image)
    for name in ("segments.nii.gz", "segments.seg.nrrd"):
        write_segmentation(folder / name, {s.organ: s.mask for s in stops}, volume)
