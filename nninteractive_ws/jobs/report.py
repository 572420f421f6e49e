"""``report.html``: a picture of every segment, the odd ones first, in a single file without scripts."""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import chain
from pathlib import Path
import time
from urllib.parse import quote

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files.reason import reason
from nninteractive_ws.jobs.oddities import (
    MIN_GROUP,
    RULES,
    Entry,
    Group,
    Oddity,
    count_of,
    find_oddities,
    format_ml,
    group_by_name,
)
from nninteractive_ws.jobs.records import SegmentRecord, VolumeRecord, read_record, record_path
from nninteractive_ws.jobs.results import VolumeResult
from nninteractive_ws.redaction import escaped

FILE_NAME = "report.html"
#: Marks a file as a report, which may be replaced.
_GENERATOR = '<meta name="generator" content="nninteractive-ws batch">'
#: Minimum seconds between two reports during a batch, and minimum multiple of the seconds for writing one. The latter
#: keeps the share of the time for reports constant, however many volumes there are.
_INTERVAL_S, _INTERVAL_FACTOR = 30.0, 20.0
#: Maximum number of segment names with a filter. More would fill the screen.
_MAX_NAME_FILTERS = 30

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --text: #1b1f24; --faint: #57606a; --line: #d0d7de; --card: #f6f8fa;
  --odd: #9a3412; --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --text: #e6e9ee; --faint: #a3acb8; --line: #363d47;
  --card: #1e232a; --odd: #fdba74; --link: #8cc2ff; } }
body { margin: 0 auto; padding: 1rem 1.5rem 3rem; max-width: 100rem; background: var(--paper); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .7rem; }
nav a { margin-right: 1.2rem; }
.faint { color: var(--faint); }
fieldset { border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0 0; display: flex; flex-wrap: wrap;
  gap: .3rem 1.2rem; }
.cards { list-style: none; padding: 0; margin: 0; display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(262px, 1fr)); }
.card { box-sizing: border-box; border: 1px solid var(--line); border-radius: 6px; background: var(--card);
  padding: .6rem; content-visibility: auto; contain-intrinsic-size: auto 360px; }
.odd { border-left: 5px solid var(--odd); }
.card h3 { margin: 0 0 .4rem; font-size: 1rem; } .card h3 .faint { display: block; font-weight: normal; }
.card p, .card ul { margin: .4rem 0 0; padding: 0; }
.view { background: #000; height: 244px; display: flex; align-items: center; justify-content: center; }
.view img { max-width: 100%; height: auto; }
.none { color: #ccc; padding: 0 1rem; }
.oddities { list-style: none; } .oddities a { color: var(--odd); font-weight: 700; }
table { border-collapse: collapse; } th, td { text-align: right; padding: .25rem .8rem; border: 1px solid var(--line); }
th:first-child { text-align: left; }
dt { font-weight: 700; margin-top: .5rem; color: var(--odd); } dd { margin: 0; max-width: 50rem; }
dt:target { outline: 3px solid var(--odd); outline-offset: 3px; }
@media print {
  :root { color-scheme: light; --paper: #fff; --text: #000; --faint: #333; --line: #999; --card: #fff; --odd: #9a3412;
    --link: #000; }
  body { padding: 0; font-size: 11px; } nav, fieldset { display: none; }
  .cards { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .6rem; }
  .card { break-inside: avoid; } .card h3 { font-size: 12px; }
  .view { height: 10rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .view img { max-height: 100%; width: auto; }
}
"""

_PICTURES = """<h2 id="pictures">Pictures</h2>
<p>Each picture shows the slice where the segment is largest: an axial slice, or one of the acquired slices if these are
thick. The letters are right, left, anterior, posterior, superior and inferior. In an axial slice, the right side of the
patient is on the left. The outline lies just outside the segment. A green plus is a positive point, an orange cross a
negative one. A rectangle is the box of a bounding box, a scribble or a lasso. Prompts more than two slices away are not
drawn. The display window is adapted to the segment and its surroundings.</p>"""


class Report:
    """The report in an output folder. ``images``: number of results to expect, of images and of invalid rows."""

    def __init__(self, folder: Path, images: int) -> None:
        self._folder, self._images = folder, images
        self.path = folder / FILE_NAME
        self._due = 0.0

    def check(self) -> None:
        """Raise InvalidTable if there is another file with the name of the report."""
        try:
            with self.path.open("rb") as file:
                ours = _GENERATOR.encode() in file.read(1000)
        except FileNotFoundError:
            return
        except OSError as e:
            raise InvalidTable(f"{self.path} cannot be read ({reason(e)}). Choose another output folder.") from e
        if not ours:
            raise InvalidTable(f"{self.path} is not a report of batch. Choose another output folder.")

    def update(self, results: Iterable[tuple[str, VolumeResult]]) -> None:
        """Write the report if the last one is old enough."""
        if time.monotonic() >= self._due:
            self.write(results)

    def write(self, results: Iterable[tuple[str, VolumeResult]]) -> None:
        """Write the report atomically. ``results``: with their keys, in the order of the table. Raises OSError."""
        started = time.monotonic()
        found = list(results)
        entries = [entry for key, result in found for entry in self._entries(key, result)]
        page = _page(self._folder, entries, [result for _, result in found], self._images)
        with atomic_write(self.path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in page)
        now = time.monotonic()
        self._due = now + max(_INTERVAL_S, _INTERVAL_FACTOR * (now - started))

    def _entries(self, key: str, result: VolumeResult) -> Iterator[Entry]:
        record = read_record(record_path(self._folder, key)) if key and result.output else None
        record = record or VolumeRecord({})
        output = result.output.relative_to(self._folder).as_posix() if result.output else ""
        for s in result.segments:
            successful = s.error is None
            shown = record.segments.get(s.name) if successful else None
            warnings = (*record.warnings, shown.warning) if shown and shown.warning else record.warnings
            yield Entry(result.image, output if successful else "", s, shown, warnings)


def _page(folder: Path, entries: Sequence[Entry], results: Sequence[VolumeResult], images: int) -> Iterator[str]:
    groups = group_by_name(entries)
    oddities = find_oddities(entries, groups)
    counts = Counter(word for found in oddities for word in {oddity.word for oddity in found})
    names = {name: number for number, name in enumerate(dict.fromkeys(e.result.name for e in entries))}
    words = list(RULES)
    odd = sorted((n for n, found in enumerate(oddities) if found), key=lambda n: words.index(oddities[n][0].word))
    others = [n for n, found in enumerate(oddities) if not found]
    filtered = names if 1 < len(names) <= _MAX_NAME_FILTERS else {}
    title = f"Batch report: {_text(folder.resolve().name)}"
    yield from _head(title, counts, filtered)
    yield f"<header><h1>{title}</h1>"
    yield from _summary(entries, results, images, len(odd))
    yield (
        '<nav aria-label="Sections"><a href="#odd">Odd segments</a><a href="#others">Other segments</a>'
        '<a href="#names">Volumes by name</a><a href="#rules">Rules</a><a href="#pictures">Pictures</a></nav></header>'
    )
    yield "<main>"
    yield from _filters(counts, len(entries), len(odd), filtered)
    for heading, identifier, numbers in (("Odd segments", "odd", odd), ("Other segments", "others", others)):
        yield f'<section aria-labelledby="{identifier}" class="{identifier}-section">'
        yield f'<h2 id="{identifier}">{heading} ({len(numbers):,})</h2>'
        yield '<ul class="cards">'
        for n in numbers:
            yield from _card(n, entries[n], oddities[n], names[entries[n].result.name])
        yield "</ul></section>"
    yield from _names_table(groups)
    yield from _rules()
    yield _PICTURES
    yield "</main></body></html>"


def _head(title: str, counts: Mapping[str, int], names: Mapping[str, int]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield _GENERATOR
    # Nothing is loaded, and no script runs, even if a name could inject one.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>"
    yield f"<style>{_STYLE}"
    yield "main:has(#show-all:not(:checked)) .others-section { display: none; }"
    for word in counts:
        yield f"main:has(#show-{word}:checked) .card:not(.{word}) {{ display: none; }}"
    for number in names.values():
        yield f"main:has(#name-{number}:checked) .card:not(.n{number}) {{ display: none; }}"
    yield "</style></head><body>"


def _summary(entries: Sequence[Entry], results: Sequence[VolumeResult], images: int, odd: int) -> Iterator[str]:
    failed = sum(e.result.error is not None for e in entries)
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    counts = f"{count_of(len(entries), 'segment')}, {failed:,} failed, {odd:,} odd"
    yield f"<p>{count_of(images, 'image')}: {counts}. Written {_text(written)}.</p>"
    if len(results) < images:
        yield (
            f"<p><strong>{len(results):,} of {images:,} images are finished.</strong> The batch is running or was "
            "stopped. Run the same command again to resume a stopped batch.</p>"
        )
    models = dict.fromkeys((r.model, r.license) for r in results if r.model)
    if models:
        yield f'<p class="faint">Model: {", ".join(f"{_text(m)} ({_text(license)})" for m, license in models)}</p>'


def _filters(counts: Mapping[str, int], segments: int, odd: int, names: Mapping[str, int]) -> Iterator[str]:
    """Radio buttons, which work by CSS alone."""
    yield "<fieldset><legend>Show</legend>"
    yield _radio("show", "all", f"all ({segments:,})", True)
    yield _radio("show", "odd", f"all odd ones ({odd:,})", False)
    for word in RULES:
        if word in counts:
            yield _radio("show", word, f"{word} ({counts[word]:,})", False)
    yield "</fieldset>"
    if names:
        yield "<fieldset><legend>Segment</legend>"
        yield _radio("name", "all", "all", True)
        for name, number in names.items():
            yield _radio("name", str(number), _text(name) or "unknown", False)
        yield "</fieldset>"


def _radio(group: str, value: str, label: str, checked: bool) -> str:
    state = " checked" if checked else ""
    # Browsers restore form fields at a reload, also in a new report with other filters.
    return f'<label><input type="radio" name="{group}" id="{group}-{value}" autocomplete="off"{state}> {label}</label>'


def _card(number: int, entry: Entry, oddities: Sequence[Oddity], name: int) -> Iterator[str]:
    result, record = entry.result, entry.record
    classes = " ".join(dict.fromkeys(("card", *(["odd"] if oddities else []), *(o.word for o in oddities), f"n{name}")))
    segment, image = _text(result.name) or "unknown segment", _text(entry.image) or "unknown image"
    yield f'<li class="{classes}"><article aria-labelledby="s{number}">'
    yield f'<h3 id="s{number}"><bdi>{segment}</bdi> <bdi class="faint">{image}</bdi></h3>'
    if result.error is None:
        yield f'<div class="view">{_view(entry)}</div>'
    if oddities:
        sentences = (f'<li><a href="#rule-{o.word}">{o.word}</a> {_text(o.sentence)}</li>' for o in oddities)
        yield f'<ul class="oddities">{"".join(sentences)}</ul>'
    facts = [count_of(result.prompts, "prompt"), f"{result.predict_s:.1f} s"]
    if result.error is None:
        facts = [format_ml(entry.ml), count_of(result.voxels, "voxel"), *facts]
    yield f"<p>{', '.join(fact.replace(' ', '&nbsp;') for fact in facts)}</p>"
    if entry.output:
        place = f"{_text(record.place)}, " if record else ""
        link = f'<a href="{escape(quote(entry.output))}">{_text(entry.output)}</a>'
        yield f'<p class="faint">{place}{link}</p>'
    yield "</article></li>"


def _view(entry: Entry) -> str:
    if entry.record:
        return _picture(entry.record, f"{entry.result.name} in {entry.image}, {entry.record.place}")
    return (
        '<p class="none">The picture is missing. To get one, delete the file of the segmentation, and run the batch '
        "again.</p>"
    )


def _picture(record: SegmentRecord, description: str) -> str:
    source = f"data:image/webp;base64,{b64encode(record.picture).decode()}"
    size = f'width="{record.width}" height="{record.height}"'
    return f'<img src="{source}" {size} loading="lazy" decoding="async" alt="Outline of {_text(description)}">'


def _names_table(groups: Mapping[str, Group]) -> Iterator[str]:
    yield '<section aria-labelledby="names"><h2 id="names">Volumes by segment name</h2>'
    yield "<p>Segments that are neither failed nor empty. A volume outside the limits is an outlier.</p>"
    yield '<table><thead><tr><th scope="col">segment</th><th scope="col">segments</th><th scope="col">median</th>'
    yield '<th scope="col">lower limit</th><th scope="col">upper limit</th></tr></thead><tbody>'
    for name, group in groups.items():
        limits = (format_ml(group.low), format_ml(group.high)) if group.count >= MIN_GROUP else ("", "")
        cells = (f"<td>{cell}</td>" for cell in (f"{group.count:,}", format_ml(group.median), *limits))
        yield f'<tr><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>'
    yield "</tbody></table></section>"


def _rules() -> Iterator[str]:
    yield '<section aria-labelledby="rules"><h2 id="rules">Rules</h2><dl>'
    yield from chain.from_iterable(
        (f'<dt id="rule-{word}">{word}</dt>', f"<dd>{escape(rule)}</dd>") for word, rule in RULES.items()
    )
    yield "</dl></section>"


def _text(text: str) -> str:
    """Return text from outside as HTML on one line, without invisible characters."""
    return escape(escaped(" ".join(text.split())))
