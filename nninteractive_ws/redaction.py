"""Text that is safe to show: without secrets, and without characters that control a terminal."""

import re

_HIDDEN = "***"

# Secrets are recognized by their surroundings. Their own form is known for this project's tokens alone.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.ASCII), replacement)
    for pattern, replacement in (
        (r"((?:proxy-)?authorization[\"']?\s*[:=]\s*)[^\r\n]+", rf"\1{_HIDDEN}"),
        (r"\b((?:bearer|basic)\s+)[^\s\"']+", rf"\1{_HIDDEN}"),
        (r"nws_[\w-]+", _HIDDEN),
        # User and password of a URL. A password may hold "/" and "@" itself, so everything up to the last "@" goes.
        (r"(//)[^\s\"'<>]*@", rf"\1{_HIDDEN}@"),
        (r"(\w://[^\s\"'<>?#]*)[?#][^\s\"'<>]*", rf"\1?{_HIDDEN}"),
        (r"\b((?:\w+[_-])?(?:token|secret|password|passwd|api_?key)=)[^\s&\"']+", rf"\1{_HIDDEN}"),
    )
)


def redact(text: str, *secrets: str | None) -> str:
    """Replace credentials in URLs and headers, tokens of this project, and the given ``secrets`` by ``***``."""
    # The longest first: one secret may be a part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def printable(text: str) -> str:
    """Replace characters that are not printable by spaces. Text of a server could control a terminal otherwise."""
    return "".join(c if c.isprintable() else " " for c in text)
