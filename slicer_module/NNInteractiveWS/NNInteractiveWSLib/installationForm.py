"""The guide in the Configuration tab that installs a server on this computer."""

import ctk
import slicer

from .serverInstallation import DEFAULT_FOLDER, CannotInstall, ServerInstallation, hasGpu, sizes
from .status import RED, _


class InstallationForm:
    """The guide. ``ui``: the panel's widgets. ``onInstalled(program)`` is called with the path of nninteractive-ws."""

    def __init__(self, ui, onInstalled):
        self._ui, self._onInstalled = ui, onInstalled
        self._installation = ServerInstallation(self._onOutput, self._onEnded)
        ui.installationFolderPathLineEdit.filters = ctk.ctkPathLineEdit.Dirs
        ui.installationFolderPathLineEdit.currentPath = str(DEFAULT_FOLDER)
        ui.installServerButton.connect("clicked()", self.install)
        ui.dismissInstallationButton.connect("clicked()", self.dismiss)

    def offer(self, reason):
        """Show the guide, with the reason for it."""
        if not self._installation.isRunning:
            self._ui.installationLabel.text = f"{reason} {_explanation()}"
            self._show("")
        self._ui.installationFrame.visible = True

    def hide(self):
        """Hide the guide, unless an installation is running."""
        self._ui.installationFrame.visible = self._installation.isRunning

    def install(self):
        """Start the installation. The user has read what it does."""
        try:
            self._installation.start(self._ui.installationFolderPathLineEdit.currentPath)
        except CannotInstall as e:
            self._show(str(e), RED)
        else:
            self._setRunning(self._installation.isRunning)

    def dismiss(self):
        """Cancel a running installation, or else hide the guide."""
        if self._installation.isRunning:
            self._ui.dismissInstallationButton.enabled = False
            self._show(_("Canceling..."))
            self._installation.cancel()
        else:
            self.hide()

    def close(self):
        """Cancel a running installation."""
        self._installation.close()

    def _onOutput(self, line):
        if self._ui.dismissInstallationButton.enabled:
            self._show(f"{_('Installing, which takes several minutes. Slicer can be used meanwhile.')}\n{line}")

    def _onEnded(self, program, message):
        self._setRunning(False)
        if program is None:
            self._show(message, RED)
        else:
            self.hide()
            self._onInstalled(program)

    def _setRunning(self, running):
        ui = self._ui
        ui.installServerButton.enabled = ui.installationFolderPathLineEdit.enabled = not running
        ui.dismissInstallationButton.enabled = True
        ui.dismissInstallationButton.text = _("Cancel") if running else _("Not now")
        if running:
            self._show(_("Looking for Python on this computer..."))

    def _show(self, message, color=""):
        label = self._ui.installationProgressLabel
        label.text, label.styleSheet, label.visible = message, color, bool(message)


def _explanation():
    withGpu = hasGpu(slicer.util.startupEnvironment())
    download, disk = sizes(withGpu)
    text = _(
        "The server is a program outside Slicer. It can be installed in the folder below, in a Python environment of "
        "its own. This needs Python 3.11 or newer on this computer, downloads about {download} GB, and takes about "
        "{disk} GB on the disk. To remove the server, delete the folder. If you have a server already, enter the path "
        "of its program nninteractive-ws under Command."
    ).format(download=download, disk=disk)
    if withGpu:
        return text
    return f"{text} {_('No NVIDIA GPU was found, so the processor will compute, which takes much longer.')}"
