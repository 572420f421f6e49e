"""Wheel and sdist: their content, and use outside the repository."""

from collections.abc import Iterator
from importlib.metadata import distribution
import json
import os
from pathlib import Path, PurePosixPath
import re
import subprocess
import sys
import tarfile
from typing import Any
import venv
import zipfile

from hatchling.builders.sdist import SdistBuilder
from helpers import documents
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

from tools.docs_hooks import PAGES, PICTURES

ROOT = Path(__file__).parents[2]
MODEL_FILES = {
    "LICENSE", "README.md", "dataset.json", "fold_0/checkpoint_final.pth", "inference_info.json", "plans.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it, without the web page (see test_build_hook.py)."""
    folder = tmp_path_factory.mktemp("dist")
    # hatchling is installed already, and a separate environment would need a package index.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    environment = {**os.environ, "NNINTERACTIVE_WS_PAGE": "skip"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def pip(*message: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, message)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(python: Path | str, code: str, cwd: Path, **environment: str) -> str:
    """Run code in a process without access to the repository, and return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=cwd, env={**clean, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_content_of_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"nninteractive_ws", info}
    assert f"{info}/licenses/LICENSE" in names
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "nninteractive_ws").rglob("*.py")}
    model = {f"nninteractive_ws/demo/model/{name}" for name in MODEL_FILES}
    assert {name for name in names if not name.startswith(info)} == sources | model | {"nninteractive_ws/py.typed"}


@pytest.mark.slow
def test_the_content_of_the_sdist(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "protocol.md", "Dockerfile", "docs/images/demo.png", "examples/first_steps.ipynb"}
    wanted |= {"nninteractive_ws/demo/model/fold_0/checkpoint_final.pth", "tests/project/test_packaging.py"}
    wanted |= {"hatch_build.py", "web/build.mjs", "web/package-lock.json", "web/src/page/main.ts"}
    assert wanted <= names
    assert not [name for name in names if re.search(r"__pycache__|node_modules|^\.git/|^nninteractive_ws/page", name)]


# ---- the documentation can be built from the sdist --------------------------------------------------------


def nav_pages(nav: list[Any]) -> Iterator[str]:
    """The pages of a navigation of MkDocs, also those of its sections."""
    for entry in nav:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(target, str):
                yield target
            else:
                yield from nav_pages(target)


def mkdocs_files() -> Iterator[Path]:
    """The files that mkdocs.yml and the hooks of the documentation name."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    sources = {page: source for source, page in PAGES.items()}
    yield from (ROOT / hook for hook in ("mkdocs.yml", *config["hooks"]))
    yield from (ROOT / sources.get(page, f"docs/{page}") for page in nav_pages(config["nav"]))
    yield from (ROOT / source for source in PAGES)
    yield from (picture for folder in PICTURES for picture in (ROOT / folder).iterdir())


def documented_modules(document: Path) -> Iterator[Path]:
    """The modules whose docstrings a page shows."""
    for name in re.findall(r"^::: ([\w.]+)$", document.read_text(encoding="utf-8"), re.MULTILINE):
        path = ROOT.joinpath(*name.split("."))
        modules = (p for parent in (path, *path.parents) for p in (parent.with_suffix(".py"), parent / "__init__.py"))
        yield next(module for module in modules if module.is_file())


def linked_files(document: Path) -> Iterator[Path]:
    """The files and folders of the repository to which a document links, and the pictures that it shows."""
    for link in documents.links(document):
        target = link.partition("#")[0]
        if target.startswith(documents.PICTURES):
            yield ROOT / target.removeprefix(documents.PICTURES)
        elif found := re.match(rf"{documents.REPOSITORY}/(?:blob|tree)/main/(.+)", target):
            yield ROOT / found[1]
        elif target and not re.match(r"\w+:", target):
            yield Path(os.path.normpath(document.parent / target))


def files_of_the_documentation() -> set[str]:
    paths = {*mkdocs_files(), *documents.documents()}
    for document in documents.documents():
        paths |= {*documented_modules(document), *linked_files(document)}
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.fixture(scope="module")
def sdist_names() -> set[str]:
    """The files that an sdist would have, and their folders."""
    files = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    return files | {parent.as_posix() for file in files for parent in PurePosixPath(file).parents}


def test_the_sdist_has_all_files_of_the_documentation(sdist_names: set[str]) -> None:
    assert files_of_the_documentation() - sdist_names == set()


@pytest.mark.parametrize(
    "name",
    [
        "mkdocs.yml",  # what MkDocs reads
        "tools/docs_hooks.py",
        "docs/adr/index.md",  # pages of the navigation
        "protocol.md",
        "slicer_module/README.md",  # pages and pictures that the hooks add
        "slicer_module/Screenshots/preview.png",
        "nninteractive_ws/client/aio.py",  # docstrings
        "docs/images/report.webp",  # pictures
        "justfile",  # targets of links
        "tools/live_picture.py",
        "examples",
    ],
)
def test_the_files_of_the_documentation_are_found(name: str) -> None:
    assert name in files_of_the_documentation()


def test_the_sdist_has_what_its_tests_read(sdist_names: set[str]) -> None:
    tracked = {"slicer_module/tests/test_logic.py", "slicer_module/CMakeLists.txt", ".github/workflows/publish.yml"}
    assert tracked <= sdist_names


def test_the_slicer_module_adds_little_to_the_sdist(sdist_names: set[str]) -> None:
    names = [name for name in sdist_names if name.startswith("slicer_module/") and (ROOT / name).is_file()]
    assert sum((ROOT / name).stat().st_size for name in names) < 2 * 2**20


# ---- the client with the base install ---------------------------------------------------------------------


def requirements(name: str, seen: set[str]) -> set[str]:
    """Return the packages that a package requires without extras, recursively."""
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        needed = canonicalize_name(requirement.name)
        if needed not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(needed)
            requirements(needed, seen)
    return seen


def installed_files(name: str) -> Iterator[Path]:
    """Return the top-level entries of a package in site-packages."""
    found = distribution(name)
    tops = {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}
    yield from (Path(str(found.locate_file(top))) for top in tops)


@pytest.fixture(scope="module")
def client_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and links to its requirements, as after an installation, but offline."""
    folder = tmp_path_factory.mktemp("client")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in requirements("nninteractive-ws", set()):
        for path in installed_files(name):
            if not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    return python


@pytest.mark.slow
def test_the_base_install_has_no_torch(client_python: Path) -> None:
    needed = requirements("nninteractive-ws", set())
    assert {"blosc2", "msgspec", "numpy", "websockets"} <= needed
    assert not needed & {"torch", "nninteractive", "scipy", "simpleitk", "nninteractive-client"}


USE_THE_CLIENT = """
import sys
import numpy as np
import nninteractive_ws as nni
image = np.random.default_rng(0).normal(0, 20, (40, 36, 32)).astype(np.int16)
image[10:30, 9:27, 8:24] += 300
with nni.connect(ADDRESS) as session:
    session.set_image(image)
    session.segment("a").add_point((20, 18, 16))
    print(session.segment("a").mask.shape, "torch" in sys.modules, nni.__file__)
"""


@pytest.mark.slow
def test_the_client_works_with_the_base_install(client_python: Path, server: str, tmp_path: Path) -> None:
    output = run(client_python, f"ADDRESS = {server!r}\n{USE_THE_CLIENT}", tmp_path)
    assert output.startswith("(40, 36, 32) False ")
    assert str(client_python.parents[1]) in output


@pytest.mark.slow
def test_the_command_of_the_base_install_names_missing_packages(client_python: Path) -> None:
    command = client_python.parent / "nninteractive-ws"
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'nninteractive-ws[cli]'" in done.stderr


# ---- the server -------------------------------------------------------------------------------------------

SERVE_AND_SEGMENT = """
import json
import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation.simulated_user import deepest_voxel
from nninteractive_ws.engine.model_registry import list_models
from nninteractive_ws.server.local_server import local_server

phantom = make_phantom(1, (72, 64, 56), (5.0, 5.0, 5.0))
with local_server("--model", "demo", "--log-level", "warning") as address, nni.connect(address) as session:
    session.set_image(phantom.image)
    voxels = session.segment("liver").add_point(deepest_voxel(phantom.mask("liver"))).voxels
(model,) = (str(entry.folder) for entry in list_models() if entry.name == "demo")
print(json.dumps({"package": nni.__file__, "model": model, "voxels": voxels}))
"""


@pytest.mark.slow
def test_the_wheel_serves_its_own_model_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    # The requirements are in this environment. The wheel's content precedes the repository on the path.
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "wheel", wheel)
    output = json.loads(run(sys.executable, SERVE_AND_SEGMENT, tmp_path, PYTHONPATH=str(tmp_path / "wheel")))
    assert output["package"] == str(tmp_path / "wheel" / "nninteractive_ws" / "__init__.py")
    assert output["model"] == str(tmp_path / "wheel" / "nninteractive_ws" / "demo" / "model")
    assert output["voxels"] > 100
