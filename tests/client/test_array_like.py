"""Images, tensors and arrays of other libraries, and other objects."""

from collections.abc import Callable
import gc
from pathlib import Path
import subprocess
import sys
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nninteractive_ws.client.array_like import to_array
from nninteractive_ws.errors import BadImage, BadMask

Array = np.ndarray[Any, Any]

SHAPE = (4, 5, 6)


@pytest.fixture
def volume() -> Array:
    """Voxels that are all different."""
    return np.arange(120, dtype=np.int16).reshape(SHAPE)


def read(value: object) -> Array:
    return to_array(value, "image", BadImage)


def simpleitk_image(volume: Array) -> sitk.Image:
    return sitk.GetImageFromArray(np.ascontiguousarray(volume.transpose()))


class Interface:
    """An array with only ``__array_interface__``, like an image of ITK."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__


class HasArray:
    """An array by ``__array__``, like those of zarr and xarray."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self._array


class HasDLPack:
    """An array with only DLPack."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def class_of(library: str, name: str, members: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that imitates one of a library that may not be installed."""
    if library not in sys.modules:
        monkeypatch.setitem(sys.modules, library, ModuleType(library))
    return type(name, (), {"__module__": f"{library}.core", **members})


# ---- accepted objects --------------------------------------------------------------------------------------


def test_an_image_of_simpleitk_has_the_axes_of_its_own_indices(volume: Array) -> None:
    image = simpleitk_image(volume)
    array = read(image)
    assert array.shape == image.GetSize() == SHAPE
    assert all(array[at] == image[at] for at in np.ndindex(SHAPE))
    assert array.dtype == np.int16


def test_an_image_of_simpleitk_may_be_changed_and_deleted_afterward(volume: Array) -> None:
    image = simpleitk_image(volume)
    array = read(image)
    image[0, 0, 0] = 77
    image *= 3
    del image
    gc.collect()
    assert np.array_equal(array, volume)


def test_a_large_image_of_simpleitk_is_quick() -> None:
    image = sitk.Image([256, 256, 128], sitk.sitkInt16)
    started = time.monotonic()
    assert read(image).shape == (256, 256, 128)
    assert time.monotonic() - started < 2  # 80 s, voxel by voxel


def test_a_subclass_of_a_library_s_class_is_recognized(volume: Array) -> None:
    class Mine(sitk.Image):
        pass

    assert np.array_equal(read(Mine(simpleitk_image(volume))), volume)


def test_an_image_of_nibabel_has_the_axes_of_its_array(volume: Array, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(volume, np.eye(4))
    assert np.shares_memory(read(image), volume)
    path = tmp_path / "a.nii.gz"
    nibabel.save(image, path)
    loaded = read(nibabel.load(path))
    assert np.array_equal(loaded, volume)
    assert loaded.dtype == np.int16
    assert np.array_equal(read(sitk.ReadImage(str(path))), loaded)


def test_the_scaling_of_an_image_of_nibabel_is_applied(volume: Array, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "a.nii")
    loaded = nibabel.load(tmp_path / "a.nii")
    assert np.array_equal(read(loaded), loaded.get_fdata())


@pytest.mark.parametrize("of", ["plain", "requires grad", "parameter", "bfloat16", "sparse", "negated", "permuted"])
def test_a_tensor_of_torch_keeps_its_axes(volume: Array, of: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(volume.astype(np.float32))
    tensors: dict[str, Callable[[], Any]] = {
        "plain": lambda: tensor,
        "requires grad": lambda: tensor.clone().requires_grad_(),
        "parameter": lambda: torch.nn.Parameter(tensor),
        "bfloat16": lambda: tensor.to(torch.bfloat16),
        "sparse": tensor.to_sparse,
        "negated": lambda: torch.complex(tensor, -tensor).conj().imag,
        "permuted": lambda: tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }
    found = read(tensors[of]())
    assert np.array_equal(found, volume)
    assert found.dtype == np.float32


def test_a_tensor_of_torch_is_not_copied(volume: Array) -> None:
    torch = pytest.importorskip("torch")
    assert np.shares_memory(read(torch.from_numpy(volume)), volume)


def test_a_tensor_on_another_device_is_copied_to_the_host(volume: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    fetched = []

    class Remote(torch.Tensor):  # type: ignore[name-defined, misc]
        def cpu(self) -> Any:
            fetched.append(True)
            return self.as_subclass(torch.Tensor)

    assert np.array_equal(read(torch.from_numpy(volume).as_subclass(Remote)), volume)
    assert fetched


def test_an_image_of_itk_has_the_axes_of_its_own_indices(volume: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.ascontiguousarray(volume.transpose())
    base = class_of("itk", "itkDataObject", {}, monkeypatch)
    members = {"GetNumberOfComponentsPerPixel": lambda self: 1, "__array_interface__": data.__array_interface__}
    image = type("itkImageSS3", (base,), members)()
    assert np.array_equal(read(image), volume)
    color = type("itkImageRGBUC3", (base,), {**members, "GetNumberOfComponentsPerPixel": lambda self: 3})()
    with pytest.raises(BadImage, match="3 components per voxel"):
        read(color)
    with pytest.raises(BadImage, match="of type itkMesh of ITK, not an image"):
        read(type("itkMesh", (base,), {})())


def test_an_array_of_dask_is_computed_with_its_mask(volume: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    of = class_of("dask", "Array", {"compute": lambda self: self.result}, monkeypatch)
    lazy = of()
    lazy.result = volume
    assert read(lazy) is volume
    lazy.result = np.ma.masked_array(volume, mask=volume == 5)
    with pytest.raises(BadImage, match="1 masked voxels"):
        read(lazy)


@pytest.mark.parametrize("kind", [Interface, HasArray, HasDLPack, memoryview])
def test_array_protocols_need_no_copy(volume: Array, kind: Callable[[Array], object]) -> None:
    found = read(kind(volume))
    assert np.array_equal(found, volume)
    assert np.shares_memory(found, volume)


@pytest.mark.parametrize(
    "layout",
    [
        lambda a: a.astype(">i2"),
        lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
        lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        lambda a: a.view(np.memmap),
        np.asfortranarray,
        lambda a: np.ma.masked_array(a),
        lambda a: np.ma.masked_array(a, mask=False),
    ],
    ids=["big-endian", "negative strides", "read-only", "memory map", "Fortran", "no mask", "nothing masked"],
)
def test_an_array_is_used_unchanged(volume: Array, layout: Callable[[Array], Array]) -> None:
    given = layout(volume)
    found = read(given)
    assert type(found) is np.ndarray
    assert np.array_equal(found, volume)
    assert np.shares_memory(found, given)


@pytest.mark.parametrize("container", [list, tuple])
def test_a_sequence_of_slices_is_stacked_along_the_first_axis(volume: Array, container: type) -> None:
    assert np.array_equal(read(container(volume)), volume)
    assert np.array_equal(read(volume.tolist()), volume)


# ---- refused objects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/b.nii.gz", r'is a path or a text, "a/b.nii.gz". Read the file first.*nibabel.load\(path\)'),
        (Path("b.nrrd"), r'"b.nrrd".*SimpleITK.ReadImage\(path\)'),
        (b"c.mha", r'"c.mha"'),
        (["1.dcm", "2.dcm"], r'"1.dcm"'),
        ((Path("1.dcm"),), r'"1.dcm"'),
        ("x" * 5000, r'"x{119}…'),
        (None, "The image is None. Expected a numpy array, an image of SimpleITK"),
        ({"image": 1}, "is of type dict. Pass one of its items"),
        ({1, 2}, "is of type set"),
        (7, "is of type int"),
        (object(), "is of type object"),
        (np.zeros, "is of type builtin_function_or_method|is of type function"),
        ((n for n in range(3)), "is of type generator"),
        ([None, None], "is a list of NoneType. Join the items to one array"),
        ([{"a": 1}], "is a list of dict"),
        ([[[1, 2], [3]]], "is not an array, or cannot be read as one"),
        ([simpleitk_image(np.zeros((4, 5, 1)))[:, :, 0]], "is a list of SimpleITK.*SimpleITK.JoinSeries"),
        (sitk.ImageFileReader(), "is of type SimpleITK.SimpleITK.ImageFileReader"),
        (sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), "has 3 components per voxel.*VectorIndexSelectionCast"),
        (sitk.Image([4, 5], sitk.sitkInt16), "has two dimensions.*SimpleITK.JoinSeries"),
        (
            sitk.Image([4, 5, 6, 2], sitk.sitkInt16),
            r"has 4 dimensions. Take one volume of it, such as image\[:, :, :, 0",
        ),
        (sitk.Image([4, 5, 6], sitk.sitkLabelUInt8), "label map object.*SimpleITK.LabelMapToLabel"),
        (np.ma.masked_array(np.arange(4), mask=[0, 1, 1, 0]), r"has 2 masked voxels.*image.filled\(value\)"),
        ([np.ma.masked_array([1, 2], mask=[0, 1])], "is a list with masked arrays"),
        ([np.zeros(2), np.ma.masked_array([1, 2], mask=[0, 1])], "is a list with masked arrays"),
    ],
)
def test_errors_for_other_objects_name_the_fix(value: object, expected: str) -> None:
    with pytest.raises(BadImage, match=expected):
        read(value)


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(BadImage, match="is not an array, or cannot be read as one"):
        read(endless)


def test_errors_contain_the_reason_of_a_library() -> None:
    class Broken:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            raise TypeError("Use .get() to copy it from the GPU.")

    with pytest.raises(BadImage, match=r"\(TypeError: Use .get\(\) to copy it from the GPU\)\.$"):
        read(Broken())


def test_a_tensor_without_data_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(BadImage, match="cannot be read as one"):
        read(torch.empty(SHAPE, device="meta"))
    with pytest.raises(BadImage, match=r"is a list of torch.Tensor.*torch.stack"):
        read([torch.zeros(5, 6)] * 4)


def test_a_picture_is_not_a_volume() -> None:
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(BadImage, match="is a picture of PIL"):
        read(image.new("RGB", (4, 5)))


def test_masked_voxels_of_an_array_protocol_are_detected(volume: Array) -> None:
    with pytest.raises(BadMask, match=r"The mask has 7 masked voxels.*mask.filled\(False\)"):
        to_array(HasArray(np.ma.masked_array(volume, mask=volume < 7)), "mask", BadMask)


def test_array_like_imports_no_library() -> None:
    code = (
        "import sys, nninteractive_ws.client.core, numpy as np; "
        "from nninteractive_ws.client.array_like import to_array; "
        "to_array(np.zeros((2, 2, 2)), 'image', ValueError); "
        "print([n for n in ('SimpleITK', 'nibabel', 'torch', 'itk', 'dask', 'PIL') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
