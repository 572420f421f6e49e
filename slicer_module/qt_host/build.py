"""Builds the extension with which the tests of the module's widget have Qt as Slicer has it: through PythonQt.

    python slicer_module/qt_host/build.py

builds it for the interpreter that runs this, unless it is there already. It needs Debian's package archive: the
source package ``pythonqt`` (of the unstable suite, the only one that has it) and the packages named below, which root
gets installed. About two minutes of processor time, and once: the result is kept in
``~/.cache/nninteractive-ws/pythonqt``, or in the folder that ``NNINTERACTIVE_WS_PYTHONQT`` names.

Exit status: 0 with the extension's path as the last line, 77 where something that it needs cannot be had here (it says
what; the tests skip), 1 where the build fails.
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
UNAVAILABLE = 77  # what test harnesses take for "skipped"

_VERSION = "4.1.0"
_HERE = Path(__file__).resolve().parent
#: What is compiled: a change in one of these is another build.
_INPUTS = ("CMakeLists.txt", "host.cpp")
_PACKAGES = (
    "cmake",
    "dpkg-dev",
    "g++",
    "ninja-build",
    "qtbase5-dev",
    "qtbase5-private-dev",
    "qttools5-dev",
    # What QT_QPA_PLATFORM=offscreen draws text with.
    "fonts-dejavu-core",
)


class Unavailable(Exception):
    """Something that the build needs cannot be had here."""


def cache_folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "nninteractive-ws" / "pythonqt")


def extension_path() -> Path:
    """Where the extension for this interpreter is kept, built or not. It changes with what it is built from."""
    digest = hashlib.sha256(_VERSION.encode())
    for name in _INPUTS:
        digest.update((_HERE / name).read_bytes())
    soabi = sysconfig.get_config_var("SOABI")
    return cache_folder() / f"{soabi}-{digest.hexdigest()[:12]}" / f"{EXTENSION}.so"


def build() -> Path:
    """The extension's path. Raises Unavailable, and CalledProcessError where the build fails."""
    target = extension_path()
    with _alone():
        if target.exists():
            return target
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            raise Unavailable(f"the headers of Python {sysconfig.get_python_version()} are not installed")
        _install_packages()
        return _compile(_fetch_source(), target)


@contextmanager
def _alone() -> Iterator[None]:
    """Two test runs may want to build at once: the second waits, and finds what the first has built."""
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
        raise Unavailable(f"this is no Debian; it would need {', '.join(missing)}")
    if os.geteuid() != 0:
        raise Unavailable(f"packages are missing; as root: {shlex.join(command)}")
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
    """The unpacked source package; fetched with package lists of its own, so that the system's stay as they are."""
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
            raise Unavailable(f"Debian's archive has another PythonQt than {_VERSION}")
        unpacked = apt / source.name
        shutil.rmtree(unpacked, ignore_errors=True)
        _run("dpkg-source", "--extract", str(description), str(unpacked), cwd=apt)
    except subprocess.CalledProcessError as error:
        raise Unavailable("the source package pythonqt cannot be fetched from Debian's archive") from error
    unpacked.rename(source)
    shutil.rmtree(apt)
    return source


def _mirror() -> str | None:
    """The archive that this Debian takes its packages from, where it knows."""
    targets = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]
    for line in _output(targets).splitlines():
        origin, label, *address = line.split(" ")
        if (origin, label, len(address)) == ("Debian", "Debian", 1):
            return address[0]
    return None


def _mirror_after_update() -> str:
    """A fresh system knows of its archives only after an update, which is root's to do."""
    try:
        if os.geteuid() == 0:
            _run("apt-get", "update")
    except subprocess.CalledProcessError as error:
        raise Unavailable("apt-get update fails") from error
    mirror = _mirror()
    if mirror is None:
        raise Unavailable("no archive of Debian's is among this system's package sources (apt-get update?)")
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
        raise Unavailable(f"{command[0]} does not work here: {error}") from error


def _run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, cwd=cwd, env=env)


def main() -> int:
    start = time.monotonic()
    try:
        path = build()
    except Unavailable as why:
        print(f"PythonQt cannot be built here: {why}.", file=sys.stderr)
        return UNAVAILABLE
    except subprocess.CalledProcessError as error:
        print(f"PythonQt could not be built: {shlex.join(map(str, error.cmd))} failed.", file=sys.stderr)
        return 1
    print(f"PythonQt is there ({time.monotonic() - start:.0f} s):\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
