"""``python -m nninteractive_ws`` and the command ``nninteractive-ws``."""

import contextlib
import logging
import os
import sys
from typing import NoReturn

#: As ``INTERRUPTED`` of the console, whose import can be interrupted, too.
_INTERRUPTED = 130


def main() -> None:
    """Run the command line. If only the client is installed, exit with the package to install."""
    try:
        _check_arguments(sys.argv[1:])
        _run()
    except KeyboardInterrupt:  # during imports
        sys.stderr.write("Stopped.\n")
        _exit_interrupted()
    except SystemExit as ended:
        if ended.code != _INTERRUPTED:
            raise
        # typer exits without a message. Commands with a message of their own raise an exit that has no cause.
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            sys.stderr.write("Stopped.\n")
        _exit_interrupted()


def _exit_interrupted() -> NoReturn:
    """Exit after Ctrl-C. If it came inside compiled code, sys.exit would end the process by SIGINT, without status."""
    logging.shutdown()
    with contextlib.suppress(OSError):  # nobody reads it
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(_INTERRUPTED)


def _run() -> None:
    try:
        from nninteractive_ws.cli.main import make_app, requested_command

        app = make_app(requested_command(sys.argv[1:], os.environ))
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("nninteractive_ws"):
            raise
        sys.exit(
            f"The command line needs the package {e.name}. Run: pip install 'nninteractive-ws[cli]'. To run a server "
            "on this machine too, install 'nninteractive-ws[server]' instead."
        )
    app()


def _check_arguments(arguments: list[str]) -> None:
    """Exit if an argument is not text in UTF-8. Libraries of image formats end the process at such a path."""
    from nninteractive_ws.files.names import is_utf8
    from nninteractive_ws.redaction import escaped

    for argument in arguments:
        if not is_utf8(argument):
            sys.exit(f"error: The argument {escaped(argument)} is not UTF-8 text. Rename the file or its folder.")


if __name__ == "__main__":
    main()
