"""The client without I/O: commands and frames in, frames and events out; the clock is passed in.

A driver calls :meth:`Core.start`, sends the frames of :meth:`Core.next_control` and :meth:`Core.next_brick`, in
this order of preference, and passes every received frame to :meth:`Core.receive`. The core keeps the history of each
segment: the prompts in order, their changes, and the mask. After a connection was lost, :meth:`Core.start` begins
another one: it resumes the session, or restores it if the server no longer has it. Commands may be given at any time;
without a connection they wait for the next one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
import time
from typing import Any, ClassVar

import msgspec
import numpy as np

from nninteractive_ws import arrays, masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.array_like import ArrayLike
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.inputs import Boxlike, box_inside, middle, to_index, to_mask
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.link import Link
from nninteractive_ws.client.ownership import Owner
from nninteractive_ws.client.upload import Upload
from nninteractive_ws.errors import (
    AtCapacity,
    BadMessage,
    Cancelled,
    ConnectionFailed,
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

#: A request during which the worker ended this often may be the cause. It is not sent again.
_MAX_LOSSES = 2
# After these errors of a restore, the server may still accept the mask without its history.
_HISTORY_REFUSED = UnsupportedPrompt | OutOfMemory | AtCapacity | TooLarge


@dataclass
class _PendingRequest:
    """A request without an answer.

    ``number``: the id that the user knows, also after it was sent again under another id; None for the core's own
    requests. ``generation``: number of its image. ``base``: the segment's revision before the request's first change.
    ``awaited``: the region of the image for which it waits, has waited, or probably will.
    ``base_layers_suffice``: whether it waits for base layers. ``focus``: the voxel of a prompt.
    """

    number: int | None
    request: wire.Request
    generation: int
    change: Delta = NO_CHANGE
    base: int | None = None
    cancelled: bool = False
    losses: int = 0
    awaited: Box | None = None
    base_layers_suffice: bool = False
    focus: Index | None = None

    @property
    def segment(self) -> str | None:
        return getattr(self.request, "segment", None)


class Core:
    """The protocol's client side, without I/O.

    ``encodings``: array encodings that this client can unpack, the preferred first. ``brick_encoding``: the encoding of
    bricks; None: the one that client and server agree on. ``clock``: returns seconds. ``allow_eviction``: whether the
    server may evict other sessions for this one.
    """

    def __init__(
        self,
        *,
        encodings: Sequence[Encoding] = arrays.ENCODINGS,
        brick_encoding: Encoding | None = None,
        clock: Callable[[], float] = time.monotonic,
        allow_eviction: bool = True,
    ) -> None:
        self._encodings, self._brick_encoding = tuple(encodings), brick_encoding
        self._clock, self._allow_eviction = clock, allow_eviction
        self._control: deque[bytes] = deque()
        self._pending: dict[int, _PendingRequest] = {}
        self._last_id = 0
        self._upload: Upload | None = None
        self._link = Link()
        self._focus: Index | None = None  # of the user, in the image now
        # Number of the image now. The same image gets another one if it is set again, which drops its segments.
        self._generation = 0
        self._stale: set[str] = set()  # segments with a pending snapshot
        self._options: wire.SetOptions | None = None
        self._session: tuple[str, str] | None = None  # its id and secret, for resuming it
        self._evicted = False
        self._deferred: list[Event] = []  # events that the next call of receive() returns
        # Answers held back while a snapshot of their segment is pending, by segment.
        self._held_answers: dict[str, list[Event]] = {}
        #: The process of the session. Requests in a forked child raise ConnectionFailed.
        self.owner = Owner()
        self.welcome: wire.Welcome | None = None
        #: Error that ended this connection, or None. A driver then closes the connection.
        self.ended: Error | None = None
        self.image: ImageSource | None = None
        self.segments: dict[str, Segment] = {}

    # ---- frames -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a connection: the first, or another after one was lost."""
        self._control.clear()
        self.welcome = self.ended = self._upload = None
        self._link = Link()
        self._evicted = False
        for pending in self._pending.values():
            self._deferred += self._revert_previews(pending)
        for name in self._stale:
            self._deferred.append(self._rebuild(self.segments[name]))
        session, secret = self._session or (None, None)
        hello = wire.Hello(
            version=protocol.PROTOCOL_VERSION,
            client=f"nninteractive-ws {version('nninteractive-ws')}",
            features=list(protocol.FEATURES),
            encodings=list(self._encodings),
            session_id=session,
            session_secret=secret,
            allow_eviction=self._allow_eviction,
        )
        self._control.append(protocol.encode(hello))

    @property
    def request_count(self) -> int:
        """Number of requests so far. A new one cuts the back-off of a reconnection short."""
        return self._last_id

    @property
    def is_dormant(self) -> bool:
        """Whether the session was evicted, so that it needs no connection before the next request."""
        return self._evicted and not self._pending

    def next_control(self) -> bytes | None:
        """Return the next frame that is no part of the image, or None."""
        return self._control.popleft() if self._control else None

    def next_brick(self) -> Callable[[], bytes] | None:
        """Return a function that builds the next image frame in a few milliseconds, or None."""
        source, upload, welcome = self.image, self._upload, self.welcome
        if source is None or upload is None or welcome is None:
            return None
        parts = upload.next(self._may_send_layers(source, welcome))
        if not parts:
            return None
        encoding, compression = self._brick_encoding or welcome.encoding, upload.compression

        def make() -> bytes:
            bricks = [source.brick(part, encoding, compression) for part in parts]
            frame = protocol.encode(wire.ImageBricks(image=source.name, bricks=bricks))
            upload.sent(parts, len(frame), compression)
            return frame

        return make

    def _may_send_layers(self, source: ImageSource, welcome: wire.Welcome) -> bool:
        """Whether bricks may be sent in layers, which is of use for previews alone."""
        wants_previews = self._options is None or self._options.previews is not False
        # The server forgets base layers when a set_image arrives, and those of another image when it handles it.
        announced = not any(isinstance(pending.request, wire.SetImage) for pending in self._pending.values())
        return wants_previews and announced and source.low_bits > 0 and protocol.LAYERED_BRICKS in welcome.features

    def receive(self, data: bytes) -> list[Event]:
        """Handle a frame, and return its events. It may set ``ended``. Raises BadMessage or TooLarge."""
        message = protocol.decode_server(data)
        handle = None if message is None else self._HANDLERS.get(type(message))
        try:
            emitted = [] if handle is None else handle(self, message)
        except (ValueError, InvalidRequest) as e:
            raise BadMessage(f"The server sent an inconsistent {type(message).__name__}: {e}") from e
        earlier, self._deferred = self._deferred, []
        return earlier + emitted

    # ---- commands: each returns the number of its request ------------------------------------------------------

    def set_image(self, source: ImageSource, journal: Journal | None = None) -> int:
        """Announce an image; its bricks follow. Remove all segments, and restore those of ``journal``.

        Pending requests are cancelled, because they may wait for bricks of the old image. Raises BadImage if the
        journal belongs to another image, and BadJournal if it is damaged.
        """
        kept = {} if journal is None else journal.segments_of(source)
        self.cancel()
        self._replace_image(source)
        number = self._request(self._announcement(source))
        for segment in kept.values():
            self.segments[segment.name] = segment
            self._enqueue(self._restore_message(segment), None)
        return number

    def journal(self) -> Journal:
        """Return prompts and masks, to continue another day. Pending requests are left out. Raises NoImage."""
        if self.image is None:
            raise NoImage("There is no image, so there is nothing to save.")
        return Journal.of(self.image, [s for s in self.segments.values() if not s.is_empty])

    def add_point(self, segment: str, point: Sequence[float], *, positive: bool = True, run: bool = True) -> int:
        """Add a point, the voxel (i, j, k). Raises NoImage or OutOfBounds."""
        index = to_index(point, self._shape())
        message = wire.AddPoint(id=self._next_id(), segment=segment, point=index, positive=positive, run=run)
        return self._prompt(message, index)

    def add_bbox(self, segment: str, box: Boxlike, *, positive: bool = True, run: bool = True) -> int:
        """Add an end-exclusive box ((i0, i1), (j0, j1), (k0, k1)). Raises NoImage or OutOfBounds."""
        checked = box_inside(box, self._shape())
        message = wire.AddBbox(id=self._next_id(), segment=segment, box=checked.pairs, positive=positive, run=run)
        return self._prompt(message, middle(checked))

    def add_scribble(
        self,
        segment: str,
        mask: ArrayLike,
        *,
        box: Boxlike | None = None,
        positive: bool = True,
        run: bool = True,
    ) -> int:
        """Add strokes: a mask of the volume's shape, or of ``box``'s. Raises also UnsupportedPrompt or BadMask."""
        return self._add_strokes(wire.AddScribble, segment, mask, box, positive, run)

    def add_lasso(
        self,
        segment: str,
        mask: ArrayLike,
        *,
        box: Boxlike | None = None,
        positive: bool = True,
        run: bool = True,
    ) -> int:
        """Add a filled outline: a mask of the volume's shape, or of ``box``'s. Raises as :meth:`add_scribble`."""
        return self._add_strokes(wire.AddLasso, segment, mask, box, positive, run)

    def set_mask(
        self,
        segment: str,
        mask: ArrayLike,
        *,
        box: Boxlike | None = None,
        run: bool = False,
    ) -> int:
        """Replace the segment's mask, empty outside of ``box``. Raises NoImage, OutOfBounds or BadMask."""
        return self._set_mask(segment, mask, box, run=run)

    def flip_mask(self, segment: str, flips: ArrayLike, *, box: Boxlike | None = None) -> int:
        """Flip the voxels of ``flips`` in the segment's mask, for edits by hand. Only they travel.

        This is a step like :meth:`set_mask`, and applies to the mask after all earlier requests. Raises NoImage,
        OutOfBounds or BadMask.
        """
        return self._set_mask(segment, flips, box, flip=True)

    def run(self, segment: str) -> int:
        """Predict from the prompts added with ``run`` false."""
        return self._request(wire.Run(id=self._next_id(), segment=segment))

    def undo(self, segment: str) -> int:
        """Undo the last step."""
        return self._request(wire.Undo(id=self._next_id(), segment=segment))

    def redo(self, segment: str) -> int:
        """Redo the step that was undone last."""
        return self._request(wire.Redo(id=self._next_id(), segment=segment))

    def reset(self, segment: str) -> int:
        """Empty the segment and forget its prompts. This can be undone."""
        return self._request(wire.Reset(id=self._next_id(), segment=segment))

    def remove_segment(self, segment: str) -> int:
        """Remove a segment with its history."""
        return self._request(wire.RemoveSegment(id=self._next_id(), segment=segment))

    def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> int:
        """Change how the session predicts. None leaves an option as it is."""
        return self._request(wire.SetOptions(id=self._next_id(), autozoom=autozoom, previews=previews))

    def cancel(self, request: int | None = None) -> None:
        """Cancel one request, or all. Each is answered by ``done``, or by the error ``cancelled``."""
        self.owner.check()
        for sent, pending in self._pending.items():
            if pending.number is not None and request in (None, pending.number):
                pending.cancelled = True
                self._send(wire.Cancel(request=sent))
        self._prioritize()

    def bye(self) -> None:
        """End the session on the server."""
        self._send(wire.Bye())

    def segment(self, name: str) -> Segment:
        """Return the segment of a name; create it if there is none. Raises NoImage."""
        if name not in self.segments:
            # In one step, because another thread may read the segment's mask for the first time.
            self.segments.setdefault(name, Segment.empty(name, self._shape()))
        return self.segments[name]

    @property
    def segment_names(self) -> list[str]:
        """The names of the segments. A segment exists from the first preview of its first prompt on."""
        return [name for name, segment in list(self.segments.items()) if segment.revision or not segment.is_empty]

    @property
    def pending_requests(self) -> list[int]:
        """The numbers of the user's pending requests."""
        return [pending.number for pending in self._pending.values() if pending.number is not None]

    # ---- requests -----------------------------------------------------------------------------------------

    def _next_id(self) -> int:
        self.owner.check()
        self._last_id += 1
        return self._last_id

    def _send(self, message: wire.Message) -> None:
        frame = protocol.encode(message)  # also without a connection, because it raises if the message is invalid
        if self.welcome is not None:
            self._control.append(frame)

    def _request(self, request: wire.Request) -> int:
        self._enqueue(_with_plain_types(request), request.id)
        return request.id

    def _enqueue(self, request: wire.Request, number: int | None) -> None:
        self._send(request)  # first, because a request that cannot be encoded must not be pending
        self._pending[request.id] = _PendingRequest(number, request, self._generation)

    def _set_mask(self, segment: str, mask: ArrayLike, box: Boxlike | None, **fields: bool) -> int:
        drawn = to_mask(mask, box, self._shape())
        if drawn.box is None:
            # An empty mask has no bounding box. Any voxel, unset, says the same.
            drawn = Delta(Box((0, 0, 0), (1, 1, 1)), np.zeros((1, 1, 1), bool))
        assert drawn.box is not None
        bits = masks.pack(drawn, self._encoding())
        return self._prompt(wire.SetMask(id=self._next_id(), segment=segment, mask=bits, **fields), middle(drawn.box))

    def _prompt(self, request: wire.Request, focus: Index) -> int:
        self._focus = focus
        if self._upload is not None:
            self._upload.set_focus(focus)
        number = self._request(request)
        pending = self._pending[number]
        pending.focus = focus
        if isinstance(request, wire.Prompt) and request.run:
            # A guess, which saves the round trip until the server reports the region.
            self._note_wait(pending, self._patch_around(focus), base_layers_suffice=True)
        return number

    def _patch_around(self, focus: Index) -> Box | None:
        """Return what a prompt's first pass probably reads. None without a connection."""
        if self.welcome is None:
            return None
        sides = zip(focus, self.welcome.model.patch_size, strict=True)
        return Box.from_pairs([(at - n // 2, at - n // 2 + n) for at, n in sides])

    def _note_wait(self, pending: _PendingRequest, awaited: Box | None, base_layers_suffice: bool) -> None:
        pending.awaited, pending.base_layers_suffice = awaited, base_layers_suffice
        self._prioritize()

    def _prioritize(self) -> None:
        """Send the bricks first for which a request waits. Requests run in order, so the first one counts."""
        if self._upload is None:
            return
        for pending in self._pending.values():
            if pending.awaited is not None and not pending.cancelled and not self._is_obsolete(pending):
                self._upload.prioritize(pending.awaited, pending.base_layers_suffice, pending.focus)
                return
        self._upload.prioritize(None)

    def _replace_image(self, image: ImageSource | None) -> None:
        self.image, self._focus = image, None
        self._generation += 1
        self.segments.clear()
        self._deferred += self._mark_all_fresh()
        self._begin_upload()

    def _begin_upload(self) -> None:
        self._upload = None
        if self.image is None or self.welcome is None:
            return
        limit = self.welcome.limits.unacknowledged_bricks
        self._upload = Upload(self.image.grid, limit, self._clock, self._link)
        if self._focus is not None:
            self._upload.set_focus(self._focus)
        self._prioritize()

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
            raise NoImage("There is no image. Call set_image before the first prompt.")
        return self.image.grid.shape

    def _add_strokes(
        self,
        kind: type[wire.AddScribble | wire.AddLasso],
        segment: str,
        mask: ArrayLike,
        box: Boxlike | None,
        positive: bool,
        run: bool,
    ) -> int:
        strokes = to_mask(mask, box, self._shape())
        if strokes.box is None:
            raise UnsupportedPrompt("The scribble or lasso is empty. Mark at least one voxel.")
        bits = masks.pack(strokes, self._encoding())
        message = kind(id=self._next_id(), segment=segment, mask=bits, positive=positive, run=run)
        return self._prompt(message, middle(strokes.box))

    # ---- messages -----------------------------------------------------------------------------------------

    def _on_welcome(self, message: wire.Welcome) -> list[Event]:
        self.welcome = message
        self._session = message.session_id, message.session_secret
        emitted: list[Event] = [events.Connection("open", message)]
        return emitted + (self._resume_session(message) if message.resumed else self._restore_session())

    def _resume_session(self, welcome: wire.Welcome) -> list[Event]:
        """Resume the session: send pending requests again, and synchronize segments that differ."""
        for sent, pending in self._pending.items():
            self._send(pending.request)
            if pending.cancelled:
                self._send(wire.Cancel(request=sent))
        self._begin_upload()
        if self._upload is None or not self._is_image_of_server(welcome.image):
            return []  # the pending set_image brings the bricks
        self._upload.acknowledged(self._upload.bricks_in(welcome.present_bricks))
        if not any(isinstance(pending.request, wire.SetImage) for pending in self._pending.values()):
            self._compare_segments(welcome.revisions)
        # The acknowledgements of the last bricks may have been lost with the connection.
        return [_image_progress(self._upload)]

    def _is_image_of_server(self, name: str | None) -> bool:
        """Whether the server's bricks of an image are those of the image now.

        They are not before an earlier ``set_image`` is answered: the server then drops the bricks of other images.
        """
        earlier = any(isinstance(p.request, wire.SetImage) and self._is_obsolete(p) for p in self._pending.values())
        return self.image is not None and name == self.image.name and not earlier

    def _compare_segments(self, revisions: dict[str, int]) -> None:
        """Synchronize segments without a pending request. The answer of a pending request does it for the others."""
        unsettled = {pending.segment for pending in self._pending.values()} | self._stale
        for segment in [s for s in self.segments.values() if s.name not in unsettled and not s.is_empty]:
            if segment.name not in revisions:
                self._enqueue(self._restore_message(segment), None)
            elif revisions[segment.name] != segment.revision:
                self._request_snapshot(segment)

    def _restore_session(self) -> list[Event]:
        """Restore everything in a new session, and then send pending requests under new ids."""
        emitted = self._mark_all_fresh()
        to_resend, self._pending = [pending for pending in self._pending.values() if pending.number is not None], {}
        if self._options is not None:
            self._enqueue(_renumbered(self._options, self._next_id()), None)
        if self.image is not None:
            self._restore_image(self.image, to_resend)
        for pending in to_resend:
            if (error := self._retry_error(pending)) is not None:
                emitted.append(events.Failed(pending.number, error))
            elif not isinstance(pending.request, wire.SetImage):
                request = _renumbered(pending.request, self._next_id())
                self._pending[request.id] = replace(pending, request=request)
                self._send(request)
        self._prioritize()
        return emitted

    def _restore_image(self, image: ImageSource, to_resend: list[_PendingRequest]) -> None:
        """Announce the image, as the pending ``set_image`` if there is one, and restore the segments."""
        mine = (
            pending
            for pending in to_resend
            if isinstance(pending.request, wire.SetImage) and not self._is_obsolete(pending)
        )
        self._begin_upload()
        self._enqueue(self._announcement(image), next((pending.number for pending in mine), None))
        for segment in self.segments.values():
            if not segment.is_empty:
                self._enqueue(self._restore_message(segment), None)

    def _is_obsolete(self, pending: _PendingRequest) -> bool:
        """Whether the image of the request has been replaced."""
        return pending.generation != self._generation and not isinstance(pending.request, wire.SetOptions)

    def _retry_error(self, pending: _PendingRequest) -> Error | None:
        """Return the error of a pending request that must not be sent again after a lost connection, or None."""
        if self._is_obsolete(pending):
            return Cancelled("The connection was lost during the request, and its image has been replaced since.")
        if pending.cancelled and not isinstance(pending.request, wire.SetImage):
            return Cancelled("The request was cancelled, and the connection was lost. The segment is unchanged.")
        if pending.losses >= _MAX_LOSSES and not isinstance(pending.request, wire.SetImage):
            return WorkerLost(
                f"The worker process ended {pending.losses} times during this request, which may be the cause. "
                "The request is not sent again. The segment is unchanged."
            )
        return None

    def _on_image_progress(self, message: wire.ImageProgress) -> list[Event]:
        if self._upload is None or not self._is_image_of_server(message.image):
            return []
        self._upload.acknowledged(message.received, message.received_base)
        # The message's own numbers are older in the repeated answer of a set_image.
        return [_image_progress(self._upload)]

    def _on_progress(self, message: wire.Progress) -> list[Event]:
        pending = self._pending.get(message.id)
        if pending is None or self._is_obsolete(pending):
            return []
        if message.box is not None:
            self._note_wait(pending, Box.from_pairs(message.box), message.base_layers_suffice)
        if pending.number is None:
            return []
        return [events.Progress(pending.number, pending.segment, message.state, message.done, message.total)]

    def _on_mask_delta(self, message: wire.MaskDelta) -> list[Event]:
        pending = self._pending.get(message.request)
        if pending is None or self._is_obsolete(pending) or message.segment in self._stale:
            return []
        self._check_segment(message.segment, pending)
        segment = self.segment(message.segment)
        if message.base_revision != segment.revision:
            return self._request_snapshot(segment)
        change = masks.unpack(message.change, self._shape())
        assert change.box is not None
        segment.apply(change)
        if masks.checksum(segment.mask, change.box) != message.checksum:
            return self._request_snapshot(segment)
        pending.base = segment.revision if pending.base is None else pending.base
        segment.revision, segment.voxels = message.revision, message.voxels
        pending.change = masks.compose(pending.change, change)
        return [_mask_event(segment, pending, change.box, message.final)]

    def _on_mask_snapshot(self, message: wire.MaskSnapshot) -> list[Event]:
        pending = self._pending.get(message.request)
        if pending is None or self._is_obsolete(pending):
            return []
        self._check_segment(message.segment, pending)
        segment = self.segment(message.segment)
        segment.writable_mask[...] = False
        if message.mask is not None:
            segment.apply(masks.unpack(message.mask, self._shape()))
        segment.revision, segment.voxels = message.revision, message.voxels
        segment.reconcile(self._encoding())
        return [
            _mask_event(segment, pending, Box.whole(self._shape()), final=True),
            *self._mark_fresh(segment.name),
        ]

    def _check_segment(self, name: str, pending: _PendingRequest) -> None:
        if name != pending.segment:
            raise BadMessage(f'The server answered a request about segment "{pending.segment}" with segment "{name}".')

    def _mark_fresh(self, segment: str) -> list[Event]:
        """Note that a segment needs no snapshot any more. Return the answers that were held back."""
        self._stale.discard(segment)
        return self._held_answers.pop(segment, [])

    def _mark_all_fresh(self) -> list[Event]:
        return [event for segment in list(self._stale) for event in self._mark_fresh(segment)]

    def _compare_revisions(self, pending: _PendingRequest, done: wire.Done) -> None:
        """Request a snapshot if the last change is missing, which no later change would reveal."""
        if pending.segment is None or isinstance(pending.request, wire.RemoveSegment):
            return
        segment = self.segment(pending.segment)
        if segment.revision != done.revision and segment.name not in self._stale:
            self._request_snapshot(segment)

    def _request_snapshot(self, segment: Segment) -> list[Event]:
        self._stale.add(segment.name)
        self._enqueue(wire.GetMask(id=self._next_id(), segment=segment.name), None)
        return []

    def _on_done(self, message: wire.Done) -> list[Event]:
        pending = self._pending.pop(message.id, None)
        if pending is None:
            return []
        if not self._is_obsolete(pending):
            # First, because a step that is undone or redone keeps its change if the server's is missing.
            self._compare_revisions(pending, message)
            if isinstance(pending.request, wire.SetImage) and self._upload is not None:
                # If the list of present bricks was lost with a connection, all are sent.
                self._upload.acknowledged([])
        self._prioritize()
        self._record(pending)
        if pending.number is None:
            return []
        changed = None if message.changed is None else Box.from_pairs(message.changed)
        result = events.Result(
            pending.number, message.segment, changed, message.voxels, message.revision, message.timings
        )
        done = events.Done(result)
        if message.segment is not None and message.segment in self._stale:
            self._held_answers.setdefault(message.segment, []).append(done)  # the user reads the mask when told
            return []
        return [done]

    def _on_error(self, message: wire.ErrorMessage) -> list[Event]:
        error = error_from_wire(message.code, message.message)
        if message.id is None:
            if isinstance(error, WorkerLost) and self._pending:
                next(iter(self._pending.values())).losses += 1  # requests run in order, so it was the first one
            return self._end(error)
        pending = self._pending.pop(message.id, None)
        if pending is None:
            return []
        self._prioritize()
        if self._is_obsolete(pending):
            # No segment of the image now is concerned.
            return [] if pending.number is None else [events.Failed(pending.number, error)]
        self._reset_if_empty(pending)
        if isinstance(pending.request, wire.GetMask):
            return self._mark_fresh(pending.request.segment)  # the next change of the segment requests it again
        if isinstance(pending.request, wire.Restore):
            return self._retry_restore_flattened(pending, error)
        if isinstance(pending.request, wire.SetImage):
            if pending.number is None:
                self._session = None  # useless without its image; a new session may have memory for it
            else:
                self._replace_image(None)
        return self._end(error) if pending.number is None else [events.Failed(pending.number, error)]

    def _end(self, error: Error) -> list[Event]:
        self.ended = error
        return []

    def _reset_if_empty(self, pending: _PendingRequest) -> None:
        """Reset a segment whose first request failed: the server has no such segment. Its empty mask stays the same
        array, because the user may hold it."""
        segment = self.segments.get(pending.segment or "")
        if segment is not None and segment.is_empty and isinstance(pending.request, wire.SetMask | wire.Prompt):
            segment.revision = 0

    def _retry_restore_flattened(self, pending: _PendingRequest, error: Error) -> list[Event]:
        """Restore the mask alone: another server may not support the prompts of a history, or have no memory for it."""
        segment = self.segments.get(pending.segment or "")
        if segment is None or segment.is_flat or not isinstance(error, _HISTORY_REFUSED):
            return self._end(error)
        # Before the requests that follow, which need the segment.
        notice = self._flatten(segment, str(error))
        self._enqueue(self._restore_message(segment), None)
        return [notice]

    def _flatten(self, segment: Segment, why: str) -> Event:
        segment.flatten(self._encoding())
        sentence = f'The prompts of segment "{segment.name}" cannot be used on this server ({why}). Its mask is kept.'
        return events.Notice("warning", sentence)

    def _on_notice(self, message: wire.Notice) -> list[Event]:
        if message.code == "evicted":
            self._evicted, self.ended = True, ConnectionFailed(message.message)
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

    def _record(self, pending: _PendingRequest) -> None:
        """Update the history as the server did for a request that succeeded."""
        request = pending.request
        if self._is_obsolete(pending) or isinstance(request, wire.SetImage | wire.Restore | wire.GetMask):
            return
        if isinstance(request, wire.SetOptions):
            self._options = request if self._options is None else _merged(self._options, request)
            return
        if isinstance(request, wire.RemoveSegment):
            self.segments.pop(request.segment, None)
            self._deferred += self._mark_fresh(request.segment)
            return
        segment = self.segment(request.segment)
        is_fresh = segment.name not in self._stale
        if isinstance(request, wire.Undo | wire.Redo):
            segment.credit_move(isinstance(request, wire.Undo), pending.change, is_fresh, self._encoding())
        elif not isinstance(request, wire.Run) or segment.pending():
            segment.append(make_step(request, pending.change, self._encoding()))

    def _revert_previews(self, pending: _PendingRequest) -> list[Event]:
        """Revert the previews of a pending request: they are sent again."""
        change, base, pending.change, pending.base = pending.change, pending.base, NO_CHANGE, None
        segment = self.segments.get(pending.segment or "")
        if segment is None or base is None or self._is_obsolete(pending):
            return []
        segment.flip(change)
        segment.revision = base
        return [] if change.box is None else [_mask_event(segment, pending, change.box, final=True)]

    def _rebuild(self, segment: Segment) -> Event:
        """Recompute a mask that is out of step from its history."""
        segment.rebuild()
        whole = Box.whole(self._shape())
        return events.MaskDelta(None, segment.name, whole, segment.revision, segment.voxels, True)

    def _restore_message(self, segment: Segment) -> wire.Restore:
        max_bytes = protocol.MAX_MESSAGE_BYTES if self.welcome is None else self.welcome.limits.message_bytes
        if segment.memory > max_bytes and not segment.is_flat:
            why = f"its history of {segment.memory:,} bytes is more than the {max_bytes:,} of a message"
            self._deferred.append(self._flatten(segment, why))
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


def _with_plain_types(request: wire.Request) -> wire.Request:
    """Return a request with Python's own types in place of numpy's scalars, which cannot be encoded."""
    types = {"segment": str, "positive": bool, "run": bool, "autozoom": bool, "previews": bool}
    given = {name: getattr(request, name, None) for name in types}
    return msgspec.structs.replace(request, **{k: types[k](v) for k, v in given.items() if v is not None})


def _image_progress(upload: Upload) -> Event:
    return events.ImageProgress(upload.present_count, len(upload.grid))


def _mask_event(segment: Segment, pending: _PendingRequest, box: Box, final: bool) -> Event:
    return events.MaskDelta(pending.number, segment.name, box, segment.revision, segment.voxels, final)
