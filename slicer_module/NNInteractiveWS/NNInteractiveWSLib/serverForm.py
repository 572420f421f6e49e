"""Server group of the Configuration tab: address, token, certificate, connection test, server on this computer."""

import json
import os
from pathlib import Path
import shutil

from nninteractive_ws.client.address import DEFAULT_PORT, parse_address
from nninteractive_ws.errors import BadAddress
import qt
import slicer

from .installationForm import InstallationForm
from .localServer import DEFAULT_COMMAND, CannotStart, LocalServer, ProgramNotFound
from .status import RED, _

SETTINGS = "NNInteractiveWS"
_TOKEN = "NNINTERACTIVE_WS_TOKEN"
_SSH_ENVIRONMENT = "NNINTERACTIVE_WS_SSH_ENVIRONMENT"
DEFAULT_SERVER = f"ws://127.0.0.1:{DEFAULT_PORT}"
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
    "http_api": _("HTTP API"),
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

    ``ui``: the panel's widgets. ``isConfigured``: whether the user has ever entered a server.
    """

    def __init__(self, ui, logic):
        self._ui, self._logic = ui, logic
        self._server = self._doctor = None
        settings = qt.QSettings()
        servers = _storedList("servers")
        self.isConfigured = bool(servers)
        ui.serverComboBox.addItems(servers or [DEFAULT_SERVER])
        ui.serverComboBox.currentIndex = 0
        ui.certificatePathLineEdit.currentPath = settings.value(f"{SETTINGS}/certificate") or ""
        ui.serverComboBox.lineEdit().connect("editingFinished()", self.use)
        ui.serverComboBox.connect("activated(int)", lambda index: self.use())
        ui.tokenLineEdit.connect("editingFinished()", self.use)
        ui.certificatePathLineEdit.connect("currentPathChanged(QString)", lambda path: self.use())
        ui.testConnectionButton.connect("clicked()", self.test)
        ui.withdrawButton.connect("clicked()", self.withdraw)
        self._local = LocalServer(self._onLocalOutput, self._onLocalListening, self._onLocalEnded)
        ui.localServerCommandLineEdit.text = settings.value(f"{SETTINGS}/localServerCommand") or DEFAULT_COMMAND
        ui.localServerCommandLineEdit.connect("editingFinished()", self._storeCommand)
        ui.localServerButton.connect("clicked()", self.toggleLocalServer)
        self._installation = InstallationForm(ui, self._onInstalled)
        self._use()

    def use(self):
        """Pass the user's entries to the logic, and store them."""
        if self._use():
            self._store()

    def _use(self):
        """Pass the entries to the logic, and move the address to the top of the list. Return whether they changed."""
        box = self._ui.serverComboBox
        address, certificate = box.currentText.strip(), self._ui.certificatePathLineEdit.currentPath.strip()
        qt.QSettings().setValue(f"{SETTINGS}/certificate", certificate)
        token = self._ui.tokenLineEdit.text or os.environ.get(_TOKEN)
        server = address, token, certificate if certificate and _isEncrypted(address) else None
        if not address or server == self._server:
            return False
        self._server = server
        others = [box.itemText(i) for i in range(box.count) if box.itemText(i) != address]
        known = [address, *others][:_MAX_SERVERS]
        box.clear()
        box.addItems(known)
        self._logic.setServer(*server, isOwn=address == self._local.address and _isLoopback(address))
        self.stop()
        return True

    def close(self):
        """Stop the test and the server on this computer."""
        self._end()
        self._local.stop()
        self._installation.close()

    def _store(self):
        box = self._ui.serverComboBox
        servers = [box.itemText(i) for i in range(box.count)]
        # Store only valid addresses. Other text may contain a password. The local server's address changes each time.
        valid = [server for server in servers if _parsed(server) is not None and server != self._local.address]
        qt.QSettings().setValue(f"{SETTINGS}/servers", valid)
        self.isConfigured = True

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

    # ---- server on this computer ------------------------------------------------------------------------------

    def toggleLocalServer(self):
        """Start a server on this computer, or stop it."""
        if self._local.isRunning:
            address = self._local.address
            self._local.stop()
            self._onLocalStopped(address)
            return
        self._storeCommand()
        self.stop()
        try:
            self._local.start(self._ui.localServerCommandLineEdit.text)
        except ProgramNotFound as e:
            self._installation.offer(str(e))
            return
        except CannotStart as e:
            self._show([str(e)], RED)
            return
        self._installation.hide()
        self._ui.localServerButton.text = _("Stop the server")
        self._onLocalOutput("")

    def _storeCommand(self):
        qt.QSettings().setValue(f"{SETTINGS}/localServerCommand", self._ui.localServerCommandLineEdit.text.strip())

    def _onInstalled(self, program):
        """Use the server that was installed from now on, and start it."""
        self._ui.localServerCommandLineEdit.text = program
        self._storeCommand()
        if not self._local.isRunning:
            self.toggleLocalServer()

    def _onLocalOutput(self, line):
        self._show([_("Starting a server on this computer..."), line])

    def _onLocalListening(self, address):
        self._ui.serverComboBox.setEditText(address)
        self._use()
        self._show([_("The server on this computer runs at {address}.").format(address=address)])
        self._logic.connect()

    def _onLocalEnded(self, message, address):
        self._onLocalStopped(address)
        self._show([message], RED)

    def _onLocalStopped(self, address):
        """Remove the address of a server that has ended, and use the previous one if it was in use."""
        self._ui.localServerButton.text = _("Start a server here")
        self.stop()
        box = self._ui.serverComboBox
        index = -1 if address is None else box.findText(address)
        if index >= 0:
            box.removeItem(index)
            self._use()

    # ---- consent ----------------------------------------------------------------------------------------------

    def withdraw(self):
        """Withdraw the user's consent to sending images to the server in use, and end the session there."""
        self.use()
        address = self._ui.serverComboBox.currentText.strip()
        agreed = _storedList("agreedServers")
        if address not in agreed:
            message = _("You have not agreed to send images to {address}, so there is nothing to withdraw.")
        else:
            qt.QSettings().setValue(f"{SETTINGS}/agreedServers", [server for server in agreed if server != address])
            self.stop()
            self._logic.disconnect()
            message = _(
                "Your agreement to send images to {address} is withdrawn. The session there has ended, and its images "
                "are discarded. The module asks again before it connects."
            )
        self._show([message.format(address=address)])

    def _show(self, lines, color=""):
        lines = [line for line in lines if line]
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
        # This program needs Slicer's library paths, but ssh could not start with them.
        environment.insert(_SSH_ENVIRONMENT, json.dumps(dict(slicer.util.startupEnvironment())))
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


def _isLoopback(address):
    parsed = _parsed(address)
    return parsed is not None and parsed.ssh is None and parsed.is_loopback


def _storedList(name):
    """A list of texts in the settings."""
    stored = qt.QSettings().value(f"{SETTINGS}/{name}") or ()
    # QSettings returns a list with one element as a text.
    return [stored] if isinstance(stored, str) else list(stored)


def userConsents(address):
    """Return whether the user consents to sending images to a server. Ask once for each address, and store consent."""
    servers = _storedList("agreedServers")
    if address in servers:
        return True
    question = _("The image will be sent to the server at {address} and kept in its memory. Do you agree?")
    if not slicer.util.confirmYesNoDisplay(question.format(address=address)):
        return False
    qt.QSettings().setValue(f"{SETTINGS}/agreedServers", [*servers, address])
    return True
