"""Bodies and ``X-Meta`` headers of requests of nnInteractive's HTTP API, validated.

Fields that are not listed are ignored, as nnInteractive 2.6 does (``inference/server/app.py``).
"""

from typing import TypeVar

import msgspec

from nninteractive_ws.errors import BadMessage, UnsupportedPrompt

Range = tuple[float, float]
VoxelRange = tuple[int, int]


class SetTargetBuffer(msgspec.Struct, frozen=True):
    """Shape and dtype of the array into which the client writes the mask."""

    shape: tuple[int, int, int]
    dtype: str


class SetDoAutozoom(msgspec.Struct, frozen=True):
    """Whether predictions may zoom out."""

    do_autozoom: bool


class _Interaction(msgspec.Struct, frozen=True, kw_only=True):
    include_interaction: bool
    run_prediction: bool = True
    override_capability_checks: bool = False

    def check(self) -> None:
        """Raise UnsupportedPrompt for an option that this server does not have."""
        _refuse_override(self.override_capability_checks)


class AddPoint(_Interaction, frozen=True, kw_only=True):
    """A point, in voxels."""

    coordinates: tuple[float, float, float]


class AddBbox(_Interaction, frozen=True, kw_only=True):
    """An end-exclusive box, in voxels."""

    bbox_coords: tuple[Range, Range, Range]


class AddMask(_Interaction, frozen=True, kw_only=True):
    """A scribble or lasso. ``interaction_bbox``: the box of the mask in the body; None: that of the image."""

    interaction_bbox: tuple[VoxelRange, VoxelRange, VoxelRange] | None = None


class AddInitialSegmentation(msgspec.Struct, frozen=True):
    """A mask to start from."""

    run_prediction: bool = False
    override_capability_checks: bool = False

    def check(self) -> None:
        """Raise UnsupportedPrompt for an option that this server does not have."""
        _refuse_override(self.override_capability_checks)


class Predict(msgspec.Struct, frozen=True):
    """A prediction from pending prompts."""

    force_full_refine: bool = False

    def check(self) -> None:
        """Raise UnsupportedPrompt for an option that this server does not have."""
        if self.force_full_refine:
            raise UnsupportedPrompt(
                "force_full_refine is not supported. Predict without it; large objects are refined anyway."
            )


Payload = TypeVar("Payload", bound=msgspec.Struct)


def decode(data: bytes | bytearray | str, kind: type[Payload]) -> Payload:
    """Decode JSON. Raises BadMessage, which says what is wrong and where."""
    try:
        return msgspec.json.decode(data, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise BadMessage(f"The JSON of this request is not valid: {e}.") from e


def _refuse_override(override: bool) -> None:
    if override:
        raise UnsupportedPrompt(
            "override_capability_checks is not supported. Use only the prompts of /capabilities, and leave it false."
        )
