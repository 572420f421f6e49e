"""``nninteractive_ws.batch``. Packages beyond those of the client are imported at the call."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nninteractive_ws.jobs.pipeline import BatchProgress
    from nninteractive_ws.jobs.run import Batch


def batch(
    jobs: str | Path | Iterable[Mapping[str, object]],
    output: str | Path,
    *,
    server: str | None = None,
    format: Literal["seg.nrrd", "nii.gz", "dcm"] = "seg.nrrd",
    in_flight: int = 2,
    resample: bool = False,
    token: str | None = None,
    ca: str | Path | None = None,
    start: str | None = None,
    model: str | None = None,
    on_activity: "Callable[[BatchProgress], object] | None" = None,
) -> "Batch":
    """Segment many images with the prompts of a table.

    Volumes that were written before, from the same rows and options, are not computed again. Their results come first,
    with ``earlier`` set. A stopped batch resumes when it is called again. Needs the packages of
    ``nninteractive-ws[cli]``.

    Parameters
    ----------
    jobs : str, Path or iterable of mapping
        A ``.csv``, ``.tsv`` or ``.jsonl`` file, or its rows: ``image``, ``segment``, ``prompt`` (point, bbox, scribble,
        lasso or markups), one of ``ijk`` (voxels: three numbers, or three end-exclusive pairs), ``lps`` (millimeters:
        three numbers, or three pairs from two opposite corners) and ``file``, ``polarity`` (positive or negative), and
        ``series`` and ``time`` (numbers from 1, of an image with several). The prompts of an image are sent in the
        order of its rows.
    output : str or Path
        Folder for one file per image, ``results.csv``, and ``report.html`` with a picture of every segment. One batch
        at a time may use it, which a lock ensures.
    server : str, optional
        Address as for ``connect``. Without it, a temporary server starts on this computer.
    format : {"seg.nrrd", "nii.gz", "dcm"}
        Format of the segmentations. ``dcm`` is DICOM SEG, for DICOM images.
    in_flight : int, default 2
        Volumes at a time, each in a session of its own. Memory is needed for two volumes each.
    resample : bool, default False
        Interpolate images with sheared or unevenly spaced slices to an orthogonal grid.
    token, ca, start
        As for ``connect``.
    model : str, optional
        Model of the temporary server: a name or a folder.
    on_activity : callable, optional
        Called with a ``BatchProgress``, on another thread.

    Returns
    -------
    Batch
        An iterator of ``VolumeResult``, in the order of completion. An invalid row skips its segment, and a file that
        cannot be read or written its image: their results have ``error`` set. The iterator raises the errors of
        ``connect``, ServerDidNotStart, BadOutput if another batch uses the folder, and OSError if nothing can be
        written to it.

    Raises
    ------
    InvalidTable
        If the table cannot be used as a whole.
    BadOutput
        If the folder cannot be created or is inside that of a DICOM series of the table, or if ``results.csv`` would
        replace an input.
    ModuleNotFoundError
        If a package is missing.

    Examples
    --------
    >>> for result in nni.batch([], "segmented", server="ws://127.0.0.1:1528"):
    ...     for segment in result.segments:
    ...         print(result.image, segment.name, segment.voxels, segment.ml, segment.error)
    """
    try:
        from nninteractive_ws.jobs.run import Batch
        from nninteractive_ws.server.local_server import ServerOptions
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"batch needs the package {e.name}. Install it with: pip install 'nninteractive-ws[cli]'"
        ) from e
    return Batch(
        jobs,
        output,
        server=ServerOptions(server, token, ca, start, model),
        format=format,
        in_flight=in_flight,
        resample=resample,
        on_activity=on_activity,
    )
