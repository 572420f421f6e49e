"""MkDocs hooks: pages from elsewhere in the repository, links between them, and the reference of the commands.

Links in Markdown files are written as GitHub resolves them, relative to the file. Here, a link to a page of the site
becomes a link on the site, and a link to any other file of the repository becomes a link to GitHub.
"""

from collections.abc import Callable
from enum import Enum
from functools import cache
import inspect
import os
from pathlib import Path, PurePosixPath
import re
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import typer

from nninteractive_ws.cli.main import COMMANDS, make_app

if TYPE_CHECKING:  # tests that need no MkDocs import this module, too
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/nninteractive-ws/nninteractive-ws"

#: Files outside docs/ and the pages that they become.
PAGES = {
    "protocol.md": "reference/protocol.md",
    "CHANGELOG.md": "contributing/changes.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "SECURITY.md": "contributing/security-policy.md",
    "examples/README.md": "guides/examples.md",
    "nninteractive_ws/demo/model/README.md": "explanation/model-card.md",
    "slicer_module/README.md": "get-started/slicer.md",
}
#: Folders of pictures that these files show.
PICTURES = {"slicer_module/Screenshots": "get-started/Screenshots"}

_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^<!-- command ([a-z]+) -->$", re.MULTILINE)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages and pictures from outside docs/."""
    from mkdocs.structure.files import File

    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    for source, uri in PICTURES.items():
        for path in sorted((ROOT / source).iterdir()):
            files.append(File.generated(config, f"{uri}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Resolve links, and insert the reference of the commands."""
    uri = page.file.src_uri
    source = next((source for source, target in PAGES.items() if target == uri), f"docs/{uri}")
    markdown = replace_links(markdown, lambda target: site_link(target, source, uri))
    # The protocol's tests name its code blocks behind their language, which Markdown extensions do not know.
    markdown = _FENCE.sub(lambda m: re.sub(r"\A```(\w+) \w+$", r"```\1", m[0], flags=re.MULTILINE), markdown)
    return _COMMAND.sub(lambda m: command_reference(m[1]), markdown)


def replace_links(markdown: str, replace: Callable[[str], str]) -> str:
    """Replace the targets of relative links and pictures, outside code blocks. Anchors stay."""
    parts = _FENCE.split(markdown)  # every second one is a code block
    parts[::2] = [_LINK.sub(lambda m: replace(m[1]) + (m[2] or ""), part) for part in parts[::2]]
    return "".join(parts)


def site_link(target: str, source: str, uri: str) -> str:
    """The target of a link in the file ``source``, which is the page ``uri``."""
    path = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / target))
    if not (ROOT / path).exists():
        return target  # MkDocs reports it
    on_site = PAGES.get(str(path))
    if path.parts[0] == "docs":
        on_site = str(path.relative_to("docs"))
    elif str(path.parent) in PICTURES:
        on_site = f"{PICTURES[str(path.parent)]}/{path.name}"
    if on_site is None:
        return repository_link(path)
    return os.path.relpath(on_site, PurePosixPath(uri).parent)


def repository_link(path: PurePosixPath) -> str:
    """The address of a file or folder on GitHub. ``path`` is relative to the root of the repository."""
    return f"{REPOSITORY}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"


# ---- the commands -----------------------------------------------------------------------------------------


@cache
def command(name: str) -> Any:
    """The click command of a name."""
    group: Any = typer.main.get_command(make_app(name))
    return group.commands[name]


def options(of: Any) -> list[Any]:
    """The options of a command that are not hidden."""
    return [p for p in of.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]


def command_reference(name: str) -> str:
    """Usage, description and options of a command, in Markdown."""
    assert name in COMMANDS
    parts = _reference(command(name), f"nninteractive-ws {name}")
    for sub, subcommand in getattr(command(name), "commands", {}).items():
        parts += _reference(subcommand, f"nninteractive-ws {name} {sub}")
    return "\n\n".join(parts)


def _reference(of: Any, program: str) -> list[str]:
    arguments = [p for p in of.params if p.param_type_name == "argument"]
    usage = [program, *(_argument(p) for p in arguments), "[OPTIONS]" if options(of) else ""]
    parts = [f"```text\n{' '.join(filter(None, usage))}\n```", _description(of.help or "")]
    rows = [f"| `{_argument(p)}` | {_cell(p.help)} | {_default(p)} |" for p in arguments]
    types = get_type_hints(inspect.unwrap(of.callback))
    for p in options(of):
        names = ", ".join(f"`{name}`" for name in (*p.opts, *p.secondary_opts))
        metavar = "" if p.is_flag else f" `{p.metavar or _metavar(types[p.name])}`"
        rows.append(f"| {names}{metavar} | {_cell(p.help)} | {_default(p)} |")
    if rows:
        parts.append("\n".join(("| option | meaning | default |", "|---|---|---|", *rows)))
    return parts


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _metavar(annotation: Any) -> str:
    """How an option's type is written."""
    (kind, *_) = [k for k in get_args(annotation) or (annotation,) if k is not type(None)]
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    if issubclass(kind, Enum):
        return ", ".join(str(member.value) for member in kind)
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _description(text: str) -> str:
    """A help text, with its indented examples as a code block."""
    return text.strip()


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or callable(value) or value == ():
        return ""
    return f"`{getattr(value, 'value', value)}`"
