"""Programs of the system that some tests run."""

import os
import shutil


def find_program(name: str) -> str | None:
    """Return the path of a program, or None if it is not installed. Daemons may be outside a user's PATH."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )
