"""The session and what is worked on: requests that wait, are sent and answered; the connection; the image."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nninteractive_ws import Box, PolledSession
from nninteractive_ws.client import events
from nninteractive_ws.errors import BadImage, BadJournal, Error
from nninteractive_ws.messages import Run

from . import geometry
from .status import Status, _, statusOf
from .work import QUIET_S

#: Storing the journal takes at most this part of the time.
_STORING = 0.05


@dataclass
class Request:
    """``send``: gives the command to the session's core and returns its number. ``mark``: the prompt's node.
    ``change``: what a hand has changed, where that is what is sent."""

    kind: str
    segment: str
    send: Callable[[Any], int] | None = None
    mark: Any = None
    change: Any = None


class Conversation:
    """See :class:`~NNInteractiveWSLib.logic.Logic`, whose part this is. ``work``: what is worked on, or None."""

    def __init__(self, agreed, clock):
        self._agreed, self._clock = agreed, clock
        self.status = Status()
        self.model = None
        self.session: PolledSession | None = None
        self.work = None
        self.server = {"address": "ws://127.0.0.1:1528", "token": None, "ca": None}
        self.options = {}
        self._storeAt = 0.0
        self._clear()

    def _clear(self):
        self._queue: deque[Request] = deque()
        self._requests: dict[int, Request] = {}
        self._counts: dict[str, int] = {}  # of each segment's history, the steps whose answers have been taken
        self._image = None  # the volume's voxels that the session was given
        self._uploading = False  # whether voxels are on their way
        self._begun = False  # whether the session knows them, and its segments are the scene's
        self._journal = None
        self._unstored = False

    # ---- commands -----------------------------------------------------------------------------------------------

    def say(self, state, words):
        """Tell the user; returns False, as what cannot be done does."""
        self.status = Status(state, words)
        return False

    def engage(self):
        """Whether there is a session, connected or on the way, that works on the volume."""
        try:
            voxels = geometry.volumeArray(self.work.volume)
            self.work.labelmaps.prepare()
            if not self.connect():
                return False
            self._useImage(voxels)
        except (ValueError, Error) as e:
            return self.say("error", str(e))
        return True

    def agree(self):
        """Whether the user agrees that images go to the server."""
        address = self.server["address"]
        if self._agreed(address):
            return True
        return self.say("idle", _("Nothing was sent: images go to {a} once you agree.").format(a=address))

    def connect(self):
        """Whether there is a session, connected or on the way; the user may not agree to one."""
        if self.session is not None:
            if self.session.core.resting:
                self.setOptions()  # it wakes for a request
            return True
        if not self.agree():
            return False
        try:
            self.session = PolledSession(clock=self._clock, **self.server)
        except Error as e:
            return self.say("error", str(e))
        self.say("connecting", _("Connecting to {address}").format(address=self.server["address"]))
        self.setOptions()
        return True

    def give(self, request):
        """Send a request as soon as it can be sent."""
        self._queue.append(request)
        self._flush(more=lambda: False)

    def cancel(self):
        """Stop all that was asked for and is not done."""
        for request in self._queue:
            self.work.prompts.remove(request.mark)
        self._queue.clear()
        for number in self._requests:
            self.session.core.cancel(number)

    def setOptions(self):
        """Tell the session the options, if there is one."""
        if self.session is not None and self.options:
            self._requests[self.session.core.set_options(**self.options)] = Request("options", "")

    def workOn(self, work):
        """Work on something else; what there was is left as it is without the prompts that have no answer yet."""
        self._settle()
        self.storeState()
        if self.session is not None:
            self.session.core.cancel()
        self._clear()
        self.work = work

    def disconnect(self):
        """End the session; the next prompt begins another one, which goes on where this one was."""
        work = self.work
        self.workOn(work)
        if self.session is not None:
            self.session.close()
            self.session = None

    def forgetSegment(self, name):
        """A segment was removed from the scene."""
        for request in [r for r in self._queue if r.segment == name]:
            self._queue.remove(request)
        for number in [n for n, r in self._requests.items() if r.segment == name]:
            self.session.core.cancel(number)
        if self._begun and name in self.session.core.segments:
            self._requests[self.session.core.remove_segment(name)] = Request("remove", name)
        self._counts.pop(name, None)
        self.work.forget(name)

    @property
    def busy(self):
        asked = any(request.kind != "options" for request in (*self._queue, *self._requests.values()))
        return asked or (self.work is not None and self.work.unwritten())

    @property
    def active(self):
        """Whether there is something to do with each poll, asked for or not: the image travels by itself."""
        connecting = self.session is not None and self.session.core.welcome is None
        return self.busy or connecting or self._uploading

    # ---- the timer ----------------------------------------------------------------------------------------------

    def poll(self, budget_s, mayPause):
        happened = [] if self.session is None else self._advance(budget_s)
        if mayPause:
            self._whileQuiet()
        return happened

    def _advance(self, budget_s):
        until = self._clock() + budget_s
        unwritten = self.work is not None and self.work.unwritten()
        try:
            # While there is something to be shown, each gets its half.
            happened = self.session.poll(budget_s / 2 if unwritten else budget_s)
        except BadImage as e:
            self._onBadImage(e)
            return []
        self._begin()
        changes: dict[str, tuple[Box, bool, bool]] = {}
        for event in happened:
            self._take(event, changes)
        self._write(changes)
        self._goOn(lambda: self._clock() < until)
        return happened

    def _goOn(self, more):
        if self.work is not None:
            self.work.proceed(self._clock(), more)
            self._flush(more)
            if self._begun:
                self.work.lookForHandEdits(more)

    def storeState(self):
        """Keep prompts and journal in the scene."""
        if self.work is not None and self._begun:
            self.work.proceed(self._clock())
            core = self.session.core
            names = {request.segment for request in self._requests.values()}
            self.work.store(core.journal(), [core.segments[name] for name in names & core.segments.keys()])
            self._unstored = False

    def _whileQuiet(self):
        """One thing at a time of what can wait until nothing else happens."""
        now = self._clock()
        if self.work is None or self.work.refreshSurface(now):
            return
        if self._unstored and not self.busy and now > self._storeAt:
            self.storeState()
            self._storeAt = self._clock() + QUIET_S + (self._clock() - now) / _STORING

    # ---- requests on their way ----------------------------------------------------------------------------------

    def _flush(self, more):
        """Send what waits, as far as it can be sent now; changes by hand go before."""
        while self._queue and self._begun and self.model is not None:
            request = self._queue[0]
            if not self._sendChangeByHand(request.segment, more):
                return
            self._queue.popleft()
            try:
                self._requests[request.send(self.session.core)] = request
            except Error as e:
                self.work.prompts.remove(request.mark)
                self.say("error", str(e))

    def _sendChangeByHand(self, name, more):
        """Whether the segment in the session is, or is becoming, what it is in the scene."""
        segments = self.work.segments
        if not segments.touchedByHand(name):
            return True
        if self.work.unwritten(name) or any(request.segment == name for request in self._requests.values()):
            return False  # what they do to the mask is not known yet
        if not segments.lookForHandEdits(name, more):
            return False
        change = segments.changedByHand(name)
        if change is not None:
            flips = segments.flipsByHand(name)
            number = self.session.core.flip_mask(name, flips.flips, box=flips.box)
            self._requests[number] = Request("hand", name, change=change)
            segments.acceptByHand(name, change)
        return True

    def _settle(self):
        """Let the scene be without what unanswered requests have shown so far."""
        for name in {request.segment for request in self._requests.values()}:
            segment = self.session.core.segments.get(name)
            if self._begun and segment is not None:
                self.work.settle(segment)
        if self.work is not None:
            self.work.proceed(self._clock())
        for request in [*self._queue, *self._requests.values()]:
            if request.mark is not None:
                self.work.prompts.remove(request.mark)

    # ---- connecting ---------------------------------------------------------------------------------------------

    def _useImage(self, voxels):
        """Let the session have the volume's voxels as they are now. Raises BadImage."""
        scalars = self.work.volume.GetImageData().GetPointData().GetScalars()
        image = (scalars, scalars.GetMTime())
        if image == self._image:
            return
        if self._image is not None:
            work = self.work
            self.workOn(work)
            work.forgetPrompts()
            self.say("ready", _("The volume has changed: its segments stay, their prompts are forgotten."))
        try:
            self._journal = self.work.keptJournal()
        except BadJournal as e:
            self.work.forgetPrompts()
            self.say("ready", str(e))
        self._before = self.session.core.image
        self.session.set_image(voxels, self._journal)
        self._image, self._uploading = image, True

    def _onBadImage(self, error):
        self._image, self._uploading = None, False
        if self._journal is None:
            self.cancel()
            self.say("error", str(error))
            return
        self._journal = None
        self.work.forgetPrompts()
        self.say("ready", _("The prompts kept in the scene are of another image, and are forgotten."))
        self.engage()

    def _begin(self):
        """Once the session knows the image: its journal's segments and the scene's are the same."""
        core = self.session.core
        if self._begun or self._image is None or core.image is None or core.image is self._before:
            return
        self._begun = True
        for name, segment in list(core.segments.items()):
            if self.work.labelmaps.has(name):
                self.work.segments.expect(name, segment.mask, segment.extent)
                self._syncMarks(name)
            else:
                self._requests[core.remove_segment(name)] = Request("remove", name)

    # ---- what the session says ----------------------------------------------------------------------------------

    def _take(self, event, changes):
        said = statusOf(event)
        if said is not None and not self._isAside(event):
            self.status = said
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

    def _isAside(self, event):
        """Whether an event is not what the user waits for."""
        if isinstance(event, events.ImageProgress):
            return self.busy
        number = event.result.request if isinstance(event, events.Done) else getattr(event, "request", None)
        # The image's answer has no number here, and what another selection left behind has none any more.
        return number is not None and number not in self._requests and self.session.core.image is not None

    def _onConnection(self, event):
        if event.state == "open":
            self.model = event.welcome.model
        elif event.state == "closed":
            status = self.status
            self.disconnect()
            self.status = status

    def _onMaskDelta(self, event, changes):
        request = self._requests.get(event.request)
        box, before, _preview = changes.get(event.segment, (None, False, False))
        undoing = before or request is None or request.kind in ("undo", "redo")
        changes[event.segment] = event.box.union(box), undoing, not event.final

    def _write(self, changes):
        unanswered = {request.segment for request in self._requests.values()}
        for name, (box, undoing, preview) in changes.items():
            segment = self.session.core.segments.get(name) if self._begun else None
            if segment is not None:
                # A preview that came together with its answer was the result.
                isPreview = preview and name in unanswered
                self.work.write(name, box, segment.mask, undoing=undoing, preview=isPreview)

    def _onDone(self, request):
        if request is None or request.kind in ("options", "remove") or not self.work.labelmaps.has(request.segment):
            return
        name = request.segment
        self._unstored = True
        self.work.showAsPreview(name, False)
        if request.kind in ("undo", "redo"):
            self._counts[name] = self._counts.get(name, 0) + (-1 if request.kind == "undo" else 1)
        elif request.kind != "run" or self._ranLast(name):
            number = self._counts.get(name, 0)
            self._counts[name] = number + 1
            self.work.prompts.append(name, number, request.mark)
        if not any(r.segment == name for r in self._requests.values()):
            self._syncMarks(name)

    def _ranLast(self, name):
        """Whether the last step is a run: where no prompt waits, a run is no step."""
        segment = self.session.core.segments.get(name)
        return segment is not None and bool(segment.steps) and isinstance(segment.steps[-1].request, Run)

    def _syncMarks(self, name):
        segment = self.session.core.segments.get(name)
        if segment is not None:
            self._counts[name] = len(segment.steps)
            self.work.syncMarks(segment)

    def _onFailed(self, number):
        request = self._requests.pop(number, None)
        if request is None:
            if self.session.core.image is None:  # it was refused
                self._image, self._begun, self._uploading = None, False, False
                self.cancel()
        elif request.kind not in ("options", "remove"):
            self.work.showAsPreview(request.segment, False)
            self.work.prompts.remove(request.mark)
            if request.kind == "hand":
                self.work.segments.refuseByHand(request.segment, request.change)
