"""Write the repository of the 3D Slicer extension, in the form that Slicer's Extensions Index requires.

python -m tools.slicer_extension FOLDER     writes it into a new or empty folder
"""

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path, PurePosixPath
import re

from tools.docs_hooks import REPOSITORY, ROOT, replace_links, repository_link

MODULE = ROOT / "slicer_module"
#: Files and folders that the extension consists of, with their paths there. The tests stay in the main repository. The
#: license has the name that the Extensions Index asks for.
COPIED = {
    "LICENSE": "LICENSE.txt",
    "slicer_module/CMakeLists.txt": "CMakeLists.txt",
    "slicer_module/NNInteractiveWS.json": "NNInteractiveWS.json",
    "slicer_module/NNInteractiveWS": "NNInteractiveWS",
    "slicer_module/Screenshots": "Screenshots",
}

INSTALL = """\
You need 3D Slicer 5.10 or newer.

1. In Slicer, open *View > Extensions Manager*, search for *NNInteractiveWS*, press *Install*, and restart Slicer. If it
   is not listed for your version of Slicer, download this repository (*Code > Download ZIP*) and unpack it. Then open
   *Edit > Application Settings > Modules*, add the folder `NNInteractiveWS` to *Additional module paths*, and restart.
2. Open *Segmentation > nnInteractive WS*.
3. Press *Install...* if the module asks for it. It needs the Python package `nninteractive-ws`, which does not
   install torch. It installs the package from the Python Package Index only if you agree.
"""
DEVELOPERS = f"""\
Every release of [nninteractive-ws]({REPOSITORY}) writes this repository. Please send issues and
pull requests there. The module and its tests are in
[slicer_module]({repository_link(PurePosixPath("slicer_module"))}).
"""
#: Sections of the module's README that differ in the extension's, with their text there.
SECTIONS = {"Install it": INSTALL, "For developers": DEVELOPERS}


class UnusableFolder(Exception):
    """The extension cannot be written into the folder. ``str()`` is a message for the user."""


def extension_files() -> dict[str, bytes]:
    """The content of the extension's repository: path, content."""
    files = {"README.md": readme().encode()}
    for source in map(ROOT.joinpath, COPIED):
        paths = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
        for path in paths:
            relative = path.relative_to(ROOT)
            if not any(part == "__pycache__" or part.startswith(".") for part in relative.parts):
                files[_target(PurePosixPath(relative.as_posix()))] = path.read_bytes()
    return files


def readme() -> str:
    """The module's README with the sections and links of the extension's repository."""
    text = replace_links((MODULE / "README.md").read_text(encoding="utf-8"), _link)
    for title, section in SECTIONS.items():
        text, count = re.subn(rf"^## {title}\n\n.*?(?=^## |\Z)", f"## {title}\n\n{section}\n", text, flags=re.M | re.S)
        if count != 1:
            raise ValueError(f'slicer_module/README.md has {count} sections "{title}". Expected one.')
    return text.rstrip() + "\n"


def write(folder: Path) -> int:
    """Write the extension's repository into a new or empty folder. Return the number of files."""
    files = extension_files()  # before anything is written, as the folder may be anywhere
    if folder.resolve().is_relative_to(MODULE.resolve()):
        raise UnusableFolder(f"{folder} is in slicer_module, which is copied. Choose a folder elsewhere.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UnusableFolder(f"{folder} is not empty. Choose a new or an empty folder.")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return len(files)


def main(arguments: Sequence[str] | None = None) -> None:
    summary, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="python -m tools.slicer_extension", description=summary)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new or empty folder")
    folder = parser.parse_args(arguments).folder
    try:
        count = write(folder)
    except UnusableFolder as e:
        parser.error(str(e))
    except OSError as e:
        parser.error(f"{folder} cannot be written: {e.strerror} ({e.filename}). Choose a new or an empty folder.")
    address = json.loads((MODULE / "NNInteractiveWS.json").read_text(encoding="utf-8"))["scm_url"]
    print(f"Wrote {count} files of the Slicer extension to {folder}. They belong on the main branch of {address}.")


def _target(path: PurePosixPath) -> str:
    """The path of a file of this repository in the extension's repository, or an empty text if it is not there."""
    for source, target in COPIED.items():
        if path.is_relative_to(source):
            return str(PurePosixPath(target) / path.relative_to(source))
    return ""


def _link(target: str) -> str:
    """The target of a link of the module's README, in the extension's README."""
    path = PurePosixPath(os.path.normpath(PurePosixPath("slicer_module") / target))
    if not (ROOT / path).exists():
        raise ValueError(f"slicer_module/README.md links to {target}, which does not exist. Correct the link.")
    return _target(path) or repository_link(path)


if __name__ == "__main__":
    main()
