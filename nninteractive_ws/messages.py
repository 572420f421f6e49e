"""Every message of the protocol, one frozen struct each: the table of contents of ``protocol.md``.

Voxel positions are array indices (i, j, k); boxes are half-open pairs ((i0, i1), (j0, j1), (k0, k1)). On the
wire a message is a msgpack map of its fields plus ``type``. A field with a default may be left out; unknown
fields are ignored.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Encoding = Literal["blosc2", "deflate", "raw"]
DType = Literal["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"]
ProgressState = Literal["queued", "waiting_for_image", "predicting", "refining"]
NoticeCode = Literal["loading_model", "worker_lost", "shutting_down", "evicted", "warning"]

#: Segments of a session, and steps of a segment (done and undone each), at most.
MAX_SEGMENTS, MAX_STEPS = 256, 10_000
#: Bricks of an image, at most: 32,768 are 1024^3 voxels, but a thin image has more of them for its voxels.
MAX_BRICKS = 2**20

# Bounds that a decoder checks by itself; those that depend on the image are the engine's.
Count = Annotated[int, Meta(ge=0, le=2**53)]
#: Of a segment that is restored: with room to grow from there.
Revision = Annotated[int, Meta(ge=0, le=2**52)]
RequestId = Annotated[int, Meta(ge=1, le=2**53)]
Coordinate = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Checksum = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# What float32 holds, the network's type: an image is normalised in it. NaN is outside too.
_FLOAT32_MAX, _FLOAT32_MIN_NORMAL = (2 - 2.0**-23) * 2.0**127, 2.0**-126
Real = Annotated[float, Meta(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]
Deviation = Annotated[float, Meta(ge=_FLOAT32_MIN_NORMAL, le=_FLOAT32_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Words = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)]
Index = tuple[Coordinate, Coordinate, Coordinate]
Shape = tuple[Size, Size, Size]
Range = tuple[Coordinate, Coordinate]
Pairs = tuple[Range, Range, Range]


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """A part of messages."""


class Message(Struct, frozen=True, kw_only=True, tag_field="type"):
    """The base of all messages."""


class Bits(Struct, frozen=True, kw_only=True):
    """The voxels of a box, each set or not: a mask, a prompt's strokes, or what changed.

    The box is read in C order (k fastest) as alternating run lengths, the first one of unset voxels (it may
    be 0); ``runs`` of them, little-endian uint32, then packed by ``encoding`` into ``data``.
    """

    box: Pairs
    runs: Size
    encoding: Encoding
    data: bytes


class Brick(Struct, frozen=True, kw_only=True):
    """One brick of the image: its index in the grid (C order) and its voxels, C order, packed."""

    index: Count
    encoding: Encoding
    data: bytes


class Step(Struct, frozen=True, kw_only=True):
    """One entry of a segment's history: the request that made it and the change of the mask, if any."""

    request: "StepRequest"
    change: Bits | None = None

    @property
    def predicted(self) -> bool:
        """Whether a prediction followed, after which no prompt was pending."""
        return isinstance(self.request, Run) or (not isinstance(self.request, Reset) and self.request.run)

    @property
    def is_reset(self) -> bool:
        """Whether the prompts before it no longer count."""
        return isinstance(self.request, SetMask | Reset)


class Timings(Struct, frozen=True, kw_only=True):
    """Where the time of a request went, in seconds; ``passes`` counts the network's forward passes."""

    queued: float = 0.0
    waiting_for_image: float = 0.0
    network: float = 0.0
    passes: Count = 0
    total: float = 0.0


class Model(Struct, frozen=True, kw_only=True):
    """What the server runs. ``prompts``: the kinds it supports, of point, scribble, lasso, bbox2d, bbox3d, mask."""

    name: Text
    license: Text
    patch_size: Shape
    prompts: Words
    scribble_thickness: tuple[float, float, float]


class Limits(Struct, frozen=True, kw_only=True):
    """What the server accepts at most. ``session_bytes``: memory of a session beyond its image; 0: not told."""

    message_bytes: Count
    image_voxels: Count
    segments: Count
    steps: Count = MAX_STEPS
    unacknowledged_bricks: Count
    session_bytes: Count = 0


class FreeMemory(Struct, frozen=True, kw_only=True):
    """Bytes at the moment of the welcome. ``device``: free on the device, of ``device_total``; ``images``: of what
    the server keeps for images, those that no session has."""

    device: Count
    device_total: Count
    images: Count


# ---- client to server -------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """The first message of a connection."""

    version: int
    client: Text = ""
    features: Words = []
    encodings: Words
    session: Text | None = None
    secret: Text | None = None
    make_room: bool = True


class SetImage(Message, frozen=True, kw_only=True, tag="set_image"):
    """Announce the image; its voxels follow as bricks. All segments of an image before it are dropped."""

    id: RequestId
    image: Name
    shape: Shape
    dtype: DType
    mean: Real
    std: Deviation


class ImageBricks(Message, frozen=True, kw_only=True, tag="image_bricks"):
    """Some bricks of the announced image, in any order. Not a request: it has no id and no answer."""

    image: Name
    bricks: Annotated[list[Brick], Meta(min_length=1, max_length=64)]


class SetMask(Message, frozen=True, kw_only=True, tag="set_mask"):
    """Replace a segment's mask, empty outside the box, or change it; the prompts before it no longer count.

    ``flip``: the bits are what changes.
    """

    id: RequestId
    segment: Name
    mask: Bits
    flip: bool = False
    run: bool = False


class AddPoint(Message, frozen=True, kw_only=True, tag="add_point"):
    """A click on a voxel."""

    id: RequestId
    segment: Name
    point: Index
    positive: bool = True
    run: bool = True


class AddBbox(Message, frozen=True, kw_only=True, tag="add_bbox"):
    """A box around the object, or around what is not the object."""

    id: RequestId
    segment: Name
    box: Pairs
    positive: bool = True
    run: bool = True


class AddScribble(Message, frozen=True, kw_only=True, tag="add_scribble"):
    """Strokes through the object, the model's preferred thickness wide."""

    id: RequestId
    segment: Name
    mask: Bits
    positive: bool = True
    run: bool = True


class AddLasso(Message, frozen=True, kw_only=True, tag="add_lasso"):
    """A filled outline of the object in a slice."""

    id: RequestId
    segment: Name
    mask: Bits
    positive: bool = True
    run: bool = True


class Run(Message, frozen=True, kw_only=True, tag="run"):
    """Predict from the prompts that were added with ``run`` false."""

    id: RequestId
    segment: Name


class Undo(Message, frozen=True, kw_only=True, tag="undo"):
    """Take back the last step of the segment's history."""

    id: RequestId
    segment: Name


class Redo(Message, frozen=True, kw_only=True, tag="redo"):
    """Do again the last step that was taken back."""

    id: RequestId
    segment: Name


class Reset(Message, frozen=True, kw_only=True, tag="reset"):
    """Empty the segment and forget its prompts. It can be undone."""

    id: RequestId
    segment: Name


class Restore(Message, frozen=True, kw_only=True, tag="restore"):
    """Bring a segment back as the client's journal has it; nothing is predicted."""

    id: RequestId
    segment: Name
    revision: Revision
    steps: Annotated[list[Step], Meta(max_length=MAX_STEPS)] = []
    undone: Annotated[list[Step], Meta(max_length=MAX_STEPS)] = []


class RemoveSegment(Message, frozen=True, kw_only=True, tag="remove_segment"):
    """Forget a segment with its history."""

    id: RequestId
    segment: Name


class GetMask(Message, frozen=True, kw_only=True, tag="get_mask"):
    """Ask for a snapshot, after a gap in the revisions or a wrong checksum."""

    id: RequestId
    segment: Name


class SetOptions(Message, frozen=True, kw_only=True, tag="set_options"):
    """Change how this session predicts; a field left out stays as it is."""

    id: RequestId
    autozoom: bool | None = None
    previews: bool | None = None


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Stop a request that waits or runs, or with no ``request`` all of them. Not a request itself."""

    request: RequestId | None = None


class Bye(Message, frozen=True, kw_only=True, tag="bye"):
    """The client is done; the session need not be kept."""


StepRequest = SetMask | AddPoint | AddBbox | AddScribble | AddLasso | Run | Reset
Prompt = AddPoint | AddBbox | AddScribble | AddLasso
Request = (
    SetImage | SetMask | AddPoint | AddBbox | AddScribble | AddLasso | Run | Undo | Redo | Reset | Restore
    | RemoveSegment | GetMask | SetOptions
)  # fmt: skip
ClientMessage = Hello | ImageBricks | Cancel | Bye | Request


# ---- server to client -------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The answer to ``hello``: what was agreed, what the server is, and what it still has of the session."""

    version: int
    server: Text
    features: Words
    encoding: Encoding
    session: Text
    secret: Text
    resumed: bool
    last_id: Count = 0
    revisions: dict[Name, Count] = {}
    image: Text | None = None
    bricks: bytes = b""
    limits: Limits
    model: Model
    device: Text
    memory: FreeMemory | None = None


class ImageProgress(Message, frozen=True, kw_only=True, tag="image_progress"):
    """Bricks that have arrived: an acknowledgement, and how many of all are there."""

    image: Name
    received: Annotated[list[Count], Meta(max_length=MAX_BRICKS)]
    present: Count
    total: Count


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """What a request is doing. ``n`` of ``m``: place in the queue, bricks there, or passes made; ``box``: the
    part of the image it waits for, which the client sends first."""

    id: RequestId
    state: ProgressState
    n: Count = 0
    m: Count = 0
    box: Pairs | None = None


class MaskDelta(Message, frozen=True, kw_only=True, tag="mask_delta"):
    """The voxels of a segment that changed between two revisions; ``checksum`` is that of the box afterwards."""

    segment: Name
    request: RequestId
    base_rev: Count
    rev: Count
    change: Bits
    checksum: Checksum
    voxels: Count
    final: bool


class MaskSnapshot(Message, frozen=True, kw_only=True, tag="mask_snapshot"):
    """A segment's whole mask: ``mask`` is the smallest box around it, none where the segment is empty."""

    segment: Name
    request: RequestId
    rev: Count
    mask: Bits | None = None
    voxels: Count


class Done(Message, frozen=True, kw_only=True, tag="done"):
    """The request is done and everything it caused was sent before. ``changed``: the box that holds every
    voxel it changed."""

    id: RequestId
    segment: Name | None = None
    revision: Count = 0
    changed: Pairs | None = None
    voxels: Count = 0
    timings: Timings = Timings()


class ErrorMessage(Message, frozen=True, kw_only=True, tag="error"):
    """A request failed, or with no ``id`` the connection. ``message`` is a sentence for the user."""

    code: Name
    message: Text
    id: RequestId | None = None


class Notice(Message, frozen=True, kw_only=True, tag="notice"):
    """Something the user should know; nothing to answer."""

    code: NoticeCode
    message: Text


ServerMessage = Welcome | ImageProgress | Progress | MaskDelta | MaskSnapshot | Done | ErrorMessage | Notice
