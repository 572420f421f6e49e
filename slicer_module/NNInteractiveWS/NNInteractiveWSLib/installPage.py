"""What is shown instead of the panel while packages are missing."""

import qt
from slicer.i18n import tr as _

from . import packages


class InstallPage:
    """``widget``: says ``why``, and offers to install. ``installed()`` is called once that is done."""

    def __init__(self, why, installed):
        self._installed = installed
        self.widget = qt.QWidget()
        reason, button, self._note = qt.QLabel(why), qt.QPushButton(_("Install...")), qt.QLabel()
        reason.objectName, button.objectName, self._note.objectName = "installReason", "installButton", "installNote"
        reason.wordWrap = self._note.wordWrap = True
        button.connect("clicked()", self._install)
        layout = qt.QVBoxLayout(self.widget)
        for part in (reason, button, self._note):
            layout.addWidget(part)
        layout.addStretch(1)

    def _install(self):
        try:
            packages.install()
        except packages.NotInstalled as e:
            self._note.text = str(e)
        else:
            self._installed()
