"""Lookup of models: the embedded one, official ones by name, any folder in nnInteractive's format.

This module does not import torch, so that listing models is fast.
"""

from dataclasses import dataclass
from pathlib import Path

from nnInteractive import model_management

#: Name and folder of the embedded model.
DEMO = "demo"
MODEL_FOLDER = Path(__file__).parents[1] / "demo" / "model"


class ModelNotFound(Exception):
    """There is no such model here, and it could not be downloaded. ``str(error)`` is a sentence for the user."""


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be served. ``folder``: None if it is not downloaded."""

    name: str
    title: str
    license: str
    folder: Path | None
    default: bool


def find_model(name: str | None) -> tuple[str, Path]:
    """Return name and folder of a model. An official one is downloaded on first use.

    Without a name, it is nnInteractive's default model if that has been downloaded, else the embedded one.
    Raises ModelNotFound.
    """
    try:
        return _find_model(name)
    except OSError as e:
        raise ModelNotFound(
            f"The files of the model {name or ''} cannot be read or written: {e}. Check the path, the permissions and "
            f"the free disk space. Official models are in {model_management.get_model_root_dir()}."
        ) from e


def _find_model(name: str | None) -> tuple[str, Path]:
    if name is None:
        name = next((model.name for model in list_models() if model.default), DEMO)
    if name == DEMO:
        return DEMO, MODEL_FOLDER
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve().name, _checked(folder.resolve())
    if folder.exists():
        raise ModelNotFound(
            f"{folder} is a file. Expected the folder of a model, which has {', '.join(_missing(folder))}."
        )
    if not name.startswith(model_management.MODEL_PREFIX):
        raise ModelNotFound(
            f'"{name}" is neither a folder nor the name of a model. Names begin with {model_management.MODEL_PREFIX}. '
            f'List them with `nninteractive-ws models`, or use "{DEMO}", the small embedded model.'
        )
    try:
        folder = Path(model_management.ensure_model_available(name))
    except (RuntimeError, ValueError) as e:
        raise ModelNotFound(str(e)) from e
    if missing := _missing(folder):
        raise ModelNotFound(
            f"The download of the model in {folder} was interrupted, and {', '.join(missing)} is missing. "
            "Delete that folder and try again."
        )
    return name, folder


def _checked(folder: Path) -> Path:
    if missing := _missing(folder):
        raise ModelNotFound(
            f"{folder} is not an nnInteractive model folder, since {', '.join(missing)} is missing. Use a folder that "
            "has all files of a model."
        )
    return folder


def _missing(folder: Path) -> list[str]:
    """Return the files of a model that are missing in a folder."""
    missing = [f for f in ("plans.json", "dataset.json") if not (folder / f).is_file()]
    # The second name was used before version 2 of nnInteractive.
    if not any((folder / f).is_file() for f in ("inference_info.json", "inference_session_class.json")):
        missing.append("inference_info.json")
    if not list(folder.glob("fold_*/checkpoint_final.pth")):
        missing.append("fold_*/checkpoint_final.pth")
    return missing


def list_models(refresh: bool = False) -> list[ModelInfo]:
    """Return the embedded model and the official ones. ``refresh``: download the list from Hugging Face.

    Without ``refresh``, the official ones are those of the cached list, or none. Without a network, ``refresh`` uses
    the cached list, too. Raises ModelNotFound if there is no list with ``refresh``.
    """
    official = [_official_model(entry) for entry in _manifest(refresh)]
    has_default = any(model.default and model.folder for model in official)
    official = [m if m.folder else ModelInfo(m.name, m.title, m.license, None, False) for m in official]
    demo = ModelInfo(
        DEMO, "Embedded demonstration model (small, CPU)", read_license(MODEL_FOLDER), MODEL_FOLDER, not has_default
    )
    return [demo, *official]


def _manifest(refresh: bool) -> list[dict[str, object]]:
    root = model_management.get_model_root_dir()
    try:
        if refresh:
            return list(model_management.load_model_manifest(root)["models"])
        cached = model_management._load_cached_manifest(root)
        return list(model_management._validate_and_normalize_manifest(cached)["models"])
    except FileNotFoundError:
        return []
    except (OSError, RuntimeError, ValueError) as e:
        if refresh:
            raise ModelNotFound(str(e)) from e
        return []


def _official_model(entry: dict[str, object]) -> ModelInfo:
    name = str(entry["id"])
    local = Path(model_management.get_local_model_dir(name))
    folder = None if _missing(local) else local
    license_name = read_license(folder) if folder else str(entry.get("license", "see the model's page"))
    return ModelInfo(name, str(entry["display_name"]), license_name, folder, bool(entry["default"]))


def read_license(folder: Path) -> str:
    """Return the first line of a folder's LICENSE that is not blank, as nnInteractive does."""
    try:
        lines = (folder / "LICENSE").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    return next((line.strip() for line in lines if line.strip()), "unknown")
