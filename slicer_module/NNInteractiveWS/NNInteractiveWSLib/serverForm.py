"""The server's part of the Configuration tab: its address, token and certificate, and whether it can be used."""

import json
import os
from pathlib import Path
import shutil

from nninteractive_ws.client.address import parse_address
from nninteractive_ws.errors import BadAddress
import qt
import slicer

from .status import _

SETTINGS = "NNInteractiveWS"
#: Of words that are bad news. Readable on light and on dark.
RED = "color: #e53935"
_TOKEN = "NNINTERACTIVE_WS_TOKEN"
_KEPT_SERVERS = 10
_DOCTOR = Path(__file__).with_name("doctor.py")
_SIGNS = {"ok": "\u2713", "warning": "!", "failed": "\u2717"}
_STEPS = {
    "address": _("Address"),
    "ssh": _("ssh"),
    "proxy": _("Proxy"),
    "name": _("Name"),
    "connection": _("Connection"),
    "encryption": _("Encryption"),
    "server": _("Server"),
    "websocket": _("WebSocket"),
    "session": _("Session"),
    "upload": _("Upload"),
    "download": _("Download"),
    "prompt": _("One prompt"),
    "first_mask": _("First mask"),
}
#: What a user of the panel does about it, instead of what the command line says.
_CURES = {"token_missing": _("The server wants a token: enter it above. Whoever runs the server can make one.")}


class ServerForm:
    """``ui``: the panel's widgets. Address and certificate are kept in the settings, the token is in memory alone."""

    def __init__(self, ui, logic):
        self._ui, self._logic = ui, logic
        self._server = self._doctor = None
        settings = qt.QSettings()
        servers = settings.value(f"{SETTINGS}/servers") or ["ws://127.0.0.1:1528"]
        # A list of one comes back as a text.
        ui.serverComboBox.addItems([servers] if isinstance(servers, str) else list(servers))
        ui.serverComboBox.currentIndex = 0
        ui.certificatePathLineEdit.currentPath = settings.value(f"{SETTINGS}/certificate") or ""
        ui.serverComboBox.lineEdit().connect("editingFinished()", self.use)
        ui.serverComboBox.connect("activated(int)", lambda index: self.use())
        ui.tokenLineEdit.connect("editingFinished()", self.use)
        ui.certificatePathLineEdit.connect("currentPathChanged(QString)", lambda path: self.use())
        ui.testConnectionButton.connect("clicked()", self.test)
        self.use()

    def use(self):
        """Let the logic have what is entered; the address becomes the first of the list."""
        box = self._ui.serverComboBox
        address, certificate = box.currentText.strip(), self._ui.certificatePathLineEdit.currentPath.strip()
        qt.QSettings().setValue(f"{SETTINGS}/certificate", certificate)
        token = self._ui.tokenLineEdit.text or os.environ.get(_TOKEN)
        server = address, token, certificate if certificate and _isEncrypted(address) else None
        if not address or server == self._server:
            return
        self._server = server
        others = [box.itemText(i) for i in range(box.count) if box.itemText(i) != address]
        known = [address, *others][:_KEPT_SERVERS]
        box.clear()
        box.addItems(known)
        # A text that is not an address may hold a password.
        qt.QSettings().setValue(f"{SETTINGS}/servers", [server for server in known if _parsed(server) is not None])
        self._logic.setServer(*server)
        self.stop()

    # ---- Test connection --------------------------------------------------------------------------------------

    def test(self):
        """Say step by step whether the server can be used, if the user agrees to it, and connect if it can. Pressed
        again, stop that."""
        if self._doctor is not None:
            self.stop()
            return
        self.use()  # a button does not take the focus from the address everywhere
        python = shutil.which("PythonSlicer")  # sys.executable may be Slicer itself
        if not self._logic.agree():
            self._show([self._logic.status.words], RED)
        elif python is None:
            self._show([_("PythonSlicer, by which Slicer runs other Python programs, was not found.")], RED)
        else:
            self._doctor = _Doctor(python, *self._server, self._show, self._onExamined)
            self._ui.testConnectionButton.text = _("Stop the test")

    def stop(self):
        """End a test, and forget what one has said."""
        self._end()
        self._show([])

    def _end(self):
        if self._doctor is not None:
            self._doctor.end()
            self._doctor = None
            self._ui.testConnectionButton.text = _("Test connection")

    def _onExamined(self, works):
        self._end()
        if works:
            self._logic.connect()

    def _show(self, lines, color=""):
        label, words = self._ui.testResultLabel, "\n".join(lines)
        if label.text != words or label.styleSheet != color:
            label.text, label.styleSheet, label.visible = words, color, bool(words)


class _Doctor:
    """doctor.py at work. ``show(lines, color)`` is called as it goes on, and ``done(works)`` when it has ended."""

    def __init__(self, python, address, token, ca, show, done):
        self._show, self._done = show, done
        self._lines, self._unread, self._failed = [], "", False
        self._process = qt.QProcess()
        environment = qt.QProcessEnvironment.systemEnvironment()
        if token:
            environment.insert(_TOKEN, token)  # not as an argument, which others can see
        self._process.setProcessEnvironment(environment)
        self._process.connect("readyReadStandardOutput()", self._read)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._output = qt.QTextStream(self._process)  # bytes would come as PythonQt's version has it
        show([_("Looking at {address}").format(address=address)])
        self._process.start(python, ["-P", str(_DOCTOR), address, *([ca] if ca else [])])

    def end(self):
        """Nothing is called any more."""
        self._process.blockSignals(True)
        self._process.kill()
        self._process.waitForFinished(1000)  # it takes no time

    def _read(self):
        *said, self._unread = (self._unread + self._output.readAll()).split("\n")
        for line in said:
            self._hear(**json.loads(line))

    def _hear(self, doing=None, step=None, status=None, code=None, found=None):
        if doing is not None:
            self._show([*self._lines, f"\u2026 {doing}"])
            return
        self._lines.append(f"{_SIGNS[status]} {_STEPS.get(step, step)}: {_CURES.get(code, found)}")
        self._failed = status == "failed"
        self._show(self._lines, RED if self._failed else "")

    def _onFinished(self, code, _status):
        self._read()
        if code != 0:
            self._process.setReadChannel(qt.QProcess.StandardError)
            said = qt.QTextStream(self._process).readAll().strip().split("\n")[-1]
            words = _("The test itself failed, which says nothing about the server: {reason}")
            self._show([*self._lines, words.format(reason=said or code)], RED)
        self._done(code == 0 and not self._failed)


def _isEncrypted(address):
    parsed = _parsed(address)
    return parsed is not None and parsed.secure


def _parsed(address):
    """The address; None if it is invalid. The user learns of that when connecting."""
    try:
        return parse_address(address)
    except BadAddress:
        return None


def userAgrees(address):
    """Whether images may be sent to the server at an address: asked once for each, and remembered."""
    settings = qt.QSettings()
    agreed = settings.value(f"{SETTINGS}/agreedServers") or ()
    agreed = [agreed] if isinstance(agreed, str) else list(agreed)
    if address in agreed:
        return True
    question = _("The image will be sent to the server at {address}, and kept there in memory. Do you agree?")
    if not slicer.util.confirmYesNoDisplay(question.format(address=address)):
        return False
    settings.setValue(f"{SETTINGS}/agreedServers", [*agreed, address])
    return True
