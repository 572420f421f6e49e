"""The Markdown documents of the repository, with their code blocks, commands and links."""

from dataclasses import dataclass
from pathlib import Path
import re

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/nninteractive-ws/nninteractive-ws"
PICTURES = "https://raw.githubusercontent.com/nninteractive-ws/nninteractive-ws/main/"
SITE = "https://nninteractive-ws.github.io/nninteractive-ws/"
#: The address that the documents connect to, also for clients of nnInteractive's HTTP API.
ADDRESS, HTTP_ADDRESS = "ws://127.0.0.1:1528", "http://127.0.0.1:1528"

_FENCED = re.compile(r"^( *)```([a-z]*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block. ``document``: the name of its file. ``number``: its index among the blocks there."""

    document: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}-{self.number}"


def documents() -> list[Path]:
    """All documents for users and contributors."""
    elsewhere = ("examples/README.md", "slicer_module/README.md", "nninteractive_ws/demo/model/README.md")
    return [*sorted(ROOT.glob("*.md")), *(ROOT / name for name in elsewhere), *sorted((ROOT / "docs").rglob("*.md"))]


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[Block]:
    """The code blocks of a language in all documents."""
    found = []
    for document in documents():
        for number, (indent, kind, text) in enumerate(_FENCED.findall(document.read_text(encoding="utf-8"))):
            if kind == language:
                plain = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
                found.append(Block(name(document), number, language, plain))
    return found


def languages() -> set[str]:
    return {kind for document in documents() for _, kind, _ in _FENCED.findall(document.read_text(encoding="utf-8"))}


def commands() -> list[tuple[str, str]]:
    """Return the command lines of all shell blocks with their document. A line with && has several."""
    found = []
    for block in blocks("sh"):
        joined = block.text.replace("\\\n", " ")
        for line in joined.replace("&&", "\n").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                found.append((block.document, command))
    return found


def links(document: Path) -> list[str]:
    """Return the targets of a document's links and pictures outside code."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", document.read_text(encoding="utf-8")))
    return [inline or reference for inline, reference in _LINK.findall(prose)]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as on GitHub."""
    titles = re.findall(r"^#+ (.+)$", _FENCED.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
