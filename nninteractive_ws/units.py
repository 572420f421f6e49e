"""Formatting of quantities in messages."""


def format_bytes(n: float) -> str:
    """Format a number of bytes with three significant digits, such as "1.50 MB" or "64.2 GB"."""
    for unit, size in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if n < 999.5 * size or unit == "GB":
            break
    value = n / size
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f} {unit}"
