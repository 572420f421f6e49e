"""Model folders for the benchmark, whose networks log each pass in either server.

``python -m nninteractive_ws.benchmark.models FOLDER`` creates FOLDER/embedded, FOLDER/official, FOLDER/local and, if
there is a GPU, FOLDER/large, and prints the device.
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

from nninteractive_ws.engine.demo_network import HalfResolutionUNet, residual_encoder
from nninteractive_ws.engine.model_loader import pick_device
from nninteractive_ws.engine.model_registry import MODEL_FOLDER

_OFFICIAL_PATCH_SIZE = 192
# The thin network: edge of the cubes it pools over, and its bias to "not the object".
_CUBE, _BIAS = 4, 3.0
# The local network: its patch, and the distance from the newest prompt within which it changes the mask, in cubes. It
# leaves the border of the patch unchanged, because a change there makes nnInteractive zoom out.
_LOCAL_PATCH_SIZE, _REACH = 72, 6


class _PassLog:
    """A file with one line per pass: its start (time.monotonic()), and its duration in seconds."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def timed(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        started = time.monotonic()
        logits = run(x)
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        with self._file.open("a") as file:
            file.write(f"{started} {time.monotonic() - started}\n")
        return logits


class TimedNetwork(HalfResolutionUNet):
    """The network of the embedded model, which logs its passes in ``passes_file``."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features: list[int],
        passes_file: str,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(input_channels, num_classes, features, deep_supervision)
        self._pass_log = _PassLog(passes_file)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._pass_log.timed(super().forward, x)


class ThinNetwork(nn.Module):
    """A minimal network. A pass over the official patch on a CPU takes about as long as one of the official network on
    a GPU. It reads the entire input, and predicts the prompts' marks and the previous mask.
    """

    def __init__(self, input_channels: int, num_classes: int, passes_file: str, deep_supervision: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv3d(input_channels, num_classes, _CUBE, stride=_CUBE)
        self._pass_log = _PassLog(passes_file)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then nnInteractive's interaction channels."""
        return self._pass_log.timed(self._logits, x)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return _add_prompt_margin(interpolate(self.conv(x), x.shape[2:]), x)


class LocalNetwork(nn.Module):
    """A network without weights that takes milliseconds. A prompt adds or removes surrounding tissue of the same
    brightness as the marked voxels. Masks and histories are as large and as ragged as real ones.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then nnInteractive's interaction channels."""
        image, previous = x[:, :1], x[:, 1:2]
        cubes, brightness = max_pool3d(x[:, 2:], _CUBE), avg_pool3d(image, _CUBE)
        positive, negative = (cubes[:, first::2].amax(1, keepdim=True) for first in (0, 1))
        marks = torch.maximum(positive, negative)
        newest = ((marks > 0) & (marks >= 0.95 * marks.amax())).to(x.dtype)  # older prompts have decayed
        near = interpolate(max_pool3d(newest, 2 * _REACH + 1, stride=1, padding=_REACH), scale_factor=_CUBE) > 0
        marked = (brightness * newest).sum() / newest.sum().clamp_min(1)
        alike = (image - marked).abs() < 0.1
        adds = (positive * newest).amax() >= (negative * newest).amax()
        answer = torch.where(near & alike, adds.to(x.dtype), previous)
        # Channels last in memory: upstream's argmax takes several times longer across planes.
        return torch.cat((0.5 - answer, answer - 0.5), 1).contiguous(memory_format=torch.channels_last_3d)


class LargeNetwork(nn.Module):
    """The architecture of nnInteractive 1.0, a residual encoder U-Net of 102 million parameters. Its random weights
    have little influence compared with the prompts' marks. It logs no passes; benchmark.sessions measures them.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        if deep_supervision:
            raise ValueError("LargeNetwork has no deep supervision. Build it with deep_supervision=False.")
        self.unet = residual_encoder(input_channels, [32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then nnInteractive's interaction channels."""
        return _add_prompt_margin(1e-3 * self.unet(x), x)


def _add_prompt_margin(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Add a margin to logits, so that they follow the prompts' marks and the previous mask, and else the background."""
    previous, positive, negative = x[:, 1], x[:, 2:8:2].amax(1), x[:, 3:8:2].amax(1)
    margin = 2 * _BIAS * (positive - negative + previous) - _BIAS
    return torch.stack((logits[:, 0], logits[:, 1] + margin), 1)


def write_embedded(folder: Path, passes_file: Path) -> None:
    """Create a folder with the embedded model, which logs its passes."""
    shutil.copytree(MODEL_FOLDER, folder)
    with _configuration(folder) as configuration:
        architecture = configuration["architecture"]
        architecture["network_class_name"] = f"{__spec__.name}.TimedNetwork"
        architecture["arch_kwargs"]["passes_file"] = str(passes_file)


def write_thin(folder: Path, passes_file: Path, patch: int = _OFFICIAL_PATCH_SIZE) -> None:
    """Create a folder with the thin network, by default with the official patch. Its random weights are reproducible.

    ``patch``: edge of the patch in voxels, a multiple of 4.
    """
    torch.manual_seed(0)
    network = ThinNetwork(8, 2, str(passes_file))
    nn.init.normal_(network.conv.weight, std=1e-3)
    _write(folder, network, {"passes_file": str(passes_file)}, patch)


def write_local(folder: Path) -> None:
    """Create a folder with the local network and its small patch."""
    _write(folder, LocalNetwork(8, 2), {}, _LOCAL_PATCH_SIZE)


def write_official_size(folder: Path) -> None:
    """Create a folder with a network of the official size and patch. Its random weights are reproducible."""
    torch.manual_seed(0)
    _write(folder, LargeNetwork(8, 2), {})


def _write(folder: Path, network: nn.Module, arguments: dict[str, str], patch: int = _OFFICIAL_PATCH_SIZE) -> None:
    """Create a model folder. ``arguments``: constructor arguments of the network beyond the common ones."""
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
    """Yield the configuration in the plans of a model folder, and write its changes back."""
    file = folder / "plans.json"
    plans = json.loads(file.read_text())
    yield plans["configurations"]["3d_fullres"]
    file.write_text(json.dumps(plans, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_embedded(folder / "embedded", folder / "passes")
    write_thin(folder / "official", folder / "passes")
    write_local(folder / "local")
    device = pick_device("auto")
    if device.type != "cpu":
        write_official_size(folder / "large")
    print(device)


if __name__ == "__main__":
    main()
