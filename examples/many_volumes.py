"""Batch processing from Python: generated prompts, results in order of completion.

With a running server:

    nninteractive-ws serve --model demo &
    python examples/many_volumes.py [ADDRESS [FOLDER]]

Run it twice: finished volumes are not processed again.
"""

from collections.abc import Iterator
from pathlib import Path
import sys

import SimpleITK as sitk

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation.simulated_user import deepest_voxel

ORGANS = ("liver", "spleen")


def prompts(folder: Path) -> Iterator[dict[str, object]]:
    """Write two small volumes, and yield a row of the table with a point for each organ."""
    for seed in (1, 2):
        phantom = make_phantom(seed, (80, 68, 64), (4.5, 4.5, 4.5))
        path = folder / f"phantom{seed}.nii.gz"
        if not path.exists():
            image = sitk.GetImageFromArray(phantom.image.transpose())
            image.SetSpacing(phantom.spacing)
            sitk.WriteImage(image, str(path))
        for organ in ORGANS:
            yield {"image": str(path), "segment": organ, "ijk": deepest_voxel(phantom.mask(organ))}


def main(address: str = "ws://127.0.0.1:1528", folder: str = "many-volumes") -> None:
    images, output = Path(folder) / "images", Path(folder) / "segmented"
    images.mkdir(parents=True, exist_ok=True)
    for result in nni.batch(prompts(images), output, server=address):
        if result.errors:
            print(f"{result.image}: {'; '.join(result.errors)}")
        for segment in result.segments:
            done = "earlier" if result.earlier else f"{segment.predict_s:.1f} s"
            print(f"{Path(result.image).name}, {segment.name}: {segment.ml:.0f} ml ({done})")
    print(f"All results are in {output / 'results.csv'}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
