"""Fixtures for the tests of the module's logic, on the real MRML scene of slicer-core.

The package slicer-core contains Slicer's data model and logics without its application. If it is not installed, these
tests are skipped.
"""

from pathlib import Path
import sys

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "NNInteractiveWS"), str(HERE), str(HERE.parents[1] / "tests")]

try:
    import slicer

    missing = "" if hasattr(slicer, "vtkMRMLScene") else "the package called slicer here is not 3D Slicer's"
except ImportError:
    missing = "slicer-core is not installed"
if missing:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header(config):
    return f"slicer_module: not tested, {missing}" if missing else "slicer_module: on slicer-core"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("slicer_core")
        if item.path.is_relative_to(HERE / "widget"):
            item.add_marker("pythonqt")


def pytest_configure(config):
    if not missing:
        from scenes import register_conversion_rules

        register_conversion_rules()


@pytest.fixture
def scene(tmp_path):
    from scenes import new_scene

    made = new_scene(tmp_path)
    yield made
    made.Clear(True)
    made.kept.clear()


@pytest.fixture
def add_volume(scene):
    """Add a volume node with the voxels of an array (i, j, k)."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    def add(array, spacing=(1.0, 1.0, 1.0), directions=None, origin=(0.0, 0.0, 0.0), transform=None):
        image = vtk.vtkImageData()
        image.SetDimensions(*array.shape)
        image.GetPointData().SetScalars(numpy_to_vtk(array.transpose(2, 1, 0).ravel(), deep=True))
        volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "volume")
        volume.SetAndObserveImageData(image)
        volume.SetSpacing(*spacing)
        volume.SetOrigin(*origin)
        volume.SetIJKToRASDirections(*(np.eye(3) if directions is None else directions).ravel().tolist())
        if transform is not None:
            volume.SetAndObserveTransformNodeID(transform.GetID())
        return volume

    return add


@pytest.fixture
def add_transform(scene):
    """Add a linear transform node with a rotation around an axis and a translation."""
    import vtk

    def add(degrees=30.0, axis=(1, 2, 3), shift=(10.0, -20.0, 5.0)):
        transform = vtk.vtkTransform()
        transform.Translate(*shift)
        transform.RotateWXYZ(degrees, *axis)
        node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        node.SetMatrixTransformToParent(transform.GetMatrix())
        return node

    return add


@pytest.fixture(scope="session")
def server():
    """A server with a network that predicts in milliseconds."""
    pytest.importorskip("nnInteractive", reason="the server's packages are not installed")
    from helpers import fast_server as quick

    with quick.quick_server() as made:
        yield made


@pytest.fixture
def make_harness(scene, server):
    """Create a LogicHarness, by default with the fast server."""
    from logic_harness import LogicHarness

    harnesses = []

    def make(address=None, at=None, **how):
        harnesses.append(LogicHarness(at or scene, address or server.address, **how))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.logic.close()


@pytest.fixture
def harness(make_harness, add_volume):
    from logic_harness import blobs

    made = make_harness()
    made.use(add_volume(blobs()), "A")
    return made


@pytest.fixture(scope="session")
def demo():
    from nninteractive_ws.server.local_server import local_server

    with local_server("--model", "demo", "--log-level", "warning") as address:
        yield address
