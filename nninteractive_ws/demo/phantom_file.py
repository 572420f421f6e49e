"""The phantom as a NIfTI file. As a program, it writes that of the demo to standard output."""

from pathlib import Path
import sys
import tempfile

import numpy as np

from nninteractive_ws.demo.phantom import Phantom, make_phantom
from nninteractive_ws.files.nifti import write_nifti
from nninteractive_ws.files.volume import Volume


def phantom_volume(phantom: Phantom) -> Volume:
    """Return a phantom with its geometry: the axes are those of LPS, and the first voxel is the origin."""
    return Volume(phantom.image, np.diag([*phantom.spacing, 1.0]))


def write_phantom(path: Path, phantom: Phantom) -> None:
    """Write the image of a phantom as int16, compressed if the name ends with ``.gz``. Raises OSError."""
    write_nifti(path, phantom.image, phantom_volume(phantom))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.nii.gz"
        write_phantom(path, make_phantom())
        sys.stdout.buffer.write(path.read_bytes())


if __name__ == "__main__":
    main()
