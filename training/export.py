"""Write the trained network as a model folder: ``python -m training.export WORK [FOLDER]``.

With ``--blend FOLDER SHARE`` the weights are interpolated between those of another model folder, from which the
training started, and the trained ones. SHARE from 0 to 1 is the weight of the latter (arXiv:2109.01903).
"""

import argparse
import json
from pathlib import Path

import torch

from nninteractive_ws.engine.demo_network import HalfResolutionUNet
from nninteractive_ws.engine.model_registry import MODEL_FOLDER
from training.episodes import CHANNELS, DECAY, PATCH, POINT_RADIUS

FEATURES = [16, 32, 64, 96, 112]


def build_network() -> HalfResolutionUNet:
    return HalfResolutionUNet(8, 2, FEATURES)


LICENSE = """Apache-2.0
The weights of the embedded demonstration model of nninteractive-ws, trained only on volumes made by code.
They are licensed as the project is. Not for clinical use.
"""


def plans() -> dict[str, object]:
    """Return the part of nnU-Net's plans that inference reads. The network class can be any importable one."""
    architecture = {
        "network_class_name": "nninteractive_ws.engine.demo_network.HalfResolutionUNet",
        "arch_kwargs": {"features": FEATURES},
        "_kw_requires_import": [],
    }
    configuration = {
        "data_identifier": "nninteractive_ws_demo",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [PATCH] * 3,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
    }
    return {
        "dataset_name": "nninteractive_ws_demo",
        "plans_name": "nninteractive_ws_demo",
        "image_reader_writer": "SimpleITKIO",
        "configurations": {"3d_fullres": configuration},
    }


def capability() -> dict[str, object]:
    return {
        "inference_class": "nnInteractiveInferenceSession",
        "inference_class_min_version": "2.6.0",
        "point_radius": POINT_RADIUS,
        "preferred_scribble_thickness": [2, 2, 2],
        "interaction_decay": DECAY,
        "pad_mode_image": "constant",
        "supported_interactions": {"points": True, "scribble": True, "lasso": True, "bbox2d": True, "bbox3d": False},
        "interaction_channels": 6,
        "channel_mapping": {
            "prev_seg": 0,
            "bbox2d": CHANNELS["bbox"],
            "bbox3d": CHANNELS["bbox"],
            "lasso": CHANNELS["lasso"],
            "points": CHANNELS["point"],
            "scribble": CHANNELS["scribble"],
        },
    }


def export(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the folder, with weights in half precision, which the network converts to float32 on loading."""
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    dataset = {"channel_names": {"0": "any"}, "labels": {"background": 0, "object": 1}, "file_ending": ".nii.gz"}
    for name, content in (("plans", plans()), ("dataset", dataset), ("inference_info", capability())):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "LICENSE").write_text(LICENSE)
    checkpoint = {
        "trainer_name": "nnInteractiveTrainer_stub",
        "init_args": {"configuration": "3d_fullres"},
        "network_weights": _halved(state),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Load the weights written by :func:`export`, in half precision."""
    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    weights: dict[str, torch.Tensor] = checkpoint["network_weights"]
    return weights


def _halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert to half precision on the CPU. A weight with several names in the network stays shared."""
    once = {tensor.data_ptr(): tensor.half().cpu() for tensor in state.values()}
    return {key: once[tensor.data_ptr()] for key, tensor in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder written by training.train")
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_FOLDER, help="model folder to write")
    parser.add_argument("--blend", nargs=2, metavar=("FOLDER", "SHARE"), help="weight average with another model")
    args = parser.parse_args()
    network = build_network()
    network.load_state_dict(torch.load(args.work / "state.pth", weights_only=True)["average"])
    if args.blend:
        start = build_network()
        start.load_state_dict(weights_of(Path(args.blend[0])))
        with torch.no_grad():
            for new, old in zip(network.parameters(), start.parameters(), strict=True):
                new.lerp_(old, 1 - float(args.blend[1]))
    export(network.state_dict(), args.folder)


if __name__ == "__main__":
    main()
