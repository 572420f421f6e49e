"""Which models there are: the embedded one, official ones by name, any folder in nnInteractive's format.

Does not import torch, so that listing models is quick.
"""

from dataclasses import dataclass
from pathlib import Path

from nnInteractive import model_management

#: The name of the embedded model, and where it is.
DEMO = "demo"
MODEL_FOLDER = Path(__file__).parents[1] / "demo" / "model"


class ModelNotFound(Exception):
    """No such model here, and it could not be downloaded. ``str()`` says what to do."""


@dataclass(frozen=True)
class Entry:
    """A model that may be served. ``folder``: None where it is not downloaded."""

    name: str
    title: str
    license: str
    folder: Path | None
    default: bool


def find_model(name: str | None) -> tuple[str, Path]:
    """Name and folder of the model to serve; an official one is downloaded on first use.

    Without a name: nnInteractive's default model where it has been downloaded, else the embedded one.
    Raises ModelNotFound.
    """
    if name is None:
        name = next((e.name for e in list_models() if e.default), DEMO)
    if name == DEMO:
        return DEMO, MODEL_FOLDER
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve().name, _checked(folder.resolve())
    if not name.startswith(model_management.MODEL_PREFIX):
        raise ModelNotFound(
            f'"{name}" is neither a folder nor the name of a model. '
            f"Names begin with {model_management.MODEL_PREFIX}; `nninteractive-ws models` lists them, "
            f'and "{DEMO}" is the small embedded one.'
        )
    try:
        folder = Path(model_management.ensure_model_available(name))
    except (RuntimeError, ValueError) as e:
        raise ModelNotFound(str(e)) from e
    if missing := _missing(folder):
        raise ModelNotFound(
            f"The model in {folder} is not complete, {', '.join(missing)} is missing: its download was "
            "interrupted. Delete that folder and try again."
        )
    return name, folder


def _checked(folder: Path) -> Path:
    if missing := _missing(folder):
        raise ModelNotFound(f"{folder} is not an nnInteractive model folder: {', '.join(missing)} is missing.")
    return folder


def _missing(folder: Path) -> list[str]:
    """What a model folder needs and this one has not."""
    missing = [f for f in ("plans.json", "dataset.json") if not (folder / f).is_file()]
    # The latter was its name before version 2 of nnInteractive.
    if not any((folder / f).is_file() for f in ("inference_info.json", "inference_session_class.json")):
        missing.append("inference_info.json")
    if not list(folder.glob("fold_*/checkpoint_final.pth")):
        missing.append("fold_*/checkpoint_final.pth")
    return missing


def list_models(refresh: bool = False) -> list[Entry]:
    """The embedded model and the official ones known here; ``refresh`` asks Hugging Face for the list.

    Without a network, or without ``refresh``, the official ones are those of the list kept from last time.
    Raises ModelNotFound where ``refresh`` was asked for and no list could be had.
    """
    official = [_official_entry(m) for m in _manifest(refresh)]
    default_is_here = any(e.default and e.folder for e in official)
    official = [e if e.folder else Entry(e.name, e.title, e.license, None, False) for e in official]
    demo = Entry(
        DEMO, "Embedded demonstration model (small, CPU)", read_license(MODEL_FOLDER), MODEL_FOLDER, not default_is_here
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
    except (RuntimeError, ValueError) as e:
        if refresh:
            raise ModelNotFound(str(e)) from e
        return []


def _official_entry(entry: dict[str, object]) -> Entry:
    name = str(entry["id"])
    local = Path(model_management.get_local_model_dir(name))
    folder = None if _missing(local) else local
    licence = read_license(folder) if folder else str(entry.get("license", "see the model's page"))
    return Entry(name, str(entry["display_name"]), licence, folder, bool(entry["default"]))


def read_license(folder: Path) -> str:
    """The first line of the folder's LICENSE, as nnInteractive shows it."""
    try:
        lines = (folder / "LICENSE").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return "unknown"
    return next((line.strip() for line in lines if line.strip()), "unknown")
