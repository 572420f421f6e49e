"""The module without its window: a volume and a segment of the scene, and a session on a server.

The widget calls the methods as the user acts, and :meth:`Logic.poll` from a timer. There is no thread and no Qt here,
and nothing waits: what a server has to say comes with a later poll, as words in :attr:`Logic.status` and as voxels in
the segments. Methods that prompt return whether the prompt is on its way; if not, the status says why not.
"""

import time

import numpy as np
import slicer
import vtk

from . import geometry
from .conversation import Conversation, Request
from .labelmaps import makeSurfacesQuick
from .status import _
from .work import Work


class Logic:
    """``agreed``: whether the user agreed that images go to the server at an address; asked before it is connected to.
    ``editorNode``: the vtkMRMLSegmentEditorNode whose overwrite mode and masking count, or None.

    ``live``: whether each prompt predicts at once; otherwise :meth:`run` does.
    """

    def __init__(self, scene, agreed, *, editorNode=None, clock=time.monotonic):
        self.scene, self.editorNode = scene, editorNode
        self.live = True
        self.volume = self.segmentation = self.segmentID = None
        self._conversation = Conversation(agreed, clock)
        self._sceneObservers = [
            _observe(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeRemoved, vtk.VTK_OBJECT),
            _observe(scene, scene.StartCloseEvent, self._onSceneClosed),
            _observe(scene, scene.StartSaveEvent, self._onSave),
        ]
        self._nodeObservers = []

    # ---- what there is to show ----------------------------------------------------------------------------------

    @property
    def status(self):
        """What happens, in words: a :class:`~NNInteractiveWSLib.status.Status`."""
        return self._conversation.status

    @property
    def paintedByHand(self):
        """Whether the selected segment shows something that was painted since its last step; what was touched a moment
        ago counts, until it has been looked at."""
        return self._work is not None and self.segmentID is not None and self._work.touchedByHand(self.segmentID)

    @property
    def model(self):
        """The server's model (nninteractive_ws.messages.Model); None before the first connection."""
        return self._conversation.model

    @property
    def server(self):
        """What the server says of itself (nninteractive_ws.messages.Welcome), or None while there is no connection."""
        return self.session.core.welcome if self.session is not None else None

    @property
    def session(self):
        """The nninteractive_ws.PolledSession, or None; its ``fileno()`` is for a notifier."""
        return self._conversation.session

    @property
    def busy(self):
        """Whether something that was asked for is not done yet."""
        return self._conversation.busy

    @property
    def active(self):
        """Whether each poll has something to do: more than :attr:`busy`, as the image travels by itself."""
        return self._conversation.active

    @property
    def canUndo(self):
        """Whether the selected segment has a step to take back."""
        segment = self._sessionSegment()
        return segment is not None and bool(segment.steps)

    @property
    def canRedo(self):
        """Whether something taken back can be done again."""
        segment = self._sessionSegment()
        return segment is not None and bool(segment.undone)

    # ---- settings and selections --------------------------------------------------------------------------------

    def setServer(self, address, token=None, ca=None):
        """Where to connect with the next prompt. ``token`` and ``ca``: as nninteractive_ws.connect takes them."""
        server = {"address": address, "token": token, "ca": ca}
        if server != self._conversation.server:
            self._conversation.disconnect()
            self._conversation.server, self._conversation.model = server, None

    def setOptions(self, **options):
        """``autozoom`` and ``previews``, booleans: see nninteractive_ws."""
        self._conversation.options.update(options)
        self._conversation.setOptions()

    def selectVolume(self, volume):
        """Work on this volume node, or on none."""
        if volume is not self.volume:
            self._select(volume, self.segmentation)

    def selectSegment(self, segmentation, segmentID):
        """Work on this segment of a segmentation node, or on none; its prompts are shown."""
        if segmentation is not self.segmentation:
            self._select(self.volume, segmentation)
        self.segmentID = segmentID
        if self._work is not None:
            self._work.select(segmentID)

    def nextSegment(self):
        """Add an empty segment, and a segmentation where there is none, and select it; its id, or None without a
        volume."""
        if not self._hasVolume():
            return None
        node = self.segmentation
        if node is None:
            node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{self.volume.GetName()} segmentation")
            node.CreateDefaultDisplayNodes()
            node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())
            node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
            makeSurfacesQuick(node.GetSegmentation())
        self.selectSegment(node, node.GetSegmentation().AddEmptySegment(""))
        return self.segmentID

    def agree(self):
        """Whether the user agrees that images go to the server; asked once for each."""
        return self._conversation.agree()

    def connect(self):
        """Connect, where that is not done yet, if the user agrees; whether there is a connection or one on the way.
        Prompts do it themselves."""
        return self._conversation.connect()

    def poll(self, budget_s=0.008, *, mayPause=True):
        """Go on with everything, for about ``budget_s`` seconds and a write into the segments; the session's events.
        ``mayPause``: whether, while nothing else happens, it may also take longer: a closed surface is made in one."""
        return self._conversation.poll(budget_s, mayPause)

    def storeState(self):
        """Keep prompts and journal in the scene. It is done soon after each answer; call it before a scene is saved."""
        self._conversation.storeState()

    def close(self):
        """Keep the state in the scene, end the session, and let go of the scene."""
        self._conversation.disconnect()
        for observers in (self._sceneObservers, self._nodeObservers):
            _unobserve(observers)

    # ---- prompts ------------------------------------------------------------------------------------------------

    def addPoint(self, world, positive=True):
        """A click at a point of the world, in any view."""
        if not self._hasVolume():
            return False
        voxel = geometry.voxelAt(self.volume, world)
        if voxel is None:
            return self._outside()
        return self._prompt("point", positive, [voxel], lambda core, name, how: core.add_point(name, voxel, **how))

    def addPointInThreeD(self, point, normal, positive=True):
        """A click in a 3-D view, at a point of the world; None: nothing was hit. ``normal``: that of the surface there,
        outward; None: a slice was hit."""
        if point is None:
            return self._say(_("Nothing is there to click on; nothing was sent."))
        if normal is not None and self._hasVolume():
            point = geometry.underSurface(self.volume, point, normal)
        return self.addPoint(point, positive)

    def addBox(self, corner, opposite, positive=True, sliceNode=None):
        """A box between two points of the world; ``sliceNode``: the slice view that both lie in, if they do."""
        if not self._hasVolume():
            return False
        axis = self._axis(sliceNode) if sliceNode is not None else None
        if sliceNode is not None and axis is None:
            return False
        box = geometry.boxBetween(self._shape(), *self._inVoxels([corner, opposite]))
        if box is None:
            return self._outside()
        corners = [box.start, np.subtract(box.stop, 1)]
        return self._prompt("box", positive, corners, lambda core, name, how: core.add_bbox(name, box, **how), axis)

    def addScribble(self, sliceNode, points, positive=True):
        """A stroke through points of the world in a slice view, as thick as the model prefers."""
        axis = self._axis(sliceNode) if self._hasVolume() else None
        if axis is None:
            return False
        path, shape = self._inVoxels(points), self._shape()
        # The thickness is known once the server is.
        if geometry.brushStroke(shape, axis, path, (1, 1, 1)) is None:
            return self._outside()

        def send(core, name, how):
            mask, box = geometry.brushStroke(shape, axis, path, self.model.scribble_thickness)
            return core.add_scribble(name, mask, box=box, **how)

        return self._prompt("scribble", positive, path, send, axis)

    def addLasso(self, sliceNode, points, positive=True):
        """The inside of an outline through points of the world in a slice view."""
        axis = self._axis(sliceNode) if self._hasVolume() else None
        if axis is None:
            return False
        path = self._inVoxels(points)
        filled = geometry.filledOutline(self._shape(), axis, path)
        if filled is None:
            return self._say(_("The lasso holds no voxel of the volume; nothing was sent."))
        mask, box = filled

        def send(core, name, how):
            return core.add_lasso(name, mask, box=box, **how)

        return self._prompt("lasso", positive, path, send, axis)

    def run(self):
        """Predict from the prompts given while ``live`` was false."""
        return self._command("run")

    def undo(self):
        """Take back the last step of the segment: a prompt, a change by hand, a reset."""
        return self._command("undo")

    def redo(self):
        """Do again what was taken back."""
        return self._command("redo")

    def reset(self):
        """Empty the segment and forget its prompts; it can be undone."""
        return self._command("reset")

    def cancel(self):
        """Stop all that was asked for and is not done."""
        self._conversation.cancel()

    # ---- inside -------------------------------------------------------------------------------------------------

    @property
    def _work(self):
        return self._conversation.work

    def _sessionSegment(self):
        return self.session.core.segments.get(self.segmentID) if self.session is not None else None

    def _prompt(self, kind, positive, points, send, axis=None):
        if self.segmentID is None:
            self.nextSegment()
        if not self._engage():
            return False
        name, how = self.segmentID, {"positive": positive, "run": self.live}
        self._work.show(name)
        mark = self._work.prompts.place(kind, name, positive, points, axis)
        self._conversation.give(Request(kind, name, lambda core: send(core, name, how), mark))
        return True

    def _command(self, kind):
        name = self.segmentID
        if not self._hasVolume():
            return False
        if name is None:
            return self._say(_("Select a segment first."))
        if not self._engage():
            return False
        self._conversation.give(Request(kind, name, lambda core: getattr(core, kind)(name)))
        return True

    def _engage(self):
        if self._work.segments.locked(self.segmentID):
            return self._say(_("The segment is locked; nothing was sent."))
        return self._conversation.engage()

    def _say(self, words):
        return self._conversation.say("error", words)

    def _outside(self):
        return self._say(_("That is outside the volume; nothing was sent."))

    def _hasVolume(self):
        if self.volume is None:
            return self._say(_("Select a volume first."))
        return self.volume.GetImageData() is not None or self._say(_("The volume has no voxels."))

    def _shape(self):
        return self.volume.GetImageData().GetDimensions()

    def _inVoxels(self, points):
        return [geometry.worldToIJK(self.volume, p) for p in points]

    def _axis(self, sliceNode):
        axis = geometry.sliceAxis(sliceNode, self.volume)
        if axis is None:
            words = _("This view is oblique to the volume: only points can be placed in it. Rotate it to the volume.")
            self._say(words)
        return axis

    # ---- what happens in the scene --------------------------------------------------------------------------------

    def _select(self, volume, segmentation):
        _unobserve(self._nodeObservers)
        self._conversation.workOn(None)
        self.volume, self.segmentation, self.segmentID = volume, segmentation, None
        if volume is None or segmentation is None:
            return
        self._conversation.workOn(Work(self.scene, volume, segmentation, self.editorNode))
        segments = segmentation.GetSegmentation()
        moved = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self._nodeObservers += [
            _observe(segments, segments.SegmentRemoved, self._onSegmentRemoved, vtk.VTK_STRING),
            _observe(volume, moved, lambda *_: self._work.prompts.follow()),
        ]

    def _onSegmentRemoved(self, _caller, _event, segmentID):
        self._conversation.forgetSegment(segmentID)
        if segmentID == self.segmentID:
            self.selectSegment(self.segmentation, None)
            self._conversation.say("ready", _("The segment was removed, and its prompts with it."))

    def _onNodeRemoved(self, _caller, _event, node):
        if node is None or node not in (self.volume, self.segmentation):
            return
        work = self._work
        if node is self.volume:
            self._select(None, self.segmentation)
            self._conversation.say("idle", _("The volume was removed; its segments stay."))
        else:
            self._select(self.volume, None)
            self._conversation.say("idle", _("The segmentation was removed, and its prompts with it."))
        if work is not None:
            work.forgetPrompts()

    def _onSceneClosed(self, *_arguments):
        """Nothing is stored, and the server forgets the image too."""
        self._select(None, None)
        self._conversation.disconnect()
        self._conversation.say("idle", _("The scene was closed."))

    def _onSave(self, *_arguments):
        self.storeState()


def _observe(thing, event, callback, data=None):
    """Call back with (caller, event), and the call data of this type where one is given."""
    if data is not None:

        @vtk.calldata_type(data)
        def withData(caller, name, value):
            callback(caller, name, value)

        return thing, thing.AddObserver(event, withData)
    return thing, thing.AddObserver(event, callback)


def _unobserve(observers):
    for thing, tag in observers:
        thing.RemoveObserver(tag)
    observers.clear()
