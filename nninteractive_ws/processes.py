"""The Python processes that this package starts."""

import sys


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in this environment.

    ``-m`` alone puts the working folder first on ``sys.path``, and a file ``psutil.py`` beside a CT would be imported
    and run. ``-P`` keeps the folder out.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
