"""A server on this computer, in a process that ends with Slicer. Nothing here blocks."""

from collections import deque
import os
import shlex
import shutil

from nninteractive_ws.server.local_server import LISTENING
import qt
import slicer

from .status import _

DEFAULT_COMMAND = "nninteractive-ws"
#: Time that the server has to end by itself after its standard input was closed.
_END_TIMEOUT_MS = 10_000
_MAX_LINES = 5
#: Frames that command line programs draw around error messages.
_FRAME = " \t│╭╮╰╯─┃┏┓┗┛━"
_EXAMPLE = (
    r"C:\nninteractive\Scripts\nninteractive-ws.exe" if os.name == "nt" else "~/nninteractive/bin/nninteractive-ws"
)


class CannotStart(Exception):
    """The server cannot be started. ``str()`` is a message for the user."""


class LocalServer:
    """A process that runs ``nninteractive-ws serve`` on a free port. It ends when its standard input closes: by
    ``stop()``, or with Slicer for any reason.

    It calls ``onOutput(line)`` for each line before the server listens, then ``onListening(address)``, and
    ``onEnded(message, address)`` if it ends without ``stop()``. ``address``: the server's address while it listens, or
    None.
    """

    def __init__(self, onOutput, onListening, onEnded):
        self._onOutput, self._onListening, self._onEnded = onOutput, onListening, onEnded
        self._process = self.address = None

    @property
    def isRunning(self):
        """Whether the process was started and has not ended."""
        return self._process is not None

    def start(self, command):
        """Start the server by a command. Raise CannotStart."""
        environment = slicer.util.startupEnvironment()  # Slicer's library paths would break other programs
        program, arguments = _parse(command, environment)
        self._lines, self._unread = deque(maxlen=_MAX_LINES), ""
        # Owned by the application, as the process may outlive this object for some seconds.
        self._process = qt.QProcess(qt.QApplication.instance())
        inherited = qt.QProcessEnvironment()
        for name, value in environment.items():
            inherited.insert(name, value)
        self._process.setProcessEnvironment(inherited)
        self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        for signal, slot in self._connections():
            self._process.connect(signal, slot)
        self._output = qt.QTextStream(self._process)  # the type of a QByteArray in Python depends on PythonQt's version
        self._process.start(program, arguments)

    def stop(self):
        """End the server, without waiting for it. No callback is called afterward."""
        if self._process is None:
            return
        process = self._release()
        process.connect("finished(int,QProcess::ExitStatus)", process, "deleteLater()")
        timeout = qt.QTimer(process)
        timeout.setSingleShot(True)
        timeout.connect("timeout()", process, "kill()")
        timeout.start(_END_TIMEOUT_MS)
        process.closeWriteChannel()

    def _connections(self):
        return (
            ("readyReadStandardOutput()", self._read),
            ("errorOccurred(QProcess::ProcessError)", self._onError),
            ("finished(int,QProcess::ExitStatus)", self._onFinished),
        )

    def _release(self):
        process = self._process
        for signal, slot in self._connections():
            process.disconnect(signal, slot)
        self._process = self._output = self.address = None
        return process

    def _read(self):
        text = self._unread + self._output.readAll().replace("\r", "\n")  # progress bars end with \r
        *lines, self._unread = text.split("\n")
        for line in lines:
            self._onLine(line.strip(_FRAME))
            if self._process is None:  # a callback has stopped the server
                return

    def _onLine(self, line):
        if self.address is None and line.startswith(LISTENING):
            self.address = line.removeprefix(LISTENING).strip()
            self._onListening(self.address)
        elif line:
            self._lines.append(line)
            if self.address is None:
                self._onOutput(line)

    def _onError(self, error):
        if error != qt.QProcess.FailedToStart:  # otherwise the process ends, too
            return
        self._end(_("The server could not be started: {reason}").format(reason=self._process.errorString()))

    def _onFinished(self, code, status):
        self._unread += "\n"
        self._read()
        if self._process is None:
            return
        message = _("The server has ended with status {code}.").format(code=code)
        if status == qt.QProcess.CrashExit:
            message = _("The server has crashed or was killed.")
        if self._lines:
            message = "\n".join([f"{message} {_('Its last messages:')}", *self._lines])
        self._end(message)

    def _end(self, message):
        address = self.address
        self._release().deleteLater()
        self._onEnded(message, address)


def _parse(command, environment):
    """Return the path of the program of a command, and its arguments. Raise CannotStart."""
    words = _split(command.strip() or DEFAULT_COMMAND)
    # The name of the variable is Path on some Windows systems.
    path = next((value for name, value in environment.items() if name.upper() == "PATH"), None)
    program = shutil.which(_expand(words[0]), path=path)
    if program is None:
        message = _(
            "The program {program} was not found. The server is a program outside Slicer. Create a Python environment "
            "of its own (python3 -m venv nninteractive) and run in it: pip install 'nninteractive-ws[server]'. With "
            "torch for NVIDIA GPUs, this takes several gigabytes. Then enter the path of nninteractive-ws in that "
            "environment under Command, for example {example}"
        )
        raise CannotStart(message.format(program=words[0], example=_EXAMPLE))
    arguments = words[1:]
    if "serve" not in arguments:
        arguments.append("serve")
    return program, [*arguments, "--port", "0", "--end-with-stdin"]


def _split(command):
    # A path may have spaces. Path.is_file() would raise for a text that is too long for a path.
    if os.path.isfile(_expand(command)):  # noqa: PTH113
        return [command]
    lexer = shlex.shlex(command, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if os.name == "nt":
        lexer.escape = ""  # backslashes separate folders
    try:
        return list(lexer)
    except ValueError as e:
        message = _(
            "The command {command} is incomplete: a quotation mark or a character after a backslash is missing."
        )
        raise CannotStart(message.format(command=command)) from e


def _expand(path):
    return os.path.expanduser(path)  # noqa: PTH111 (Path.expanduser() raises for unknown users)
