"""Masks from users: set voxels, and ambiguous values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import nninteractive_ws as nni
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.inputs import to_mask
from nninteractive_ws.errors import BadMask, OutOfBounds, error_from_wire
from nninteractive_ws.geometry import Box

Array = np.ndarray[Any, Any]

SHAPE = (4, 5, 6)
AT = (1, 2, 3)


def one(value: Any = 1, dtype: Any = bool, others: Any = 0) -> Array:
    """A mask with a value in one voxel."""
    mask = np.full(SHAPE, others, dtype)
    mask[AT] = value
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        one(),
        *(
            one(1, dtype)
            for dtype in ("int8", "uint16", "int64", "uint64", ">i4", "float16", "float32", ">f8", "longdouble")
        ),
        one(255, "uint8"),
        one(2**62, "int64"),
        one(2**64 - 1, "uint64"),
        one(1.0, float, others=-0.0),
        one().tolist(),
        np.asfortranarray(one())[::-1][::-1],
        np.ma.masked_array(one(), mask=False),
        sitk.GetImageFromArray(np.ascontiguousarray(one(3, np.uint8).transpose())),
    ],
    ids=lambda mask: f"{type(mask).__name__} {getattr(mask, 'dtype', '')}",
)
def test_bool_integers_and_floats_of_0_and_1_are_masks(mask: Any) -> None:
    assert to_mask(mask, None, SHAPE).box == Box(AT, (2, 3, 4))
    assert to_mask(mask, None, SHAPE).voxels == 1


def test_an_empty_mask_is_accepted() -> None:
    for dtype in ("bool", "uint8", "int16", "float32"):
        assert to_mask(np.zeros(SHAPE, dtype), None, SHAPE).box is None


def test_tensors_and_images_are_masks_with_a_box() -> None:
    torch, nibabel = pytest.importorskip("torch"), pytest.importorskip("nibabel")
    part = np.ones((2, 1, 3), np.uint8)
    box = ((1, 3), (4, 5), (2, 5))
    for mask in (torch.from_numpy(part).bool(), torch.ones(2, 1, 3).bfloat16(), nibabel.Nifti1Image(part, np.eye(4))):
        assert to_mask(mask, box, SHAPE).box == Box.from_pairs(box)


@pytest.mark.parametrize(
    ("mask", "found", "remedy"),
    [
        (np.full(SHAPE, 0.3), "the values 0.3,", "For probabilities, pass mask > 0.5."),
        (one(0.5, "float16"), "the values 0.5,", "mask > 0.5"),
        (np.linspace(0, 1, 120, dtype=np.float32).reshape(SHAPE), ", ...,", "mask > 0.5"),
        (one(1.0000001, "float32"), "the values 1.0000001,", "Pass a comparison"),
        (one(5e-324, float), "the values 5e-324,", "For probabilities"),
        (one(np.nan, float), "the values nan,", "numpy.nan_to_num"),
        (one(np.inf, "float32"), "the values inf,", "numpy.nan_to_num"),
        (one(-1, "int8"), "the values -1,", "mask > 0"),
        (one(-(2**63), "int64"), f"the values {-(2**63)},", "mask > 0"),
        (one(-1.0, float), "the values -1.0,", "mask > 0"),
        (one(2.0, float), "the values 2.0,", "For a label map, pass mask == 2, or mask > 0"),
        (one(255, "float16"), "the values 255.0,", "mask == 255"),
        (np.full(SHAPE, "0"), "voxels of type <U1", 'mask == "1"'),
        (np.full(SHAPE, b"0"), "voxels of type |S1", 'mask == "1"'),
        (one(True, object), "voxels of type object", "mask == 1"),
        (one(1, complex), "voxels of type complex128", "mask == 1"),
        (np.zeros(SHAPE, "datetime64[s]"), "voxels of type datetime64[s]", "mask == 1"),
        (np.zeros(SHAPE, "timedelta64[s]"), "voxels of type timedelta64[s]", "mask == 1"),
        (np.zeros(SHAPE, [("a", "u1")]), "voxels of type [('a', 'u1')]", "mask == 1"),
        (np.ma.masked_array(one(), mask=one()), "1 masked voxels", "mask.filled(False)"),
        ("mask.nii.gz", "is a path or a text", "nibabel.load(path)"),
        ([[["0"]]], "is a path or a text", "Read the file"),
        (None, "is None", "Expected a numpy array"),
        ({"label": one()}, "is of type dict", "Pass one of its items"),
        (sitk.Image([*SHAPE], sitk.sitkVectorUInt8, 2), "2 components per voxel", "VectorIndexSelectionCast"),
    ],
    ids=lambda value: None if isinstance(value, sitk.Image) else str(value),
)
def test_errors_for_other_values_name_the_value_and_the_fix(mask: Any, found: str, remedy: str) -> None:
    with pytest.raises(BadMask) as caught:
        to_mask(mask, None, SHAPE)
    assert found in str(caught.value)
    assert remedy in str(caught.value)
    assert caught.value.code == "bad_mask"


def test_a_mask_of_another_shape_is_out_of_bounds() -> None:
    with pytest.raises(OutOfBounds, match=r"shape \(5, 6\)"):
        to_mask(one()[0], None, SHAPE)


@pytest.fixture
def core() -> Core:
    """A core with an image and without a connection."""
    core = Core()
    core.set_image(ImageSource.of(np.arange(120).reshape(SHAPE)))
    return core


COMMANDS: dict[str, Callable[[Core, Any], object]] = {
    "set_mask": lambda core, mask: core.set_mask("a", mask),
    "set_mask of a box": lambda core, mask: core.set_mask("a", mask[:2], box=((0, 2), (0, 5), (0, 6))),
    "flip_mask": lambda core, mask: core.flip_mask("a", mask),
    "add_scribble": lambda core, mask: core.add_scribble("a", mask),
    "add_lasso": lambda core, mask: core.add_lasso("a", mask, run=False),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", [0.3, np.nan, -1])
def test_every_command_with_a_mask_refuses_them(core: Core, command: str, value: float) -> None:
    requests = core.pending_requests
    with pytest.raises(BadMask):
        COMMANDS[command](core, np.full(SHAPE, value))
    assert core.pending_requests == requests
    COMMANDS[command](core, one())
    assert len(core.pending_requests) == len(requests) + 1


def test_bad_mask_is_a_client_side_error() -> None:
    assert issubclass(BadMask, nni.errors.InvalidRequest)
    assert type(error_from_wire("bad_mask", "No.")) is nni.errors.InternalError
