"""Removal of secrets, and of characters that control a terminal, from text."""

import re

_HIDDEN = "***"

#: Prefix of all tokens of servers, by which people, secret scanners and the log recognize them.
TOKEN_PREFIX = "nws_"

# Tokens after their scheme, tokens in a subprotocol, and words with the prefix of this project's tokens. The text may
# be escaped already, so that whitespace may be \t, and the letter before a token may belong to an \n.
_TOKEN = re.compile(
    rf"((?:bearer|basic)(?:\s|\\[nrt])+|\.bearer\.)[^\s\"'\\]+|{TOKEN_PREFIX}[\w-]+", re.ASCII | re.IGNORECASE
)
# Other secrets are recognized by their context.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.ASCII), replacement)
    for pattern, replacement in (
        (r"((?:proxy-)?authorization[\"']?\s*[:=]\s*)[^\r\n]+", rf"\1{_HIDDEN}"),
        # User and password of a URL. A password may contain "/" and "@", so everything up to the last "@" is removed.
        (r"(//)[^\s\"'<>]*@", rf"\1{_HIDDEN}@"),
        (r"(\w://[^\s\"'<>?#]*)[?#][^\s\"'<>]*", rf"\1?{_HIDDEN}"),
        (r"\b((?:\w+[_-])?(?:token|secret|password|passwd|api_?key)=)[^\s&\"']+", rf"\1{_HIDDEN}"),
    )
)


def redact_tokens(text: str) -> str:
    """Replace tokens after ``Bearer`` and ``Basic``, and tokens of this project, by ``***``. JSON stays valid."""
    return _TOKEN.sub(lambda match: (match[1] or "") + _HIDDEN, text)


def redact(text: str, *secrets: str | None) -> str:
    """Replace credentials in URLs and headers, tokens of this project, and the given ``secrets`` by ``***``."""
    # The longest first, because one secret may be a part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return redact_tokens(text)


def printable(text: str) -> str:
    """Replace characters that are not printable by spaces, because a server's text could control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def escaped(text: str) -> str:
    """Escape characters that are not printable or not UTF-8, so that a text is visible and stays on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
