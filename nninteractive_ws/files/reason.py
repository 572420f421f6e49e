"""Errors of libraries, for the sentences of this project."""

_MAX_CHARS = 300


def reason(error: Exception) -> str:
    """Return the text of an error on one line, short, printable, and without a full stop at its end."""
    text = " ".join((str(error) or type(error).__name__).split()).rstrip(". ")
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return printable if len(printable) <= _MAX_CHARS else f"{printable[:_MAX_CHARS]}…"
