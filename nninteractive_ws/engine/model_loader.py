"""Loading of a model folder in nnInteractive's format, and selection of the device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nninteractive_ws.engine.inference_session import nnInteractiveInferenceSession
from nninteractive_ws.host_resources import processor_count
from nninteractive_ws.messages import Model


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. ``artifacts``: objects that upstream's sessions share, including the network.

    ``capabilities``: the description of the model in nnInteractive's HTTP API.
    """

    description: Model
    capabilities: dict[str, Any]
    device: torch.device
    threads: int
    artifacts: dict[str, Any]


def pick_device(name: str) -> torch.device:
    """Return the device of a name in torch's format. ``auto`` is CUDA if there is a GPU, else the CPU.

    Raises ValueError if the name is invalid, or if torch finds no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ValueError(f'"{name}" is not a device. Use auto, cpu, cuda or cuda:1, for instance.') from e
    if (count := _count(device.type)) <= (device.index or 0):
        raise ValueError(
            f"There is no device {name}, since torch {torch.__version__} finds {count} devices of the type "
            f"{device.type} on this machine. Use auto or cpu, or install a driver and a build of torch for your GPU."
        )
    return device


def _count(kind: str) -> int:
    """Return the number of devices of a type that torch can use."""
    if kind == "cuda":
        return torch.cuda.device_count()
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    if kind == "xpu":
        return torch.xpu.device_count()
    return int(kind == "cpu")


def load_model(name: str, folder: Path, device: torch.device, compiled: bool = False) -> LoadedModel:
    """Load the network of a model folder, and warm it up on the calling thread.

    ``compiled``: use torch.compile if nnInteractive does, which is on a GPU and not on Windows.

    Raises FileNotFoundError, RuntimeError or ValueError if the folder is not such a model.
    """
    threads = processor_count()
    session = nnInteractiveInferenceSession(
        device=device, use_torch_compile=compiled, torch_n_threads=threads, enable_undo=False
    )
    artifacts = session._load_model_artifacts_from_disk(str(folder))
    artifacts["network"].eval()
    session.initialize_from_loaded_artifacts(artifacts)
    session.warmup()
    artifacts["network"] = session.network
    return LoadedModel(_describe(name, session), _capabilities(session), device, threads, artifacts)


def _describe(name: str, session: nnInteractiveInferenceSession) -> Model:
    names = {"points": "point", "scribble": "scribble", "lasso": "lasso", "bbox2d": "bbox2d", "bbox3d": "bbox3d"}
    prompts = [kind for key, kind in names.items() if session.supported_interactions.get(key)]
    if session.supports_initial_label:
        prompts.append("mask")
    i, j, k = session.configuration_manager.patch_size
    a, b, c = session.preferred_scribble_thickness
    return Model(
        name=name,
        license=str(session.license),
        patch_size=(int(i), int(j), int(k)),
        prompts=prompts,
        scribble_thickness=(float(a), float(b), float(c)),
    )


def _capabilities(session: nnInteractiveInferenceSession) -> dict[str, Any]:
    """Return what ``/capabilities`` of nnInteractive's server answers (2.6, ``inference/server/app.py``)."""
    return {
        "supported_interactions": session.supported_interactions,
        "channel_mapping": session.channel_mapping,
        "num_interaction_channels": session.num_interaction_channels,
        "supports_initial_label": session.supports_initial_label,
        "supports_zero_shot_label_refinement": session.supports_zero_shot_label_refinement,
        "preferred_scribble_thickness": session.preferred_scribble_thickness,
        "interaction_decay": session.interaction_decay,
        "patch_size": list(session.configuration_manager.patch_size),
        "do_autozoom": session.do_autozoom,
        "inference_session_version": session.INFERENCE_SESSION_VERSION,
        "license": session.license,
        # Of this project's server, which records undo itself.
        "supports_undo": True,
    }
