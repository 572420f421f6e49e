"""All messages of the protocol, as frozen structs in the order of ``protocol.md``.

Voxel positions are array indices (i, j, k). Boxes are end-exclusive pairs ((i0, i1), (j0, j1), (k0, k1)). On the wire,
a message is a msgpack map of its fields and ``type``. A field with a default may be omitted. Unknown fields are
ignored.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Encoding = Literal["blosc2", "deflate", "raw"]
Layer = Literal["whole", "base", "enhancement"]
DType = Literal["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"]
ProgressState = Literal["queued", "waiting_for_image", "predicting", "refining"]
NoticeCode = Literal["loading_model", "worker_lost", "shutting_down", "evicted", "warning"]

#: Limits of a session's segments, and of a segment's steps (done and undone each).
MAX_SEGMENTS, MAX_STEPS = 256, 10_000
#: Limit of an image's bricks. 32,768 are 1024^3 voxels, but a thin image has more bricks for its voxels.
MAX_BRICKS = 2**20
#: Limit of an image's bricks of which the server has the base layer, but not the enhancement layer.
MAX_BASE_LAYERS = 1024

# Bounds that the decoder checks. The engine checks those that depend on the image.
Count = Annotated[int, Meta(ge=0, le=2**53)]
#: The revision of a restored segment, from which it can increase within Count.
Revision = Annotated[int, Meta(ge=0, le=2**52)]
RequestId = Annotated[int, Meta(ge=1, le=2**53)]
Coordinate = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Checksum = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# The range of float32, in which an image is normalized for the network. It excludes NaN.
_FLOAT32_MAX, _FLOAT32_MIN_NORMAL = (2 - 2.0**-23) * 2.0**127, 2.0**-126
Real = Annotated[float, Meta(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]
Deviation = Annotated[float, Meta(ge=_FLOAT32_MIN_NORMAL, le=_FLOAT32_MAX)]
LowBits = Annotated[int, Meta(ge=0, le=31)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Words = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)]
Index = tuple[Coordinate, Coordinate, Coordinate]
Shape = tuple[Size, Size, Size]
Range = tuple[Coordinate, Coordinate]
Pairs = tuple[Range, Range, Range]


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all messages, and of their parts."""


class Message(Struct, frozen=True, kw_only=True, tag_field="type"):
    """The base of all messages."""


class RunLengthMask(Struct, frozen=True, kw_only=True):
    """The voxels of a box, each set or not: a mask, a prompt's strokes, or a change.

    The box is read in C order (k fastest) as alternating run lengths. The first one is of unset voxels, and may be 0.
    ``runs``: the number of run lengths. ``data``: the run lengths as little-endian uint32, packed by ``encoding``.
    """

    box: Pairs
    runs: Size
    encoding: Encoding
    data: bytes


class Brick(Struct, frozen=True, kw_only=True):
    """One brick of the image: its index in the grid (C order), and its voxels (C order) or a layer of them, packed.

    ``low_bits``: the number of bits in the enhancement layer; 0 for whole voxels.
    """

    index: Count
    encoding: Encoding
    data: bytes
    layer: Layer = "whole"
    low_bits: LowBits = 0


class Step(Struct, frozen=True, kw_only=True):
    """One step of a segment's history: its request, and its change of the mask, if any."""

    request: "StepRequest"
    change: RunLengthMask | None = None

    @property
    def predicted(self) -> bool:
        """Whether the step includes a prediction, after which no prompt is pending."""
        return isinstance(self.request, Run) or (not isinstance(self.request, Reset) and self.request.run)

    @property
    def is_reset(self) -> bool:
        """Whether the prompts before the step no longer count."""
        return isinstance(self.request, SetMask | Reset)


class Timings(Struct, frozen=True, kw_only=True):
    """Times of a request's phases in seconds. ``passes``: the number of the network's forward passes."""

    queued: float = 0.0
    waiting_for_image: float = 0.0
    network: float = 0.0
    passes: Count = 0
    total: float = 0.0


class Model(Struct, frozen=True, kw_only=True):
    """The model of the server. ``prompts``: the supported ones of point, scribble, lasso, bbox2d, bbox3d, mask."""

    name: Text
    license: Text
    patch_size: Shape
    prompts: Words
    scribble_thickness: tuple[float, float, float]


class Limits(Struct, frozen=True, kw_only=True):
    """Limits of the server. ``session_bytes``: memory of a session beyond its image; 0: not stated."""

    message_bytes: Count
    image_voxels: Count
    segments: Count
    steps: Count = MAX_STEPS
    unacknowledged_bricks: Count
    session_bytes: Count = 0


class FreeMemory(Struct, frozen=True, kw_only=True):
    """Free memory in bytes at the time of the welcome.

    ``device``: free on the device. ``device_total``: all of the device. ``images``: free in the server's pool for
    images.
    """

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
    session_id: Text | None = None
    session_secret: Text | None = None
    allow_eviction: bool = True


class SetImage(Message, frozen=True, kw_only=True, tag="set_image"):
    """Announce the image, whose voxels follow as bricks. All segments are dropped."""

    id: RequestId
    image: Name
    shape: Shape
    dtype: DType
    mean: Real
    std: Deviation


class ImageBricks(Message, frozen=True, kw_only=True, tag="image_bricks"):
    """Send some bricks of the announced image, in any order. Not a request, so it has no id and no answer."""

    image: Name
    bricks: Annotated[list[Brick], Meta(min_length=1, max_length=64)]


class SetMask(Message, frozen=True, kw_only=True, tag="set_mask"):
    """Replace a segment's mask, which is empty outside the box, or change it. Earlier prompts no longer count.

    ``flip``: ``mask`` is a change of the current mask.
    """

    id: RequestId
    segment: Name
    mask: RunLengthMask
    flip: bool = False
    run: bool = False


class AddPoint(Message, frozen=True, kw_only=True, tag="add_point"):
    """Add a click on a voxel."""

    id: RequestId
    segment: Name
    point: Index
    positive: bool = True
    run: bool = True


class AddBbox(Message, frozen=True, kw_only=True, tag="add_bbox"):
    """Add a box around the object, or around a region outside the object."""

    id: RequestId
    segment: Name
    box: Pairs
    positive: bool = True
    run: bool = True


class AddScribble(Message, frozen=True, kw_only=True, tag="add_scribble"):
    """Add strokes, best of the model's preferred thickness."""

    id: RequestId
    segment: Name
    mask: RunLengthMask
    positive: bool = True
    run: bool = True


class AddLasso(Message, frozen=True, kw_only=True, tag="add_lasso"):
    """Add a filled outline of the object in a slice."""

    id: RequestId
    segment: Name
    mask: RunLengthMask
    positive: bool = True
    run: bool = True


class Run(Message, frozen=True, kw_only=True, tag="run"):
    """Predict from the prompts that were added with ``run`` false."""

    id: RequestId
    segment: Name


class Undo(Message, frozen=True, kw_only=True, tag="undo"):
    """Undo the last step of the segment's history."""

    id: RequestId
    segment: Name


class Redo(Message, frozen=True, kw_only=True, tag="redo"):
    """Redo the last undone step."""

    id: RequestId
    segment: Name


class Reset(Message, frozen=True, kw_only=True, tag="reset"):
    """Clear the mask and the prompts of a segment. It can be undone."""

    id: RequestId
    segment: Name


class Restore(Message, frozen=True, kw_only=True, tag="restore"):
    """Restore a segment from the client's journal, without a prediction."""

    id: RequestId
    segment: Name
    revision: Revision
    steps: Annotated[list[Step], Meta(max_length=MAX_STEPS)] = []
    undone: Annotated[list[Step], Meta(max_length=MAX_STEPS)] = []


class RemoveSegment(Message, frozen=True, kw_only=True, tag="remove_segment"):
    """Remove a segment with its history."""

    id: RequestId
    segment: Name


class GetMask(Message, frozen=True, kw_only=True, tag="get_mask"):
    """Request a snapshot, for instance after a gap in the revisions or a wrong checksum."""

    id: RequestId
    segment: Name


class SetOptions(Message, frozen=True, kw_only=True, tag="set_options"):
    """Change options of the session. An omitted field is unchanged."""

    id: RequestId
    autozoom: bool | None = None
    previews: bool | None = None


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Cancel a pending or running request, or all if ``request`` is None. Not a request itself."""

    request: RequestId | None = None


class Bye(Message, frozen=True, kw_only=True, tag="bye"):
    """End the session. The server need not keep it."""


StepRequest = SetMask | AddPoint | AddBbox | AddScribble | AddLasso | Run | Reset
Prompt = AddPoint | AddBbox | AddScribble | AddLasso
Request = (
    SetImage | SetMask | AddPoint | AddBbox | AddScribble | AddLasso | Run | Undo | Redo | Reset | Restore
    | RemoveSegment | GetMask | SetOptions
)  # fmt: skip
ClientMessage = Hello | ImageBricks | Cancel | Bye | Request


# ---- server to client -------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The answer to ``hello``: the agreed features and encoding, the server's properties, and the session's state."""

    version: int
    server_version: Text
    features: Words
    encoding: Encoding
    session_id: Text
    session_secret: Text
    resumed: bool
    last_id: Count = 0
    revisions: dict[Name, Count] = {}
    image: Text | None = None
    present_bricks: bytes = b""
    limits: Limits
    model: Model
    device: Text
    memory: FreeMemory | None = None


class ImageProgress(Message, frozen=True, kw_only=True, tag="image_progress"):
    """An acknowledgement of bricks, with the number of present and of all bricks.

    ``received_base``: bricks of which only the base layer was received.
    """

    image: Name
    received: Annotated[list[Count], Meta(max_length=MAX_BRICKS)]
    received_base: Annotated[list[Count], Meta(max_length=MAX_BRICKS)] = []
    present: Count
    total: Count


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """The state of a request.

    ``done`` of ``total``: position in the queue, present bricks, or finished passes. ``box``: the part of the image
    that the request waits for, which the client sends first. ``base_layers_suffice``: whether it waits only for the
    base layers of these bricks.
    """

    id: RequestId
    state: ProgressState
    done: Count = 0
    total: Count = 0
    box: Pairs | None = None
    base_layers_suffice: bool = False


class MaskDelta(Message, frozen=True, kw_only=True, tag="mask_delta"):
    """A change of a segment between two revisions. ``checksum``: of the box after the change."""

    segment: Name
    request: RequestId
    base_revision: Count
    revision: Count
    change: RunLengthMask
    checksum: Checksum
    voxels: Count
    final: bool


class MaskSnapshot(Message, frozen=True, kw_only=True, tag="mask_snapshot"):
    """A segment's whole mask. ``mask``: the voxels of its bounding box; None if the segment is empty."""

    segment: Name
    request: RequestId
    revision: Count
    mask: RunLengthMask | None = None
    voxels: Count


class Done(Message, frozen=True, kw_only=True, tag="done"):
    """The answer to a successful request. All its other messages were sent before.

    ``changed``: a box that holds every voxel that the request changed.
    """

    id: RequestId
    segment: Name | None = None
    revision: Count = 0
    changed: Pairs | None = None
    voxels: Count = 0
    timings: Timings = Timings()


class ErrorMessage(Message, frozen=True, kw_only=True, tag="error"):
    """The failure of a request, or of the connection if ``id`` is None. ``message``: a sentence for the user."""

    code: Name
    message: Text
    id: RequestId | None = None


class Notice(Message, frozen=True, kw_only=True, tag="notice"):
    """Information for the user, which needs no answer."""

    code: NoticeCode
    message: Text


ServerMessage = Welcome | ImageProgress | Progress | MaskDelta | MaskSnapshot | Done | ErrorMessage | Notice
