"""The module's logic, without its window: a volume and a segment of the scene, and a session on a server.

The widget calls the methods as the user acts, and :meth:`Logic.poll` from a timer. The logic uses neither threads nor
Qt, and no method blocks. The server's answers are processed in a later poll, which updates :attr:`Logic.status` and the
voxels of the segments. Methods that prompt return whether the prompt was accepted; if not, the status has the reason.
"""

import time

import numpy as np
import slicer
import vtk

from . import geometry
from .labelmaps import makeSurfacesQuick
from .segmentationBinding import SegmentationBinding
from .sessionController import Request, SessionController
from .status import _


class Logic:
    """Segmentation of a volume by prompts.

    ``consents(address)``: whether the user consents to sending images to a server; called before connecting to it.
    ``editorNode``: the vtkMRMLSegmentEditorNode whose overwrite mode and masking apply, or None. ``live``: whether each
    prompt predicts at once. Otherwise, :meth:`run` predicts. ``sshEnvironment``: environment variables of ssh.
    """

    def __init__(self, scene, consents, *, editorNode=None, sshEnvironment=None, clock=time.monotonic):
        self.scene, self.editorNode = scene, editorNode
        self.live = True
        self.volume = self.segmentation = self.segmentID = None
        self._controller = SessionController(consents, clock, sshEnvironment)
        self._sceneObservers = [
            _observe(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeRemoved, vtk.VTK_OBJECT),
            _observe(scene, scene.StartCloseEvent, self._onSceneClosed),
        ]
        self._nodeObservers = []

    # ---- state --------------------------------------------------------------------------------------------------

    @property
    def status(self):
        """The :class:`~NNInteractiveWSLib.status.Status` for the status line."""
        return self._controller.status

    @property
    def imageNote(self):
        """A sentence on voxels that were replaced in the copy of the volume on the server, or None."""
        return self._controller.imageNote

    @property
    def hasEdits(self):
        """Whether the selected segment has manual edits since its last step. A segment that was modified and is not yet
        scanned counts as edited."""
        return self._binding is not None and self.segmentID is not None and self._binding.mayBeEdited(self.segmentID)

    @property
    def model(self):
        """The server's model (nninteractive_ws.messages.Model); None before the first connection."""
        return self._controller.model

    @property
    def serverVersion(self):
        """The program and version of the server, such as "nninteractive-ws 0.1.0"; None before the first connection."""
        return self._controller.serverVersion

    @property
    def server(self):
        """The server's welcome message (nninteractive_ws.messages.Welcome), or None while there is no connection."""
        return self.session.server if self.session is not None else None

    @property
    def session(self):
        """The nninteractive_ws.PolledSession, or None; its ``fileno()`` is for a notifier."""
        return self._controller.session

    @property
    def busy(self):
        """Whether a request is queued or running, or its result is not written to the scene yet."""
        return self._controller.busy

    @property
    def active(self):
        """Whether polls have work to do. Unlike :attr:`busy`, this includes connecting and the upload of the image."""
        return self._controller.active

    @property
    def canUndo(self):
        """Whether the selected segment has a step to undo."""
        segment = self._sessionSegment()
        return segment is not None and bool(segment.steps)

    @property
    def canRedo(self):
        """Whether the selected segment has a step to redo."""
        segment = self._sessionSegment()
        return segment is not None and bool(segment.undone)

    # ---- settings and selections --------------------------------------------------------------------------------

    def setServer(self, address, token=None, ca=None, *, isOwn=False):
        """Set the server that the next prompt connects to. ``token`` and ``ca``: as for nninteractive_ws.connect.
        ``isOwn``: whether the user has started it on this computer, so that it needs no consent."""
        server, controller = {"address": address, "token": token, "ca": ca}, self._controller
        if server != controller.server:
            self.disconnect()
            controller.server, controller.model, controller.serverVersion = server, None, None
        controller.isOwnServer = isOwn

    def setServerCheck(self, reasonNotToConnect):
        """Check an address before the user is asked for consent. ``reasonNotToConnect(address)``: a function that
        returns a message for the user, or None to connect."""
        self._controller.reasonNotToConnect = reasonNotToConnect

    def setOptions(self, **options):
        """Set the options ``autozoom`` and ``previews``, booleans as in nninteractive_ws."""
        self._controller.options.update(options)
        self._controller.setOptions()

    def selectVolume(self, volume):
        """Select a volume node, or None."""
        if volume is not self.volume:
            self._select(volume, self.segmentation)

    def selectSegment(self, segmentation, segmentID):
        """Select a segment of a segmentation node, or None, and show its prompts."""
        if segmentation is not self.segmentation:
            self._select(self.volume, segmentation)
        self.segmentID = segmentID
        if self._binding is not None:
            self._binding.select(segmentID)

    def nextSegment(self):
        """Add an empty segment, and a segmentation if there is none, and select it. Return its ID, or None without a
        volume."""
        if not self._hasVolume():
            return None
        node = self.segmentation or self.addSegmentation()
        self.selectSegment(node, node.GetSegmentation().AddEmptySegment(""))
        return self.segmentID

    def addSegmentation(self):
        """Add a segmentation node for the selected volume. Return it."""
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{self.volume.GetName()} segmentation")
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        makeSurfacesQuick(node.GetSegmentation())
        return node

    def askConsent(self):
        """Return whether the user consents to sending images to the server. Consent is stored for each server."""
        return self._controller.askConsent()

    def connect(self):
        """Connect to the server, if the user consents. Return whether the session is connected or connecting. Prompts
        connect by themselves."""
        return self._controller.connect()

    def disconnect(self):
        """End the session, so that the server discards the image. The next prompt starts a new one."""
        if self.session is not None:
            self._controller.disconnect()
            self._controller.setStatus("idle", "")  # the last status is that of the session

    def poll(self, budget_s=0.008, *, allowIdleWork=True):
        """Process messages and write results for about ``budget_s`` seconds. Return the session's new events.

        The last write into a segment may exceed the budget. ``allowIdleWork``: whether work that takes longer may run
        if the session is idle. A closed surface, for example, is made in one piece.
        """
        return self._controller.poll(budget_s, allowIdleWork)

    def close(self):
        """Store the state in the scene, end the session, and remove all observers."""
        self._controller.disconnect()
        for observers in (self._sceneObservers, self._nodeObservers):
            _unobserve(observers)

    # ---- prompts ------------------------------------------------------------------------------------------------

    def addPoint(self, world, positive=True):
        """Add a point prompt at world coordinates, in any view."""
        if not self._hasVolume():
            return False
        voxel = geometry.voxelAt(self.volume, world)
        if voxel is None:
            return self._reportOutside()
        return self._prompt("point", positive, [voxel], lambda segment, options: segment.add_point(voxel, **options))

    def addPointInThreeD(self, point, normal, positive=True):
        """Add a point prompt in a 3-D view. ``point``: world coordinates, or None if the click hit nothing. ``normal``:
        outward normal of the surface at the point, or None if the click hit a slice."""
        if point is None:
            message = _("There is no surface or slice at this point; nothing was sent. Click on a surface or a slice.")
            return self._setStatus(message)
        if normal is not None and self._hasVolume():
            point = geometry.underSurface(self.volume, point, normal)
        return self.addPoint(point, positive)

    def addBox(self, corner, opposite, positive=True, sliceNode=None):
        """Add a box prompt between two corners in world coordinates. ``sliceNode``: the slice view that both lie in, or
        None."""
        if not self._hasVolume():
            return False
        axis = self._axis(sliceNode) if sliceNode is not None else None
        if sliceNode is not None and axis is None:
            return False
        box = geometry.boxBetween(self._shape(), *self._toVoxels([corner, opposite]))
        if box is None:
            return self._reportOutside()
        corners = [box.start, np.subtract(box.stop, 1)]
        return self._prompt("box", positive, corners, lambda segment, options: segment.add_bbox(box, **options), axis)

    def addScribble(self, sliceNode, points, positive=True):
        """Add a scribble prompt along a path of world points in a slice view. The model determines its thickness."""
        axis = self._axis(sliceNode) if self._hasVolume() else None
        if axis is None:
            return False
        path, shape = self._toVoxels(points), self._shape()
        # The model's thickness is known only after connecting, so check the position with a thickness of one voxel.
        if geometry.brushStroke(shape, axis, path, (1, 1, 1)) is None:
            return self._reportOutside()

        def send(segment, options):
            mask, box = geometry.brushStroke(shape, axis, path, self.model.scribble_thickness)
            return segment.add_scribble(mask, box=box, **options)

        return self._prompt("scribble", positive, path, send, axis)

    def addLasso(self, sliceNode, points, positive=True):
        """Add a lasso prompt: the interior of a closed path of world points in a slice view."""
        axis = self._axis(sliceNode) if self._hasVolume() else None
        if axis is None:
            return False
        path = self._toVoxels(points)
        filled = geometry.filledOutline(self._shape(), axis, path)
        if filled is None:
            message = _("The lasso encloses no voxel of the volume; nothing was sent. Draw a larger outline.")
            return self._setStatus(message)
        mask, box = filled

        def send(segment, options):
            return segment.add_lasso(mask, box=box, **options)

        return self._prompt("lasso", positive, path, send, axis)

    def run(self):
        """Predict from the prompts given while ``live`` was false."""
        return self._command("run")

    def undo(self):
        """Undo the last step of the segment: a prompt, a manual edit or a reset."""
        return self._command("undo")

    def redo(self):
        """Redo the last undone step of the segment."""
        return self._command("redo")

    def reset(self):
        """Clear the segment and its prompts. Undo restores them."""
        return self._command("reset")

    def cancel(self):
        """Cancel all queued and running requests."""
        self._controller.cancel()

    # ---- internal ----------------------------------------------------------------------------------------------

    @property
    def _binding(self):
        return self._controller.binding

    def _sessionSegment(self):
        return self.session.histories.get(self.segmentID) if self.session is not None else None

    def _prompt(self, kind, positive, points, send, axis=None):
        if self.segmentID is None:
            self.nextSegment()
        if not self._ensureReady():
            return False
        name, options = self.segmentID, {"positive": positive, "run": self.live}
        self._binding.makeVisible(name)
        mark = self._binding.prompts.place(kind, name, positive, points, axis)
        self._controller.submit(Request(kind, name, lambda segment: send(segment, options), mark))
        return True

    def _command(self, kind):
        name = self.segmentID
        if not self._hasVolume():
            return False
        if name is None:
            return self._setStatus(_("Select a segment first."))
        if not self._ensureReady():
            return False
        self._controller.submit(Request(kind, name, lambda segment: getattr(segment, kind)()))
        return True

    def _ensureReady(self):
        if self._binding.segments.locked(self.segmentID):
            return self._setStatus(_("The segment is locked; nothing was sent. Unlock it, or select another one."))
        return self._controller.ensureReady()

    def _setStatus(self, message):
        return self._controller.setStatus("error", message)

    def _reportOutside(self):
        return self._setStatus(_("The prompt is outside the volume; nothing was sent. Place it inside the volume."))

    def _hasVolume(self):
        if self.volume is None:
            return self._setStatus(_("Select a volume first."))
        if self.volume.GetImageData() is None:
            return self._setStatus(_("The volume has no voxels. Select another one."))
        return True

    def _shape(self):
        return self.volume.GetImageData().GetDimensions()

    def _toVoxels(self, points):
        return [geometry.worldToIJK(self.volume, p) for p in points]

    def _axis(self, sliceNode):
        axis = geometry.sliceAxis(sliceNode, self.volume)
        if axis is None:
            message = _(
                "This view is oblique to the volume, so only points can be placed in it. "
                "Rotate the view to the volume plane for other prompts."
            )
            self._setStatus(message)
        return axis

    # ---- events of the scene --------------------------------------------------------------------------------------

    def _select(self, volume, segmentation):
        _unobserve(self._nodeObservers)
        self._controller.setBinding(None)
        self.volume, self.segmentation, self.segmentID = volume, segmentation, None
        if volume is None or segmentation is None:
            return
        self._controller.setBinding(SegmentationBinding(self.scene, volume, segmentation, self.editorNode))
        segments = segmentation.GetSegmentation()
        transformed = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self._nodeObservers += [
            _observe(segments, segments.SegmentRemoved, self._onSegmentRemoved, vtk.VTK_STRING),
            _observe(segmentation, segmentation.SegmentationChangedEvent, self._onSegmentationChanged),
            _observe(volume, transformed, lambda *_: self._binding.prompts.updateTransform()),
        ]

    def _onSegmentRemoved(self, _caller, _event, segmentID):
        self._controller.forgetSegment(segmentID)
        if segmentID == self.segmentID:
            self.selectSegment(self.segmentation, None)
            self._controller.setStatus("ready", _("The segment and its prompts were removed."))

    def _onSegmentationChanged(self, node, _event):
        """Use the node's new vtkSegmentation, for example that of another item of a sequence."""
        segments, segmentID = node.GetSegmentation(), self.segmentID
        if segments is self._binding.labelmaps.segmentation:
            return
        self._binding.labelmaps.detach()
        self._select(self.volume, node)
        if segmentID is not None and segments.GetSegment(segmentID) is not None:
            self.selectSegment(node, segmentID)

    def _onNodeRemoved(self, _caller, _event, node):
        if node is None or node not in (self.volume, self.segmentation):
            return
        binding = self._binding
        if node is self.volume:
            self._select(None, self.segmentation)
            self._controller.setStatus("idle", _("The volume was removed. Its segments are kept."))
        else:
            self._select(self.volume, None)
            self._controller.setStatus("idle", _("The segmentation and its prompts were removed."))
        if binding is not None:
            binding.forgetPrompts()

    def _onSceneClosed(self, *_arguments):
        """End the session without storing its state. The server discards the image."""
        self._select(None, None)
        self._controller.disconnect()
        self._controller.setStatus("idle", _("The scene was closed."))


def _observe(target, event, callback, dataType=None):
    """Call ``callback(caller, event)`` for an event, with the call data as third argument if its type is given."""
    if dataType is not None:

        @vtk.calldata_type(dataType)
        def withData(caller, name, value):
            callback(caller, name, value)

        return target, target.AddObserver(event, withData)
    return target, target.AddObserver(event, callback)


def _unobserve(observers):
    for target, tag in observers:
        target.RemoveObserver(tag)
    observers.clear()
