"""What is shown instead of the panel while packages are missing."""

import qt
from slicer.i18n import tr as _

from . import packages


def installPage(why, installed):
    """A widget that says ``why``, and offers to install them. ``installed()`` is called once that is done."""
    page = qt.QWidget()
    reason, button, note = qt.QLabel(why), qt.QPushButton(_("Install...")), qt.QLabel()
    reason.objectName, button.objectName, note.objectName = "installReason", "installButton", "installNote"
    reason.wordWrap = note.wordWrap = True
    layout = qt.QVBoxLayout(page)
    for part in (reason, button, note):
        layout.addWidget(part)
    layout.addStretch(1)

    def install():  # must not know the page: it would be what keeps the page alive while that is deleted
        try:
            packages.install()
        except packages.NotInstalled as e:
            note.text = str(e)
        else:
            installed()

    button.connect("clicked()", install)
    return page
