"""Markups files of 3D Slicer (.mrk.json): points, boxes and closed curves as prompts for a volume."""

from collections.abc import Iterator
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.rows import check_is_file
from nninteractive_ws.files.volume import Volume
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Mask
from nninteractive_ws.redaction import escaped

Points = npt.NDArray[np.float64]

#: Interpolated points from one control point of a curve to the next, as in 3D Slicer.
_POINTS_PER_SEGMENT = 10
#: Supersampling factor for rasterizing a curve. A voxel is inside if its center is.
_SUPERSAMPLING = 8
#: Minimum cosine of the angle between the axes of a box and those of the volume; about one degree.
_MIN_COSINE = 0.9998
#: Tolerance for rounding errors of positions, in voxels.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Lasso:
    """A filled outline: a mask with the shape of ``box``."""

    box: Box
    mask: Mask


Markup = Index | Box | Lasso


def read_markups(path: Path, volume: Volume) -> list[Markup]:
    """Read the points (as voxels), boxes and closed curves of a file, in file order.

    A box must be aligned with the axes of the volume, and a closed curve must lie in one of its slices. Both are
    clipped to the volume. Points without a position are skipped. Raises InvalidTable, also for markups of other types.
    """
    check_is_file(path)
    try:
        markups = json.loads(path.read_text(encoding="utf-8"))["markups"]
        found = [item for markup in markups for item in _read(markup, volume)]
    except OSError as e:
        raise InvalidTable(f"{path} cannot be read ({reason(e)}).") from e
    except InvalidTable as e:
        raise InvalidTable(f"{path}: {e}") from e
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as e:
        detail = f"{type(e).__name__}: {reason(e)}"
        raise InvalidTable(f"{path} is not a markups file of 3D Slicer ({detail}).") from e
    if not found:
        raise InvalidTable(f"{path} has no point, ROI or closed curve.")
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
        raise InvalidTable(
            f"the markup type {escaped(str(kind)[:40])} is not supported. Expected Fiducial, ROI or ClosedCurve."
        )


def _control_points(markup: dict[str, Any]) -> Points:
    """Return the defined control points (n, 3) in LPS millimeters."""
    positions = [
        point["position"] for point in markup["controlPoints"] if point.get("positionStatus", "defined") == "defined"
    ]
    return _lps(np.array(positions, float).reshape(-1, 3), markup)


def _lps(vectors: Points, markup: dict[str, Any]) -> Points:
    """Convert positions or directions (n, 3) of a file to LPS."""
    system = markup["coordinateSystem"]
    if system not in ("LPS", "RAS"):
        raise InvalidTable(f"the coordinate system is {escaped(str(system)[:40])}. Expected LPS or RAS.")
    return vectors * (1, 1, 1) if system == "LPS" else vectors * (-1, -1, 1)


def _to_ijk(points: Points, volume: Volume) -> Points:
    """Convert LPS millimeters (n, 3) to continuous voxel indices (n, 3)."""
    if not np.isfinite(points).all():
        raise InvalidTable("a position is not finite.")
    inverse = np.linalg.inv(volume.ijk_to_lps)
    return np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3])


def _box(markup: dict[str, Any], volume: Volume) -> Box:
    """Return the voxels whose centers are inside an ROI, at least one on each axis."""
    size = np.array(markup["size"], float)
    axes = _lps(np.array(markup["orientation"], float).reshape(3, 3).T, markup)  # a row for each axis of the box
    cosines = np.abs(axes @ volume.direction)  # between the axes of the box (rows) and of the volume (columns)
    if cosines.max(1).min() < _MIN_COSINE:
        angle = np.degrees(np.arccos(cosines.max(1).min()))
        raise InvalidTable(f"the ROI is rotated by {angle:.0f} degrees against the voxel grid. Align it with the grid.")
    extent = size[cosines.argmax(0)] / volume.spacing
    center = _to_ijk(_lps(np.array([markup["center"]], float), markup), volume)[0]
    starts = np.ceil(center - extent / 2 - _EPSILON)
    stops = np.floor(center + extent / 2 + _EPSILON) + 1
    nearest = np.rint(center)
    empty = stops <= starts
    starts[empty], stops[empty] = nearest[empty], nearest[empty] + 1
    return _clip(starts, stops, volume, "the ROI")


def _clip(starts: Points, stops: Points, volume: Volume, name: str) -> Box:
    limit = 2.0**31  # beyond any volume, and still exact as an integer
    pairs = np.clip(np.stack((starts, stops), axis=1), -limit, limit).astype(int).tolist()
    box = Box.from_pairs(pairs).clip(volume.voxels.shape)
    if box is None:
        raise InvalidTable(f"{name} is outside the volume.")
    return box


def _lasso(markup: dict[str, Any], volume: Volume) -> Lasso:
    """Return the voxels whose centers are inside a closed curve in one slice."""
    controls = _to_ijk(_control_points(markup), volume)
    if len(controls) < 3:
        raise InvalidTable(f"the closed curve has {len(controls)} points. Expected at least 3.")
    axis = int(np.ptp(controls, axis=0).argmin())
    in_slice = round(float(controls[:, axis].mean()))
    distance = np.abs(controls[:, axis] - in_slice).max()
    if distance > 1:
        raise InvalidTable(
            f"the closed curve is up to {distance:.1f} voxels away from the slice {'ijk'[axis]} = {in_slice}. Expected "
            "all points in one slice."
        )
    outline = smooth(controls)
    starts, stops = np.floor(outline.min(0)), np.ceil(outline.max(0)) + 1
    starts[axis], stops[axis] = in_slice, in_slice + 1
    box = _clip(starts, stops, volume, "the closed curve")
    plane = [a for a in range(3) if a != axis]
    filled = _fill(np.delete(outline - box.start, axis, axis=1), [box.shape[a] for a in plane])
    if not filled.any():
        raise InvalidTable("the closed curve encloses no voxel of the volume.")
    return Lasso(box, np.expand_dims(filled, axis))


def smooth(controls: Points) -> Points:
    """Return the closed curve through control points (n, 3) as Slicer draws it: a periodic cubic spline (C2)."""
    following = np.roll(controls, -1, axis=0)
    # The second derivatives M at the points solve the periodic system M[n-1] + 4 M[n] + M[n+1] = rhs.
    rhs = np.fft.rfft(6 * (following - 2 * controls + np.roll(controls, 1, axis=0)), axis=0)
    weights = 4 + 2 * np.cos(2 * np.pi * np.arange(len(rhs)) / len(controls))
    curvature = np.fft.irfft(rhs / weights[:, None], len(controls), axis=0)
    t = np.arange(_POINTS_PER_SEGMENT)[:, None] / _POINTS_PER_SEGMENT
    pieces = [
        (1 - t) * a + t * b + (((1 - t) ** 3 - (1 - t)) * curvature_a + (t**3 - t) * curvature_b) / 6
        for a, b, curvature_a, curvature_b in zip(
            controls, following, curvature, np.roll(curvature, -1, axis=0), strict=True
        )
    ]
    return np.concatenate(pieces)


def _fill(outline: Points, shape: list[int]) -> Mask:
    """Return a mask of ``shape``: the pixels whose centers are inside an outline (n, 2)."""
    columns, rows = (n * _SUPERSAMPLING for n in shape)
    raster = Image.new("1", (columns, rows))
    corners = np.rint(outline * _SUPERSAMPLING + _SUPERSAMPLING // 2).astype(int)
    ImageDraw.Draw(raster).polygon([(x, y) for x, y in corners.tolist()], fill=1)
    return np.asarray(raster)[_SUPERSAMPLING // 2 :: _SUPERSAMPLING, _SUPERSAMPLING // 2 :: _SUPERSAMPLING].transpose()
