"""Zoomed-out views of a session's interaction channels on a CPU: what upstream computes, bit for bit, without the parts
that are empty, and on several threads.

Upstream averages every channel of a view that may hold a hundred million voxels, on one thread. Nearly all of it is
zero: prompts are small, and so is the object in a view that is zoomed out.
"""

from collections.abc import Callable, Sequence
import math

from nnInteractive.utils.erosion_dilation import iterative_3x3_same_padding_pool3d
import torch
from torch.nn import functional

from nninteractive_ws.geometry import Box

#: Writes what a channel holds in a box of the image into a tensor of the box's shape, float16.
Read = Callable[[int, Box, torch.Tensor], None]


class Grid:
    """How the voxels of a view become those of a patch: ``view`` in the image's voxels, and its size in the patch's.

    Windows of torch's area interpolation repeat after ``size / gcd`` voxels, so that a part that begins and ends there
    is averaged as it would be in the whole.
    """

    def __init__(self, view: Box, patch: Sequence[int]) -> None:
        self.view, self.patch = view, tuple(patch)
        sizes = [b - a for a, b in view]
        self._common = [math.gcd(size, n) for size, n in zip(sizes, patch, strict=True)]
        self._fine = [size // g for size, g in zip(sizes, self._common, strict=True)]
        self._coarse = [n // g for n, g in zip(self.patch, self._common, strict=True)]

    def part(self, box: Box) -> "Part":
        """The least part that holds a box of the view, given in the view's own voxels."""
        low = [a // f for (a, _), f in zip(box, self._fine, strict=True)]
        high = [-(-b // f) for (_, b), f in zip(box, self._fine, strict=True)]
        periods = [b - a for a, b in zip(low, high, strict=True)]
        fine = [(a * f, b * f) for a, b, f in zip(low, high, self._fine, strict=True)]
        coarse = [(a * c, b * c) for a, b, c in zip(low, high, self._coarse, strict=True)]
        return Part(Box.from_pairs(fine), Box.from_pairs(coarse), periods[0])

    def nearest(self, content: torch.Tensor, part: "Part") -> torch.Tensor:
        """The patch by nearest neighbours, from the content of a part; zero elsewhere. float16."""
        patch = torch.zeros(self.patch, dtype=content.dtype)
        targets, sources = [], []
        for n, (a, b), (low, high) in zip(self.patch, self.view, part.fine, strict=True):
            every = torch.arange(b - a, dtype=torch.float32)[None, None]
            picked = functional.interpolate(every, n, mode="nearest")[0, 0].long()
            inside = torch.nonzero((picked >= low) & (picked < high))[:, 0]
            targets.append(inside)
            sources.append(picked[inside] - low)
        i, j, k = sources
        patch[tuple(torch.meshgrid(*targets, indexing="ij"))] = content[i][:, j][:, :, k]
        return patch


class Part:
    """A part of a view: ``fine`` in the view's voxels, ``coarse`` in the patch's; ``periods``: how many of windows
    it has along the first axis."""

    def __init__(self, fine: Box, coarse: Box, periods: int) -> None:
        self.fine, self.coarse, self._periods = fine, coarse, periods

    def averaged(self, content: torch.Tensor) -> torch.Tensor:
        """The content of the part, averaged to the patch's voxels by torch's area interpolation."""
        threads = torch.get_num_threads()
        slabs = next(n for n in range(min(threads, self._periods), 0, -1) if self._periods % n == 0)
        i, j, k = self.coarse.shape
        # It is one thread for every channel; slabs of the first axis are channels without being copied.
        channels = content.reshape(1, slabs, -1, *content.shape[1:])
        return functional.interpolate(channels, (i // slabs, j, k), mode="area").reshape(i, j, k)


def zoomed_interactions(
    grid: Grid, written: dict[int, Box], channels: int, dilated: set[int], kernel: int, previous: int, read: Read
) -> tuple[torch.Tensor, torch.Tensor]:
    """All channels of a view averaged to patch size, (channels, ...), and the previous segmentation by nearest
    neighbours; float16, and equal to upstream's.

    ``written``: where in the image a channel may hold anything. ``dilated``: the channels that are dilated before, by a
    cube of ``kernel`` voxels.
    """
    interactions = torch.zeros((channels, *grid.patch), dtype=torch.float16)
    nearest = torch.zeros(grid.patch, dtype=torch.float16)
    whole = Box((0, 0, 0), grid.view.shape)
    for channel, box in written.items():
        seen = box.intersection(grid.view)
        if seen is None:
            continue
        grown = kernel // 2 if channel in dilated else 0
        held = seen.within(grid.view)
        part = grid.part(Box.from_pairs([(a - grown, b + grown) for a, b in held]).intersection(whole) or whole)
        content = torch.zeros(part.fine.shape, dtype=torch.float16)
        read(channel, seen, content[held.within(part.fine).slices])
        if channel == previous:
            nearest = grid.nearest(content, part)
        if channel in dilated:
            content = iterative_3x3_same_padding_pool3d(content[None, None], kernel)[0, 0]
        interactions[(channel, *part.coarse.slices)] = part.averaged(content)
    return interactions, nearest
