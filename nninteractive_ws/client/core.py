"""The client without I/O: commands and frames in, frames and events out; the clock is passed in.

A driver calls :meth:`Core.start`, sends what :meth:`Core.next_control` and :meth:`Core.next_brick` give, in
this order of preference, and passes every frame that comes to :meth:`Core.receive`. The core keeps the
journal: of every segment the prompts in order, what each changed, and the mask. When a connection was lost,
:meth:`Core.start` begins another one: it takes the session up again, or brings one back that the server no
longer has. Commands may be given at any time; without a connection they wait for the next one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
import time
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from nninteractive_ws import arrays, masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.given import Boxlike, box_inside, marked, middle, voxel
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.upload import ImageSource, Upload
from nninteractive_ws.errors import (
    AtCapacity,
    BadMessage,
    Cancelled,
    Error,
    InvalidRequest,
    NoImage,
    OutOfMemory,
    TooLarge,
    UnsupportedPrompt,
    WorkerLost,
    error_from_wire,
)
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.history import Segment, make_step
from nninteractive_ws.masks import NO_CHANGE, Delta
from nninteractive_ws.messages import Encoding

#: A request during which the server's worker ended this often may be the reason, and is not sent again.
_MOST_LOSSES = 2
# Errors of a server that may refuse a segment's history and still accept its mask.
_HISTORY_REFUSED = UnsupportedPrompt | OutOfMemory | AtCapacity | TooLarge


@dataclass
class _Waiting:
    """A request without its answer yet.

    ``number``: the id the user knows, also after it was sent again under another; None for the core's own
    requests. ``image``: the image it is about. ``base``: the segment's revision before the first of its changes.
    """

    number: int | None
    request: wire.Request
    image: ImageSource | None
    change: Delta = NO_CHANGE
    base: int | None = None
    cancelled: bool = False
    losses: int = 0

    @property
    def segment(self) -> str | None:
        return getattr(self.request, "segment", None)


class Core:
    """See the module. ``encodings``: what this client can unpack, the preferred first. ``make_room``: whether the
    server may forget sessions of others for this one's sake."""

    def __init__(
        self,
        *,
        encodings: Sequence[Encoding] = arrays.ENCODINGS,
        clock: Callable[[], float] = time.monotonic,
        make_room: bool = True,
    ) -> None:
        self._encodings, self._clock, self._make_room = tuple(encodings), clock, make_room
        self._control: deque[bytes] = deque()
        self._waiting: dict[int, _Waiting] = {}
        self._last_id = 0
        self._upload: Upload | None = None
        self._stale: set[str] = set()  # segments whose snapshot is awaited
        self._options: wire.SetOptions | None = None
        self._session: tuple[str, str] | None = None  # its name and secret, to take it up again
        self._evicted = False
        self._later: list[Event] = []  # what happened between two frames, to be told with the next
        self._held: dict[str, list[Event]] = {}  # answers about segments whose snapshot is awaited
        self.welcome: wire.Welcome | None = None
        self.image: ImageSource | None = None
        self.segments: dict[str, Segment] = {}

    # ---- frames -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a connection: the first, or another after one was lost."""
        self._control.clear()
        self.welcome = None
        self._upload = None
        self._evicted = False
        for waiting in self._waiting.values():
            self._later += self._take_back(waiting)
        for name in self._stale:
            self._later.append(self._rebuild(self.segments[name]))
        session, secret = self._session or (None, None)
        hello = wire.Hello(
            version=protocol.PROTOCOL_VERSION,
            client=f"nninteractive-ws {version('nninteractive-ws')}",
            features=list(protocol.FEATURES),
            encodings=list(self._encodings),
            session=session,
            secret=secret,
            make_room=self._make_room,
        )
        self._control.append(protocol.encode(hello))

    @property
    def asked(self) -> int:
        """How many requests there have been: whoever makes another wants a connection now, not when it is due."""
        return self._last_id

    @property
    def resting(self) -> bool:
        """Whether no connection is needed before the next request: the server gave the session's room to another."""
        return self._evicted and not self._waiting

    def next_control(self) -> bytes | None:
        """The next frame that is not a part of the image, or None."""
        return self._control.popleft() if self._control else None

    def next_brick(self) -> Callable[[], bytes] | None:
        """The making of the next frame with a part of the image, a few milliseconds of work, or None for now."""
        indices = self._upload.next() if self._upload is not None else []
        if not indices or self.image is None or self.welcome is None:
            return None
        source, encoding = self.image, self.welcome.encoding

        def make() -> bytes:
            bricks = [source.brick(index, encoding) for index in indices]
            return protocol.encode(wire.ImageBricks(image=source.name, bricks=bricks))

        return make

    def receive(self, data: bytes) -> list[Event]:
        """Take a frame; what the user should know of it. Raises BadMessage or TooLarge."""
        message = protocol.decode_server(data)
        handle = None if message is None else self._HANDLERS.get(type(message))
        try:
            happened = [] if handle is None else handle(self, message)
        except (ValueError, InvalidRequest) as e:
            raise BadMessage(f"The server sent a {type(message).__name__} that does not fit: {e}") from e
        earlier, self._later = self._later, []
        return earlier + happened

    # ---- commands: each returns the request's number ------------------------------------------------------

    def set_image(self, source: ImageSource, journal: Journal | None = None) -> int:
        """Announce an image; its bricks follow. All segments are forgotten, and unanswered requests cancelled:
        they may wait for bricks of an image that will never come. ``journal``: brings its segments back.

        Raises BadImage where the journal is of another image, BadJournal where it is damaged.
        """
        kept = {} if journal is None else journal.segments_of(source)
        self.cancel()
        self._use(source)
        number = self._request(self._announcement(source))
        for segment in kept.values():
            self.segments[segment.name] = segment
            self._post(self._restoration(segment), None)
        return number

    def journal(self) -> Journal:
        """What is needed to go on with this image another day, but for the image. Raises NoImage.

        Requests that have no answer yet are not in it.
        """
        if self.image is None:
            raise NoImage("There is no image yet, and so nothing to keep.")
        return Journal.of(self.image, [s for s in self.segments.values() if not s.is_empty])

    def add_point(self, segment: str, point: Sequence[float], *, positive: bool = True, run: bool = True) -> int:
        """A click on the voxel ``point`` (i, j, k). Raises NoImage or OutOfBounds."""
        index = voxel(point, self._shape())
        message = wire.AddPoint(id=self._next_id(), segment=segment, point=index, positive=positive, run=run)
        return self._prompt(message, index)

    def add_bbox(self, segment: str, box: Boxlike, *, positive: bool = True, run: bool = True) -> int:
        """A half-open box ((i0, i1), (j0, j1), (k0, k1)). Raises NoImage or OutOfBounds."""
        checked = box_inside(box, self._shape())
        message = wire.AddBbox(id=self._next_id(), segment=segment, box=checked.pairs, positive=positive, run=run)
        return self._prompt(message, middle(checked))

    def add_scribble(
        self,
        segment: str,
        mask: npt.ArrayLike,
        *,
        box: Boxlike | None = None,
        positive: bool = True,
        run: bool = True,
    ) -> int:
        """Strokes: a mask of the volume's shape, or of ``box``'s. Raises NoImage, OutOfBounds, UnsupportedPrompt."""
        return self._add_strokes(wire.AddScribble, segment, mask, box, positive, run)

    def add_lasso(
        self,
        segment: str,
        mask: npt.ArrayLike,
        *,
        box: Boxlike | None = None,
        positive: bool = True,
        run: bool = True,
    ) -> int:
        """A filled outline: a mask of the volume's shape, or of ``box``'s. Raises as :meth:`add_scribble`."""
        return self._add_strokes(wire.AddLasso, segment, mask, box, positive, run)

    def set_mask(
        self,
        segment: str,
        mask: npt.ArrayLike,
        *,
        box: Boxlike | None = None,
        run: bool = False,
    ) -> int:
        """Replace the segment's mask; empty outside ``box``. Raises as above."""
        return self._set_mask(segment, mask, box, run=run)

    def flip_mask(self, segment: str, flips: npt.ArrayLike, *, box: Boxlike | None = None) -> int:
        """Change the segment's mask where ``flips`` is set, as somebody did by hand: only that travels. It is a step
        as :meth:`set_mask` is, and changes the mask as it is after the requests before. Raises as above."""
        return self._set_mask(segment, flips, box, flip=True)

    def run(self, segment: str) -> int:
        """Predict from the prompts added with ``run`` false."""
        return self._request(wire.Run(id=self._next_id(), segment=segment))

    def undo(self, segment: str) -> int:
        """Take back the last step."""
        return self._request(wire.Undo(id=self._next_id(), segment=segment))

    def redo(self, segment: str) -> int:
        """Do again what was taken back last."""
        return self._request(wire.Redo(id=self._next_id(), segment=segment))

    def reset(self, segment: str) -> int:
        """Empty the segment and forget its prompts; it can be undone."""
        return self._request(wire.Reset(id=self._next_id(), segment=segment))

    def remove_segment(self, segment: str) -> int:
        """Forget a segment with its history."""
        return self._request(wire.RemoveSegment(id=self._next_id(), segment=segment))

    def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> int:
        """Change how the session predicts; None leaves as it is."""
        return self._request(wire.SetOptions(id=self._next_id(), autozoom=autozoom, previews=previews))

    def cancel(self, request: int | None = None) -> None:
        """Stop one request, or all. Each is answered: done, or an error that says it was cancelled."""
        for sent, waiting in self._waiting.items():
            if waiting.number is not None and request in (None, waiting.number):
                waiting.cancelled = True
                self._send(wire.Cancel(request=sent))

    def bye(self) -> None:
        """Tell the server that the session need not be kept."""
        self._send(wire.Bye())

    def segment(self, name: str) -> Segment:
        """The segment of a name, made where it is not there. Raises NoImage."""
        if name not in self.segments:
            # In one step, because another thread may look at the segment's mask for the first time.
            self.segments.setdefault(name, Segment.empty(name, self._shape()))
        return self.segments[name]

    @property
    def segment_names(self) -> list[str]:
        """The names of the segments. One exists from the first preview of its first prompt on."""
        return [name for name, segment in list(self.segments.items()) if segment.revision or not segment.is_empty]

    @property
    def waiting(self) -> list[int]:
        """The numbers of the user's requests that have no answer yet."""
        return [w.number for w in self._waiting.values() if w.number is not None]

    # ---- making requests ----------------------------------------------------------------------------------

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _send(self, message: wire.Message) -> None:
        if self.welcome is not None:
            self._control.append(protocol.encode(message))

    def _request(self, request: wire.Request) -> int:
        self._post(request, request.id)
        return request.id

    def _post(self, request: wire.Request, number: int | None, losses: int = 0) -> None:
        self._waiting[request.id] = _Waiting(number, request, self.image, losses=losses)
        self._send(request)

    def _set_mask(self, segment: str, mask: npt.ArrayLike, box: Boxlike | None, **how: bool) -> int:
        given = marked(mask, box, self._shape())
        if given.box is None:
            # What is empty has no smallest box; any voxel says as much.
            given = Delta(Box((0, 0, 0), (1, 1, 1)), np.zeros((1, 1, 1), bool))
        assert given.box is not None
        bits = masks.pack(given, self._encoding())
        return self._prompt(wire.SetMask(id=self._next_id(), segment=segment, mask=bits, **how), middle(given.box))

    def _prompt(self, request: wire.Request, focus: Index) -> int:
        if self._upload is not None:
            self._upload.look_at(focus)
        return self._request(request)

    def _use(self, image: ImageSource | None) -> None:
        self.image = image
        self.segments.clear()
        self._later += self._trust_all()
        self._begin_upload()

    def _begin_upload(self) -> None:
        self._upload = None
        if self.image is not None and self.welcome is not None:
            self._upload = Upload(self.image.grid, self.welcome.limits.unacknowledged_bricks, self._clock)

    def _announcement(self, source: ImageSource) -> wire.SetImage:
        return wire.SetImage(
            id=self._next_id(),
            image=source.name,
            shape=source.grid.shape,
            dtype=source.dtype,  # type: ignore[arg-type]
            mean=source.statistics.mean,
            std=source.statistics.std,
        )

    def _encoding(self) -> Encoding:
        return self.welcome.encoding if self.welcome is not None else self._encodings[0]

    def _shape(self) -> Index:
        if self.image is None:
            raise NoImage("There is no image yet: call set_image before the first prompt.")
        return self.image.grid.shape

    def _add_strokes(
        self,
        kind: type[wire.AddScribble | wire.AddLasso],
        segment: str,
        mask: npt.ArrayLike,
        box: Boxlike | None,
        positive: bool,
        run: bool,
    ) -> int:
        strokes = marked(mask, box, self._shape())
        if strokes.box is None:
            raise UnsupportedPrompt("The scribble or lasso is empty: it marks no voxel.")
        bits = masks.pack(strokes, self._encoding())
        message = kind(id=self._next_id(), segment=segment, mask=bits, positive=positive, run=run)
        return self._prompt(message, middle(strokes.box))

    # ---- messages -----------------------------------------------------------------------------------------

    def _on_welcome(self, message: wire.Welcome) -> list[Event]:
        self.welcome = message
        self._session = message.session, message.secret
        happened: list[Event] = [events.Connection("open", message)]
        return happened + (self._go_on(message) if message.resumed else self._start_anew())

    def _go_on(self, welcome: wire.Welcome) -> list[Event]:
        """Take up the session: what has no answer is sent again as it was, and what differs is put right."""
        for sent, waiting in self._waiting.items():
            self._send(waiting.request)
            if waiting.cancelled:
                self._send(wire.Cancel(request=sent))
        self._begin_upload()
        if self.image is None or welcome.image != self.image.name or self._upload is None:
            return []  # the set_image that is on its way brings what is missing
        self._upload.acknowledged(self._upload.bricks_in(welcome.bricks))
        if not any(isinstance(w.request, wire.SetImage) for w in self._waiting.values()):
            self._compare_segments(welcome.revisions)
        return []

    def _compare_segments(self, revisions: dict[str, int]) -> None:
        """Where a request has no answer yet, the answer will tell."""
        unsettled = {w.segment for w in self._waiting.values()} | self._stale
        for segment in [s for s in self.segments.values() if s.name not in unsettled and not s.is_empty]:
            if segment.name not in revisions:
                self._post(self._restoration(segment), None)
            elif revisions[segment.name] != segment.revision:
                self._ask_for_snapshot(segment)

    def _start_anew(self) -> list[Event]:
        """Bring everything back into a new session, and then send what has no answer, under new ids."""
        happened = self._trust_all()
        unanswered, self._waiting = [w for w in self._waiting.values() if w.number is not None], {}
        if self._options is not None:
            self._post(_renumbered(self._options, self._next_id()), None)
        if self.image is not None:
            self._bring_back(self.image, unanswered)
        for waiting in unanswered:
            if (error := self._why_not_again(waiting)) is not None:
                happened.append(events.Failed(waiting.number, error))
            elif not isinstance(waiting.request, wire.SetImage):
                self._post(_renumbered(waiting.request, self._next_id()), waiting.number, waiting.losses)
        return happened

    def _bring_back(self, image: ImageSource, unanswered: list[_Waiting]) -> None:
        """Announce the image, for the ``set_image`` that has no answer yet if there is one, and restore."""
        mine = (w for w in unanswered if isinstance(w.request, wire.SetImage) and not self._is_obsolete(w))
        self._begin_upload()
        self._post(self._announcement(image), next((w.number for w in mine), None))
        for segment in self.segments.values():
            if not segment.is_empty:
                self._post(self._restoration(segment), None)

    def _is_obsolete(self, waiting: _Waiting) -> bool:
        """Whether the request is about an image that has been replaced."""
        return waiting.image is not self.image and not isinstance(waiting.request, wire.SetOptions)

    def _why_not_again(self, waiting: _Waiting) -> Error | None:
        """Why a request that was not answered before the connection was lost is not to be sent again."""
        if self._is_obsolete(waiting):
            return Cancelled("The connection was lost during the request, and its image has been replaced since.")
        if waiting.cancelled and not isinstance(waiting.request, wire.SetImage):
            return Cancelled("The request was cancelled, and the connection lost; the segment is as it was before.")
        if waiting.losses >= _MOST_LOSSES and not isinstance(waiting.request, wire.SetImage):
            return WorkerLost(
                f"The server's computing process has ended {waiting.losses} times during this request, which may be "
                "the reason; it is not tried again. The segment is as it was before."
            )
        return None

    def _on_image_progress(self, message: wire.ImageProgress) -> list[Event]:
        if self.image is None or message.image != self.image.name or self._upload is None:
            return []
        self._upload.acknowledged(message.received)
        return [events.ImageProgress(message.present, message.total)]

    def _on_progress(self, message: wire.Progress) -> list[Event]:
        waiting = self._waiting.get(message.id)
        if waiting is None or self._is_obsolete(waiting):
            return []
        if message.box is not None and self._upload is not None:
            self._upload.need(Box.from_pairs(message.box))
        if waiting.number is None:
            return []
        return [events.Progress(waiting.number, waiting.segment, message.state, message.n, message.m)]

    def _on_mask_delta(self, message: wire.MaskDelta) -> list[Event]:
        waiting = self._waiting.get(message.request)
        if waiting is None or self._is_obsolete(waiting) or message.segment in self._stale:
            return []
        self._check_segment(message.segment, waiting)
        segment = self.segment(message.segment)
        if message.base_rev != segment.revision:
            return self._ask_for_snapshot(segment)
        change = masks.unpack(message.change, self._shape())
        assert change.box is not None
        masks.apply(change, segment.mask)
        if masks.checksum(segment.mask, change.box) != message.checksum:
            return self._ask_for_snapshot(segment)
        waiting.base = segment.revision if waiting.base is None else waiting.base
        segment.revision, segment.voxels = message.rev, message.voxels
        waiting.change = masks.compose(waiting.change, change)
        return [_mask_event(segment, waiting, change.box, message.final)]

    def _on_mask_snapshot(self, message: wire.MaskSnapshot) -> list[Event]:
        waiting = self._waiting.get(message.request)
        if waiting is None or self._is_obsolete(waiting):
            return []
        self._check_segment(message.segment, waiting)
        segment = self.segment(message.segment)
        segment.mask[...] = False
        if message.mask is not None:
            masks.apply(masks.unpack(message.mask, self._shape()), segment.mask)
        segment.revision, segment.voxels = message.rev, message.voxels
        segment.reconcile(self._encoding())
        return [
            _mask_event(segment, waiting, Box.whole(self._shape()), final=True),
            *self._trust(segment.name),
        ]

    def _check_segment(self, name: str, waiting: _Waiting) -> None:
        if name != waiting.segment:
            raise BadMessage(f'The server answered a request about segment "{waiting.segment}" with one "{name}".')

    def _trust(self, segment: str) -> list[Event]:
        """The mask of a segment is right again, or nobody asks for it: the answers that were held back."""
        self._stale.discard(segment)
        return self._held.pop(segment, [])

    def _trust_all(self) -> list[Event]:
        return [event for segment in list(self._stale) for event in self._trust(segment)]

    def _compare_revisions(self, done: wire.Done) -> None:
        """Notice that the last change of all is missing, which no other change would show."""
        segment = self.segments.get(done.segment or "")
        if segment is not None and segment.revision != done.revision and segment.name not in self._stale:
            self._ask_for_snapshot(segment)

    def _ask_for_snapshot(self, segment: Segment) -> list[Event]:
        self._stale.add(segment.name)
        self._post(wire.GetMask(id=self._next_id(), segment=segment.name), None)
        return []

    def _on_done(self, message: wire.Done) -> list[Event]:
        waiting = self._waiting.pop(message.id, None)
        if waiting is None:
            return []
        self._record(waiting)
        if not self._is_obsolete(waiting):
            self._compare_revisions(message)
        if waiting.number is None:
            return []
        changed = None if message.changed is None else Box.from_pairs(message.changed)
        result = events.Result(
            waiting.number, message.segment, changed, message.voxels, message.revision, message.timings
        )
        done = events.Done(result)
        if message.segment is not None and message.segment in self._stale:
            self._held.setdefault(message.segment, []).append(done)  # who is told looks at the mask
            return []
        return [done]

    def _on_error(self, message: wire.ErrorMessage) -> list[Event]:
        error = error_from_wire(message.code, message.message)
        if message.id is None:
            if isinstance(error, WorkerLost) and self._waiting:
                next(iter(self._waiting.values())).losses += 1  # requests are done in turn: it was this one's
            return [events.Failed(None, error)]
        waiting = self._waiting.pop(message.id, None)
        if waiting is None:
            return []
        self._forget_if_empty(waiting)
        if isinstance(waiting.request, wire.GetMask):
            return self._trust(waiting.request.segment)  # the next change of the segment asks again
        if isinstance(waiting.request, wire.Restore):
            return self._restore_the_mask(waiting, error)
        if isinstance(waiting.request, wire.SetImage) and not self._is_obsolete(waiting):
            if waiting.number is None:
                self._session = None  # it has no image and is of no use; the next may have room
            else:
                self._use(None)
        return [events.Failed(waiting.number, error)]

    def _forget_if_empty(self, waiting: _Waiting) -> None:
        """Reset a segment whose first request failed, because the server has no such segment. Its empty mask stays the
        same array, because the user may hold it."""
        segment = self.segments.get(waiting.segment or "")
        if segment is not None and segment.is_empty and isinstance(waiting.request, wire.SetMask | wire.Prompt):
            segment.revision = 0

    def _restore_the_mask(self, waiting: _Waiting, error: Error) -> list[Event]:
        """Another server may not know the prompts of a segment's history, or have no memory for it; its mask can be
        brought back anyway."""
        segment = self.segments.get(waiting.segment or "")
        if segment is None or self._is_obsolete(waiting) or not isinstance(error, _HISTORY_REFUSED):
            return [events.Failed(None, error)]
        if segment.is_flat:
            return [events.Failed(None, error)]
        # Before the requests that follow: they are about the segment, and wait for nothing.
        notice = self._flatten(segment, str(error))
        self._post(self._restoration(segment), None)
        return [notice]

    def _flatten(self, segment: Segment, why: str) -> Event:
        segment.flatten(self._encoding())
        sentence = f'The prompts of segment "{segment.name}" cannot be used on this server ({why}); its mask is kept.'
        return events.Notice("warning", sentence)

    def _on_notice(self, message: wire.Notice) -> list[Event]:
        self._evicted = self._evicted or message.code == "evicted"
        return [events.Notice(message.code, message.message)]

    _HANDLERS: ClassVar[dict[type, Callable[["Core", Any], list[Event]]]] = {
        wire.Welcome: _on_welcome,
        wire.ImageProgress: _on_image_progress,
        wire.Progress: _on_progress,
        wire.MaskDelta: _on_mask_delta,
        wire.MaskSnapshot: _on_mask_snapshot,
        wire.Done: _on_done,
        wire.ErrorMessage: _on_error,
        wire.Notice: _on_notice,
    }

    # ---- the journal --------------------------------------------------------------------------------------

    def _record(self, waiting: _Waiting) -> None:
        """Make the history what the server's is after a request was done."""
        request = waiting.request
        if self._is_obsolete(waiting) or isinstance(request, wire.SetImage | wire.Restore | wire.GetMask):
            return
        if isinstance(request, wire.SetOptions):
            self._options = request if self._options is None else _merged(self._options, request)
            return
        if isinstance(request, wire.RemoveSegment):
            self.segments.pop(request.segment, None)
            self._later += self._trust(request.segment)
            return
        segment = self.segment(request.segment)
        is_fresh = segment.name not in self._stale
        if isinstance(request, wire.Undo | wire.Redo):
            segment.credit_move(isinstance(request, wire.Undo), waiting.change, is_fresh, self._encoding())
        elif not isinstance(request, wire.Run) or segment.pending():
            segment.append(make_step(request, waiting.change, self._encoding()))

    def _take_back(self, waiting: _Waiting) -> list[Event]:
        """Undo what previews of an unanswered request have changed: they come again."""
        change, base, waiting.change, waiting.base = waiting.change, waiting.base, NO_CHANGE, None
        segment = self.segments.get(waiting.segment or "")
        if segment is None or base is None or self._is_obsolete(waiting):
            return []
        segment.flip(change)
        segment.revision = base
        return [] if change.box is None else [_mask_event(segment, waiting, change.box, final=True)]

    def _rebuild(self, segment: Segment) -> Event:
        """Let a mask that cannot be trusted be what its history adds up to."""
        segment.rebuild()
        whole = Box.whole(self._shape())
        return events.MaskDelta(None, segment.name, whole, segment.revision, segment.voxels, True)

    def _restoration(self, segment: Segment) -> wire.Restore:
        most = protocol.MAX_MESSAGE_BYTES if self.welcome is None else self.welcome.limits.message_bytes
        if segment.memory > most and not segment.is_flat:
            why = f"its history of {segment.memory:,} bytes is more than the {most:,} of a message"
            self._later.append(self._flatten(segment, why))
        return wire.Restore(
            id=self._next_id(),
            segment=segment.name,
            revision=segment.revision,
            steps=list(segment.steps),
            undone=list(segment.undone),
        )


def _renumbered(request: wire.Request, new: int) -> wire.Request:
    return msgspec.structs.replace(request, id=new)


def _merged(old: wire.SetOptions, new: wire.SetOptions) -> wire.SetOptions:
    changed = {name: value for name in ("autozoom", "previews") if (value := getattr(new, name)) is not None}
    return msgspec.structs.replace(old, **changed)


def _mask_event(segment: Segment, waiting: _Waiting, box: Box, final: bool) -> Event:
    return events.MaskDelta(waiting.number, segment.name, box, segment.revision, segment.voxels, final)
