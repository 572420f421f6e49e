"""Paths in tables of users, which may come from another system, and the files that they mean."""

import os
from pathlib import Path, PurePath
import re
import unicodedata

_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_VARIABLE = re.compile(r"\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\}|%[A-Za-z_]\w*%")


class UnusablePath(ValueError):
    """``str()`` is the end of a sentence about the path: what it is, and what to write instead."""


def find_spelling(text: str, folder: Path) -> str:
    """Return a path, relative to ``folder``, as it is spelled on this computer. The file need not exist.

    If it does not exist as written, ``~`` is the user's folder, backslashes are separators, and names may differ in
    Unicode normalization: macOS decomposes letters with accents, other systems do not. Raises UnusablePath for a path
    of Windows on another system, and for an environment variable.
    """
    if os.path.lexists(folder / text):
        return text
    if os.sep == "/":
        if _WINDOWS_ROOT.match(text):
            raise UnusablePath(", a path of Windows. Write the path of the file on this computer.")
        text = text.replace("\\", "/")
    if text.startswith("~"):
        text = _expand_user(text)
    spelled = _other_normalization(PurePath(text), folder)
    if not os.path.lexists(folder / spelled) and (variable := _VARIABLE.search(text)):
        raise UnusablePath(
            f", which does not exist. Environment variables such as {variable[0]} are not expanded. Write the path "
            "itself."
        )
    return spelled


def _expand_user(text: str) -> str:
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise UnusablePath(", but there is no such user on this computer. Write the path itself.") from None


def _other_normalization(path: PurePath, folder: Path) -> str:
    """Return the path with the names of existing files that differ only in their Unicode normalization."""
    found = PurePath()
    for part in path.parts:
        if not part.isascii() and not os.path.lexists(folder / found / part):
            same = [name for name in _names(folder / found) if _normalized(name) == _normalized(part)]
            part = same[0] if len(same) == 1 else part
        found /= part
    return str(found)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFC", name)
