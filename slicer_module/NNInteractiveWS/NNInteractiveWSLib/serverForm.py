"""Server group of the Configuration tab: address, token, certificate, and connection test."""

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
#: Style of error messages, readable on light and on dark backgrounds.
RED = "color: #e53935"
_TOKEN = "NNINTERACTIVE_WS_TOKEN"
_MAX_SERVERS = 10
_DOCTOR = Path(__file__).with_name("doctor.py")
_SIGNS = {"ok": "\u2713", "warning": "!", "failed": "\u2717"}
_STEPS = {
    "address": _("Address"),
    "ssh": _("ssh"),
    "proxy": _("Proxy"),
    "name": _("DNS lookup"),
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
#: Messages for users of the panel, by the code of a result, instead of those for the command line.
_HINTS = {
    "token_missing": _("The server requires a token. Enter it above. The server's administrator can create one."),
}


class ServerForm:
    """Form for the server. Address and certificate are stored in the settings, and the token is kept in memory only.

    ``ui``: the panel's widgets.
    """

    def __init__(self, ui, logic):
        self._ui, self._logic = ui, logic
        self._server = self._doctor = None
        settings = qt.QSettings()
        servers = settings.value(f"{SETTINGS}/servers") or ["ws://127.0.0.1:1528"]
        # QSettings returns a list with one element as a text.
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
        """Pass the entries to the logic, and move the address to the top of the list."""
        box = self._ui.serverComboBox
        address, certificate = box.currentText.strip(), self._ui.certificatePathLineEdit.currentPath.strip()
        qt.QSettings().setValue(f"{SETTINGS}/certificate", certificate)
        token = self._ui.tokenLineEdit.text or os.environ.get(_TOKEN)
        server = address, token, certificate if certificate and _isEncrypted(address) else None
        if not address or server == self._server:
            return
        self._server = server
        others = [box.itemText(i) for i in range(box.count) if box.itemText(i) != address]
        known = [address, *others][:_MAX_SERVERS]
        box.clear()
        box.addItems(known)
        # Store only valid addresses. Other text may contain a password.
        qt.QSettings().setValue(f"{SETTINGS}/servers", [server for server in known if _parsed(server) is not None])
        self._logic.setServer(*server)
        self.stop()

    # ---- Test connection --------------------------------------------------------------------------------------

    def test(self):
        """Test the connection step by step if the user consents, and connect if the test succeeds. Stop a running
        test."""
        if self._doctor is not None:
            self.stop()
            return
        self.use()  # on some platforms, a button does not take the focus from the address field
        python = shutil.which("PythonSlicer")  # sys.executable may be Slicer itself
        if not self._logic.askConsent():
            self._show([self._logic.status.message], RED)
        elif python is None:
            message = _("PythonSlicer, which runs the test, was not found. Add its folder in Slicer to PATH.")
            self._show([message], RED)
        else:
            self._doctor = _Doctor(python, *self._server, self._show, self._onFinished)
            self._ui.testConnectionButton.text = _("Stop the test")

    def stop(self):
        """Stop a running test, and clear the results."""
        self._end()
        self._show([])

    def _end(self):
        if self._doctor is not None:
            self._doctor.end()
            self._doctor = None
            self._ui.testConnectionButton.text = _("Test connection")

    def _onFinished(self, succeeded):
        self._end()
        if succeeded:
            self._logic.connect()

    def _show(self, lines, color=""):
        label, message = self._ui.testResultLabel, "\n".join(lines)
        if label.text != message or label.styleSheet != color:
            label.text, label.styleSheet, label.visible = message, color, bool(message)


class _Doctor:
    """A process that runs doctor.py. It calls ``show(lines, color)`` for each update, and ``done(succeeded)`` at the
    end."""

    def __init__(self, python, address, token, ca, show, done):
        self._show, self._done = show, done
        self._lines, self._unread, self._failed = [], "", False
        self._process = qt.QProcess()
        environment = qt.QProcessEnvironment.systemEnvironment()
        if token:
            environment.insert(_TOKEN, token)  # not as an argument, which other users can see
        self._process.setProcessEnvironment(environment)
        self._process.connect("readyReadStandardOutput()", self._read)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._output = qt.QTextStream(self._process)  # the type of a QByteArray in Python depends on PythonQt's version
        show([_("Testing {address}").format(address=address)])
        self._process.start(python, ["-P", str(_DOCTOR), address, *([ca] if ca else [])])

    def end(self):
        """Kill the process. No callback is called afterward."""
        self._process.blockSignals(True)
        self._process.kill()
        self._process.waitForFinished(1000)  # returns at once after a kill

    def _read(self):
        *lines, self._unread = (self._unread + self._output.readAll()).split("\n")
        for line in lines:
            self._onStep(**json.loads(line))

    def _onStep(self, doing=None, step=None, status=None, code=None, found=None):
        if doing is not None:
            self._show([*self._lines, f"\u2026 {doing}"])
            return
        self._lines.append(f"{_SIGNS[status]} {_STEPS.get(step, step)}: {_HINTS.get(code, found)}")
        self._failed = status == "failed"
        self._show(self._lines, RED if self._failed else "")

    def _onFinished(self, code, _status):
        self._read()
        if code != 0:
            self._process.setReadChannel(qt.QProcess.StandardError)
            reason = qt.QTextStream(self._process).readAll().strip().split("\n")[-1]
            message = _("The test program failed, so the state of the server is unknown. Its error: {reason}")
            self._show([*self._lines, message.format(reason=reason or code)], RED)
        self._done(code == 0 and not self._failed)


def _isEncrypted(address):
    parsed = _parsed(address)
    return parsed is not None and parsed.secure


def _parsed(address):
    """Parse an address. Return None if it is invalid; connecting reports the error."""
    try:
        return parse_address(address)
    except BadAddress:
        return None


def userConsents(address):
    """Return whether the user consents to sending images to a server. Ask once for each address, and store consent."""
    settings = qt.QSettings()
    servers = settings.value(f"{SETTINGS}/agreedServers") or ()
    servers = [servers] if isinstance(servers, str) else list(servers)
    if address in servers:
        return True
    question = _("The image will be sent to the server at {address} and kept in its memory. Do you agree?")
    if not slicer.util.confirmYesNoDisplay(question.format(address=address)):
        return False
    settings.setValue(f"{SETTINGS}/agreedServers", [*servers, address])
    return True
