"""``nninteractive-ws segment``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import time
from typing import Annotated, TypeVar

from rich.markup import escape
import typer

from nninteractive_ws.cli.console import fail, stderr
from nninteractive_ws.cli.progress import SessionProgress, session_progress
from nninteractive_ws.client.address import printable_address
from nninteractive_ws.client.blocking import Segment, connect
from nninteractive_ws.client.events import Result
from nninteractive_ws.errors import Error
from nninteractive_ws.files.images import (
    LONGEST_NAME,
    SEGMENTATION_ENDINGS,
    Volume,
    is_segment_name,
    read_volume,
    write_segmentation,
)
from nninteractive_ws.geometry import Box
from nninteractive_ws.server.local import ServerDidNotStart, local_server

T = TypeVar("T")
Vector = tuple[float, float, float]
Words = list[str] | None

#: Where the token for a server is looked for: not an option, which everybody on the machine could read.
TOKEN_VARIABLE = "NNINTERACTIVE_WS_TOKEN"

Server = Annotated[
    str | None,
    typer.Option(help="The address of a server, also ssh://user@gpu-box; without it one is started here."),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="For an ssh:// address: starts a server over there where none answers, and ends it afterwards; such "
        "as 'nninteractive-ws serve'.",
    ),
]
Model = Annotated[str | None, typer.Option(help="What the server started here serves: see `serve --help`.")]
Ca = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Certificates (PEM) to trust instead of the system's, for a wss:// address."),
]


def segment(
    image: Annotated[
        Path, typer.Argument(help="A file that SimpleITK reads (NIfTI, NRRD, ...), or the folder of a DICOM series.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .nii.gz, .nrrd, .seg.nrrd or .dcm (DICOM SEG).")
    ],
    point: Annotated[Words, typer.Option(metavar="I,J,K", help="A voxel of the object.")] = None,
    negative_point: Annotated[Words, typer.Option(metavar="I,J,K", help="A voxel that is not of the object.")] = None,
    lps: Annotated[Words, typer.Option(metavar="X,Y,Z", help="A position in the object, LPS millimetres.")] = None,
    negative_lps: Annotated[Words, typer.Option(metavar="X,Y,Z", help="A position that is not in the object.")] = None,
    bbox: Annotated[
        Words, typer.Option(metavar="I:I,J:J,K:K", help="A box around the object in one slice; stops not included.")
    ] = None,
    name: Annotated[str, typer.Option(help="The name of the segment.")] = "segment",
    server: Server = None,
    ca: Ca = None,
    start: Start = None,
    model: Model = None,
) -> None:
    """Segment one object of an image from points and boxes.

    Examples:

        nninteractive-ws segment ct.nii.gz --point 60,70,60 -o liver.nii.gz
        nninteractive-ws segment ct.nrrd --bbox 40:80,30:70,12:13 -o a.seg.nrrd
        nninteractive-ws segment ct.nrrd --lps=-31.5,12,800 -o a.seg.nrrd \\
            --server ssh://user@gpu-box

    Boxes are given first, then points, then negative points.
    Voxels are counted from 0 along the axes i, j, k as 3D Slicer, ITK and nibabel do. Each option may be
    given several times. A token for the server is taken from the environment variable NNINTERACTIVE_WS_TOKEN.
    """
    boxes = [_box(text) for text in bbox or []]
    clicks = [(_numbers(t, int), False, True) for t in point or []] + [
        (_numbers(t, float), True, True) for t in lps or []
    ]
    clicks += [(_numbers(t, int), False, False) for t in negative_point or []]
    clicks += [(_numbers(t, float), True, False) for t in negative_lps or []]
    if not any(positive for _, _, positive in clicks) and not boxes:
        fail("nothing says where the object is: give at least one --point, --lps or --bbox.")
    if not output.name.endswith(SEGMENTATION_ENDINGS):
        fail(f"{output.name}: the name must end with {', '.join(SEGMENTATION_ENDINGS)}.")
    if not output.parent.is_dir():
        fail(f"there is no folder {output.parent} to write to.")
    if not is_segment_name(name):
        fail(f"the name of a segment has at most {LONGEST_NAME} printable characters, and no backslash.")
    try:
        volume = read_volume(image)
        points = [(volume.index_of(at) if in_mm else at, positive) for at, in_mm, positive in clicks]
        _segment(volume, boxes, points, output, name, server, ca, start, model)
    except (Error, ServerDidNotStart, OSError) as e:
        fail(e)


def _segment(
    volume: Volume,
    boxes: list[Box],
    points: list[tuple[Vector, bool]],
    output: Path,
    name: str,
    server: str | None,
    ca: Path | None,
    start: str | None,
    model: str | None,
) -> None:
    started = time.monotonic()
    token = os.environ.get(TOKEN_VARIABLE)
    with (
        session_progress() as progress,
        server_or_own(server, model, progress) as address,
        connect(address, token=token, ca=ca, start=start, on=progress.callbacks) as session,
    ):
        progress.say("looking at the image")
        session.set_image(volume.voxels)
        result = _prompt(session.segment(name), boxes, points)
        mask = session.segment(name).mask
        described = session.server.model
    write_segmentation(output, {name: mask}, volume)
    stderr.print(
        escape(
            f"{output}: {result.voxels:,} voxels, {result.voxels * volume.voxel_ml:.1f} ml, "
            f"{time.monotonic() - started:.1f} s, model {described.name} ({described.license})"
        ),
        soft_wrap=True,
    )
    if result.voxels == 0:
        stderr.print("[yellow]The segment is empty: try another point, or a box.[/]")


def _prompt(target: Segment, boxes: list[Box], points: list[tuple[Vector, bool]]) -> Result:
    for box in boxes:
        result = target.add_bbox(box)
    for at, positive in points:
        result = target.add_point(at, positive=positive)
    return result


@contextmanager
def server_or_own(address: str | None, model: str | None, progress: SessionProgress) -> Iterator[str]:
    """The address that is given, or of a server that is started here with ``model``. Raises ServerDidNotStart."""
    if address is not None:
        progress.say(f"connecting to {printable_address(address)}")
        yield address
        return
    progress.say("starting a server")
    with local_server("--log-level", "warning", *(("--model", model) if model else ())) as own:
        yield own


def _numbers(text: str, kind: Callable[[str], float]) -> Vector:
    try:
        a, b, c = (kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f'"{text}" is not three numbers separated by commas, like 60,50,12') from None
    return a, b, c


def _box(text: str) -> Box:
    try:
        return Box.from_pairs([[int(n) for n in part.split(":")] for part in text.split(",")])
    except ValueError:
        raise typer.BadParameter(
            f'"{text}" is not a box like 40:80,30:70,12:13 (from and to on each axis, the latter not included)'
        ) from None
