"""A MRML scene with the logics that the application gives it, without the application."""

import numpy as np
import slicer

#: A direction matrix that is neither orthogonal to RAS nor right-handed in the order of its axes.
OBLIQUE = np.linalg.qr(np.array([[1.0, 0.3, -0.2], [0.1, -1.0, 0.4], [0.5, 0.2, 1.0]]))[0]


def register_conversion_rules():
    """Register the conversions between representations of segments, as the application does at its start."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    for rule in (
        slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule,
        slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule,
    ):
        factory.RegisterConverterRule(rule())


def new_scene(folder):
    """Create a scene with the node classes and logics of the application. Files are unpacked in ``folder``."""
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
