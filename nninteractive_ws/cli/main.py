"""``nninteractive-ws``: the commands. Each imports what it needs when it runs, so that --help is quick."""

import typer

from nninteractive_ws.cli import batch, demo, doctor, models, segment, serve, token

app = typer.Typer(
    name="nninteractive-ws",
    help="Segment anything in a 3D medical image by pointing at it, with the GPU elsewhere.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for command in (serve.serve, demo.demo, segment.segment, batch.batch, doctor.doctor, token.token):
    app.command()(command)
app.add_typer(models.app, name="models")
