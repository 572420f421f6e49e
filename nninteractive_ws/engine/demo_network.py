"""The network of the embedded model, named by its plans.json.

A residual-encoder U-Net at half resolution whose head answers for the 2x2x2 voxels of each position.
nnInteractive's refinement keeps a margin of 24 voxels in every patch, so a small patch wastes most of a pass; a
patch of 96 with an eighth of the work per voxel is the better bargain on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from nninteractive_ws import masks
from nninteractive_ws.engine.demo_rules import NEAR, share_going_on, undone

# What the newest prompt marks if it is positive, and if it is negative: bool (batch, X, Y, Z) each.
_Newest = tuple[torch.Tensor, torch.Tensor]

_F = TypeVar("_F", bound=Callable[..., object])

# Interaction channels behind the image, as in nnInteractive's default mapping: previous segmentation,
# box and lasso (positive, negative), points, scribbles.
_PREVIOUS, _REGION_POS, _REGION_NEG, _POINT_POS, _POINT_NEG, _SCRIBBLE_POS, _SCRIBBLE_NEG = 1, 2, 3, 4, 5, 6, 7
# What is seen of the object's intensity: a voxel of a scribble says more than one of a box or of the previous mask. Of
# a point it is the middle that counts, as its ball is larger than a small object: to the third power, more than half
# of its weight lies within two voxels.
_REGION_WEIGHT, _PREVIOUS_WEIGHT, _POINT_WEIGHT, _POINT_POWER = 0.02, 0.005, 5.0, 3
# How far an intensity may be from that of the newest prompt to count as alike: 1 over these, of the z-scored image.
_ALIKE = (5.0, 20.0)
# The logarithm of what is as good as 0. From -87 on float32 is subnormal, with which a CPU takes ten times as long.
_NOTHING = -50.0
# The gains of the contrasts to all positive prompts.
_CONTRASTS = (2.0, 8.0)
# Channels that the network adds.
_ADDED = len(_CONTRASTS) + len(_ALIKE)
# Channels that reach the head at full resolution: the image and what is added to it, the previous segmentation, and
# what positive and negative points and scribbles mark.
_SEEN_FINELY = 4 + _ADDED
# A point is a ball of radius 4 that falls from 1 in the middle to 0.34 at 3 voxels: up to there it counts in full, and
# beyond hardly, as a ball that is larger than a lesion fills it, or empties it from outside.
_MARK_GAIN = 3.0
# Only the middle of the newest point is above; older ones have decayed to 0.9 and less.
_NEWEST = 0.95
# What an older one marks, ever fainter.
_MARKED = 0.05
# What a mark, and the previous segmentation where there is one, add to the logits' difference; chosen on phantoms.
_OBEDIENCE, _INERTIA = 6.0, 2.0
# The same for what the newest prompt does not ask to change: a positive one that lies outside takes nothing away, a
# negative one inside adds nothing.
_PROTECTION = 8.0
# By how much the logits must say "object" where there is no previous segmentation: the network takes a rim with it, as
# its training counts what is missed more. Chosen on phantoms and on real volumes.
_CAUTION = 1.0
# When a first answer is looked at again at half the size: more than this share of what surrounds it looks like it, and
# the points lie so close to the middle of the patch, in voxels. What is seen then counts if it is this share of the
# patch and so many times as much as before: if less of what surrounds it looks like it, or, below the second number,
# half as much. Chosen on phantoms and on real volumes.
_GOES_ON, _MIDDLE = 0.15, 8
_LARGE, _LARGER, _MUCH_LARGER = 0.034, 1.25, 2.5


def _multiplies_bfloat16() -> bool:
    """Whether the CPU does so itself, as torch says; one that has to emulate it is slower than with float32."""
    features: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(features.get(name) for name in ("avx512_bf16", "amx_bf16"))


_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
# The precision the network was trained in. It halves a pass, and moves a mask's border by a voxel here and there.
BFLOAT16_ON_CPU = _multiplies_bfloat16()


def _untraced(function: _F) -> _F:
    """torch.compile leaves the function as it is: it fails on arrays of tensors that numpy and SciPy work on."""
    untraced: _F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return untraced


class HalfResolutionUNet(nn.Module):
    """Maps (batch, 8, X, Y, Z) to two logits per voxel, (batch, 2, X, Y, Z); X, Y, Z multiples of 32.

    The image channel holds a z-scored volume, which leaves soft tissues a few hundredths apart. So the
    network also sees the difference to the mean intensity under the positive prompts, at two gains. A correction often
    points at what looks otherwise; so it also sees what is like the newest prompt, positive or negative.

    Points and scribbles are small, and half a resolution blurs them: the head sees them at full resolution, and
    what they mark is added to the logits. The previous segmentation is added, too, less: so a correction changes
    what the network is sure of, and does not redraw every border.

    Where there is no previous segmentation, it looks twice: the first answer is the second look's previous one. If it
    goes on in what surrounds it, as that of an organ larger than a patch does, the patch is looked at at half its size.
    """

    def __init__(self, input_channels: int, num_classes: int, features: list[int], deep_supervision: bool = False):
        super().__init__()
        if deep_supervision:
            raise ValueError("HalfResolutionUNet has no deep supervision: build it with deep_supervision=False")
        seen = input_channels + _ADDED
        self.stem = _Conv3d(seen, features[0], 3, stride=2, padding=1)
        self.body = residual_encoder(features[0], features, [1] + [2] * (len(features) - 1), 16)
        # One convolution of both in two: what is seen finely is input, and needs no gradient in training.
        self.mix_coarse = _Conv3d(16, 24, 3, padding=1)
        self.mix_fine = _Conv3d(8 * _SEEN_FINELY, 24, 3, padding=1, bias=False)
        self.head = _Conv3d(24, 8 * num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then the interaction channels."""
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16_ON_CPU and x.device.type == "cpu"):
            x = _undimmed(x)
            logits = self._answer(x)
            for n, one in enumerate(x):
                if _may_be_larger(one):
                    logits[n] = self._widened(one, logits[n])
        return logits

    def _answer(self, x: torch.Tensor) -> torch.Tensor:
        """What the newest prompt means, of as many looks as that takes."""
        logits = self.logits(x)
        first = _is_first(x)
        if first.any():
            again = x[first]
            again[:, _PREVIOUS] = logits[first, 1] - logits[first, 0] > _CAUTION
            logits[first] = self.logits(again)
            logits[first, 1] -= _CAUTION
        return self.near_prompts(logits, x)

    def _widened(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The answer to one patch, (channels, X, Y, Z), with that of looks at it at half its size where these show that
        the object is larger. logits: (2, X, Y, Z) of the answer so far."""
        own = _Answer.of(x[0], logits)
        if own.going_on <= _GOES_ON:
            return logits
        wide = _Answer.of(x[0], self._shrunk_answer(x, "constant"))
        if not _is_needed(own, wide):
            return logits
        if wide.going_on > _GOES_ON:
            # Zeros around it cut an organ short that reaches them. Edges that go on for ever let an answer run out, so
            # they are for what is known to be large.
            further = _Answer.of(x[0], self._shrunk_answer(x, "replicate"))
            wide = min(wide, further, key=lambda answer: answer.going_on)
        return torch.where(own.mask & ~wide.mask, logits, wide.logits)

    def _shrunk_answer(self, x: torch.Tensor, around: str) -> torch.Tensor:
        """The answer where the middle of a patch, (channels, X, Y, Z), shows all of it at half its size, brought back
        to its own size: logits, (2, X, Y, Z). around: pad's mode for what surrounds it.

        The prompts, in the middle, are not shrunk: the network knows a point as a ball of that size.
        """
        quarter = [n // 4 for n in x.shape[1:]]
        i, j, k = (slice(q, -q) for q in quarter)
        image = functional.pad(functional.avg_pool3d(x[:1], 2)[None], np.repeat(quarter[::-1], 2).tolist(), mode=around)
        logits = self._answer(torch.cat((image, x[None, 1:]), 1))
        return functional.interpolate(logits[..., i, j, k], scale_factor=2, mode="trilinear")[0]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The answer as it is trained: wherever something is to change, not only where the newest prompt is."""
        kind = x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        newest, marks = self.newest(x), self._marks(x)
        image, previous = x[:, :1], x[:, _PREVIOUS : _PREVIOUS + 1]
        added = (*self._contrast_to_prompts(x), *self.likeness_to_newest(x, newest))
        seen, channels = _filled((*x.chunk(x.shape[1], 1), *added), precision)
        coarse = self.body(functional.leaky_relu(self.stem.of(seen, channels), 0.01))
        seen, channels = _filled((image, *added, previous, *marks.chunk(2, 1)), precision)
        fine, of_cubes = _space_to_depth(seen), [8 * channel + voxel for voxel in range(8) for channel in channels]
        mixed = functional.leaky_relu(self.mix_coarse(coarse) + self.mix_fine.of(fine, of_cubes), 0.01)
        logits = _depth_to_space(self.head(mixed)).float()
        return torch.stack((logits[:, 0], logits[:, 1] + self._margin(marks, newest, x)), 1)

    @staticmethod
    @_untraced
    def near_prompts(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The answer without changes of the previous segmentation that the newest prompt is not believed to mean."""
        positive, negative = HalfResolutionUNet.newest(x)
        newest = positive | negative
        marked = HalfResolutionUNet._marks(x) > _MARKED
        seen = (logits[:, 1] - logits[:, 0], x[:, _PREVIOUS] > 0.5, newest, marked[:, 0], marked[:, 1])
        back = np.stack([undone(*of_one) for of_one in zip(*(t.cpu().numpy() for t in seen), strict=True)])
        if not back.any():
            return logits
        return torch.where(torch.from_numpy(back).to(logits.device)[:, None], logits.flip(1), logits)

    @staticmethod
    def _margin(marks: torch.Tensor, newest: _Newest, x: torch.Tensor) -> torch.Tensor:
        """By how much marks and previous segmentation say "object" rather than not: (batch, X, Y, Z)."""
        # A power that is no square takes ten times as long.
        negative, positive = (_MARK_GAIN * marks).clamp_max(1).square().square().unbind(1)
        if (negative * positive).any():
            # The newest point overrules older ones of the other polarity.
            point = (torch.stack((x[:, _POINT_NEG], x[:, _POINT_POS]), 1) > _NEWEST).to(marks.dtype)
            near_negative, near_positive = _reach(point).unbind(1)
            margin = positive * (1 - negative * near_negative) - negative * (1 - positive * near_positive)
        else:
            margin = positive - negative
        return _OBEDIENCE * margin + HalfResolutionUNet._inertia(newest, x)

    @staticmethod
    def _inertia(newest: _Newest, x: torch.Tensor) -> torch.Tensor:
        """What the previous segmentation adds to the margin: (batch, X, Y, Z); 0 where there is none."""
        previous = x[:, _PREVIOUS]
        given = ~_is_first(x)
        adds, removes = (
            (marked & ((previous > 0.5) != wanted)).flatten(1).any(1)
            for marked, wanted in zip(newest, (True, False), strict=True)
        )
        usual = torch.full_like(given, _INERTIA, dtype=previous.dtype)
        inside = given * torch.where(adds & ~removes, _PROTECTION, usual)
        outside = given * torch.where(removes & ~adds, _PROTECTION, usual)
        return inside[:, None, None, None] * previous - outside[:, None, None, None] * (1 - previous)

    @staticmethod
    def newest(x: torch.Tensor) -> _Newest:
        """What the newest prompt marks if it is positive, and if it is negative: bool (batch, X, Y, Z) each."""
        return x[:, _REGION_POS::2].amax(1) > _NEWEST, x[:, _REGION_NEG::2].amax(1) > _NEWEST

    @staticmethod
    def _marks(x: torch.Tensor) -> torch.Tensor:
        """What points and scribbles mark as not object and as object: (batch, 2, X, Y, Z), 1 for the newest."""
        points = torch.stack((x[:, _POINT_NEG], x[:, _POINT_POS]), 1)
        scribbles = torch.stack((x[:, _SCRIBBLE_NEG], x[:, _SCRIBBLE_POS]), 1)
        return torch.maximum(points, scribbles)

    @staticmethod
    def _contrast_to_prompts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        image = x[:, :1].float()
        weight = (
            _POINT_WEIGHT * x[:, _POINT_POS : _POINT_POS + 1].float() ** _POINT_POWER
            + x[:, _SCRIBBLE_POS : _SCRIBBLE_POS + 1].float()
            + _REGION_WEIGHT * x[:, _REGION_POS : _REGION_POS + 1].float()
            + _PREVIOUS_WEIGHT * x[:, _PREVIOUS : _PREVIOUS + 1].float()
        )
        given = (weight > 0).flatten(1).any(1)[:, None, None, None, None]
        difference = (image - _mean_under(weight, image)) * given
        return tuple(torch.tanh(gain * difference).to(x.dtype) for gain in _CONTRASTS)

    @staticmethod
    def likeness_to_newest(x: torch.Tensor, newest: _Newest) -> tuple[torch.Tensor, ...]:
        """From 1, as bright as what the newest prompt marks, to 0; negative for a negative prompt, and 0 everywhere
        where the patch holds no newest one: (batch, 1, X, Y, Z) for each of _ALIKE."""
        image = x[:, :1].float()
        positive, negative = newest
        # Of a point, a single voxel is above: the mean of its neighbours is less noisy.
        weight = _neighbours((positive | negative)[:, None].float())
        polarity = positive.flatten(1).any(1).float() - negative.flatten(1).any(1).float()
        square = (image - _mean_under(weight, image)) ** 2
        like = (torch.exp((-(gain**2) * square).clamp_min(_NOTHING)) for gain in _ALIKE)
        return tuple((polarity[:, None, None, None, None] * one).to(x.dtype) for one in like)


class _Conv3d(nn.Conv3d):
    """torch's, by oneDNN whatever its size, and without the channels that are 0 everywhere.

    In float32 torch itself computes a convolution with a kernel of 3 and a batch of one by oneDNN only where channels
    times the first two sides are more than 20,480, else by code of its own (``use_mkldnn`` in ATen's Convolution.cpp).
    For 32 channels of 24x24x24 voxels that takes eleven times as long.
    """

    def of(self, x: torch.Tensor, channels: list[int]) -> torch.Tensor:
        """The convolution of those input channels that ``x`` holds; the others are 0."""
        return self._conv_forward(x, self.weight[:, channels], self.bias)

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        cast = torch.is_autocast_enabled(x.device.type)  # which does not know the call below
        floats = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not cast
        convolved: torch.Tensor
        if torch.is_grad_enabled() or not (floats and _HAS_ONEDNN) or isinstance(self.padding, str):
            convolved = super()._conv_forward(x, weight, bias)
        else:
            convolved = torch.mkldnn_convolution(x, weight, bias, self.padding, self.stride, self.dilation, self.groups)
        return convolved


def residual_encoder(inputs: int, features: list[int], blocks: list[int], outputs: int) -> ResidualEncoderUNet:
    """nnInteractive's architecture: a residual encoder U-Net. ``features``, ``blocks``: of every stage; each after the
    first halves the resolution. Maps (batch, inputs, X, Y, Z) to (batch, outputs, X, Y, Z)."""
    return ResidualEncoderUNet(
        input_channels=inputs,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=_Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (len(features) - 1),
        n_blocks_per_stage=blocks,
        num_classes=outputs,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


def _is_first(x: torch.Tensor) -> torch.Tensor:
    """Which patches hold nothing of a previous segmentation: bool (batch,)."""
    return ~(x[:, _PREVIOUS] > 0.5).flatten(1).any(1)


def _undimmed(x: torch.Tensor) -> torch.Tensor:
    """The patches, with the strongest prompt at 1 where there is no previous segmentation, so that it is the newest.
    Zooming out takes the mean of voxels: a point is 0.8 then, less than an older one otherwise."""
    first = _is_first(x)
    if not first.any():
        return x
    strongest = x[:, _REGION_POS:].flatten(1).amax(1)
    dim = first & (strongest > 0) & (strongest < 1)
    if not dim.any():
        return x
    scale = torch.where(dim, 1 / strongest, torch.ones_like(strongest))[:, None, None, None, None]
    return torch.cat((x[:, :_REGION_POS], x[:, _REGION_POS:] * scale), 1)


@_untraced
def _may_be_larger(x: torch.Tensor) -> bool:
    """Whether a patch, (channels, X, Y, Z), holds nothing but points in its middle, so that their object may be larger
    than the patch. A box, a lasso or a scribble tells something of its size."""
    if x[_PREVIOUS:_POINT_POS].any() or x[_SCRIBBLE_POS:].any() or x[_POINT_POS].amax() <= _NEWEST:
        return False
    prompted = masks.hull((x[_POINT_POS:_SCRIBBLE_POS] > 0).any(0).cpu().numpy())
    assert prompted is not None
    sides = zip(prompted, x.shape[1:], strict=True)
    return all(n // 2 - _MIDDLE <= low and high <= n // 2 + _MIDDLE for (low, high), n in sides)


@dataclass(frozen=True)
class _Answer:
    """Logits, (2, X, Y, Z), the mask that they mean, bool (X, Y, Z), and the share of its surroundings that go on."""

    logits: torch.Tensor
    mask: torch.Tensor
    going_on: float

    @classmethod
    @_untraced
    def of(cls, image: torch.Tensor, logits: torch.Tensor) -> Self:
        """image: (X, Y, Z)."""
        found = logits[1] > logits[0]
        return cls(logits, found, share_going_on(image.float().cpu().numpy(), found.cpu().numpy()))


def _is_needed(own: _Answer, wide: _Answer) -> bool:
    """Whether a shrunk look shows that the object is too large for one that is not shrunk, and where it ends."""
    size, before = int(wide.mask.count_nonzero()), int(own.mask.count_nonzero())
    if size < _LARGE * wide.mask.numel() or size < _LARGER * before:
        return False
    return wide.going_on < (own.going_on if size >= _MUCH_LARGER * before else own.going_on / 2)


def _mean_under(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The weighted mean of each image, both (batch, 1, X, Y, Z), as (batch, 1, 1, 1, 1); 0 where all weights are."""
    axes = (2, 3, 4)
    return (weight * image).sum(axes, keepdim=True) / weight.sum(axes, keepdim=True).clamp_min(1e-6)


def _reach(marks: torch.Tensor) -> torch.Tensor:
    """The greatest of each voxel's neighbours that a prompt there would mean; (batch, c, X, Y, Z)."""
    width = 2 * NEAR + 1
    for kernel in ((width, 1, 1), (1, width, 1), (1, 1, width)):
        marks = functional.max_pool3d(marks, kernel, stride=1, padding=[n // 2 for n in kernel])
    return marks


def _neighbours(marked: torch.Tensor) -> torch.Tensor:
    """How many of a voxel and the 26 around it are marked; both (batch, 1, X, Y, Z). torch's pooling takes 27 times as
    long."""
    padded = functional.pad(marked, (1,) * 6)
    for axis in (2, 3, 4):
        n = padded.shape[axis] - 2
        padded = padded.narrow(axis, 0, n) + padded.narrow(axis, 1, n) + padded.narrow(axis, 2, n)
    return padded


def _filled(planes: Sequence[torch.Tensor], precision: torch.dtype) -> tuple[torch.Tensor, list[int]]:
    """Those of the channels, (batch, 1, X, Y, Z) each, that are not 0 everywhere, as one tensor; and which they are.

    Most interaction channels are empty most of the time. A GPU is not asked: it has all sooner than it answers.
    """
    cpu = planes[0].device.type == "cpu"
    channels = [n for n, plane in enumerate(planes) if not cpu or bool(plane.amax() != 0) or bool(plane.amin() != 0)]
    channels = channels or [0]  # a patch outside of a thin image has none
    filled = torch.cat([planes[n].to(precision) for n in channels], 1)
    return filled.contiguous(memory_format=torch.channels_last_3d), channels


def _space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """(batch, c, X, Y, Z) to (batch, 8 c, X/2, Y/2, Z/2): the channels of the first voxel of every 2x2x2 cube, then
    those of the second, and so on."""
    b, c, i, j, k = x.shape
    cubes = x.permute(0, 2, 3, 4, 1).reshape(b, i // 2, 2, j // 2, 2, k // 2, 2, c)
    channels_last = cubes.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, i // 2, j // 2, k // 2, 8 * c)
    return channels_last.permute(0, 4, 1, 2, 3)


def _depth_to_space(x: torch.Tensor) -> torch.Tensor:
    """(batch, 8 c, X, Y, Z) to (batch, c, 2 X, 2 Y, 2 Z): every eight channels become a 2x2x2 cube."""
    b, c, i, j, k = x.shape
    cubes = x.reshape(b, c // 8, 2, 2, 2, i, j, k)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // 8, 2 * i, 2 * j, 2 * k)
