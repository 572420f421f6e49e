"""A server on this computer, in a process that ends with Slicer. Nothing here blocks."""

from collections import deque
import os
import shlex
import shutil

from nninteractive_ws.server.local_server import LISTENING
import slicer

from .childProcess import ChildProcess
from .status import _

DEFAULT_COMMAND = "nninteractive-ws"
#: Time that the server has to end by itself after its standard input was closed.
_END_TIMEOUT_MS = 10_000
#: Number of the last lines of a program that are shown if it fails.
MAX_LINES = 5
#: Frames that command line programs draw around error messages.
_FRAME = " \t│╭╮╰╯─┃┏┓┗┛━"


class CannotStart(Exception):
    """The server cannot be started. ``str()`` is a message for the user."""


class ProgramNotFound(CannotStart):
    """The server may not be installed."""


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
        self._lines = deque(maxlen=MAX_LINES)
        self._process = ChildProcess(program, arguments, environment, self._onLine, self._onProcessEnded)

    def stop(self):
        """End the server, without waiting for it. No callback is called afterward."""
        if self._process is not None:
            process, self._process, self.address = self._process, None, None
            process.end(_END_TIMEOUT_MS)

    def _onLine(self, line):
        line = line.strip(_FRAME)
        if self.address is None and line.startswith(LISTENING):
            self.address = line.removeprefix(LISTENING).strip()
            self._onListening(self.address)
        elif line:
            self._lines.append(line)
            if self.address is None:
                self._onOutput(line)

    def _onProcessEnded(self, code, reason):
        if reason:
            message = _("The server could not be started: {reason}").format(reason=reason)
        elif code is None:
            message = _("The server has crashed or was killed.")
        else:
            message = _("The server has ended with status {code}.").format(code=code)
        if self._lines:
            message = "\n".join([f"{message} {_('Its last messages:')}", *self._lines])
        address, self._process, self.address = self.address, None, None
        self._onEnded(message, address)


def _parse(command, environment):
    """Return the path of the program of a command, and its arguments. Raise CannotStart."""
    words = _split(command.strip() or DEFAULT_COMMAND)
    program = shutil.which(_expand(words[0]), path=pathVariable(environment))
    if program is None:
        raise ProgramNotFound(_("The program {program} was not found.").format(program=words[0]))
    arguments = words[1:]
    if "serve" not in arguments:
        arguments.append("serve")
    return program, [*arguments, "--port", "0", "--end-with-stdin"]


def pathVariable(environment):
    """The folders of programs, or None. The name of the variable is Path on some Windows systems."""
    return next((value for name, value in environment.items() if name.upper() == "PATH"), None)


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
