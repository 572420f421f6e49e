"""Chromium: the program on this machine, and its command line. Without dependencies, for every Python."""

from helpers.programs import find_program

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: WebGL 2 on the CPU, and no traffic of the browser's own.
ARGUMENTS = (
    *("--no-sandbox", "--no-first-run", "--disable-quic", "--disable-sync", "--disable-component-update"),
    *("--disable-background-networking", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


def find_chromium() -> str | None:
    """Return the path of the program, or None if it is not installed."""
    return next(filter(None, map(find_program, _NAMES)), None)
