"""Control of the session on the server: the queue of requests, the connection, and the upload of the image."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nninteractive_ws import Box, PolledSession
from nninteractive_ws.client import events
from nninteractive_ws.errors import BadImage, BadJournal, Error
from nninteractive_ws.files.finite import replace_in_steps
from nninteractive_ws.messages import Run

from . import geometry
from .segmentationBinding import IDLE_S
from .status import Status, _, statusOf

#: Maximum fraction of the time that is spent on storing the journal.
_MAX_STORE_LOAD = 0.05


@dataclass
class Request:
    """A command for a segment of the session.

    ``send``: a function that takes the session's segment, sends the command, and returns the request number. ``mark``:
    the prompt's markups node. ``change``: the SparseMask of a manual edit, if the request sends one.
    """

    kind: str
    segment: str
    send: Callable[[Any], int] | None = None
    mark: Any = None
    change: Any = None


class SessionController:
    """The session of a :class:`~NNInteractiveWSLib.logic.Logic`, and its requests.

    ``binding``: the segmentation and the volume in use, or None.
    """

    def __init__(self, consents, clock, sshEnvironment=None):
        self._consents, self._clock, self._sshEnvironment = consents, clock, sshEnvironment
        self.status = Status()
        self.model = self.serverVersion = None
        self.session: PolledSession | None = None
        self.binding = None
        self.server = {"address": "ws://127.0.0.1:1528", "token": None, "ca": None}
        self.isOwnServer = False  # whether the user has just started the server on this computer
        self.reasonNotToConnect = lambda address: None  # returns a message if there cannot be a server
        self.options = {}
        self._nextStoreTime = 0.0
        self._clear()

    def _clear(self):
        self._queue: deque[Request] = deque()
        self._requests: dict[int, Request] = {}
        self._counts: dict[str, int] = {}  # steps of each segment's history whose answers have been processed
        self._image = None  # the volume's scalars and their MTime, as passed to the session
        self._voxels = None  # their array
        self._replacing = None  # replace_in_steps() of these, while it runs
        self.imageNote = None  # what was replaced in the copy that is sent
        self._uploading = False
        self._synchronized = False  # whether the session has the image, and its segments match the scene's
        self._journal = None
        self._unstored = False

    # ---- commands -----------------------------------------------------------------------------------------------

    def setStatus(self, state, message):
        """Set the status. Return False, so that a command that is rejected can return the result of this call."""
        self.status = Status(state, message)
        return False

    def ensureReady(self):
        """Connect if needed, and pass the volume to the session. Return whether requests can be submitted."""
        try:
            voxels = geometry.volumeArray(self.binding.volume)
            self.binding.labelmaps.prepare()
            if not self.connect():
                return False
            self._useImage(voxels)
        except (ValueError, Error) as e:
            return self.setStatus("error", str(e))
        return True

    def askConsent(self):
        """Return whether the user consents to sending images to the server; ask if that is not known yet."""
        address = self.server["address"]
        # The server can change while the user is asked, for example because its process ends.
        if (self.isOwnServer or self._consents(address)) and address == self.server["address"]:
            return True
        message = _("Nothing was sent. Images are sent to {address} only after you agree.")
        return self.setStatus("idle", message.format(address=address))

    def connect(self):
        """Connect if needed and if the user consents. Return whether the session is connected or connecting."""
        if self.session is not None:
            if self.session.is_dormant:
                self.setOptions()  # a dormant session reconnects for a request
            return True
        reason = self.reasonNotToConnect(self.server["address"])
        if reason is not None:
            return self.setStatus("idle", reason)
        if not self.askConsent():
            return False
        try:
            self.session = PolledSession(clock=self._clock, ssh_environment=self._sshEnvironment, **self.server)
        except Error as e:
            return self.setStatus("error", str(e))
        self.setStatus("connecting", _("Connecting to {address}").format(address=self.server["address"]))
        self.setOptions()
        return True

    def submit(self, request):
        """Queue a request. It is sent as soon as possible."""
        self._queue.append(request)
        self._flush(mayContinue=lambda: False)

    def cancel(self):
        """Cancel all queued and running requests."""
        for request in self._queue:
            self.binding.prompts.remove(request.mark)
        self._queue.clear()
        for number in self._requests:
            self.session.cancel(number)

    def setOptions(self):
        """Send the options to the session, if there is one."""
        if self.session is not None and self.options:
            self._requests[self.session.set_options(**self.options)] = Request("options", "")

    def setBinding(self, binding):
        """Use another segmentation and volume. Revert the previews of unanswered prompts in the current one."""
        self._revertPreviews()
        self.storeState()
        if binding is not self.binding and self.binding is not None:
            self.binding.refreshSurfaces()
        if self.session is not None:
            self.session.cancel()
        self._clear()
        self.binding = binding

    def disconnect(self):
        """End the session. The next prompt starts a new one, which resumes from the state stored in the scene."""
        self.setBinding(self.binding)
        if self.session is not None:
            self.session.close()
            self.session = None

    def forgetSegment(self, name):
        """Drop the requests and the state of a segment that was removed from the scene."""
        for request in [r for r in self._queue if r.segment == name]:
            self._queue.remove(request)
        for number in [n for n, r in self._requests.items() if r.segment == name]:
            self.session.cancel(number)
        if self._synchronized and name in self.session.histories:
            self._requests[self.session.segment(name).remove()] = Request("remove", name)
        self._counts.pop(name, None)
        self.binding.forget(name)

    @property
    def busy(self):
        isRequested = any(request.kind != "options" for request in (*self._queue, *self._requests.values()))
        return isRequested or (self.binding is not None and self.binding.hasPendingWrites())

    @property
    def active(self):
        """Whether polls have work to do, including the upload of the image, which needs no request."""
        connecting = self.session is not None and self.session.server is None
        return self.busy or connecting or self._uploading

    # ---- polling ------------------------------------------------------------------------------------------------

    def poll(self, budget_s, allowIdleWork):
        newEvents = [] if self.session is None else self._advance(budget_s)
        if allowIdleWork:
            self._doIdleWork()
        return newEvents

    def _advance(self, budget_s):
        deadline = self._clock() + budget_s
        hasWrites = self.binding is not None and self.binding.hasPendingWrites()
        try:
            # Reserve half of the time for pending writes.
            newEvents = self.session.poll(budget_s / 2 if hasWrites else budget_s)
        except BadImage as e:
            self._onBadImage(e)
            return []
        self._synchronize()
        changes: dict[str, tuple[Box, bool, bool]] = {}
        for event in newEvents:
            self._handleEvent(event, changes)
        self._write(changes)
        if self._replacing is not None:
            # After the events, whose status must not replace the error of an unusable volume.
            self._replaceVoxels(lambda: self._clock() < deadline)
        self._updateScene(lambda: self._clock() < deadline)
        return newEvents

    def _updateScene(self, mayContinue):
        if self.binding is not None:
            self.binding.writePending(self._clock(), mayContinue)
            self._flush(mayContinue)
            if self._synchronized:
                self.binding.scanForEdits(mayContinue)

    def storeState(self):
        """Store the prompts and the journal in the scene."""
        if self.binding is not None and self._synchronized:
            self.binding.writePending(self._clock())
            histories = self.session.histories
            names = {request.segment for request in self._requests.values()}
            self.binding.store(self.session.journal(), [histories[name] for name in names & histories.keys()])
            self._unstored = False

    def _doIdleWork(self):
        """Refresh one closed surface, or else store the state if it has changed.

        Slicer announces no save, so the stored state must always be recent, also while a request is running.
        """
        now = self._clock()
        if self.binding is None or self.binding.refreshSurface(now):
            return
        if self._unstored and not self.binding.hasPendingWrites() and now > self._nextStoreTime:
            self.storeState()
            self._nextStoreTime = self._clock() + IDLE_S + (self._clock() - now) / _MAX_STORE_LOAD

    # ---- requests -----------------------------------------------------------------------------------------------

    def _flush(self, mayContinue):
        """Send queued requests as far as possible. Send manual edits of a segment before its requests."""
        while self._queue and self._synchronized and self.model is not None:
            request = self._queue[0]
            if not self._sendEdits(request.segment, mayContinue):
                return
            self._queue.popleft()
            try:
                self._requests[request.send(self.session.segment(request.segment))] = request
            except Error as e:
                self.binding.prompts.remove(request.mark)
                self.setStatus("error", str(e))

    def _sendEdits(self, name, mayContinue):
        """Send manual edits of a segment. Return whether the session has, or is about to have, the scene's mask."""
        segments = self.binding.segments
        if not segments.mayBeEdited(name):
            return True
        if self.binding.hasPendingWrites(name) or any(r.segment == name for r in self._requests.values()):
            return False  # the mask after these is not known yet
        if not segments.scanForEdits(name, mayContinue):
            return False
        change = segments.findEdits(name)
        if change is not None:
            delta = segments.editDelta(name)
            number = self.session.segment(name).flip_mask(delta.flips, box=delta.box)
            self._requests[number] = Request("edit", name, change=change)
            segments.acceptEdits(name, change)
        return True

    def _revertPreviews(self):
        """Remove the previews and the marks of unanswered requests from the scene."""
        for name in {request.segment for request in self._requests.values()}:
            segment = self.session.histories.get(name)
            if self._synchronized and segment is not None:
                self.binding.revertPreview(segment)
        if self.binding is not None:
            self.binding.writePending(self._clock())
        for request in [*self._queue, *self._requests.values()]:
            if request.mark is not None:
                self.binding.prompts.remove(request.mark)

    # ---- connecting ---------------------------------------------------------------------------------------------

    def _useImage(self, voxels):
        """Pass the volume's voxels to the session if they have changed. Raise BadImage if they are invalid."""
        scalars = self.binding.volume.GetImageData().GetPointData().GetScalars()
        image = (scalars, scalars.GetMTime())
        if image == self._image:
            return
        if self._image is not None:
            self.setBinding(self.binding)
            self.binding.forgetPrompts()
            self.setStatus("ready", _("The volume has changed. Its segments are kept. Their prompts were discarded."))
        try:
            self._journal = self.binding.loadJournal()
        except BadJournal as e:
            self.binding.forgetPrompts()
            self.setStatus("ready", str(e))
        self._previousImage = self.session.image
        self.session.set_image(voxels, self._journal)
        self._image, self._voxels, self._uploading = image, voxels, True
        self._replacing = self.imageNote = None

    def _onBadImage(self, error):
        """Replace voxels that are not finite, and try again with the copy."""
        if self.imageNote is None:
            self._imageError, self._replacing = error, replace_in_steps(self._voxels, _("The volume"))
        else:
            self._refuseImage(error)

    def _replaceVoxels(self, mayContinue):
        try:
            next(self._replacing)
            while mayContinue():
                next(self._replacing)
        except BadImage as e:
            self._refuseImage(e)
        except StopIteration as end:
            voxels, self.imageNote = end.value
            if self.imageNote is None:
                self._refuseImage(self._imageError)
            else:
                self._replacing = None
                self.session.set_image(voxels, self._journal)

    def _refuseImage(self, error):
        self._image, self._replacing, self._uploading = None, None, False
        if self._journal is None:
            self.cancel()
            self.setStatus("error", str(error))
            return
        self._journal = None
        self.binding.forgetPrompts()
        self.setStatus("ready", _("The prompts saved in the scene belong to another image and were discarded."))
        self.ensureReady()

    def _synchronize(self):
        """Match the journal's segments with the scene's, once the session has accepted the image."""
        image = self.session.image
        if self._synchronized or self._image is None or image is None or image is self._previousImage:
            return
        self._synchronized = True
        for name, segment in list(self.session.histories.items()):
            if self.binding.labelmaps.has(name):
                self.binding.segments.expect(name, segment.mask, segment.extent)
                self._syncMarks(name)
            else:
                self._requests[self.session.segment(name).remove()] = Request("remove", name)

    # ---- events of the session ----------------------------------------------------------------------------------

    def _handleEvent(self, event, changes):
        status = statusOf(event)
        if status is not None and not self._isBackground(event):
            self.status = status
        if isinstance(event, events.Connection):
            self._onConnection(event)
        elif isinstance(event, events.ImageProgress):
            self._uploading = event.present < event.total
        elif isinstance(event, events.MaskDelta):
            self._onMaskDelta(event, changes)
        elif isinstance(event, events.Done):
            self._onDone(self._requests.pop(event.result.request, None))
        elif isinstance(event, events.Failed) and event.request is not None:
            self._onFailed(event.request)

    def _isBackground(self, event):
        """Whether an event belongs to background work, which the user is not waiting for."""
        if isinstance(event, events.ImageProgress):
            return self.busy
        number = event.result.request if isinstance(event, events.Done) else getattr(event, "request", None)
        # The image's request is not listed here. Requests of an earlier selection are no longer listed.
        return number is not None and number not in self._requests and self.session.image is not None

    def _onConnection(self, event):
        if event.state == "open":
            self.model, self.serverVersion = event.welcome.model, event.welcome.server_version
        elif event.state == "closed":
            status = self.status
            self.disconnect()
            self.status = status

    def _onMaskDelta(self, event, changes):
        self._unstored = True
        request = self._requests.get(event.request)
        box, before, _preview = changes.get(event.segment, (None, False, False))
        undoing = before or request is None or request.kind in ("undo", "redo")
        changes[event.segment] = event.box.union(box), undoing, not event.final

    def _write(self, changes):
        unanswered = {request.segment for request in self._requests.values()}
        for name, (box, undoing, preview) in changes.items():
            segment = self.session.histories.get(name) if self._synchronized else None
            if segment is not None:
                # A preview that arrives together with its answer is the final mask.
                isPreview = preview and name in unanswered
                self.binding.write(name, box, segment.mask, undoing=undoing, preview=isPreview)

    def _onDone(self, request):
        if request is None or request.kind in ("options", "remove") or not self.binding.labelmaps.has(request.segment):
            return
        name = request.segment
        self._unstored = True
        self.binding.showAsPreview(name, False)
        if request.kind in ("undo", "redo"):
            self._counts[name] = self._counts.get(name, 0) + (-1 if request.kind == "undo" else 1)
        elif request.kind != "run" or self._ranLast(name):
            number = self._counts.get(name, 0)
            self._counts[name] = number + 1
            self.binding.prompts.append(name, number, request.mark)
        if not any(r.segment == name for r in self._requests.values()):
            self._syncMarks(name)

    def _ranLast(self, name):
        """Whether the last step is a run. A run without pending prompts adds no step to the history."""
        segment = self.session.histories.get(name)
        return segment is not None and bool(segment.steps) and isinstance(segment.steps[-1].request, Run)

    def _syncMarks(self, name):
        segment = self.session.histories.get(name)
        if segment is not None:
            self._counts[name] = len(segment.steps)
            self.binding.syncMarks(segment)

    def _onFailed(self, number):
        request = self._requests.pop(number, None)
        if request is None:
            if self.session.image is None:  # the server rejected the image
                self._image, self._synchronized, self._uploading = None, False, False
                self.cancel()
        elif request.kind not in ("options", "remove"):
            self.binding.showAsPreview(request.segment, False)
            self.binding.prompts.remove(request.mark)
            if request.kind == "edit":
                self.binding.segments.rejectEdits(request.segment, request.change)
