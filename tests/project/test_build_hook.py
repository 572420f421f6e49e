"""The build hook: with Node.js or without, with npm's registry or without, from a checkout or an sdist."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile
import textwrap
from typing import Any
import zipfile

import pytest

from hatch_build import DIGEST, NODE_PACKAGE, VARIABLE, source_digest

ROOT = Path(__file__).parents[2]
PAGE = "nninteractive_ws/page"
#: Stands for Node.js and npm: it makes a page, or fails as npm does without its registry.
FAKE_NODE = """\
#!{python}
import os, pathlib, sys
if sys.argv[1] == "--version":
    print("{version}")
elif sys.argv[1] == "ci":
    print("npm warn old\\nnpm error code ENOTFOUND\\nnpm error request to the registry failed", file=sys.stderr)
    sys.exit({npm})
else:
    page = pathlib.Path(sys.argv[2])
    page.mkdir()
    (page / "index.html").write_text("built in " + pathlib.Path.cwd().name)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with the configuration, the hook and the page's sources of this one."""
    folder = tmp_path / "checkout"
    (folder / "nninteractive_ws").mkdir(parents=True)
    (folder / "nninteractive_ws" / "__init__.py").touch()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "web", folder / "web", ignore=shutil.ignore_patterns("node_modules"))
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Callable[..., Path]:
    """A folder for PATH, with a Node.js of this version and an npm with this exit status, or without both."""

    def make(version: str | None = "v20.11.0", npm: int = 0) -> Path:
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        for name in ("node", "npm") if version is not None else ():
            script = FAKE_NODE.format(python=sys.executable, version=version, npm=npm)
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        return folder

    return make


def call(project: Path, path: Path, code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run code of a build front end in a project, with only the programs of ``path``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NNINTERACTIVE", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-c", f"import hatchling.build as backend, json\n{textwrap.dedent(code)}"],
        capture_output=True,
        text=True,
        cwd=project,
        env={**clean, "PATH": str(path), **environment},
    )


def build(project: Path, path: Path, kind: str = "wheel", **environment: str) -> tuple[set[str], str]:
    """Build a wheel or sdist. Return the names in it, without the sdist's top folder, and the messages."""
    out = project.parent / "dist"
    done = call(project, path, f"print(backend.build_{kind}({str(out)!r}))", **environment)
    assert done.returncode == 0, done.stderr
    file = out / done.stdout.splitlines()[-1]
    if kind == "sdist":
        with tarfile.open(file) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}, done.stderr
    with zipfile.ZipFile(file) as wheel:
        return set(wheel.namelist()), done.stderr


def requirements(project: Path, path: Path, kind: str = "wheel", **environment: str) -> Any:
    done = call(project, path, f"print(json.dumps(backend.get_requires_for_build_{kind}()))", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["wheel", "editable", "sdist"])
def test_node_is_required_only_where_it_is_missing(checkout: Path, programs: Callable[..., Path], kind: str) -> None:
    assert NODE_PACKAGE in requirements(checkout, programs(None), kind)
    assert NODE_PACKAGE in requirements(checkout, programs("v18.20.0"), kind)
    assert NODE_PACKAGE not in requirements(checkout, programs("v20.0.0"), kind)
    assert NODE_PACKAGE not in requirements(checkout, programs("v24.1.0"), kind)
    shutil.rmtree(programs())
    assert NODE_PACKAGE not in requirements(checkout, programs(None), kind, **{VARIABLE: "skip"})


def test_the_page_is_built_into_the_wheel(checkout: Path, programs: Callable[..., Path]) -> None:
    names, _ = build(checkout, programs())
    assert {f"{PAGE}/index.html", f"{PAGE}/{DIGEST}"} <= names
    assert not [name for name in names if name.startswith("web") or "hatch_build" in name]
    # In a copy, so that the packages of a developer stay as they are.
    assert (checkout / PAGE / "index.html").read_text() == "built in web"
    assert sorted(p.name for p in (checkout / "web").iterdir()) == sorted(
        p.name for p in (ROOT / "web").iterdir() if p.name != "node_modules"
    )


def test_an_sdist_holds_the_page_and_builds_without_node(
    checkout: Path, programs: Callable[..., Path], tmp_path: Path
) -> None:
    names, _ = build(checkout, programs(), "sdist")
    assert {f"{PAGE}/index.html", "hatch_build.py", "web/build.mjs", "web/package-lock.json"} <= names
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    shutil.rmtree(programs())
    assert requirements(unpacked, programs(None)) == []
    names, messages = build(unpacked, programs(None), **{VARIABLE: "require"})
    assert f"{PAGE}/index.html" in names
    assert "without its web page" not in messages


def test_the_page_is_built_again_only_if_its_sources_have_changed(
    checkout: Path, programs: Callable[..., Path]
) -> None:
    page = checkout / PAGE / "index.html"
    build(checkout, programs())
    page.write_text("old")
    build(checkout, programs(npm=1))
    assert page.read_text() == "old"
    (checkout / "web" / "src" / "page" / "new.ts").touch()
    build(checkout, programs())
    assert page.read_text() == "built in web"


@pytest.mark.parametrize(
    ("version", "npm", "reason"),
    [
        (None, 0, "Node.js 20 or newer, with npm, is not installed."),
        ("v18.20.0", 0, "Node.js 20 or newer, with npm, is not installed."),
        ("v20.11.0", 1, "npm ci failed: request to the registry failed"),
    ],
)
def test_where_the_page_cannot_be_built(
    checkout: Path, programs: Callable[..., Path], version: str | None, npm: int, reason: str
) -> None:
    """The package is built without it, or not at all if it is required. An old page is not shipped."""
    (checkout / PAGE).mkdir()
    (checkout / PAGE / "index.html").write_text("old")
    names, messages = build(checkout, programs(version, npm))
    assert "nninteractive_ws/__init__.py" in names
    assert not [name for name in names if name.startswith(PAGE)]
    assert f"The package is built without its web page: {reason}" in messages
    done = call(checkout, programs(version, npm), "backend.build_wheel('.')", **{VARIABLE: "require"})
    assert done.returncode != 0
    assert reason in done.stderr


def test_the_page_can_be_skipped(checkout: Path, programs: Callable[..., Path]) -> None:
    build(checkout, programs())
    names, messages = build(checkout, programs(npm=1), **{VARIABLE: "skip"})
    assert not [name for name in names if name.startswith(PAGE)]
    assert "web page" not in messages


def test_an_invalid_value_is_refused(checkout: Path, programs: Callable[..., Path]) -> None:
    done = call(checkout, programs(), "backend.build_wheel('.')", **{VARIABLE: "no"})
    assert done.returncode != 0
    assert f'{VARIABLE} is "no". Expected skip or require' in done.stderr


def test_the_digest_depends_on_names_and_contents(checkout: Path) -> None:
    web = checkout / "web"
    digests = [source_digest(web)]
    (web / "src" / "a.ts").write_text("1")
    digests.append(source_digest(web))
    (web / "src" / "a.ts").rename(web / "src" / "b.ts")
    digests.append(source_digest(web))
    (web / "src" / "b.ts").write_text("2")
    digests.append(source_digest(web))
    assert len(set(digests)) == len(digests)
    (web / "node_modules").mkdir()
    (web / "node_modules" / "c.js").touch()
    assert source_digest(web) == digests[-1]


@pytest.mark.slow
def test_the_real_page_is_built_with_npm(checkout: Path) -> None:
    """Needs Node.js, and npm's registry or cache."""
    if shutil.which("npm") is None or subprocess.run(["npm", "ping"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("npm or its registry is not here")
    names, _ = build(checkout, Path(os.environ["PATH"]), **{VARIABLE: "require"})
    pages = {name.removeprefix(f"{PAGE}/") for name in names if name.startswith(PAGE)}
    assert {"index.html", "LICENSES.txt", DIGEST} <= pages
    index = (checkout / PAGE / "index.html").read_text()
    for kind in ("js", "css"):
        (linked,) = [name for name in pages if name.endswith(f".{kind}") and f'"{name}"' in index]
        assert len(linked.split(".")[1]) == 8
