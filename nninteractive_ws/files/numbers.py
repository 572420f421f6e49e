"""Numbers in text of users. Only the digits 0 to 9 and a decimal point count, so that no text is misread."""

import re

_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,2})?", re.IGNORECASE)


def whole_number(text: str, max_digits: int = 9) -> int:
    """Return a whole number. More than 9 digits are beyond any image, and overflow in image libraries.

    Raises ValueError.
    """
    stripped = text.strip()
    if not _WHOLE.fullmatch(stripped) or len(stripped.lstrip("+-")) > max_digits:
        raise ValueError(f"not a whole number: {text}")
    return int(stripped)


def decimal(text: str) -> float:
    """Return a number such as -31.5 or 1e3, with at most 9 digits before the decimal point. Raises ValueError."""
    stripped = text.strip()
    if not _DECIMAL.fullmatch(stripped):
        raise ValueError(f"not a number: {text}")
    return float(stripped)
