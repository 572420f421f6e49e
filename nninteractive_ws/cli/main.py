"""``nninteractive-ws``: the commands. Only the requested one is imported, so that --help is fast."""

from collections.abc import Mapping, Sequence
from importlib import import_module

import typer

#: First line of the help of each command, in the order for new users. Each command is a module of this package.
COMMANDS = {
    "demo": "Run server, client and previews on an embedded phantom and model, and draw a figure.",
    "serve": "Serve nnInteractive to clients until Ctrl-C.",
    "worker": "Join a server that was started elsewhere, and compute for it.",
    "segment": "Segment one object of an image from points and boxes.",
    "batch": "Segment many images with the prompts of a table.",
    "evaluate": "Evaluate a model with a simulated user on images with known ground truth.",
    "bench": "Benchmark this server against nnInteractive's own on the same workload.",
    "doctor": "Check each step of a connection to a server, and measure throughput.",
    "models": "List models, and download official ones.",
    "token": "Create or revoke the access token of a user.",
}

_HELP = """Segment anything in a 3D medical image from a few prompts, with the GPU on another machine.

First steps:

    # server and client on this machine, without a download
    nninteractive-ws demo
    # segment your own image
    nninteractive-ws segment ct.nii.gz --point 60,70,60 -o liver.nii.gz
    # start a server on the machine with the GPU
    nninteractive-ws serve
    # check the connection to it
    nninteractive-ws doctor ssh://user@gpu-box

Each command lists its options with --help.
"""


def make_app(requested: str | None) -> typer.Typer:
    """Create the application. ``requested``: the command to run or to show the help of; the others are only listed."""
    app = typer.Typer(
        name="nninteractive-ws",
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        rich_markup_mode="markdown",  # wraps paragraphs at the width of the terminal
    )
    for name, help_text in COMMANDS.items():
        if name != requested:
            app.command(name, help=help_text)(_listed)
            continue
        module = import_module(f"nninteractive_ws.cli.{name}")
        if isinstance(group := getattr(module, "app", None), typer.Typer):
            app.add_typer(group, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def requested_command(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return the command named by the arguments after the program's name, or by the line that a shell completes."""
    line = environment.get("_TYPER_COMPLETE_ARGS") or environment.get("COMP_WORDS")
    tokens = line.split()[1:] if line else arguments
    return next((word for word in tokens if not word.startswith("-")), None)


def _listed() -> None:
    """Placeholder for a command that is not requested."""
