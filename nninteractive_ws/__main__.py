"""``python -m nninteractive_ws`` and the command ``nninteractive-ws``."""

import sys


def main() -> None:
    """Run the command line; say what to install where only the client is."""
    try:
        from nninteractive_ws.cli.main import app
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
