"""The options of the commands that read images."""

from typing import Annotated

import typer

Resample = Annotated[
    bool,
    typer.Option("--resample", help="Interpolate images with sheared or unevenly spaced slices to an orthogonal grid."),
]
