"""Batch from Python: prompts made by a program, results as they are done.

With a server at hand:

    nninteractive-ws serve --model demo &
    python examples/many_volumes.py [ADDRESS [FOLDER]]

Run it twice: what is in the folder already is not made again.
"""

from collections.abc import Iterator
from pathlib import Path
import sys

import SimpleITK as sitk

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation.user import middle

ORGANS = ("liver", "spleen")


def prompts(folder: Path) -> Iterator[dict[str, object]]:
    """Writes two small volumes, and clicks once into each organ; yields a row of the table for every click."""
    for seed in (1, 2):
        phantom = make_phantom(seed, (80, 68, 64), (4.5, 4.5, 4.5))
        path = folder / f"phantom{seed}.nii.gz"
        if not path.exists():
            image = sitk.GetImageFromArray(phantom.image.transpose())
            image.SetSpacing(phantom.spacing)
            sitk.WriteImage(image, str(path))
        for organ in ORGANS:
            yield {"image": str(path), "segment": organ, "ijk": middle(phantom.mask(organ))}


def main(address: str = "ws://127.0.0.1:1528", folder: str = "many-volumes") -> None:
    images, output = Path(folder) / "images", Path(folder) / "segmented"
    images.mkdir(parents=True, exist_ok=True)
    for result in nni.batch(prompts(images), output, server=address):
        if result.errors:
            print(f"{result.image}: {'; '.join(result.errors)}")
        for segment in result.segments:
            done = "earlier" if result.earlier else f"{segment.predict_s:.1f} s"
            print(f"{Path(result.image).name}, {segment.name}: {segment.ml:.0f} ml ({done})")
    print(f"{output / 'results.csv'} has it all")


if __name__ == "__main__":
    main(*sys.argv[1:])
