"""What the module needs beside Slicer, and how it gets there: with pip, once the user has agreed.

Whoever works on a checkout of the project installs that one instead, in Slicer's Python console::

    slicer.util.pip_install("-e /path/to/nninteractive-ws")

The module finds it the next time it is opened, and does not ask.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import CalledProcessError

from packaging.requirements import Requirement
import slicer
from slicer.i18n import tr as _

NAME = "nnInteractive WS"
REQUIREMENTS = Path(__file__).parents[1] / "Resources" / "requirements.txt"


class NotInstalled(Exception):
    """``str()`` says why, to the user."""


def needed(path=REQUIREMENTS):
    """The requirements of a requirements.txt, as texts."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def areInstalled(path=REQUIREMENTS):
    """Whether all that a requirements.txt asks for is installed, in the versions that it asks for."""
    return all(_isInstalled(Requirement(line)) for line in needed(path))


def install():
    """Ask the user, and install what is missing; Slicer waits for it. Raises NotInstalled."""
    try:
        _install()
    except RuntimeError as e:  # the user said no, or Slicer's Python was not found
        raise NotInstalled(_("Nothing was installed: {reason}").format(reason=e)) from e
    except CalledProcessError as e:
        words = _("pip could not install {names}; the Python console says why.")
        raise NotInstalled(words.format(names=", ".join(needed()))) from e
    importlib.invalidate_caches()
    if not areInstalled():  # Slicer installs nothing while it is tested
        raise NotInstalled(_("Nothing was installed."))


def _install():
    try:
        from slicer.packaging import load_requirements, pip_ensure
    except ImportError:  # Slicer 5.10
        _askAndInstall()
    else:
        pip_ensure(load_requirements(REQUIREMENTS), requester=NAME)


def _askAndInstall():
    # While it is tested, Slicer answers every question with yes.
    if slicer.app.testingEnabled():
        return
    question = _("Python packages will be installed into Slicer: {names}, and what these need. Continue?")
    if not slicer.util.confirmOkCancelDisplay(question.format(names=", ".join(needed())), NAME):
        raise RuntimeError(_("you did not agree."))
    with slicer.util.WaitCursor():
        slicer.util.pip_install(needed())


def _isInstalled(requirement):
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
