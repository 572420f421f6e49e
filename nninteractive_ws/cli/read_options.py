"""The options of the commands that read images."""

from typing import Annotated

import typer

Series = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of the DICOM series, if the folder has several.")
]
TimePoint = Annotated[
    int | None, typer.Option("--time", min=1, metavar="N", help="Number of the time point, if there are several.")
]
Resample = Annotated[
    bool,
    typer.Option("--resample", help="Interpolate images with sheared or unevenly spaced slices to an orthogonal grid."),
]
