"""What the tests of the module's logic share: the real MRML scene of slicer-core, and volumes in it.

slicer-core is what ``pip install slicer-core`` brings: Slicer's data model and logics without its application. Where it
is not installed, these tests are skipped.
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


def pytest_configure(config):
    if not missing:
        _register()


def _register():
    """What the application does when it starts: how representations of segments are converted."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    for rule in (
        slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule,
        slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule,
    ):
        factory.RegisterConverterRule(rule())


def new_scene(folder):
    """A scene with the node classes and the logics that the application gives it; files are unpacked in ``folder``."""
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    cache = slicer.vtkCacheManager()
    cache.SetRemoteCacheDirectory(str(folder))
    manager = slicer.vtkDataIOManager()
    manager.SetCacheManager(cache)
    scene.SetDataIOManager(manager)
    scene.kept = [application, cache, manager]
    for name in (
        "vtkSlicerVolumesLogic",
        "vtkSlicerMarkupsLogic",
        "vtkSlicerSubjectHierarchyModuleLogic",
        "vtkSlicerSegmentationsModuleLogic",
    ):
        logic = getattr(slicer, name)()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name.removeprefix("vtkSlicer").removesuffix("Logic").removesuffix("Module"), logic)
        scene.kept.append(logic)
    return scene


@pytest.fixture
def scene(tmp_path):
    made = new_scene(tmp_path)
    yield made
    made.Clear(True)
    made.kept.clear()


#: A direction matrix that is neither orthogonal to RAS nor right-handed in the order of its axes.
OBLIQUE = np.linalg.qr(np.array([[1.0, 0.3, -0.2], [0.1, -1.0, 0.4], [0.5, 0.2, 1.0]]))[0]


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
    """Add a linear transform node: a turn around an axis and a shift."""
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
    """A server with a network that answers in milliseconds."""
    quick = pytest.importorskip("quick_server", reason="the server's packages are not installed")
    with quick.quick_server() as made:
        yield made


@pytest.fixture
def sit(scene, server):
    """Sit down at a desk, by default at the quick server's."""
    from desk import Desk

    desks = []

    def make(address=None, at=None, **how):
        desks.append(Desk(at or scene, address or server.address, **how))
        return desks[-1]

    yield make
    for desk in desks:
        desk.logic.close()


@pytest.fixture
def desk(sit, add_volume):
    from desk import blobs

    made = sit()
    made.use(add_volume(blobs()), "A")
    return made


@pytest.fixture(scope="session")
def demo():
    from nninteractive_ws.server.local import local_server

    with local_server("--model", "demo", "--log-level", "warning") as address:
        yield address
