"""Python packages that the module needs beside Slicer's, and their installation with pip after the user's consent.

Developers can install a checkout of the project instead, in Slicer's Python console::

    slicer.util.pip_install(["-e", "/path/to/nninteractive-ws"])

The module finds it when it is opened the next time, and does not offer to install anything.
"""

from functools import cache
import importlib
from importlib.metadata import PackageNotFoundError, distribution, version
import json
from pathlib import Path
from subprocess import CalledProcessError

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
import slicer
from slicer.i18n import tr as _

NAME = "nnInteractive WS"
REQUIREMENTS = Path(__file__).parents[1] / "Resources" / "requirements.txt"


class NotInstalled(Exception):
    """The packages were not installed. ``str()`` is a message for the user."""


def needed(path=REQUIREMENTS):
    """The lines of a requirements file, without comments."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def areInstalled(path=REQUIREMENTS):
    """Whether all requirements of a requirements file are installed in suitable versions."""
    return all(_isInstalled(Requirement(line)) for line in needed(path))


def serverRequirement():
    """Return what pip installs for a server: from the origin of the installed client, or else the package index.

    A client from a checkout or a wheel has a direct reference to it, which pip records.
    """
    requirement = Requirement(needed()[0])
    requirement.extras.add("server")
    reference = distribution(requirement.name).read_text("direct_url.json")
    if reference is None:
        return str(requirement)
    origin = json.loads(reference)
    source = origin.get("vcs_info")
    url = f"{source['vcs']}+{origin['url']}@{source['commit_id']}" if source else origin["url"]
    return f"{requirement.name}[server] @ {url}"


@cache
def updateNotice(server, client):
    """A sentence on what to do if the versions of server and client differ, or None.

    ``server``: its program and version, such as "nninteractive-ws 0.1.0". ``client``: the version of this Slicer's
    package.
    """
    requirement = Requirement(needed()[0])
    name, _space, number = server.rpartition(" ")
    try:
        newer = Version(number) > Version(client)
    except InvalidVersion:
        return None
    if name != requirement.name or Version(number) == Version(client):
        return None
    if not newer:
        notice = _("The server is older than this module's client, version {client}, so update the server.")
    elif requirement.specifier.contains(number, prereleases=True):
        notice = _(
            "The server is newer than this module's client, version {client}, so run "
            'slicer.util.pip_install(["{name}=={number}"]) in the Python console and restart Slicer.'
        )
    else:
        notice = _("The server is newer than this module, which uses version {client}, so update the module.")
    return notice.format(client=client, name=name, number=number)


def install():
    """Ask the user, and install the missing packages. Block until pip is done. Raise NotInstalled on failure."""
    try:
        _install()
    except RuntimeError as e:  # the user declined, or Slicer's Python was not found
        raise NotInstalled(_("Nothing was installed: {reason}").format(reason=e)) from e
    except CalledProcessError as e:
        message = _("pip could not install {names}. The error is in the Python console.")
        raise NotInstalled(message.format(names=", ".join(needed()))) from e
    importlib.invalidate_caches()
    if not areInstalled():  # in testing mode, Slicer installs nothing
        raise NotInstalled(_("Nothing was installed."))


def _install():
    try:
        from slicer.packaging import load_requirements, pip_ensure
    except ImportError:  # Slicer 5.10
        _askAndInstall()
    else:
        pip_ensure(load_requirements(REQUIREMENTS), requester=NAME)


def _askAndInstall():
    # In testing mode, Slicer answers every question with yes.
    if slicer.app.testingEnabled():
        return
    question = _(
        "These Python packages and their dependencies, about 25 packages (135 MB), will be installed into Slicer: "
        "{names}. Continue?"
    )
    if not slicer.util.confirmOkCancelDisplay(question.format(names=", ".join(needed())), NAME):
        raise RuntimeError(_("the installation was declined."))
    with slicer.util.WaitCursor():
        slicer.util.pip_install(needed())


def _isInstalled(requirement):
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
