"""Model folders to measure with, which note every pass of the network, in whichever server it is made.

``python -m nninteractive_ws.engine.bench_models FOLDER`` makes FOLDER/embedded, FOLDER/official, FOLDER/local and,
where there is a GPU, FOLDER/large, and prints the device there is.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import json
from pathlib import Path
import shutil
import time
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool3d, interpolate, max_pool3d

from nninteractive_ws.engine.catalogue import MODEL_FOLDER
from nninteractive_ws.engine.demo_network import HalfResolutionUNet, residual_encoder
from nninteractive_ws.engine.models import pick_device

_OFFICIAL_PATCH = 192
# The thin network: the edge of the cubes that it sees as one, and by how much it leans to "not the object".
_CUBE, _LEANING = 4, 3.0
# The local network: its patch, and the distance from the newest prompt within which it changes the mask, in cubes. It
# stays off the patch's border, where a change makes nnInteractive zoom out.
_LOCAL_PATCH, _REACH = 72, 6


class _Notebook:
    """A file that gets a line for every pass: when it began (time.monotonic()), and the seconds it took."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def note(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        started = time.monotonic()
        logits = run(x)
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        with self._file.open("a") as file:
            file.write(f"{started} {time.monotonic() - started}\n")
        return logits


class TimedNetwork(HalfResolutionUNet):
    """The embedded model's network; it notes its passes in ``passes_file``."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features: list[int],
        passes_file: str,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(input_channels, num_classes, features, deep_supervision)
        self._notebook = _Notebook(passes_file)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._notebook.note(super().forward, x)


class ThinNetwork(nn.Module):
    """So little of a network that a pass over the official patch takes on a CPU about what the official network's takes
    on a GPU. It looks at everything, and answers with what the prompts mark and what was there before.
    """

    def __init__(self, input_channels: int, num_classes: int, passes_file: str, deep_supervision: bool = False) -> None:
        super().__init__()
        self.look = nn.Conv3d(input_channels, num_classes, _CUBE, stride=_CUBE)
        self._notebook = _Notebook(passes_file)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then nnInteractive's interaction channels."""
        return self._notebook.note(self._answer, x)

    def _answer(self, x: torch.Tensor) -> torch.Tensor:
        return _as_marked(interpolate(self.look(x), x.shape[2:]), x)


class LocalNetwork(nn.Module):
    """A network without weights that answers in milliseconds: a prompt adds or removes the tissue around it that is as
    bright as the marked voxels. Masks and histories are as large and as ragged as real ones.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then nnInteractive's interaction channels."""
        image, previous = x[:, :1], x[:, 1:2]
        cubes, brightness = max_pool3d(x[:, 2:], _CUBE), avg_pool3d(image, _CUBE)
        positive, negative = (cubes[:, first::2].amax(1, keepdim=True) for first in (0, 1))
        marks = torch.maximum(positive, negative)
        newest = ((marks > 0) & (marks >= 0.95 * marks.amax())).to(x.dtype)  # older prompts have faded
        near = interpolate(max_pool3d(newest, 2 * _REACH + 1, stride=1, padding=_REACH), scale_factor=_CUBE) > 0
        marked = (brightness * newest).sum() / newest.sum().clamp_min(1)
        alike = (image - marked).abs() < 0.1
        adds = (positive * newest).amax() >= (negative * newest).amax()
        answer = torch.where(near & alike, adds.to(x.dtype), previous)
        # Channels last in memory: upstream's argmax takes several times longer across planes.
        return torch.cat((0.5 - answer, answer - 0.5), 1).contiguous(memory_format=torch.channels_last_3d)


class LargeNetwork(nn.Module):
    """The architecture of nnInteractive 1.0, a residual encoder U-Net of 102 million parameters. Its random weights
    have little to say beside what the prompts mark. It notes nothing: see bench_sessions.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        if deep_supervision:
            raise ValueError("LargeNetwork has no deep supervision: build it with deep_supervision=False")
        self.unet = residual_encoder(input_channels, [32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then nnInteractive's interaction channels."""
        return _as_marked(1e-3 * self.unet(x), x)


def _as_marked(seen: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Logits that follow the prompts' marks and the previous segmentation, and lean to "not the object"."""
    previous, positive, negative = x[:, 1], x[:, 2:8:2].amax(1), x[:, 3:8:2].amax(1)
    margin = 2 * _LEANING * (positive - negative + previous) - _LEANING
    return torch.stack((seen[:, 0], seen[:, 1] + margin), 1)


def write_embedded(folder: Path, passes_file: Path) -> None:
    """The embedded model. ``folder`` is made."""
    shutil.copytree(MODEL_FOLDER, folder)
    with _configuration(folder) as configuration:
        architecture = configuration["architecture"]
        architecture["network_class_name"] = f"{__spec__.name}.TimedNetwork"
        architecture["arch_kwargs"]["passes_file"] = str(passes_file)


def write_official_geometry(folder: Path, passes_file: Path) -> None:
    """The official patch, and a thin network of random weights, the same every time. ``folder`` is made."""
    torch.manual_seed(0)
    network = ThinNetwork(8, 2, str(passes_file))
    nn.init.normal_(network.look.weight, std=1e-3)
    _write(folder, network, {"passes_file": str(passes_file)})


def write_local(folder: Path) -> None:
    """The local network and its small patch. ``folder`` is made."""
    _write(folder, LocalNetwork(8, 2), {}, _LOCAL_PATCH)


def write_official_size(folder: Path) -> None:
    """The official patch, and a network of the official size and random weights, the same every time. ``folder`` is
    made."""
    torch.manual_seed(0)
    _write(folder, LargeNetwork(8, 2), {})


def _write(folder: Path, network: nn.Module, arguments: dict[str, str], patch: int = _OFFICIAL_PATCH) -> None:
    """A model folder. ``arguments``: of the network's class, beside those that all have."""
    shutil.copytree(MODEL_FOLDER, folder)
    with _configuration(folder) as configuration:
        configuration["patch_size"] = [patch] * 3
        architecture = configuration["architecture"]
        architecture["network_class_name"] = f"{__spec__.name}.{type(network).__name__}"
        architecture["arch_kwargs"] = arguments
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "network_weights": network.state_dict()}, checkpoint)


@contextmanager
def _configuration(folder: Path) -> Iterator[dict[str, Any]]:
    """The configuration in a model folder's plans, to be changed."""
    file = folder / "plans.json"
    plans = json.loads(file.read_text())
    yield plans["configurations"]["3d_fullres"]
    file.write_text(json.dumps(plans, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_embedded(folder / "embedded", folder / "passes")
    write_official_geometry(folder / "official", folder / "passes")
    write_local(folder / "local")
    device = pick_device("auto")
    if device.type != "cpu":
        write_official_size(folder / "large")
    print(device)


if __name__ == "__main__":
    main()
