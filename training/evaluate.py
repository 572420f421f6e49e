"""How good a model is on phantoms of unseen seeds, or on a labelled image: ``python -m training.evaluate --help``.

A simulated user clicks into the middle of the object and then, again and again, into the middle of the
largest error. Everything goes through a real server and the blocking client.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table
import SimpleITK as sitk

import nninteractive_ws as nni
from nninteractive_ws.demo import user
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.server.local import local_server

PROMPTS = 5


def prompted(segment: nni.Segment, truth: np.ndarray) -> Iterator[float]:
    """The Dice after each of PROMPTS points."""
    for _ in range(PROMPTS):
        if (next_point := user.correction(truth, segment.mask)) is not None:
            segment.add_point(next_point[0], positive=next_point[1])
        yield user.dice(segment.mask, truth)


def cases(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    if args.image:
        image = sitk.GetArrayFromImage(sitk.ReadImage(args.image)).transpose()
        labels = sitk.GetArrayFromImage(sitk.ReadImage(args.labels)).transpose()
        yield image, {str(v): labels == v for v in args.values}
        return
    for seed in range(args.seed, args.seed + args.phantoms):
        phantom = make_phantom(seed)
        yield phantom.image, {organ: phantom.mask(organ) for organ in phantom.organs()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--phantoms", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="seeds below 1,000,000 are never trained on")
    parser.add_argument("--image", help="an image file instead of phantoms")
    parser.add_argument("--labels", help="its label map")
    parser.add_argument("--values", type=int, nargs="+", help="the labels to segment")
    args = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    with local_server("--model", args.model, "--log-level", "error") as address, nni.connect(address) as session:
        for image, truths in cases(args):
            session.set_image(image)
            for name, truth in truths.items():
                found.setdefault(name, []).append(list(prompted(session.segment(name), truth)))
    table = Table("object", *(f"{n + 1} point{'s' if n else ''}" for n in range(PROMPTS)))
    for name, runs in found.items():
        table.add_row(name, *(f"{d:.3f}" for d in np.mean(runs, 0)))
    table.add_row("mean", *(f"{d:.3f}" for d in np.mean([np.mean(r, 0) for r in found.values()], 0)), style="bold")
    Console().print(table)


if __name__ == "__main__":
    main()
