"""``python -m nninteractive_ws`` and the command ``nninteractive-ws``."""

import os
import sys


def main() -> None:
    """Run the command line. If only the client is installed, exit with the package to install."""
    _check_arguments(sys.argv[1:])
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
    for argument in arguments:
        printable = argument.encode(errors="backslashreplace").decode()
        if printable != argument:
            sys.exit(f"error: The argument {printable} is not UTF-8 text. Rename the file or its folder.")


if __name__ == "__main__":
    main()
