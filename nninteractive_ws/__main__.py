"""``python -m nninteractive_ws`` and the command ``nninteractive-ws``."""

import os
import sys


def main() -> None:
    """Run the command line; say what to install where only the client is."""
    try:
        from nninteractive_ws.cli.main import asked_command, make_app

        app = make_app(asked_command(sys.argv[1:], os.environ))
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("nninteractive_ws"):
            raise
        sys.exit(
            f"The command line needs the package {e.name}: pip install 'nninteractive-ws[cli]' to work with a server "
            "elsewhere, or 'nninteractive-ws[server]' to run one here."
        )
    app()


if __name__ == "__main__":
    main()
