"""``nninteractive-ws segment``."""

from pathlib import Path
import time
from typing import Annotated

from rich.markup import escape
import typer

from nninteractive_ws.atomic_files import atomic_write, check_writable
from nninteractive_ws.cli import option_values
from nninteractive_ws.cli.console import fail, print_notes, stderr
from nninteractive_ws.cli.progress import session_progress
from nninteractive_ws.cli.read_options import Resample, Series, TimePoint
from nninteractive_ws.cli.server_options import Ca, Model, Server, Start, server_options
from nninteractive_ws.client.blocking import Segment, connect
from nninteractive_ws.client.events import Result
from nninteractive_ws.client.inputs import box_inside, to_index
from nninteractive_ws.errors import Error
from nninteractive_ws.files.images import (
    MAX_NAME_LENGTH,
    SEGMENTATION_ENDINGS,
    check_output,
    color_of,
    is_segment_name,
    read_volume,
    write_segmentation,
)
from nninteractive_ws.files.overwrites import InputFiles
from nninteractive_ws.files.pictures import Prompt, three_views
from nninteractive_ws.files.read_options import ReadOptions
from nninteractive_ws.files.volume import Volume
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.local_server import ServerDidNotStart, ServerOptions

Position = tuple[float, float, float]
Texts = list[str] | None


def segment(
    image: Annotated[
        Path, typer.Argument(help="Image file (NIfTI, NRRD, MetaImage, ...), or folder with a DICOM series.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output file: .nii.gz, .nrrd, .seg.nrrd or .dcm (DICOM SEG).")
    ],
    point: Annotated[Texts, typer.Option(metavar="I,J,K", help="Voxel in the object; may be repeated.")] = None,
    negative_point: Annotated[
        Texts, typer.Option(metavar="I,J,K", help="Voxel outside the object; may be repeated.")
    ] = None,
    lps: Annotated[
        Texts, typer.Option(metavar="X,Y,Z", help="Position in the object in LPS millimeters; may be repeated.")
    ] = None,
    negative_lps: Annotated[
        Texts, typer.Option(metavar="X,Y,Z", help="Position outside the object in LPS millimeters; may be repeated.")
    ] = None,
    bbox: Annotated[
        Texts,
        typer.Option(
            metavar="I:I,J:J,K:K",
            help="Bounding box of the object in one slice, end-exclusive; may be repeated.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the segment.")] = "segment",
    series: Series = None,
    time_point: TimePoint = None,
    resample: Resample = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Picture of the outline in axial, coronal and sagittal slices."),
    ] = None,
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

    Boxes are sent first, then points, then negative points. Voxel indices start at 0 along the axes i, j, k, as in
    3D Slicer, ITK and nibabel. The token for the server is read from the environment variable NNINTERACTIVE_WS_TOKEN.
    """
    boxes = [option_values.box(text, "--bbox") for text in bbox or []]
    voxels = [(option_values.voxel(text, "--point"), True) for text in point or []]
    voxels += [(option_values.voxel(text, "--negative-point"), False) for text in negative_point or []]
    positions = [(option_values.position(text, "--lps"), True) for text in lps or []]
    positions += [(option_values.position(text, "--negative-lps"), False) for text in negative_lps or []]
    if not any(positive for _, positive in (*voxels, *positions)) and not boxes:
        fail("No prompt marks the object. Add at least one --point, --lps or --bbox.")
    _check_names(output, picture, name)
    try:
        inputs = InputFiles([image])
        inputs.check(output)
        if picture is not None:
            inputs.check(picture)
            check_writable(picture)
        volume = read_volume(image, ReadOptions(series, time_point, resample))
        check_output(output, volume)
        print_notes(volume.notes)
        points = _in_volume(volume, boxes, voxels, positions)
        mask = _segment(volume, boxes, points, output, name, server_options(server, ca, start, model))
        if picture is not None:
            marks = [Prompt.of(box, True) for box in boxes] + [Prompt.of(at, positive) for at, positive in points]
            with atomic_write(picture) as partial:
                three_views(volume.voxels, mask, volume.ijk_to_lps, color_of(0), marks).save(partial, "PNG")
    except (Error, ServerDidNotStart, OSError) as e:
        fail(e)


def _check_names(output: Path, picture: Path | None, name: str) -> None:
    """End the command if the name of an output file or of the segment is invalid."""
    if not output.name.endswith(SEGMENTATION_ENDINGS):
        fail(f"The name of the output {output.name} must end with one of {', '.join(SEGMENTATION_ENDINGS)}.")
    if picture is not None and picture.suffix != ".png":
        fail(f"The name of the picture {picture.name} must end with .png.")
    for file in (output, picture):
        if file is not None and not file.parent.is_dir():
            fail(f"The folder {file.parent} does not exist. Create it, or choose another output file.")
    if not is_segment_name(name):
        fail(
            f"The name of the segment is invalid. Expected at most {MAX_NAME_LENGTH} printable characters without a "
            "backslash."
        )


def _in_volume(
    volume: Volume, boxes: list[Box], voxels: list[tuple[Index, bool]], positions: list[tuple[Position, bool]]
) -> list[tuple[Index, bool]]:
    """Return the voxels of all points, the positive ones first. Raises OutOfBounds, before a server is started."""
    for box in boxes:
        box_inside(box, volume.shape)
    points = voxels + [(volume.index_of(at), positive) for at, positive in positions]
    checked = [(to_index(at, volume.shape), positive) for at, positive in points]
    return sorted(checked, key=lambda point: not point[1])


def _segment(
    volume: Volume,
    boxes: list[Box],
    points: list[tuple[Index, bool]],
    output: Path,
    name: str,
    server: ServerOptions,
) -> Mask:
    """Segment, write the output, print a summary, and return the mask."""
    started = time.monotonic()
    with (
        session_progress() as progress,
        server.running(progress.set_status) as address,
        connect(address, **server.connect_arguments, on=progress.callbacks) as session,
    ):
        progress.set_status("preparing the image")
        session.set_options(previews=False)  # there is no display for them
        session.set_image(volume.voxels)
        result = _prompt(session.segment(name), boxes, points)
        mask = session.segment(name).mask
        model_info = session.server.model
    write_segmentation(output, {name: mask}, volume)
    stderr.print(
        escape(
            f"{output}: {result.voxels:,} voxels, {result.voxels * volume.voxel_ml:.1f} ml, "
            f"{time.monotonic() - started:.1f} s, model {model_info.name} ({model_info.license})"
        ),
        soft_wrap=True,
    )
    if result.voxels == 0:
        stderr.print("[yellow]The segment is empty. Try another point, or a box.[/]")
    return mask


def _prompt(target: Segment, boxes: list[Box], points: list[tuple[Index, bool]]) -> Result:
    for box in boxes:
        result = target.add_bbox(box)
    for at, positive in points:
        result = target.add_point(at, positive=positive)
    return result
