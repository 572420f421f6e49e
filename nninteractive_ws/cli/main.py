"""``nninteractive-ws``: the commands. Only the one that is asked for is imported, so that --help is quick."""

from collections.abc import Mapping, Sequence
from importlib import import_module

import typer

#: What each is for: the beginning of its own help. They stand in the order in which a newcomer needs them, and each
#: is a module of this package.
COMMANDS = {
    "demo": "The whole chain on an embedded phantom and model: server, client, previews, a table, a picture.",
    "serve": "Serve nnInteractive to clients, until Ctrl-C.",
    "segment": "Segment one object of an image from points and boxes.",
    "batch": "Segment many images by a table of prompts.",
    "evaluate": "Measure how good a model is: a simulated user prompts it where the truth is known.",
    "bench": "Measure this server against nnInteractive's own, on the same work.",
    "doctor": "Say in words whether a server can be used from here, and how fast.",
    "models": "List the models there are, and download official ones.",
    "token": "Make a token for a user of a server, and print it; or take one back.",
}

_HELP = """Segment anything in a 3D medical image by pointing at it, with the GPU elsewhere.

Begin with:

    # everything on this machine, nothing to download
    nninteractive-ws demo
    # an image of your own
    nninteractive-ws segment ct.nii.gz --point 60,70,60 -o liver.nii.gz
    # on the machine with the GPU
    nninteractive-ws serve
    # is that machine in reach, and how fast?
    nninteractive-ws doctor ssh://user@gpu-box

Each command tells its options with --help.
"""


def make_app(asked: str | None) -> typer.Typer:
    """The application. ``asked``: the command that is going to be run, or to tell of itself; the others are listed."""
    app = typer.Typer(
        name="nninteractive-ws",
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        rich_markup_mode="markdown",  # so that paragraphs are as wide as the terminal
    )
    for name, words in COMMANDS.items():
        if name != asked:
            app.command(name, help=words)(_listed)
            continue
        module = import_module(f"nninteractive_ws.cli.{name}")
        if isinstance(group := getattr(module, "app", None), typer.Typer):
            app.add_typer(group, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def asked_command(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The command that is named by the arguments, those behind the program's name; or, while a shell completes a line,
    by that line."""
    line = environment.get("_TYPER_COMPLETE_ARGS") or environment.get("COMP_WORDS")
    words = line.split()[1:] if line else arguments
    return next((word for word in words if not word.startswith("-")), None)


def _listed() -> None:
    """Stands for a command that is not asked for."""
