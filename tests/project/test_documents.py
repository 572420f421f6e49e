"""The Python blocks of README and docs run, their commands are valid, and their links have targets."""

from importlib.util import find_spec
from pathlib import Path
import re
import shlex
import tomllib

from helpers import documents
from helpers.documents import ADDRESS, HTTP_ADDRESS, PICTURES, REPOSITORY, ROOT, SITE, Block
from helpers.end_to_end import http
import pytest

from nninteractive_ws.cli.main import COMMANDS
from tools.docs_hooks import PAGES
from tools.docs_hooks import command as command_of

#: Python blocks that run elsewhere: those of the protocol in test_protocol_document.py, others in Slicer's console.
ELSEWHERE = {"protocol.md", "slicer_module/README.md"}
#: Files that commands expect in the working folder.
FILES = ("tokens", "cert.pem", "key.pem", "ct.nii.gz", "jobs.csv", "cases.csv", "worker-token")
#: Other programs, and their required arguments.
OTHERS = {
    "curl",
    "docker",
    "export",
    "git",
    "just",
    "kubectl",
    "mkdir",
    "npm",
    "openssl",
    "pre-commit",
    "ray",
    "ssh",
    "sudo",
}


def python_blocks() -> list[Block]:
    return [block for block in documents.blocks("python") if block.document not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks(), ids=str)
def test_a_python_block_runs(block: Block, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ADDRESS in block.text or HTTP_ADDRESS in block.text
    monkeypatch.chdir(tmp_path)  # for the files it writes
    text = block.text.replace(ADDRESS, server).replace(HTTP_ADDRESS, http(server))
    exec(compile(text, str(block), "exec"), {"__name__": "document"})


def test_every_block_has_a_language_that_is_tested() -> None:
    assert documents.languages() == {"python", "sh", "csv", "hex", "json", "nginx"}
    assert {block.document for block in documents.blocks("python")} > ELSEWHERE


# ---- commands ---------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> None:
    """Parse the arguments of nninteractive-ws like the program. Raises for invalid ones."""
    name, *rest = arguments
    if name == "--install-completion":
        assert not rest
        return
    asked = command_of(name)
    if rest and rest[0] in getattr(asked, "commands", {}):
        asked, name, rest = asked.commands[rest[0]], rest[0], rest[1:]
    asked.make_context(name, rest)


def check(command: str) -> None:
    program, *arguments = shlex.split(command)
    program = re.sub(r"^\.\w+/bin/", "", program)  # of a virtual environment
    if "nninteractive-ws" in arguments and program == "docker" and arguments[0] == "run":
        parse(arguments[arguments.index("nninteractive-ws") + 1 :])
    elif program == "nninteractive-ws":
        parse(arguments)
    elif program in ("python", "python3"):
        check_python(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program == "pytest":
        assert [a for a in arguments if "/" in a and not (ROOT / a).exists()] == []
    else:
        assert program in OTHERS, program


def check_python(arguments: list[str]) -> None:
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
        return
    spec = find_spec(arguments[1])
    assert spec is not None, arguments[1]
    if arguments[1] not in ("venv", "pip"):
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        assert [a for a in arguments[2:] if a.startswith("--") and f'"{a}"' not in source] == []


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for wanted in re.findall(r"^\.\[(.+)\]$", "\n".join(arguments), re.MULTILINE):
        assert set(wanted.split(",")) <= extras


@pytest.mark.parametrize(("document", "command"), documents.commands())
def test_a_command_is_valid(document: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pytest" not in command:
        monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).touch()
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "nninteractive-ws serve --no-such-option",
        "nninteractive-ws batch jobs.csv -o labels --format pdf",
        "nninteractive-ws evaluate phantom:1",
        "nninteractive-ws models download",
        "python -m training.no_such_module",
        "python -m training.train --no-such-option",
        "pip install '.[no-such-extra]'",
        "nothing-known",
    ],
)
def test_an_invalid_command_is_detected(command: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        check(command)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_help_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in FILES:
        (tmp_path / file).touch()
    help_text = command_of(name).help or ""
    examples = re.findall(r"^ {4}(nninteractive-ws .*)$", help_text.replace("\\\n", " "), re.MULTILINE)
    for example in examples:
        check(example)


def test_all_commands_are_in_the_documents() -> None:
    written = {word for _, command in documents.commands() for word in shlex.split(command)}
    assert set(COMMANDS) <= written


# ---- links ------------------------------------------------------------------------------------------------


def page_of(address: str) -> Path:
    """The file of a page of the site."""
    uri = address.removeprefix(SITE).rstrip("/")
    sources = {target: source for source, target in PAGES.items()}
    pages = (f"{uri}.md", f"{uri}/index.md") if uri else ("index.md",)
    (file,) = (file for page in pages if (file := ROOT / sources.get(page, f"docs/{page}")).is_file())
    return file


@pytest.mark.parametrize("document", documents.documents(), ids=documents.name)
def test_links_have_targets(document: Path) -> None:
    for link in documents.links(document):
        target, _, anchor = link.partition("#")
        if target.startswith(PICTURES):
            file = ROOT / target.removeprefix(PICTURES)
        elif found := re.match(rf"{REPOSITORY}/(?:blob|tree)/main/(.+)", target):
            file = ROOT / found[1]
        elif target.startswith(SITE):
            file = page_of(target)
        elif re.match(r"https?://", target):
            continue
        else:
            file = (document.parent / target).resolve() if target else document
        assert file.exists(), link
        if anchor:
            assert anchor in documents.anchors(file), link


def test_the_readme_has_only_absolute_links() -> None:
    """The Python Package Index shows it, and relative links have no target there."""
    links = documents.links(ROOT / "README.md")
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# ---- tests that the documents name ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/explanation/recovery.md", "CONTRIBUTING.md"])
def test_the_tests_that_a_document_names_exist(name: str) -> None:
    """A file is named by the end of its path. A function follows ``::``, directly or in parentheses after the file."""
    folders = (ROOT / "tests", ROOT / "slicer_module" / "tests")
    files = [path for folder in folders for path in folder.rglob("test_*.py")]
    named = re.findall(r"`((?:[\w/]*/)?test_\w+\.py)?((?:::)\w+)?`", (ROOT / name).read_text())
    file = None
    for path, function in (n for n in named if any(n)):
        if path:
            (file,) = (f for f in files if f.as_posix().endswith(f"/{path}"))
        if function:
            assert file is not None
            assert re.search(rf"def {function.removeprefix('::')}\(", file.read_text()), f"{file.name}{function}"
