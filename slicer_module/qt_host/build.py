"""Build the PythonQt extension that the widget tests import, so that they use Qt as Slicer does.

    python slicer_module/qt_host/build.py

builds it for the running interpreter, unless it exists already. It needs Debian's package archive for the source
package ``pythonqt`` (only the unstable suite has it) and for the packages listed below, which are installed if it runs
as root. A build takes about two minutes of CPU time. It is cached in ``~/.cache/nninteractive-ws/pythonqt``, or in the
folder set by ``NNINTERACTIVE_WS_PYTHONQT``.

Exit status: 0 with the extension's path as the last line; 77 with a message if a requirement is unavailable, in which
case the tests skip; 1 if the build fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
import fcntl
import hashlib
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time

EXTENSION = "_pythonqt_host"
FOLDER_VARIABLE = "NNINTERACTIVE_WS_PYTHONQT"
UNAVAILABLE = 77  # the exit status that test harnesses count as "skipped"

_VERSION = "4.1.0"
_HERE = Path(__file__).resolve().parent
#: Inputs of the build. A change in one of them requires a new build.
_INPUTS = ("CMakeLists.txt", "host.cpp")
_PACKAGES = (
    "cmake",
    "dpkg-dev",
    "g++",
    "ninja-build",
    "qtbase5-dev",
    "qtbase5-private-dev",
    "qttools5-dev",
    # Font for text that is drawn with QT_QPA_PLATFORM=offscreen.
    "fonts-dejavu-core",
)


class Unavailable(Exception):
    """A requirement of the build is unavailable on this machine."""


def cache_folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "nninteractive-ws" / "pythonqt")


def extension_path() -> Path:
    """Path of the extension for this interpreter, whether it is built or not. It depends on the build inputs."""
    digest = hashlib.sha256(_VERSION.encode())
    for name in _INPUTS:
        digest.update((_HERE / name).read_bytes())
    soabi = sysconfig.get_config_var("SOABI")
    return cache_folder() / f"{soabi}-{digest.hexdigest()[:12]}" / f"{EXTENSION}.so"


def build() -> Path:
    """Build the extension unless it exists, and return its path.

    Raise Unavailable if a requirement is missing, and CalledProcessError if the build fails.
    """
    target = extension_path()
    with _lock():
        if target.exists():
            return target
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            raise Unavailable(f"the headers of Python {sysconfig.get_python_version()} are not installed")
        _install_packages()
        return _compile(_fetch_source(), target)


@contextmanager
def _lock() -> Iterator[None]:
    """Lock against concurrent builds. A second test run waits, and then finds the result of the first."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install_packages() -> None:
    missing = [package for package in _PACKAGES if not _is_installed(package)]
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if shutil.which("apt-get") is None:
        raise Unavailable(f"apt-get was not found; install {', '.join(missing)} by other means")
    if os.geteuid() != 0:
        raise Unavailable(f"packages are missing; install them as root with: {shlex.join(command)}")
    try:
        _run("apt-get", "update")
        _run(*command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{', '.join(missing)} cannot be installed") from error


def _is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True).stdout == "installed"


def _fetch_source() -> Path:
    """Fetch and unpack the source package, with separate package lists so that the system's do not change."""
    source = cache_folder() / f"pythonqt-{_VERSION}"
    if source.exists():
        return source
    apt = cache_folder() / "apt"
    (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    mirror = _mirror() or _mirror_after_update()
    (apt / "sources.list").write_text(f"deb-src {mirror} unstable main\n")
    options = [
        f"--option=Dir::Etc::sourcelist={apt / 'sources.list'}",
        "--option=Dir::Etc::sourceparts=/dev/null",
        f"--option=Dir::State::lists={apt / 'lists'}",
        f"--option=Dir::Cache={apt}",
        "--option=APT::Sandbox::User=",  # the folder is this user's, not apt's
    ]
    try:
        _run("apt-get", *options, "update")
        _run("apt-get", *options, "source", "--download-only", "pythonqt", cwd=apt)
        description = next(apt.glob(f"pythonqt_{_VERSION}-*.dsc"), None)
        if description is None:
            raise Unavailable(f"Debian's archive no longer has PythonQt {_VERSION}")
        unpacked = apt / source.name
        shutil.rmtree(unpacked, ignore_errors=True)
        _run("dpkg-source", "--extract", str(description), str(unpacked), cwd=apt)
    except subprocess.CalledProcessError as error:
        raise Unavailable("the source package pythonqt cannot be fetched from Debian's archive") from error
    unpacked.rename(source)
    shutil.rmtree(apt)
    return source


def _mirror() -> str | None:
    """The archive that this Debian system takes its packages from, or None if it has no package lists."""
    targets = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]
    for line in _output(targets).splitlines():
        origin, label, *address = line.split(" ")
        if (origin, label, len(address)) == ("Debian", "Debian", 1):
            return address[0]
    return None


def _mirror_after_update() -> str:
    """The archive after an update of the package lists. A fresh system has none before, and only root can update."""
    try:
        if os.geteuid() == 0:
            _run("apt-get", "update")
    except subprocess.CalledProcessError as error:
        raise Unavailable("apt-get update fails") from error
    mirror = _mirror()
    if mirror is None:
        raise Unavailable("the package sources contain no Debian archive; try apt-get update as root")
    return mirror


def _compile(source: Path, target: Path) -> Path:
    folder = target.parent / "build"
    _run(
        *("cmake", "-G", "Ninja", "-S", str(_HERE), "-B", str(folder)),
        f"-DPYTHONQT_SOURCE={source}",
        f"-DPYTHON_INCLUDE={sysconfig.get_path('include')}",
    )
    _run("cmake", "--build", str(folder), "--parallel", str(len(os.sched_getaffinity(0))))
    (folder / target.name).rename(target)
    shutil.rmtree(folder)
    return target


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{command[0]} failed: {error}") from error


def _run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, cwd=cwd, env=env)


def main() -> int:
    start = time.monotonic()
    try:
        path = build()
    except Unavailable as error:
        print(f"PythonQt cannot be built on this machine: {error}.", file=sys.stderr)
        return UNAVAILABLE
    except subprocess.CalledProcessError as error:
        print(f"PythonQt could not be built: {shlex.join(map(str, error.cmd))} failed.", file=sys.stderr)
        return 1
    print(f"PythonQt is ready ({time.monotonic() - start:.0f} s):\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
