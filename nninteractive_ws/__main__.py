"""``python -m nninteractive_ws`` and the command ``nninteractive-ws``."""

import os
import sys

from nninteractive_ws.interrupts import INTERRUPTED, exit_interrupted, exit_on_interrupt


def main() -> None:
    """Run the command line. If only the client is installed, exit with the package to install."""
    try:
        _check_arguments(sys.argv[1:])
        _run()
    except KeyboardInterrupt:
        exit_interrupted("Stopped.")
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        # typer exits without a message. Commands with a message of their own raise an exit that has no cause.
        without_message = isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt)
        exit_interrupted("Stopped." if without_message else "")


def _run() -> None:
    try:
        with exit_on_interrupt():
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
