"""The log: a line for every record, for people or for programs, on standard error; and no secrets in it.

What a record is about goes beside its message, as fields: ``_log.info("closed", extra={"session": id})``.
"""

import json as json_library
import logging
import re
import sys

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

# What a record has without any fields; websockets adds the connection itself, which is no word.
_NO_FIELDS = (*RESERVED_ATTRS, "websocket")

# What follows "Bearer ", and whatever begins as a token does (access.TOKEN_PREFIX). The text may be escaped already:
# a blank may be \t, and the letter before a token part of an \n.
_SECRETS = re.compile(r"""(bearer(?:\s|\\[nrt])+)[^\s"'\\]+|nws_[\w-]+""", re.ASCII | re.IGNORECASE)


def configure_logging(process: str, level: str, json: bool) -> None:
    """Send this process's log, from a level on, to standard error.

    ``process``: what the lines call it. Text lines read ``time process LEVEL logger: message session=… user=…``;
    with ``json`` each is an object of ``time`` (UTC), ``process``, ``level``, ``logger``, ``message``, the fields, and
    ``exc_info`` (a traceback). Raises ValueError for a level that is none.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutSecrets(_json_formatter(process) if json else _TextFormatter(process)))
    root = logging.getLogger()
    root.setLevel(level.upper())
    for other in root.handlers[:]:
        root.removeHandler(other)
    root.addHandler(handler)
    # Below that it logs every header and every message, tokens and images included.
    logging.getLogger("websockets").setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)


def without_secrets(text: str) -> str:
    """A text with *** in the place of what follows ``Bearer`` and of tokens."""
    return _SECRETS.sub(lambda found: (found[1] or "") + "***", text)


class _WithoutSecrets(logging.Formatter):
    """The last step, not a filter of records: fields and tracebacks may hold secrets, too."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(self._inner.format(record))


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = {key: value for key, value in vars(record).items() if key not in _NO_FIELDS}
        line = super().formatMessage(record) + "".join(f" {key}={_word(value)}" for key, value in fields.items())
        # A name that a client gave itself must not look like another line.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _word(value: object) -> str:
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
