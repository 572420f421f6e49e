"""Access tokens, as users pass them."""

from nninteractive_ws.errors import Unauthorized


def checked_token(token: str | None) -> str | None:
    """Return a token without surrounding white space, or None if nothing is left.

    Call it before any other use of a token: the errors of other libraries repeat a header that they cannot send.
    Raises Unauthorized, which does not contain the token, for characters that no token of a server has.
    """
    stripped = (token or "").strip()
    if not stripped.isascii() or not stripped.isprintable():
        raise Unauthorized(
            "The token contains characters that cannot be sent in an HTTP header, such as line breaks, typographic "
            "quotes or letters outside ASCII. Copy the token again, without quotes and line breaks."
        )
    return stripped or None
