"""The commands as a user runs them: as processes, on files."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import socket
import subprocess
import sys

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

from nninteractive_ws.demo.phantom import make_phantom

SHARED_CT = Path(__file__).parents[2] / "shared" / "data" / "ct_abdomen.nii.gz"


def run(*words: object, cwd: Path | None = None, timeout: float = 100, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nninteractive_ws", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "200", **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=environment)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom as a file, tilted and shifted in space as a patient may be."""
    phantom = make_phantom(3, (70, 60, 50), (5.0, 5.0, 6.0))
    volume = sitk.GetImageFromArray(phantom.image.transpose())
    volume.SetSpacing(phantom.spacing)
    volume.SetOrigin((-31.5, 12.25, 800.0))
    turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    volume.SetDirection(turn.ravel().tolist())
    path = tmp_path_factory.mktemp("images") / "phantom.nii.gz"
    sitk.WriteImage(volume, str(path))
    return path


def same_place(a: sitk.Image, b: sitk.Image) -> bool:
    pairs = ((a.GetOrigin(), b.GetOrigin()), (a.GetSpacing(), b.GetSpacing()), (a.GetDirection(), b.GetDirection()))
    return a.GetSize() == b.GetSize() and all(np.allclose(x, y, atol=1e-4) for x, y in pairs)


def segmented(server: str, image: Path, output: Path, options: Sequence[object]) -> sitk.Image:
    done = run("segment", image, "-o", output, "--server", server, *options)
    assert done.returncode == 0, done.stderr
    return sitk.ReadImage(str(output))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_segment_keeps_the_geometry(server: str, image: Path, tmp_path: Path, ending: str) -> None:
    found = segmented(server, image, tmp_path / f"out{ending}", ["--point", "22,28,27"])
    assert same_place(found, sitk.ReadImage(str(image)))
    assert set(np.unique(sitk.GetArrayFromImage(found))) <= {0, 1}


def test_a_seg_nrrd_has_names_and_the_same_voxels_as_a_label_map(server: str, image: Path, tmp_path: Path) -> None:
    label_map = segmented(server, image, tmp_path / "out.nii.gz", ["--point", "22,28,27"])
    segmented(server, image, tmp_path / "out.seg.nrrd", ["--point", "22,28,27", "--name", "Leber"])
    segmentation = slicerio.read_segmentation(str(tmp_path / "out.seg.nrrd"))
    assert slicerio.segment_names(segmentation) == ["Leber"]
    voxels, header = nrrd.read(str(tmp_path / "out.seg.nrrd"))
    assert header["space"] == "left-posterior-superior"
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(label_map).transpose())
    np.testing.assert_allclose(header["space origin"], label_map.GetOrigin(), atol=1e-4)


def test_millimetres_name_the_same_voxel_as_indices(server: str, image: Path, tmp_path: Path) -> None:
    volume = sitk.ReadImage(str(image))
    x, y, z = volume.TransformIndexToPhysicalPoint((22, 28, 27))
    u, v, w = volume.TransformIndexToPhysicalPoint((50, 20, 27))
    by_index = segmented(
        server,
        image,
        tmp_path / "a.nrrd",
        ["--bbox", "10:35,15:45,27:28", "--point", "22,28,27", "--negative-point", "50,20,27"],
    )
    by_place = segmented(
        server,
        image,
        tmp_path / "b.nrrd",
        ["--bbox", "10:35,15:45,27:28", f"--lps={x},{y},{z}", f"--negative-lps={u},{v},{w}"],
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_index), sitk.GetArrayFromImage(by_place))


def test_segment_starts_a_server_of_its_own(image: Path, tmp_path: Path) -> None:
    done = run("segment", image, "--point", "22,28,27", "-o", tmp_path / "out.nrrd", "--model", "demo")
    assert done.returncode == 0, done.stderr
    assert "model demo (Apache-2.0)" in done.stderr
    assert (tmp_path / "out.nrrd").exists()
    assert list(tmp_path.glob(".partial*")) == []


@pytest.mark.skipif(not SHARED_CT.exists(), reason="the real CT lies beside the repository, not in it")
def test_segment_on_a_real_ct(server: str, tmp_path: Path) -> None:
    found = segmented(server, SHARED_CT, tmp_path / "out.nii.gz", ["--point", "40,50,15"])
    assert same_place(found, sitk.ReadImage(str(SHARED_CT)))
    assert sitk.GetArrayFromImage(found).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--point", "1,2"], "three numbers"),
        (["--point", "a,b,c"], "three numbers"),
        (["--bbox", "1:2,3:4"], "not a box"),
        (["--bbox", "5:2,3:4,1:2"], "not a box"),
        ([], "nothing says where the object is"),
        (["--negative-point", "1,2,3"], "nothing says where the object is"),
        (["--point", "700,1,1"], "outside the volume"),
    ],
)
def test_segment_says_what_is_wrong(server: str, image: Path, tmp_path: Path, options: list[str], words: str) -> None:
    done = run("segment", image, "-o", tmp_path / "out.nrrd", "--server", server, *options)
    assert done.returncode in (1, 2)
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.nrrd").exists()


def test_segment_refuses_what_is_no_volume(server: str, tmp_path: Path) -> None:
    colour = sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3)
    flat = sitk.Image([8, 8], sitk.sitkInt16)
    for n, (volume, words) in enumerate(((colour, "3 values in every voxel"), (flat, "2 dimensions"))):
        path = tmp_path / f"{n}.nrrd"
        sitk.WriteImage(volume, str(path))
        done = run("segment", path, "--point", "1,1,1", "-o", tmp_path / "out.nrrd", "--server", server)
        assert done.returncode == 1
        assert words in done.stderr
    (tmp_path / "text.nii.gz").write_text("not an image")
    done = run("segment", tmp_path / "text.nii.gz", "--point", "1,1,1", "-o", tmp_path / "o.nrrd", "--server", server)
    assert done.returncode == 1
    assert "could not be read as an image" in done.stderr
    done = run("segment", path, "--point", "1,1,1", "-o", tmp_path / "out.png", "--server", server)
    assert done.returncode == 1
    assert "must end with" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models"], "models needs the package nnInteractive: pip install 'nninteractive-ws[server]'"),
        (["segment", "IMAGE", "--point", "1,1,1", "-o", "x.nrrd"], "or give the address of one that runs elsewhere"),
    ],
)
def test_without_the_server_s_packages_that_is_said(image: Path, tmp_path: Path, words: list[str], said: str) -> None:
    code = "import sys; sys.modules['nnInteractive'] = None; from nninteractive_ws.__main__ import main; main()"
    command = [sys.executable, "-c", code, *(str(image) if word == "IMAGE" else word for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_models_lists_the_embedded_one(tmp_path: Path) -> None:
    done = run("models", "--offline", "--json", NNINTERACTIVE_MODEL_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (demo,) = json.loads(done.stdout)
    assert (demo["name"], demo["license"], demo["default"]) == ("demo", "Apache-2.0", True)
    assert Path(demo["folder"], "plans.json").exists()


def test_doctor_finds_a_server_well(server: str) -> None:
    done = run("doctor", server)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("accepts connections", "WebSocket", "model demo (licence Apache-2.0) on cpu"):
        assert words in done.stdout


def test_doctor_says_what_is_wrong() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    done = run("doctor", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"Nothing listens at 127.0.0.1:{port}" in done.stdout


def test_serve_says_what_is_wrong(server: str, tmp_path: Path) -> None:
    taken = server.rsplit(":", 1)[1]
    done = run("serve", "--model", "demo", "--port", taken)
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1:{taken}" in done.stderr
    done = run("serve", "--model", tmp_path, "--port", "0")
    assert done.returncode == 1
    assert "is not an nnInteractive model folder" in done.stderr
    (tmp_path / "fold_0").mkdir()
    for name in ("plans.json", "dataset.json", "inference_info.json", "fold_0/checkpoint_final.pth"):
        (tmp_path / name).write_text("{}")
    done = run("serve", "--model", tmp_path, "--port", "0")
    assert done.returncode == 1
    assert "could not be loaded" in done.stderr


@pytest.mark.timeout(200)
def test_the_demo_ends_with_a_table_and_a_picture(tmp_path: Path) -> None:
    done = run("demo", cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    for organ in ("liver", "right kidney", "left kidney", "spleen", "stomach", "aorta", "right lung", "spine"):
        assert organ in done.stdout
    for prompt in ("point", "negative point", "box", "scribble", "lasso"):
        assert prompt in done.stdout
    assert "preview after" in done.stderr
    picture = tmp_path / "demo-output" / "demo.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    labels = sitk.ReadImage(str(tmp_path / "demo-output" / "segments.nii.gz"))
    assert same_place(labels, sitk.ReadImage(str(tmp_path / "demo-output" / "phantom.nii.gz")))
    assert len(np.unique(sitk.GetArrayFromImage(labels))) == 9
    names = slicerio.segment_names(slicerio.read_segmentation(str(tmp_path / "demo-output" / "segments.seg.nrrd")))
    assert names[0] == "liver"


@pytest.mark.parametrize(("device", "sentence"), [("quatsch", '"quatsch" is no device'), ("cuda:99", "no cuda:99")])
def test_a_device_that_is_not_there_ends_the_server_with_a_sentence(device: str, sentence: str) -> None:
    done = run("serve", "--port", "0", "--model", "demo", "--device", device)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
