"""Offscreen views of a scene, drawn by the real displayable managers of slicer-core as in the application.

Without a window system, VTK renders through EGL or OSMesa.
"""

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

SIZE = (480, 360)  # pixels

_SLICE_MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLMarkupsDisplayableManager")
_3D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
)
_ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


def prepare(scene, application):
    """Prepare a scene for views, as the application does at startup. ``application``: its vtkMRMLApplicationLogic."""
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    if application.GetSliceLogics() is None:
        application.SetSliceLogics(vtk.vtkCollection())
        application.SetViewLogics(vtk.vtkCollection())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    for factory, managers in ((_sliceFactory(), _SLICE_MANAGERS), (_threeDFactory(), _3D_MANAGERS)):
        factory.SetMRMLApplicationLogic(application)
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)


def leave():
    """Release the application logic after all views are closed."""
    for factory in (_sliceFactory(), _threeDFactory()):
        factory.SetMRMLApplicationLogic(None)


class Views:
    """Three slice views, ``slices`` by Slicer's names, and a 3-D view, ``threeD``.

    Call ``close()`` before the scene is cleared. ``application``: the scene's vtkMRMLApplicationLogic. ``size``: pixels
    of each view.
    """

    def __init__(self, scene, application, size=SIZE):
        self.scene = scene
        prepare(scene, application)
        self.slices = {name: SliceView(scene, application, name, size) for name in _ORIENTATIONS}
        self.threeD = ThreeDView(scene.AddNewNodeByClass("vtkMRMLViewNode", "View1"), size)
        self.threeD.node.SetLayoutName("1")

    def show(self, volume):
        """Show the whole volume in all slice views."""
        for view in self.slices.values():
            view.show(volume)

    def jump(self, point):
        """Move all slices to a point in world coordinates."""
        for view in self.slices.values():
            view.node.JumpSlice(*point)

    def close(self):
        for view in [*self.slices.values(), self.threeD]:
            view.close()
        leave()


class _View:
    def __init__(self, node, size, factory, window=None):
        self.node = node
        self.window = window or _offscreenWindow()
        self.window.SetSize(*size)
        self.renderer = self.window.GetRenderers().GetFirstRenderer()
        if self.window.GetInteractor() is None:
            self._interactor = vtk.vtkGenericRenderWindowInteractor()
            self._interactor.SetRenderWindow(self.window)
        self._managers = factory.InstantiateDisplayableManagers(self.renderer)
        self._managers.SetMRMLDisplayableNode(node)

    def pixels(self):
        """Render the view: (rows from the top, columns, RGB), uint8."""
        self.window.Render()
        picture = vtk.vtkWindowToImageFilter()
        picture.SetInput(self.window)
        picture.ReadFrontBufferOff()
        picture.ShouldRerenderOff()
        picture.Update()
        image = picture.GetOutput()
        width, height, _ = image.GetDimensions()
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1].copy()

    def close(self):
        self._managers.SetMRMLDisplayableNode(None)
        self.window.Finalize()


class SliceView(_View):
    """A slice view. An image mapper draws the background volume, as in the application's slice widget."""

    def __init__(self, scene, application, name, size):
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application)
        self.logic.SetMRMLScene(scene)
        self.logic.AddSliceNode(name)
        application.GetSliceLogics().AddItem(self.logic)
        node = self.logic.GetSliceNode()
        node.SetOrientation(_ORIENTATIONS[name])
        node.SetDimensions(*size, 1)
        super().__init__(node, size, _sliceFactory())
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        background = vtk.vtkActor2D()
        background.SetMapper(self._mapper)
        self.renderer.AddViewProp(background)

    def show(self, volume):
        self.logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        self.fit()
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())

    def fit(self):
        """Fit the view to the volume."""
        offset = self.node.GetSliceOffset()
        self.logic.FitSliceToAll(*self.window.GetSize())
        self.node.SetSliceOffset(offset)

    def at(self, point):
        """The pixel (row, column) in :meth:`pixels` at world coordinates."""
        toRAS = self.node.GetXYToRAS()
        toXY = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(toRAS, toXY)
        x, y, *_ = toXY.MultiplyPoint((*point, 1.0))
        return self.window.GetSize()[1] - 1 - round(y), round(x)


class ThreeDView(_View):
    """A 3-D view. ``window``: an offscreen render window with a renderer, or None to create one."""

    def __init__(self, node, size, window=None):
        super().__init__(node, size, _threeDFactory(), window)

    def look(self, direction, up=(0.0, 0.0, 1.0), zoom=1.0):
        """Point the camera in a direction in world coordinates, and fit the view to the whole scene."""
        camera = self.renderer.GetActiveCamera()
        self.renderer.ResetCamera()
        center = np.array(camera.GetFocalPoint())
        camera.SetPosition(*(center - np.asarray(direction, float)))
        camera.SetViewUp(*up)
        self.renderer.ResetCamera()
        camera.Dolly(zoom)
        self.renderer.ResetCameraClippingRange()


def _offscreenWindow():
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetMultiSamples(0)
    window.AddRenderer(vtk.vtkRenderer())
    return window


def _sliceFactory():
    return slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()


def _threeDFactory():
    return slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
