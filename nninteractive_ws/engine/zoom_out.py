"""Zoomed-out views of a session's interaction channels on a CPU, computed without empty regions and on several threads.

The result equals upstream's bit for bit. Upstream averages every channel of a view, which may hold a hundred million
voxels, on one thread. Nearly all of them are zero, because prompts are small, and so is the object in a zoomed-out
view.
"""

from collections.abc import Callable, Sequence
import math

from nnInteractive.utils.erosion_dilation import iterative_3x3_same_padding_pool3d
import torch
from torch.nn import functional

from nninteractive_ws.geometry import Box

#: Reads a channel's voxels in a box of the image into a tensor of the box's shape, float16.
Read = Callable[[int, Box, torch.Tensor], None]


class ResampleGrid:
    """The mapping of a view's voxels to those of a patch. ``view``: in the image's voxels. ``patch``: the patch's size.

    The windows of torch's area interpolation repeat after ``size / gcd`` voxels. A region that begins and ends at
    multiples of that is averaged exactly as in the whole view.
    """

    def __init__(self, view: Box, patch: Sequence[int]) -> None:
        self.view, self.patch = view, tuple(patch)
        sizes = [b - a for a, b in view]
        self._common = [math.gcd(size, n) for size, n in zip(sizes, patch, strict=True)]
        self._fine = [size // g for size, g in zip(sizes, self._common, strict=True)]
        self._coarse = [n // g for n, g in zip(self.patch, self._common, strict=True)]

    def region(self, box: Box) -> "GridRegion":
        """Return the smallest region that can be averaged on its own and holds ``box``, in the view's voxels."""
        low = [a // f for (a, _), f in zip(box, self._fine, strict=True)]
        high = [-(-b // f) for (_, b), f in zip(box, self._fine, strict=True)]
        periods = [b - a for a, b in zip(low, high, strict=True)]
        fine = [(a * f, b * f) for a, b, f in zip(low, high, self._fine, strict=True)]
        coarse = [(a * c, b * c) for a, b, c in zip(low, high, self._coarse, strict=True)]
        return GridRegion(Box.from_pairs(fine), Box.from_pairs(coarse), periods[0])

    def nearest(self, content: torch.Tensor, region: "GridRegion") -> torch.Tensor:
        """Resample the content of a region to the patch by nearest neighbors. float16, zero outside the region."""
        patch = torch.zeros(self.patch, dtype=content.dtype)
        targets, sources = [], []
        for n, (a, b), (low, high) in zip(self.patch, self.view, region.fine, strict=True):
            indices = torch.arange(b - a, dtype=torch.float32)[None, None]
            nearest = functional.interpolate(indices, n, mode="nearest")[0, 0].long()
            inside = torch.nonzero((nearest >= low) & (nearest < high))[:, 0]
            targets.append(inside)
            sources.append(nearest[inside] - low)
        i, j, k = sources
        patch[tuple(torch.meshgrid(*targets, indexing="ij"))] = content[i][:, j][:, :, k]
        return patch


class GridRegion:
    """A region of a view.

    ``fine``: its box in the view's voxels. ``coarse``: its box in the patch's voxels. ``periods``: the number of
    periods of windows along the first axis.
    """

    def __init__(self, fine: Box, coarse: Box, periods: int) -> None:
        self.fine, self.coarse, self._periods = fine, coarse, periods

    def averaged(self, content: torch.Tensor) -> torch.Tensor:
        """Average the content of the region to the patch's voxels by torch's area interpolation."""
        threads = torch.get_num_threads()
        slabs = next(n for n in range(min(threads, self._periods), 0, -1) if self._periods % n == 0)
        i, j, k = self.coarse.shape
        # torch uses one thread per channel. Slabs along the first axis become channels without a copy.
        channels = content.reshape(1, slabs, -1, *content.shape[1:])
        return functional.interpolate(channels, (i // slabs, j, k), mode="area").reshape(i, j, k)


def zoomed_interactions(
    grid: ResampleGrid,
    written: dict[int, Box],
    channels: int,
    dilated: set[int],
    kernel: int,
    previous: int,
    read: Read,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all channels of a view averaged to patch size, (channels, X, Y, Z), and the previous segmentation,
    (X, Y, Z), by nearest neighbors. Both are float16 and equal to upstream's.

    ``written``: by channel, the box of the image outside which it is zero. ``dilated``: channels that are first dilated
    by a cube of ``kernel`` voxels. ``previous``: the channel of the previous segmentation.
    """
    interactions = torch.zeros((channels, *grid.patch), dtype=torch.float16)
    nearest = torch.zeros(grid.patch, dtype=torch.float16)
    whole = Box((0, 0, 0), grid.view.shape)
    for channel, box in written.items():
        in_image = box.intersection(grid.view)
        if in_image is None:
            continue
        margin = kernel // 2 if channel in dilated else 0
        in_view = in_image.relative_to(grid.view)
        dilated_box = Box.from_pairs([(a - margin, b + margin) for a, b in in_view])
        region = grid.region(dilated_box.intersection(whole) or whole)
        content = torch.zeros(region.fine.shape, dtype=torch.float16)
        read(channel, in_image, content[in_view.relative_to(region.fine).slices])
        if channel == previous:
            nearest = grid.nearest(content, region)
        if channel in dilated:
            content = iterative_3x3_same_padding_pool3d(content[None, None], kernel)[0, 0]
        interactions[(channel, *region.coarse.slices)] = region.averaged(content)
    return interactions, nearest
