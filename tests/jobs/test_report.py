"""The page of a batch, from results and records on disk."""

from base64 import b64decode
from html.parser import HTMLParser
import io
from pathlib import Path
import re
import time

import numpy as np
from PIL import Image
import pytest

from nninteractive_ws.demo.phantom import ORGANS, make_phantom
from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files.volume import Volume
from nninteractive_ws.jobs import report as report_module
from nninteractive_ws.jobs.oddities import RULES
from nninteractive_ws.jobs.records import VolumeRecord, read_record, record_path, remove_other_records, write_record
from nninteractive_ws.jobs.report import Report
from nninteractive_ws.jobs.results import SegmentResult, VolumeResult

#: Names as users, and attackers, write them.
HOSTILE = [
    "<script>alert(1)</script>",
    "\" onload=\"alert(1)' x='",
    "</style></title><img src=http://example.org/x.png>",
    "a&amp;b; --> <!-- ]]>",
    "תמונה\u202egpj.exe",
    "\ud800 broken",
    "x" * 500,
]
#: Elements without an end tag.
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """The elements of a page. Fails if tags are not balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.cards: list[str] = []
        self._open: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "article":
            self.cards.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "article" in self._open:
            self.cards[-1] = " ".join(f"{self.cards[-1]} {data}".split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def add(folder: Path, key: str, image: str, *segments: SegmentResult, warnings: tuple[str, ...] = ()) -> VolumeResult:
    """Write the record of a volume whose segments are cubes, and return its result."""
    voxels = np.random.default_rng(0).integers(0, 100, (30, 30, 30)).astype(np.int16)
    masks = {}
    for s in segments:
        mask = np.zeros(voxels.shape, bool)
        side = round(s.voxels ** (1 / 3))
        mask[5 : 5 + side, 5 : 5 + side, 5 : 5 + side] = True
        masks[s.name] = mask
    volume = Volume(voxels, np.eye(4), notes=warnings)
    write_record(record_path(folder, key), masks, volume, dict.fromkeys(masks, (1.0, 0.0, 0.0)), {}, {}, "")
    return VolumeResult(image, segments, folder / f"{key}.seg.nrrd", "demo", "Apache-2.0")


def segment(name: str = "liver", voxels: int = 1000, error: str | None = None) -> SegmentResult:
    return SegmentResult(name, 1, voxels, voxels / 1000, prompts=2, predict_s=1.5, error=error)


def failed(image: str, error: str = "No.") -> VolumeResult:
    return VolumeResult(image, (SegmentResult("liver", error=error),))


def write(folder: Path, *results: VolumeResult, images: int | None = None) -> Page:
    report = Report(folder, len(results) if images is None else images)
    report.write([(f"{n:016x}", result) for n, result in enumerate(results)])
    return Page(report.path)


def test_unusual_segments_come_first_with_their_reason(tmp_path: Path) -> None:
    page = write(
        tmp_path,
        add(tmp_path, f"{0:016x}", "good.nii.gz", segment()),
        add(tmp_path, f"{1:016x}", "tiny.nii.gz", segment(voxels=8)),
        add(tmp_path, f"{2:016x}", "empty.nii.gz", segment(voxels=0)),
        failed("failed.nii.gz", "The file failed.nii.gz does not exist."),
        add(tmp_path, f"{4:016x}", "warned.nii.gz", segment(), warnings=("Slices are missing.",)),
        add(tmp_path, f"{5:016x}", "huge.nii.gz", segment(voxels=8000)),
    )
    assert [card.split()[1].partition(".")[0] for card in page.cards] == [
        "failed", "empty", "tiny", "huge", "warned", "good",
    ]  # fmt: skip
    assert "failed The file failed.nii.gz does not exist." in page.cards[0]
    assert "tiny It has 8 voxels. 0.008 ml, 8 voxels, 2 prompts, 1.5 s axial slice, k = 6" in page.cards[2]
    assert "warning Slices are missing." in page.cards[4]
    assert page.cards[5] == "liver good.nii.gz 1.00 ml, 1,000 voxels, 2 prompts, 1.5 s axial slice, k = 10, " + (
        "0000000000000000.seg.nrrd"
    )
    assert "Odd segments (5)" in page.html
    assert "Other segments (1)" in page.html
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert ids >= {f"rule-{word}" for word in RULES}
    links = [link["href"] for link in page.all("a")]
    assert all(link[1:] in ids for link in links if link.startswith("#"))
    assert all((tmp_path / link).parent == tmp_path for link in links if not link.startswith("#"))


def test_the_page_is_self_contained_and_readable_by_screen_readers(tmp_path: Path) -> None:
    page = write(tmp_path, add(tmp_path, f"{0:016x}", "a.nii.gz", segment("liver"), segment("spleen", 0)))
    pictures = page.all("img")
    assert len(pictures) == 2
    for picture, name in zip(pictures, ("spleen", "liver"), strict=True):
        assert picture["alt"].startswith(f"Outline of {name} in a.nii.gz, axial slice")
        kind, _, data = picture["src"].partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(b64decode(data, validate=True))) as image:
            assert image.size == (int(picture["width"]), int(picture["height"]))
    loading = {"link", "script", "iframe", "object", "embed", "video", "audio", "base", "form"}
    assert not loading & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|@import|url\(", page.html)
    assert page.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert len(labels) > 4
    assert set(labels) <= set(ids)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_from_users_are_escaped(tmp_path: Path, text: str) -> None:
    """In the name of the image, of the segment, in an error, in a warning, in a file name and in a model's name."""
    name = re.sub(r"[/\ud800-\udfff]", "_", text)
    written = add(tmp_path, f"{0:016x}", text, segment(name[:64]), warnings=(name,))
    output = tmp_path / "javascript:alert(1)" / name
    written = VolumeResult(text, written.segments, output, text, text)
    page = write(tmp_path, written, failed(text, f"An error: {text}\nin two lines"))
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert len(page.all("img")) == 1
    assert len(page.all("title")) == 1
    known = {"class", "id", "href", "src", "alt", "width", "height", "loading", "decoding", "aria-labelledby"}
    for tag, attributes in page.elements:
        if tag not in ("meta", "html", "input", "nav", "th"):
            assert set(attributes) <= known
    for link in page.all("a"):
        assert link["href"].startswith(("#", "javascript%3Aalert%281%29/"))
    assert len(page.cards) == 2
    assert "\u202e" not in page.html


def test_an_unfinished_batch_is_marked(tmp_path: Path) -> None:
    page = write(tmp_path, failed("a.nii.gz"), images=3)
    assert "1 of 3 images are finished." in page.html
    assert "are finished" not in write(tmp_path, failed("a.nii.gz")).html


def test_a_table_without_rows_has_a_page(tmp_path: Path) -> None:
    page = write(tmp_path)
    assert page.cards == []
    assert "0 images: 0 segments, 0 failed, 0 odd" in page.html


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"segments": 3}', b"\xff", b'{"segments": {"liver": {}}}'])
def test_a_missing_or_damaged_record_only_omits_the_picture(tmp_path: Path, content: bytes | None) -> None:
    result = add(tmp_path, f"{0:016x}", "a.nii.gz", segment())
    path = record_path(tmp_path, f"{0:016x}")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    (card,) = write(tmp_path, result).cards
    assert "The picture is missing. To get one, delete the file of the segmentation" in card
    assert "1.00 ml, 1,000 voxels" in card


@pytest.mark.parametrize("content", [b"", b"<html>My own report</html>", b"\x00" * 5000])
def test_a_foreign_report_html_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.html").write_bytes(content)
    with pytest.raises(InvalidTable, match=r"report.html is not a report of batch. Choose another output folder"):
        Report(tmp_path, 1).check()
    (tmp_path / "report.html").unlink()
    Report(tmp_path, 1).check()
    write(tmp_path, failed("a.nii.gz"))
    Report(tmp_path, 1).check()


def test_records_of_other_tables_are_removed_and_files_of_others_are_kept(tmp_path: Path) -> None:
    for n in range(3):
        add(tmp_path, f"{n:016x}", "a.nii.gz", segment())
    folder = tmp_path / ".report"
    (folder / f".partial-{1:016x}.json").write_text("{")
    (folder / "notes.json").write_text("{}")
    remove_other_records(tmp_path, [f"{1:016x}"])
    assert sorted(path.name for path in folder.iterdir()) == [f"{1:016x}.json", "notes.json"]
    remove_other_records(tmp_path / "nowhere", [])


def test_a_record_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, f"{0:016x}", "a.nii.gz", segment())
    before = read_record(record_path(tmp_path, f"{0:016x}"))
    assert isinstance(before, VolumeRecord)

    def full_disk(_path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="cannot be written"):
        add(tmp_path, f"{0:016x}", "a.nii.gz", segment(voxels=27))
    monkeypatch.undo()
    assert read_record(record_path(tmp_path, f"{0:016x}")) == before
    assert [path.name for path in (tmp_path / ".report").iterdir()] == [f"{0:016x}.json"]


def test_reports_during_a_batch_take_a_small_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if writing one takes longer than the interval."""
    clock, written = [0.0], []

    def slow_page(*_: object) -> list[str]:
        clock[0] += 10.0
        written.append(clock[0])
        return ["page"]

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(report_module, "_page", slow_page)
    report = Report(tmp_path, 1000)
    for _ in range(1000):
        report.update([])
        clock[0] += 5.0
    assert written[0] == 10.0  # the first one immediately
    assert 10.0 * len(written) < 0.06 * clock[0]
    monkeypatch.undo()


def test_a_thousand_segments_take_seconds_and_less_than_20_mb(tmp_path: Path) -> None:
    phantom = make_phantom(1, (128, 112, 40), (3.0, 3.0, 6.0))
    volume = Volume(phantom.image, np.diag([*phantom.spacing, 1.0]))
    masks = {name: phantom.labels == ORGANS[name] for name in ("liver", "spleen", "left kidney", "aorta")}
    write_record(record_path(tmp_path, f"{0:016x}"), masks, volume, dict.fromkeys(masks, (1.0, 0.0, 0.0)), {}, {}, "")
    data = record_path(tmp_path, f"{0:016x}").read_bytes()
    segments = tuple(segment(name) for name in masks)
    results = []
    for n in range(250):
        record_path(tmp_path, f"{n:016x}").write_bytes(data)
        results.append(VolumeResult(f"{n}.nii.gz", segments, tmp_path / f"{n}.seg.nrrd"))
    started = time.monotonic()
    page = write(tmp_path, *results)
    assert time.monotonic() - started < 10
    assert len(page.cards) == 1000
    assert (tmp_path / "report.html").stat().st_size < 20e6
