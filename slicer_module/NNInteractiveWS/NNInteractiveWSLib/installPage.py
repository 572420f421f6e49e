"""Page that replaces the panel while packages are missing."""

import qt
from slicer.i18n import tr as _

from . import packages


def installPage(message, onInstalled):
    """Create a widget with a message and a button that installs the packages. It calls ``onInstalled()`` afterward."""
    page = qt.QWidget()
    reason, button, note = qt.QLabel(message), qt.QPushButton(_("Install...")), qt.QLabel()
    reason.objectName, button.objectName, note.objectName = "installReason", "installButton", "installNote"
    reason.wordWrap = note.wordWrap = True
    layout = qt.QVBoxLayout(page)
    for part in (reason, button, note):
        layout.addWidget(part)
    layout.addStretch(1)

    def install():  # must not refer to the page, which this function would keep alive during its deletion
        try:
            packages.install()
        except packages.NotInstalled as e:
            note.text = str(e)
        else:
            onInstalled()

    button.connect("clicked()", install)
    return page
