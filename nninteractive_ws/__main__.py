"""``python -m nninteractive_ws`` and the command ``nninteractive-ws``."""

import os
import sys

#: As ``INTERRUPTED`` of the console, whose import can be interrupted, too.
_INTERRUPTED = 130


def main() -> None:
    """Run the command line. If only the client is installed, exit with the package to install."""
    try:
        _run()
    except KeyboardInterrupt:  # during imports
        sys.stderr.write("Stopped.\n")
        sys.stderr.flush()
        # After an interrupt inside compiled code, sys.exit would end the process by SIGINT, without this status.
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


if __name__ == "__main__":
    main()
