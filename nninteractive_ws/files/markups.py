"""3D Slicer's markups files (.mrk.json): points, boxes and closed curves, as prompts for a volume."""

from collections.abc import Iterator
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from nninteractive_ws.errors import BadJobs
from nninteractive_ws.files.images import Volume
from nninteractive_ws.files.rows import escaped
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Mask

Points = npt.NDArray[np.float64]

#: Between two control points of a curve, as many as Slicer has.
_POINTS_PER_SEGMENT = 10
#: A curve is drawn so many times finer than the voxels are, and looked at in their middles.
_FINER = 8
#: The cosine of the angle that a box may be turned by against the voxels; about a degree.
_PARALLEL = 0.9998
#: For what rounding does to positions, in voxels.
_TINY = 1e-6


@dataclass(frozen=True)
class Lasso:
    """A filled outline: a mask of ``box``'s shape."""

    box: Box
    mask: Mask


Markup = Index | Box | Lasso


def read_markups(path: Path, volume: Volume) -> list[Markup]:
    """The points (as voxels), boxes and closed curves of a file, in its order. Raises BadJobs.

    A box must lie along the volume's axes, a closed curve in one of its slices; both are cut at its border. What is
    of another kind is refused. Points without a position are left out.
    """
    try:
        markups = json.loads(path.read_text(encoding="utf-8"))["markups"]
        found = [item for markup in markups for item in _read(markup, volume)]
    except OSError as e:
        raise BadJobs(f"{path} cannot be read ({e.strerror}).") from e
    except BadJobs as e:
        raise BadJobs(f"{path}: {e}") from e
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as e:
        reason = escaped(repr(e))[:200]
        raise BadJobs(f"{path} is not a markups file as 3D Slicer writes it ({reason}).") from e
    if not found:
        raise BadJobs(f"{path} holds no point, ROI or closed curve.")
    return found


def _read(markup: dict[str, Any], volume: Volume) -> Iterator[Markup]:
    kind = markup["type"]
    if kind == "Fiducial":
        for point in np.rint(_to_ijk(_control_points(markup), volume)):
            yield int(point[0]), int(point[1]), int(point[2])
    elif kind == "ROI":
        yield _box(markup, volume)
    elif kind == "ClosedCurve":
        yield _lasso(markup, volume)
    else:
        raise BadJobs(
            f"it holds a markup of type {escaped(str(kind)[:40])}; Fiducial, ROI and ClosedCurve can be used."
        )


def _control_points(markup: dict[str, Any]) -> Points:
    """(n, 3), LPS millimetres."""
    positions = [
        point["position"] for point in markup["controlPoints"] if point.get("positionStatus", "defined") == "defined"
    ]
    return _lps(np.array(positions, float).reshape(-1, 3), markup)


def _lps(vectors: Points, markup: dict[str, Any]) -> Points:
    """Positions or directions (n, 3) of a file, in LPS."""
    system = markup["coordinateSystem"]
    if system not in ("LPS", "RAS"):
        raise BadJobs(f"its coordinate system is {escaped(str(system)[:40])}; LPS or RAS is needed.")
    return vectors * (1, 1, 1) if system == "LPS" else vectors * (-1, -1, 1)


def _to_ijk(points: Points, volume: Volume) -> Points:
    """Positions in voxels, not rounded."""
    if not np.isfinite(points).all():
        raise BadJobs("it holds positions that are not finite.")
    inverse = np.linalg.inv(volume.ijk_to_lps)
    return np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3])


def _box(markup: dict[str, Any], volume: Volume) -> Box:
    """The voxels whose middles are inside an ROI, at least one on each axis."""
    size = np.array(markup["size"], float)
    axes = _lps(np.array(markup["orientation"], float).reshape(3, 3).T, markup)  # a row for each axis of the box
    directions = np.array(volume.image.GetDirection()).reshape(3, 3)
    cosines = np.abs(axes @ directions)  # of the box's axes (rows) with the volume's (columns)
    if cosines.max(1).min() < _PARALLEL:
        angle = np.degrees(np.arccos(cosines.max(1).min()))
        raise BadJobs(f"its ROI is turned by {angle:.0f} degrees against the voxels; it must lie along them.")
    extent = size[cosines.argmax(0)] / volume.image.GetSpacing()
    centre = _to_ijk(_lps(np.array([markup["center"]], float), markup), volume)[0]
    starts = np.ceil(centre - extent / 2 - _TINY)
    stops = np.floor(centre + extent / 2 + _TINY) + 1
    middle = np.rint(centre)
    empty = stops <= starts
    starts[empty], stops[empty] = middle[empty], middle[empty] + 1
    return _inside(starts, stops, volume, "its ROI")


def _inside(starts: Points, stops: Points, volume: Volume, what: str) -> Box:
    limit = 2.0**31  # beyond any volume, and still exact as an integer
    pairs = np.clip(np.stack((starts, stops), axis=1), -limit, limit).astype(int).tolist()
    box = Box.from_pairs(pairs).clip(volume.voxels.shape)
    if box is None:
        raise BadJobs(f"{what} lies outside the volume.")
    return box


def _lasso(markup: dict[str, Any], volume: Volume) -> Lasso:
    """The voxels whose middles are inside a closed curve that lies in a slice."""
    controls = _to_ijk(_control_points(markup), volume)
    if len(controls) < 3:
        raise BadJobs(f"its closed curve has {len(controls)} points; 3 are needed.")
    axis = int(np.ptp(controls, axis=0).argmin())
    in_slice = round(float(controls[:, axis].mean()))
    away = np.abs(controls[:, axis] - in_slice).max()
    if away > 1:
        raise BadJobs(
            f"its closed curve is up to {away:.1f} voxels away from the slice {'ijk'[axis]} = {in_slice}; it must lie "
            "in one slice."
        )
    outline = smooth(controls)
    starts, stops = np.floor(outline.min(0)), np.ceil(outline.max(0)) + 1
    starts[axis], stops[axis] = in_slice, in_slice + 1
    box = _inside(starts, stops, volume, "its closed curve")
    plane = [a for a in range(3) if a != axis]
    filled = _fill(np.delete(outline - box.start, axis, axis=1), [box.shape[a] for a in plane])
    if not filled.any():
        raise BadJobs("its closed curve has no voxel of the volume inside.")
    return Lasso(box, np.expand_dims(filled, axis))


def smooth(controls: Points) -> Points:
    """The closed curve through control points (n, 3) as Slicer draws it: cubic, with continuous curvature."""
    after = np.roll(controls, -1, axis=0)
    # Its second derivatives M at the points: M[n-1] + 4 M[n] + M[n+1] is known for all, and goes round.
    known = np.fft.rfft(6 * (after - 2 * controls + np.roll(controls, 1, axis=0)), axis=0)
    weights = 4 + 2 * np.cos(2 * np.pi * np.arange(len(known)) / len(controls))
    bend = np.fft.irfft(known / weights[:, None], len(controls), axis=0)
    t = np.arange(_POINTS_PER_SEGMENT)[:, None] / _POINTS_PER_SEGMENT
    pieces = [
        (1 - t) * a + t * b + (((1 - t) ** 3 - (1 - t)) * bend_a + (t**3 - t) * bend_b) / 6
        for a, b, bend_a, bend_b in zip(controls, after, bend, np.roll(bend, -1, axis=0), strict=True)
    ]
    return np.concatenate(pieces)


def _fill(outline: Points, shape: list[int]) -> Mask:
    """The pixels of a mask of ``shape`` whose middles are inside an outline (n, 2)."""
    columns, rows = (n * _FINER for n in shape)
    picture = Image.new("1", (columns, rows))
    corners = np.rint(outline * _FINER + _FINER // 2).astype(int)
    ImageDraw.Draw(picture).polygon([(x, y) for x, y in corners.tolist()], fill=1)
    return np.asarray(picture)[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER].transpose()
