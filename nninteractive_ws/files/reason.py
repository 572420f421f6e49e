"""Errors of libraries and of the system, for the sentences of this project."""

from nninteractive_ws.redaction import escaped

_MAX_CHARS = 300


def reason(error: Exception) -> str:
    """Return the text of an error on one line, short, printable, and without a full stop at its end.

    Of an error of the system, it is the description alone, without its number and its path.
    """
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    printable = escaped(" ".join(text.split()).rstrip(". "))
    return printable if len(printable) <= _MAX_CHARS else f"{printable[:_MAX_CHARS]}…"
