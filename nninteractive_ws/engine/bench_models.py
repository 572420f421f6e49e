"""Model folders to measure with, which note every pass of the network, in whichever server it is made.

``python -m nninteractive_ws.engine.bench_models FOLDER`` makes FOLDER/embedded and FOLDER/official, and prints
the device there is.
"""

import argparse
import json
from pathlib import Path
import shutil
import time

import torch
from torch import nn

from nninteractive_ws.engine.catalogue import MODEL_FOLDER
from nninteractive_ws.engine.demo_network import HalfResolutionUNet
from nninteractive_ws.engine.models import pick_device

# The official network's patch, and a network thin enough that a pass of that size does not take a minute on a CPU.
_OFFICIAL_PATCH, _THIN_FEATURES = 192, [4, 8, 16, 24, 28]
# By how much its random answers lean to "not the object": a prompt's own voxels are the mask.
_LEANING = 3.0


class TimedNetwork(HalfResolutionUNet):
    """The embedded model's network. ``passes_file`` gets a line for every pass: when it began (time.monotonic()), and
    the seconds it took."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features: list[int],
        passes_file: str,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(input_channels, num_classes, features, deep_supervision)
        self._passes_file = Path(passes_file)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        started = time.monotonic()
        logits = super().forward(x)
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        with self._passes_file.open("a") as file:
            file.write(f"{started} {time.monotonic() - started}\n")
        return logits


def write_embedded(folder: Path, passes_file: Path) -> None:
    """The embedded model. ``folder`` is made."""
    shutil.copytree(MODEL_FOLDER, folder)
    _change_plans(folder, {"passes_file": str(passes_file)}, {})


def write_official_geometry(folder: Path, passes_file: Path) -> None:
    """The official patch, and a thin network of random weights, the same every time. ``folder`` is made."""
    shutil.copytree(MODEL_FOLDER, folder)
    arguments: dict[str, object] = {"passes_file": str(passes_file), "features": _THIN_FEATURES}
    _change_plans(folder, arguments, {"patch_size": [_OFFICIAL_PATCH] * 3})
    torch.manual_seed(0)
    network = HalfResolutionUNet(8, 2, _THIN_FEATURES)
    nn.init.normal_(network.head.weight, std=0.01)
    assert network.head.bias is not None
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([_LEANING, 0.0]).repeat_interleave(8))
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "network_weights": network.state_dict()}, checkpoint)


def _change_plans(folder: Path, arguments: dict[str, object], settings: dict[str, object]) -> None:
    plans = json.loads((folder / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    architecture = configuration["architecture"]
    architecture["network_class_name"] = "nninteractive_ws.engine.bench_models.TimedNetwork"
    architecture["arch_kwargs"].update(arguments)
    configuration.update(settings)
    (folder / "plans.json").write_text(json.dumps(plans, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_embedded(folder / "embedded", folder / "passes")
    write_official_geometry(folder / "official", folder / "passes")
    print(pick_device("auto"))


if __name__ == "__main__":
    main()
