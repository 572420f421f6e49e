"""Arrays, tensors and images of other libraries as numpy arrays. None of these libraries is imported."""

from collections.abc import Mapping
import os
from os import PathLike
import sys
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import Error
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.rows import format_cell


class _NibabelImage(Protocol):
    @property
    def dataobj(self) -> Any: ...


class _ItkImage(Protocol):
    def GetNumberOfComponentsPerPixel(self) -> int: ...  # noqa: N802


class _DLPackArray(Protocol):
    def __dlpack__(self) -> Any: ...


#: Values that :func:`to_array` accepts.
ArrayLike: TypeAlias = npt.ArrayLike | _NibabelImage | _ItkImage | _DLPackArray

_EXPECTED = (
    "Expected a numpy array, an image of SimpleITK, nibabel or ITK, a tensor of torch, or an object with __array__ or "
    "__dlpack__."
)
#: Maximum number of dimensions of a numpy array, a limit for nested lists.
_MAX_DIMENSIONS = 64


class _Refused(Exception):
    """A value without an array. Its message is the predicate of a sentence, and the remedy."""


def to_array(value: object, noun: str, error: type[Error]) -> npt.NDArray[np.generic]:
    """Return an array with the axes (i, j, k) of a volume of the user, without a copy if that is safe.

    The axes of images of SimpleITK and ITK are (i, j, k) as in their own indices, the reverse of their numpy arrays.
    All others keep the axes that they have. ``noun``: "image" or "mask", for messages. Raises ``error``.
    """
    try:
        return _without_masked_voxels(_convert(value), noun)
    except _Refused as e:
        raise error(f"The {noun} {e}") from None
    except Exception as e:
        detail = f"{type(e).__name__}: {reason(e)}"
        raise error(f"The {noun} is not an array, or cannot be read as one ({detail}).") from e


def _without_masked_voxels(array: npt.NDArray[np.generic], noun: str) -> npt.NDArray[np.generic]:
    if isinstance(array, np.ma.MaskedArray) and (count := np.count_nonzero(np.ma.getmaskarray(array))):
        fill = "False" if noun == "mask" else "value"
        raise _Refused(f"has {count:,} masked voxels, which have no value. Replace them with {noun}.filled({fill}).")
    return np.asarray(array)


def _convert(value: object) -> npt.NDArray[np.generic]:
    if isinstance(value, np.ndarray):
        return value
    if _is_a(value, "SimpleITK", "Image"):
        return _from_simpleitk(value)
    if _is_a(value, "itk", "itkDataObject"):
        return _from_itk(value)
    if _is_a(value, "nibabel", "DataobjImage"):
        return np.asanyarray(value.dataobj)  # type: ignore[attr-defined]
    if _is_a(value, "torch", "Tensor"):
        return _from_torch(value)
    if _is_a(value, "dask", "Array"):
        return _convert(value.compute())  # type: ignore[attr-defined]  # its __array__ drops masks
    if _is_a(value, "PIL", "Image"):
        raise _Refused(
            "is a picture of PIL, which has two dimensions. Join the pictures of all slices to one array with "
            "numpy.stack, and pass that."
        )
    if isinstance(value, list | tuple):
        return _from_sequence(value)
    return _from_protocols(value)


def _is_a(value: object, library: str, name: str) -> bool:
    """Whether a value is an instance of the class of a library, or of a subclass anywhere."""
    classes = type(value).__mro__
    return any(c.__name__ == name and c.__module__.partition(".")[0] == library for c in classes)


def _from_simpleitk(image: Any) -> npt.NDArray[np.generic]:
    # To convert a label map, or an image of components, would give another shape, or end the process.
    if image.GetPixelIDTypeAsString().startswith("label"):
        raise _Refused("is a label map object of SimpleITK. Convert it with SimpleITK.LabelMapToLabel.")
    _check_components(image, "SimpleITK.VectorIndexSelectionCast(image, 0)")
    if image.GetDimension() < 3:
        raise _Refused("of SimpleITK has two dimensions. Make it a volume of one slice with SimpleITK.JoinSeries.")
    if image.GetDimension() > 3:
        raise _Refused(
            f"of SimpleITK has {image.GetDimension()} dimensions. Take one volume of it, such as image[:, :, :, 0]."
        )
    # A copy: SimpleITK may free the buffer of an image that is modified, and the voxels are read later.
    array: npt.NDArray[np.generic] = sys.modules["SimpleITK"].GetArrayFromImage(image)
    return array.transpose()


def _from_itk(image: Any) -> npt.NDArray[np.generic]:
    if not hasattr(image, "GetNumberOfComponentsPerPixel"):
        raise _Refused(f"is of type {type(image).__name__} of ITK, not an image. {_EXPECTED}")
    _check_components(image, "one component as a scalar image")
    return np.asarray(image).transpose()


def _check_components(image: Any, remedy: str) -> None:
    if (count := image.GetNumberOfComponentsPerPixel()) != 1:
        raise _Refused(f"has {count} components per voxel, like a color image or a vector field. Pass {remedy}.")


def _from_torch(tensor: Any) -> npt.NDArray[np.generic]:
    dense = tensor.detach().to_dense().cpu().resolve_conj().resolve_neg()
    if dense.is_floating_point() and str(dense.dtype) not in ("torch.float16", "torch.float32", "torch.float64"):
        dense = dense.float()  # numpy has no bfloat16 and no floats of 8 bits
    array: npt.NDArray[np.generic] = dense.numpy()
    return array


def _from_sequence(values: list[Any] | tuple[Any, ...]) -> npt.NDArray[np.generic]:
    """Convert nested sequences of numbers, or a sequence of arrays. Others, such as of images, would take minutes."""
    first: object = values
    for _ in range(_MAX_DIMENSIONS):
        if not isinstance(first, list | tuple) or not first:
            break
        first = first[0]
    _check_not_a_path(first)
    if any(isinstance(value, np.ma.MaskedArray) for value in (first, *values)):
        raise _Refused(f"is a {type(values).__name__} with masked arrays. Join them with numpy.ma.stack.")
    if not isinstance(first, int | float | complex | np.generic | np.ndarray | list | tuple):
        raise _Refused(
            f"is a {type(values).__name__} of {_type_name(first)}. Join the items to one array, for instance with "
            "numpy.stack, torch.stack or SimpleITK.JoinSeries."
        )
    return np.asarray(values)


def _from_protocols(value: object) -> npt.NDArray[np.generic]:
    _check_not_a_path(value)
    names = ("__array__", "__array_interface__", "__array_struct__")
    if isinstance(value, memoryview) or any(hasattr(value, name) for name in names):
        return np.asanyarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    if isinstance(value, Mapping):
        raise _Refused(f"is of type {_type_name(value)}. Pass one of its items. {_EXPECTED}")
    raise _Refused(f"is {'None' if value is None else f'of type {_type_name(value)}'}. {_EXPECTED}")


def _check_not_a_path(value: object) -> None:
    if isinstance(value, str | bytes | PathLike):
        raise _Refused(
            f"is a path or a text, {format_cell(os.fsdecode(value))}. Read the file first, and pass the image: "
            "nibabel.load(path) or SimpleITK.ReadImage(path)."
        )


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
