"""Choice of the model: the embedded one, a folder, or an official one by name."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from nninteractive_ws.engine.model_registry import (
    DEMO,
    MODEL_FOLDER,
    ModelNotFound,
    find_model,
    list_models,
    read_license,
)

FILES = ("plans.json", "dataset.json", "inference_info.json", "fold_0/checkpoint_final.pth")
MANIFEST = {
    "schema_version": 1,
    "models": [
        {"id": "nnInteractive_v1.0", "display_name": "Version 1", "path": "nnInteractive_v1.0", "license": "CC BY"},
        {"id": "nnInteractive_v2.0", "display_name": "Version 2", "path": "nnInteractive_v2.0", "default": True},
    ],
}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """nnInteractive's model folder, empty and without a network for downloads."""
    folder = tmp_path / "nninteractive"
    monkeypatch.setenv("NNINTERACTIVE_MODEL_DIR", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def manifest(root) -> None:
    """The cached list of official models."""
    (root / "models.json").write_text(json.dumps(MANIFEST))


def make_model(folder: Path, leave_out: str = "", license: str = "") -> Path:
    for name in FILES:
        if name != leave_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
    if license:
        (folder / "LICENSE").write_text(license)
    return folder


def downloaded(root: Path, name: str, leave_out: str = "", license: str = "") -> Path:
    return make_model(root / "models" / name, leave_out, license)


# ---- finding ----------------------------------------------------------------------------------------------------


def test_the_embedded_model_has_a_name_and_is_the_default():
    assert find_model(DEMO) == find_model(None) == (DEMO, MODEL_FOLDER)


def test_a_folder_does_not_hide_the_embedded_model(tmp_path):
    make_model(tmp_path / DEMO)
    assert find_model(DEMO) == (DEMO, MODEL_FOLDER)


def test_a_folder_is_named_after_itself(tmp_path):
    folder = make_model(tmp_path / "my model")
    assert find_model(str(folder)) == ("my model", folder)
    assert find_model("my model/") == ("my model", folder)
    assert find_model(f"my model/../{folder.name}") == ("my model", folder)


def test_a_folder_of_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_model(tmp_path / "mine")
    assert find_model("~/mine") == ("mine", folder)


@pytest.mark.parametrize("missing", FILES)
def test_the_error_for_an_incomplete_folder_names_the_missing_file(tmp_path, missing):
    folder = make_model(tmp_path / "almost", leave_out=missing)
    with pytest.raises(ModelNotFound, match=missing.replace("fold_0", r"fold_\*")):
        find_model(str(folder))


def test_a_folder_of_an_older_release(tmp_path):
    folder = make_model(tmp_path / "old", leave_out="inference_info.json")
    (folder / "inference_session_class.json").write_text('"nnInteractiveInferenceSession"')
    assert find_model("old") == ("old", folder)


@pytest.mark.parametrize("name", ["liver", "/no/such/folder", "nnunet_v1.0"])
def test_the_error_for_an_invalid_name_shows_the_format(name):
    with pytest.raises(ModelNotFound, match="nnInteractive_"):
        find_model(name)


@pytest.mark.usefixtures("manifest")
def test_a_downloaded_model_needs_no_network(root):
    folder = downloaded(root, "nnInteractive_v1.0")
    assert find_model("nnInteractive_v1.0") == ("nnInteractive_v1.0", folder)
    assert find_model(None) == (DEMO, MODEL_FOLDER), "the default is another one"


@pytest.mark.usefixtures("manifest")
def test_the_official_default_is_used_once_downloaded(root):
    folder = downloaded(root, "nnInteractive_v2.0")
    assert find_model(None) == ("nnInteractive_v2.0", folder)
    assert find_model(DEMO) == (DEMO, MODEL_FOLDER)


def test_an_official_model_without_network_and_list():
    with pytest.raises(ModelNotFound, match="internet"):
        find_model("nnInteractive_v1.0")


@pytest.mark.usefixtures("manifest")
def test_an_official_model_without_network():
    with pytest.raises(ModelNotFound, match=r"nnInteractive_v1\.0"):
        find_model("nnInteractive_v1.0")


@pytest.mark.usefixtures("manifest")
def test_an_official_name_missing_from_the_list():
    with pytest.raises(ModelNotFound, match=r"nnInteractive_v2\.0"):
        find_model("nnInteractive_v9.9")


@pytest.mark.usefixtures("manifest")
def test_an_interrupted_download_is_not_a_model(root):
    folder = downloaded(root, "nnInteractive_v2.0", leave_out="fold_0/checkpoint_final.pth")
    assert find_model(None) == (DEMO, MODEL_FOLDER)
    with pytest.raises(ModelNotFound, match="Delete that folder") as error:
        find_model("nnInteractive_v2.0")
    assert str(folder) in str(error.value)


def test_a_file_is_not_a_model_folder(tmp_path):
    (tmp_path / "plans.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"is a file\. Expected the folder of a model"):
        find_model(str(tmp_path / "plans.json"))


@pytest.mark.parametrize("name", ["x" * 300, "nnInteractive_" + "x" * 300])
def test_a_path_that_the_system_refuses(name):
    with pytest.raises(ModelNotFound, match=r"cannot be read or written: .*Check the path"):
        find_model(name)


@pytest.mark.usefixtures("manifest")
def test_an_unusable_download_folder_is_reported(root):
    (root / "models").write_text("")
    with pytest.raises(ModelNotFound, match="nnInteractive_v1"):
        find_model("nnInteractive_v1.0")


# ---- listing ----------------------------------------------------------------------------------------------------


def test_only_the_embedded_model_is_available_without_a_list():
    (entry,) = list_models()
    assert (entry.name, entry.folder, entry.default) == (DEMO, MODEL_FOLDER, True)
    assert entry.license == read_license(MODEL_FOLDER) != "unknown"


@pytest.mark.usefixtures("manifest")
def test_official_models_are_listed_with_their_details(root):
    folder = downloaded(root, "nnInteractive_v1.0", license="\n  CC BY-NC-SA 4.0  \nhttps://example.org\n")
    demo, first, second = list_models()
    assert (demo.name, demo.default) == (DEMO, True)
    assert (first.title, first.license, first.folder, first.default) == ("Version 1", "CC BY-NC-SA 4.0", folder, False)
    assert (second.title, second.folder, second.default) == ("Version 2", None, False)
    assert "page" in second.license


@pytest.mark.usefixtures("manifest")
def test_one_model_is_the_default(root):
    assert [e.name for e in list_models() if e.default] == [DEMO]
    downloaded(root, "nnInteractive_v2.0")
    assert [e.name for e in list_models() if e.default] == ["nnInteractive_v2.0"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1, "models": []}', "no json"])
def test_an_invalid_list_is_ignored(root, content):
    (root / "models.json").write_text(content)
    assert [e.name for e in list_models()] == [DEMO]


def test_asking_for_the_list_without_a_network():
    with pytest.raises(ModelNotFound, match="internet"):
        list_models(refresh=True)


@pytest.mark.usefixtures("manifest")
def test_the_cached_list_is_used_without_a_network():
    assert [e.name for e in list_models(refresh=True)] == [DEMO, "nnInteractive_v1.0", "nnInteractive_v2.0"]


def test_a_license_is_the_first_nonempty_line(tmp_path):
    (tmp_path / "LICENSE").write_text("\n\n  MIT\nmore\n")
    assert read_license(tmp_path) == "MIT"
    (tmp_path / "LICENSE").write_text("\n")
    assert read_license(tmp_path) == "unknown"
    assert read_license(tmp_path / "nowhere") == "unknown"


def test_listing_does_not_import_torch():
    code = "import sys, nninteractive_ws.engine.model_registry as c; c.list_models(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
