"""Logging to standard error, with one line per record, as text or JSON, and without secrets.

Context goes into fields of a record, not into its message, as in ``_log.info("closed", extra={"session": id})``.
"""

from collections import deque
import contextlib
import copy
from dataclasses import dataclass
import json as json_library
import logging
import os
import re
import sys
import threading
import time
from typing import TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from nninteractive_ws.redaction import escaped, redact_tokens

# Attributes of a record that are not fields. websockets adds the connection object, which has no useful text.
_NO_FIELDS = (*RESERVED_ATTRS, "websocket")

#: Limit of queued log lines in bytes.
MAX_QUEUED_BYTES = 1024 * 1024
#: Limit of records from one line of code, and the window. Further records are counted, and summarized in one record.
REPEAT_BURST, REPEAT_WINDOW_S = 50, 10.0
#: Timeouts for flushing the log at the end of a process: in total, and without progress.
FLUSH_TIMEOUT_S, FLUSH_STALL_S = 5.0, 1.0
_RETRY_S = 0.05


def configure_logging(process: str, level: str, json: bool) -> None:
    """Log records of this process, from ``level`` on, to standard error.

    ``process``: its name in the lines. The format of text lines is ``time process LEVEL logger: message session=…
    user=…``. With ``json``, each line is an object of ``time`` (UTC), ``process``, ``level``, ``logger``, ``message``,
    the fields, and ``exc_info`` (a traceback). Raises ValueError for an unknown level.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    for other in root.handlers[:]:
        root.removeHandler(other)
        other.close()
    handler = BackgroundHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter(_json_formatter(process) if json else _TextFormatter(process)))
    root.addHandler(handler)
    # At lower levels, websockets logs every header and every message, including tokens and images.
    logging.getLogger("websockets").setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)


class BackgroundHandler(logging.Handler):
    """A handler that writes records on its own thread, so that a pipe without a reader blocks nothing else.

    The queue is bounded. Dropped records are counted, and the count is logged. The same applies to repeated records,
    see :class:`_Throttle`.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._descriptor, self._encoding = stream.fileno(), stream.encoding
        self._throttle = _Throttle()
        # The lock is reentrant, because the destructor of an object may log.
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._queued = self._written = self._dropped = 0
        self._idle, self._closing = True, False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self._changed:
                self._enqueue_summaries()
                if self._throttle.accepts(record):
                    self._enqueue(record)
        except Exception:
            self.handleError(record)

    def _enqueue_summaries(self, closing: bool = False) -> None:
        for summary in self._throttle.summaries(closing):
            self._enqueue(summary)

    def _enqueue(self, record: logging.LogRecord) -> None:
        self.write(self.format(record) + "\n")

    def write(self, text: str) -> None:
        """Write a text after the queued records."""
        line = text.encode(self._encoding, "backslashreplace")
        with self._changed:
            if self._queued + len(line) > MAX_QUEUED_BYTES:
                self._dropped += 1
                return
            self._lines.append(line)
            self._queued += len(line)
            self._idle = False
            self._changed.notify_all()

    def _run(self) -> None:
        while (line := self._next()) is not None:
            _write(self._descriptor, line)
            with self._changed:
                self._written += 1
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        """Wait for a line to write. Return None if the handler is closing."""
        with self._changed:
            while True:
                if self._dropped and self._queued < MAX_QUEUED_BYTES // 2:
                    message = f"dropped {self._dropped} log records: standard error was not read in time"
                    self._dropped = 0
                    self._enqueue(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))
                if self._lines:
                    break
                self._idle = True
                self._changed.notify_all()
                if self._closing:
                    return None
                self._changed.wait(REPEAT_WINDOW_S)
                self._enqueue_summaries()
            line = self._lines.popleft()
            self._queued -= len(line)
            return line

    def flush(self) -> None:
        """Wait until all lines are written, or the reader stalls."""
        end = time.monotonic() + FLUSH_TIMEOUT_S
        with self._changed:
            while not self._idle:
                before, stalled = self._written, time.monotonic() + FLUSH_STALL_S
                while not self._idle and self._written == before:
                    if time.monotonic() > min(stalled, end):
                        return
                    self._changed.wait(_RETRY_S)

    def close(self) -> None:
        """Write the summaries and the queue, and end the thread."""
        with self._changed:
            if not self._closing:
                self._enqueue_summaries(closing=True)
            self._closing = True
            self._changed.notify_all()
        self.flush()
        super().close()


def write_to_stderr(text: str) -> None:
    """Write to standard error after the log, without waiting for a reader."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, BackgroundHandler):
            handler.write(text)


def _write(descriptor: int, line: bytes) -> None:
    # Not through sys.stderr, because the interpreter would abort at exit if a blocked thread held its lock.
    with contextlib.suppress(OSError):  # the reader is gone
        while line:
            try:
                line = line[os.write(descriptor, line) :]
            except BlockingIOError:  # another process made the pipe non-blocking
                time.sleep(_RETRY_S)


@dataclass
class _Window:
    """Records from one line of code: the time of the first, their number, and the last one that was held back."""

    start: float
    count: int = 0
    held: logging.LogRecord | None = None


class _Throttle:
    """A limit of records per line of code and window, with summaries of the others.

    It is needed because a client that can provoke one record can provoke millions.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[str, int], _Window] = {}

    def accepts(self, record: logging.LogRecord) -> bool:
        """Whether to log a record now."""
        if record.levelno <= logging.DEBUG:
            return True  # debugging needs every record
        window = self._windows.setdefault((record.pathname, record.lineno), _Window(time.monotonic()))
        window.count += 1
        if window.count <= REPEAT_BURST:
            return True
        window.held = copy.copy(record)
        # Tracebacks would keep the objects of their frames alive, for instance connections.
        window.held.exc_info = window.held.exc_text = window.held.stack_info = None
        return False

    def summaries(self, closing: bool) -> list[logging.LogRecord]:
        """Return a record for each line of code whose records were held back in a window that has ended.

        ``closing``: end all windows.
        """
        now = time.monotonic()
        ended = {line: w for line, w in self._windows.items() if closing or now - w.start >= REPEAT_WINDOW_S}
        for line in ended:
            del self._windows[line]
        return [_summary(w.held, w.count - REPEAT_BURST, now - w.start) for w in ended.values() if w.held is not None]


def _summary(last: logging.LogRecord, count: int, seconds: float) -> logging.LogRecord:
    last.msg, last.args = f"{last.getMessage()} (the last of {count} more in {seconds:.0f} s)", None
    return last


class _RedactingFormatter(logging.Formatter):
    """A formatter that redacts whole lines, not only messages, since fields and tracebacks may hold secrets, too."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redact_tokens(self._inner.format(record))


class _TextFormatter(logging.Formatter):
    """A formatter of text lines, see :func:`configure_logging`."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = {key: value for key, value in vars(record).items() if key not in _NO_FIELDS}
        line = super().formatMessage(record) + "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
        # A name chosen by a client must not look like another line.
        return escaped(line)


def _quoted(value: object) -> str:
    """Return a field's value as text, quoted if it has whitespace, quotes or equals signs."""
    text = str(value)
    return text if text and not re.search(r'[\s"=]', text) else json_library.dumps(text, ensure_ascii=False)


def _json_formatter(process: str) -> logging.Formatter:
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        static_fields={"process": process},
        timestamp="time",
        reserved_attrs=_NO_FIELDS,
    )
