"""The commands, run as processes on files."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import socket
import subprocess
import sys

from helpers import real_ct
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

from nninteractive_ws.demo.phantom import make_phantom


def run(
    *message: object, cwd: Path | None = None, timeout: float = 100, **env: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nninteractive_ws", *map(str, message)]
    environment = {**os.environ, "COLUMNS": "200", **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=environment)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a phantom, rotated and shifted in space."""
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


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_segment_keeps_the_geometry(server: str, image: Path, tmp_path: Path, ending: str) -> None:
    found = segmented(server, image, tmp_path / f"out{ending}", ["--point", "22,28,27"])
    assert same_place(found, sitk.ReadImage(str(image)))
    assert set(np.unique(sitk.GetArrayFromImage(found))) <= {0, 1}


@pytest.mark.slow
def test_a_seg_nrrd_has_names_and_the_same_voxels_as_a_label_map(server: str, image: Path, tmp_path: Path) -> None:
    label_map = segmented(server, image, tmp_path / "out.nii.gz", ["--point", "22,28,27"])
    segmented(server, image, tmp_path / "out.seg.nrrd", ["--point", "22,28,27", "--name", "Leber"])
    segmentation = slicerio.read_segmentation(str(tmp_path / "out.seg.nrrd"))
    assert slicerio.segment_names(segmentation) == ["Leber"]
    voxels, header = nrrd.read(str(tmp_path / "out.seg.nrrd"))
    assert header["space"] == "left-posterior-superior"
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(label_map).transpose())
    np.testing.assert_allclose(header["space origin"], label_map.GetOrigin(), atol=1e-4)


@pytest.mark.slow
def test_millimeters_name_the_same_voxel_as_indices(server: str, image: Path, tmp_path: Path) -> None:
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


@real_ct.needs_ct
@pytest.mark.slow
def test_segment_on_a_real_ct(server: str, tmp_path: Path) -> None:
    found = segmented(server, real_ct.CT, tmp_path / "out.nii.gz", ["--point", "40,50,15"])
    assert same_place(found, sitk.ReadImage(str(real_ct.CT)))
    assert sitk.GetArrayFromImage(found).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--point", "1,2"], "three whole numbers"),
        (["--lps", "a,b,c"], "three numbers"),
        (["--bbox", "1:2,3:4"], "Expected three ranges"),
        (["--bbox", "5:2,3:4,1:2"], "Expected three ranges"),
        ([], "No prompt marks the object"),
        (["--negative-point", "1,2,3"], "No prompt marks the object"),
        (["--point", "700,1,1"], "outside the volume"),
    ],
)
def test_segment_reports_errors(server: str, image: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = run("segment", image, "-o", tmp_path / "out.nrrd", "--server", server, *options)
    assert done.returncode in (1, 2)
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.nrrd").exists()


@pytest.mark.slow
def test_segment_refuses_invalid_images(server: str, tmp_path: Path) -> None:
    color = sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3)
    flat = sitk.Image([8, 8], sitk.sitkInt16)
    for n, (volume, message) in enumerate(((color, "3 components per voxel"), (flat, "2 dimensions"))):
        path = tmp_path / f"{n}.nrrd"
        sitk.WriteImage(volume, str(path))
        done = run("segment", path, "--point", "1,1,1", "-o", tmp_path / "out.nrrd", "--server", server)
        assert done.returncode == 1
        assert message in done.stderr
    (tmp_path / "text.nii.gz").write_text("not an image")
    done = run("segment", tmp_path / "text.nii.gz", "--point", "1,1,1", "-o", tmp_path / "o.nrrd", "--server", server)
    assert done.returncode == 1
    assert "cannot be read: it is of an unknown format" in done.stderr
    done = run("segment", path, "--point", "1,1,1", "-o", tmp_path / "out.png", "--server", server)
    assert done.returncode == 1
    assert "must end with" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (["models"], "models needs the package nnInteractive. Install it with: pip install 'nninteractive-ws[server]'"),
        (["segment", "IMAGE", "--point", "1,1,1", "-o", "x.nrrd"], "Or pass the address of a running server"),
    ],
)
def test_missing_server_packages_are_named(image: Path, tmp_path: Path, message: list[str], expected: str) -> None:
    code = "import sys; sys.modules['nnInteractive'] = None; from nninteractive_ws.__main__ import main; main()"
    command = [sys.executable, "-c", code, *(str(image) if word == "IMAGE" else word for word in message)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_models_lists_the_embedded_model(tmp_path: Path) -> None:
    done = run("models", "--offline", "--json", NNINTERACTIVE_MODEL_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (demo,) = json.loads(done.stdout)
    assert (demo["name"], demo["license"], demo["default"]) == ("demo", "Apache-2.0", True)
    assert Path(demo["folder"], "plans.json").exists()


@pytest.mark.slow
def test_doctor_passes_on_a_healthy_server(server: str) -> None:
    done = run("doctor", server)
    assert done.returncode == 0, done.stdout + done.stderr
    for message in ("accepts connections", "WebSocket", "model demo (license Apache-2.0) on cpu"):
        assert message in done.stdout


@pytest.mark.slow
def test_doctor_reports_errors() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    done = run("doctor", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"Nothing listens at 127.0.0.1:{port}" in done.stdout


@pytest.mark.slow
def test_serve_reports_errors(server: str, tmp_path: Path) -> None:
    taken = server.rsplit(":", 1)[1]
    done = run("serve", "--model", "demo", "--port", taken)
    assert done.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{taken}" in done.stderr
    done = run("serve", "--model", tmp_path, "--port", "0")
    assert done.returncode == 1
    assert "is not an nnInteractive model folder" in done.stderr
    (tmp_path / "fold_0").mkdir()
    for name in ("plans.json", "dataset.json", "inference_info.json", "fold_0/checkpoint_final.pth"):
        (tmp_path / name).write_text("{}")
    done = run("serve", "--model", tmp_path, "--port", "0")
    assert done.returncode == 1
    assert "could not be loaded" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--log-level", "loud"], "'debug', 'info', 'warning', 'error', 'critical'"),
        (["--tls-cert", "cert.pem"], "'--tls-cert' and '--tls-key': Expected both or neither"),
        (["--allow-host", "https://gpu-box"], "Expected a DNS name such as gpu-box.example.org"),
        (["--max-sessions", "2", "--max-sessions-per-user", "3"], "Expected at most --max-sessions"),
    ],
)
def test_invalid_options_of_serve_are_usage_errors(options: list[str], message: str) -> None:
    done = run("serve", *options)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert message in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_picture(tmp_path: Path) -> None:
    done = run("demo", cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    for organ in ("liver", "right kidney", "left kidney", "spleen", "stomach", "aorta", "right lung", "spine"):
        assert organ in done.stdout
    for prompt in ("point", "negative point", "box", "scribble", "lasso"):
        assert f": {prompt}: preview after" in done.stderr
    picture = tmp_path / "demo-output" / "demo.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    labels = sitk.ReadImage(str(tmp_path / "demo-output" / "segments.nii.gz"))
    assert same_place(labels, sitk.ReadImage(str(tmp_path / "demo-output" / "phantom.nii.gz")))
    assert len(np.unique(sitk.GetArrayFromImage(labels))) == 9
    names = slicerio.segment_names(slicerio.read_segmentation(str(tmp_path / "demo-output" / "segments.seg.nrrd")))
    assert names[0] == "liver"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "status", "sentence"),
    [("quatsch", 2, 'There is no device "quatsch"'), ("cuda:99", 1, "There is no device cuda:99")],
)
def test_a_missing_device_ends_the_server_with_an_error(device: str, status: int, sentence: str) -> None:
    done = run("serve", "--port", "0", "--model", "demo", "--device", device)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
