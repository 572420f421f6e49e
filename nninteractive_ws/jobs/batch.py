"""``nninteractive_ws.batch``. What it needs beyond the client is imported when it is called."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nninteractive_ws.jobs.pipeline import Activity
    from nninteractive_ws.jobs.run import Batch


def batch(
    jobs: str | Path | Iterable[Mapping[str, object]],
    output: str | Path,
    *,
    server: str | None = None,
    format: Literal["seg.nrrd", "nii.gz", "dcm"] = "seg.nrrd",
    in_flight: int = 2,
    token: str | None = None,
    ca: str | Path | None = None,
    start: str | None = None,
    model: str | None = None,
    on_activity: "Callable[[Activity], object] | None" = None,
) -> "Batch":
    """Segment many images by a table of prompts: an iterator of results, in the order in which they are done.

    ::

        for result in nni.batch("jobs.csv", "segmented", server="gpu-box"):
            for segment in result.segments:
                print(result.image, segment.name, segment.voxels, segment.ml, segment.error)

    ``jobs``: a ``.csv`` or ``.jsonl`` file (see the README for its columns), or its rows as dictionaries: ``image``,
    ``segment``, ``prompt`` (point, bbox, scribble, lasso or markups), one of ``ijk`` (voxels: three numbers, or three
    half-open pairs), ``lps`` (millimetres: three numbers, or three pairs from two opposite corners) and ``file``, and
    ``polarity`` (positive or negative). The rows of an image are given in their order.

    ``output``: the folder for a file for every image and ``results.csv``. Volumes that are in there already, made from
    the same rows, are not made again; their results come first, with ``earlier`` set. Stop as you like: what was
    begun is begun again the next time.

    ``format``: ``dcm`` is DICOM SEG, for images that are folders with a DICOM series. ``in_flight``: volumes at a
    time, each in a session of its own; memory is needed for two for each. ``server``, ``token``, ``ca`` and ``start``:
    as for :func:`connect`; without ``server`` one is started here, with ``model``. ``on_activity``: is told what is
    being done, on another thread.

    A bad row or image is a result with ``error`` set, and the others go on. Raises BadJobs where the table as a whole
    cannot be used; the iterator raises ConnectionFailed and the like where the server cannot be reached,
    ServerDidNotStart, and OSError where a result cannot be written. Needs the packages of ``nninteractive-ws[cli]``.
    """
    try:
        from nninteractive_ws.jobs.run import Batch
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"batch needs the package {e.name}: pip install 'nninteractive-ws[cli]'") from e
    return Batch(
        jobs,
        output,
        server=server,
        format=format,
        in_flight=in_flight,
        token=token,
        ca=ca,
        start=start,
        model=model,
        on_activity=on_activity,
    )
