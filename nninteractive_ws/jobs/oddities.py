"""Rules that mark segments for review: failed, empty, or unlike the others of the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from statistics import median

import numpy as np

from nninteractive_ws.jobs.measures import Measures
from nninteractive_ws.jobs.records import SegmentRecord
from nninteractive_ws.jobs.results import SegmentResult

#: A smaller segment is tiny, in voxels.
MIN_VOXELS = 30
#: A larger part of the image is huge.
MAX_SHARE = 0.25
#: Maximum number of separate parts.
MAX_PARTS = 5
#: Maximum distance of a volume from the median, in robust standard deviations.
MAX_DEVIATION = 3.5
#: Minimum robust standard deviation of the logarithm of the volume. Equal volumes would make any other an outlier.
MIN_SPREAD = 0.1
#: Minimum number of segments to compare with.
MIN_GROUP = 5
#: A segment is slow beyond this multiple of the median, if it also takes this many seconds more.
SLOW_FACTOR, SLOW_S = 3, 5

#: The rules by their short names, the most important first, as the report explains them.
RULES: Mapping[str, str] = {
    "failed": "There is no segment. The error has the reason.",
    "empty": "The segment has no voxels.",
    "tiny": f"The segment has fewer than {MIN_VOXELS} voxels.",
    "huge": f"The segment covers more than {MAX_SHARE:.0%} of the image.",
    "outlier": (
        "The volume is far from the others with the same segment name. The logarithms of the volumes are compared with "
        f"their median. The limit is {MAX_DEVIATION} robust standard deviations, which are 1.4826 times the median "
        f"absolute deviation, and at least {MIN_SPREAD}. Empty segments do not count. At least {MIN_GROUP} segments "
        "with the name are needed."
    ),
    "parts": (
        f"The segment has more than {MAX_PARTS} separate parts. If at least {MIN_GROUP} segments have the same name, "
        "it also has more than twice their median. Voxels that touch by a face, an edge or a corner are one part."
    ),
    "border": (
        "The segment touches the border of the image and may be cut off. If at least half of the segments with the "
        f"same name do, which must be {MIN_GROUP} or more, this is not odd."
    ),
    "slow": (
        f"The prompts took more than {SLOW_FACTOR} times the median of the batch, and at least {SLOW_S} s more. At "
        f"least {MIN_GROUP} segments are needed."
    ),
    "warning": "The image file was unusual, for instance incomplete or resampled, or other segments overwrote a part "
    "of the segment in the label map. The result may be wrong.",
}


@dataclass(frozen=True)
class Entry:
    """A segment of an image with everything that the report shows. ``record`` is None without a picture."""

    image: str
    output: str
    result: SegmentResult
    record: SegmentRecord | None = None
    warnings: tuple[str, ...] = ()

    @property
    def measures(self) -> Measures | None:
        """Its measures. None if it failed or is empty, or if its record is missing."""
        return self.record.measures if self.record and self.result.error is None else None

    @property
    def ml(self) -> float:
        """Its volume. That of results.csv is rounded, to zero for microscopy."""
        return self.measures.ml if self.measures else self.result.ml


@dataclass(frozen=True)
class Oddity:
    """A rule that a segment breaks. ``word``: its name in :data:`RULES`. ``sentence``: about this segment."""

    word: str
    sentence: str


@dataclass(frozen=True)
class Group:
    """The segments with a name that are neither failed nor empty. Volumes are in ml, ``low`` and ``high`` the limits.

    ``usual_parts``: median number of parts. ``border_is_usual``: at least half of them touch the border.
    """

    count: int
    median: float
    low: float
    high: float
    usual_parts: float = 0.0
    border_is_usual: bool = False


def group_by_name(entries: Sequence[Entry]) -> dict[str, Group]:
    """Return the statistics of each segment name. Without enough segments, the limits are 0 and infinity."""
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.result.error is None and entry.ml > 0:
            by_name.setdefault(entry.result.name, []).append(entry)
    return {name: _group(found) for name, found in by_name.items()}


def _group(entries: Sequence[Entry]) -> Group:
    logarithms = np.log([e.ml for e in entries])
    center = float(np.median(logarithms))
    if len(entries) < MIN_GROUP:
        return Group(len(entries), float(np.exp(center)), 0.0, float("inf"))
    spread = max(1.4826 * float(np.median(np.abs(logarithms - center))), MIN_SPREAD)
    low, high = np.exp([center - MAX_DEVIATION * spread, center + MAX_DEVIATION * spread]).tolist()
    measured = [e.measures for e in entries if e.measures]
    at_border = sum(bool(m.sides) for m in measured)
    return Group(
        len(entries),
        float(np.exp(center)),
        low,
        high,
        float(median(m.parts for m in measured)) if measured else 0.0,
        len(measured) >= MIN_GROUP and 2 * at_border >= len(measured),
    )


def find_oddities(entries: Sequence[Entry], groups: Mapping[str, Group]) -> list[list[Oddity]]:
    """Return the oddities of each segment, the most important first."""
    seconds = [e.result.predict_s for e in entries if e.result.error is None]
    usual_s = median(seconds) if len(seconds) >= MIN_GROUP else float("inf")
    return [_oddities(entry, groups.get(entry.result.name), usual_s) for entry in entries]


def _oddities(entry: Entry, group: Group | None, usual_s: float) -> list[Oddity]:
    result, found = entry.result, []
    if result.error is not None:
        found.append(Oddity("failed", result.error))
    elif result.voxels == 0:
        found.append(Oddity("empty", "It has no voxels."))
    else:
        if result.voxels < MIN_VOXELS:
            found.append(Oddity("tiny", f"It has {count_of(result.voxels, 'voxel')}."))
        found += _unusual(entry, group)
    if result.error is None and result.predict_s > max(SLOW_FACTOR * usual_s, usual_s + SLOW_S):
        found.append(Oddity("slow", f"It took {result.predict_s:.1f} s. The median is {usual_s:.1f} s."))
    return found + [Oddity("warning", warning) for warning in entry.warnings]


def _unusual(entry: Entry, group: Group | None) -> list[Oddity]:
    """Return the oddities of size and shape, in the order of :data:`RULES`."""
    found, m = [], entry.measures
    if m and m.share > MAX_SHARE:
        found.append(Oddity("huge", f"It covers {m.share:.0%} of the image."))
    if group and not group.low <= entry.ml <= group.high:
        others = f"The median of {group.count} is {format_ml(group.median)}"
        limits = f"the limits are {format_ml(group.low)} and {format_ml(group.high)}"
        found.append(Oddity("outlier", f"Its volume is {format_ml(entry.ml)}. {others}, {limits}."))
    if m and m.parts > max(MAX_PARTS, 2 * group.usual_parts if group and group.count >= MIN_GROUP else 0):
        found.append(Oddity("parts", f"It has {m.parts:,} parts. The largest has {m.largest:.0%} of the volume."))
    if m and m.sides and not (group and group.border_is_usual):
        found.append(Oddity("border", f"It touches the border of the image ({', '.join(m.sides)})."))
    return found


def format_ml(ml: float) -> str:
    """Format a volume with three digits or more, such as "1,432 ml", "0.25 ml" or "0.000012 ml"."""
    if ml >= 99.95 or ml == 0:
        return f"{ml:,.0f} ml"
    ml = float(f"{ml:.3g}")
    text = f"{ml:.{2 - math.floor(math.log10(ml))}f}"
    return f"{text.rstrip('0').rstrip('.') if ml < 1 else text} ml"


def count_of(number: int, noun: str) -> str:
    """Format a number of things, such as "1 voxel" or "1,024 voxels"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
