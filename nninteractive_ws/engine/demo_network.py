"""The network of the embedded model, named by its plans.json.

It is a residual-encoder U-Net at half resolution. Its head predicts the 2x2x2 voxels of each position.

nnInteractive's refinement keeps a margin of 24 voxels in every patch, so a small patch wastes most of a forward pass.
On a CPU, a patch of 96 voxels with an eighth of the work per voxel is faster.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import functools
import sys
from typing import Any, Self, TypeVar, cast

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from nninteractive_ws import masks
from nninteractive_ws.engine.demo_postprocessing import NEAR, continuation_ratio, unwanted_changes

# Voxels marked by the newest prompt if it is positive, and if it is negative: bool (batch, X, Y, Z) each.
_NewestMarks = tuple[torch.Tensor, torch.Tensor]

_F = TypeVar("_F", bound=Callable[..., object])

# Interaction channels behind the image, in nnInteractive's default order: previous segmentation, box and lasso
# (positive, negative), points, scribbles.
_PREVIOUS, _REGION_POS, _REGION_NEG, _POINT_POS, _POINT_NEG, _SCRIBBLE_POS, _SCRIBBLE_NEG = 1, 2, 3, 4, 5, 6, 7
# Weights of the voxels whose mean is taken as the object's intensity. A voxel of a scribble is more reliable than one
# of a box or of the previous mask. The ball of a point is larger than a small object, so its center counts most: to the
# third power, more than half of its weight lies within two voxels.
_REGION_WEIGHT, _PREVIOUS_WEIGHT, _POINT_WEIGHT, _POINT_POWER = 0.02, 0.005, 5.0, 3
# Gains of the likeness to the newest prompt. An intensity is similar up to a distance of 1 / gain in the z-scored
# image.
_LIKENESS_GAINS = (5.0, 20.0)
# Lower limit of exponents; exp(-50) is practically 0. Below -87 the float32 result is subnormal, and a CPU takes ten
# times as long.
_MIN_EXPONENT = -50.0
# Gains of the contrast to all positive prompts.
_CONTRAST_GAINS = (2.0, 8.0)
# Input channels that the network computes.
_DERIVED_CHANNELS = len(_CONTRAST_GAINS) + len(_LIKENESS_GAINS)
# Channels that reach the head at full resolution: the image, the computed channels, the previous segmentation, and the
# marks of positive and of negative points and scribbles.
_FULL_RESOLUTION_CHANNELS = 4 + _DERIVED_CHANNELS
# A point is a ball of radius 4 that falls from 1 in the center to 0.34 at 3 voxels. With this gain it counts in full up
# to 3 voxels, and hardly beyond. Otherwise a ball larger than a lesion would fill it, or empty it from outside.
_MARK_GAIN = 3.0
# Only the center of the newest point is above; older points have decayed to 0.9 and less.
_NEWEST_THRESHOLD = 0.95
# Voxels above are marked by some prompt; the marks of older prompts decay.
_MARKED_THRESHOLD = 0.05
# Bias of the logits' difference (object minus background) from a mark, and from the previous segmentation if there is
# one. Chosen on phantoms.
_PROMPT_BIAS, _PREVIOUS_BIAS = 6.0, 2.0
# Bias from the previous segmentation in the direction that the newest prompt does not ask for. A positive prompt
# outside of it removes nothing, and a negative prompt inside adds nothing.
_PROTECTED_BIAS = 8.0
# Threshold of the logits' difference if there is no previous segmentation. At 0 the network includes a rim, because its
# training penalizes false negatives more. Chosen on phantoms and on real volumes.
_FIRST_THRESHOLD = 1.0
# A first prediction is repeated at half the size if it continues in more than this share of its surroundings, and if
# all points lie within this distance of the patch's center, in voxels.
_MIN_CONTINUATION, _CENTER_RADIUS = 0.15, 8
# The repeated prediction is used if its mask fills at least this share of the patch and has grown by at least the
# second factor. Its continuation ratio must be lower than before, and below the third factor less than half of it.
# These and the above were chosen on phantoms and on real volumes.
_MIN_WIDE_SHARE, _MIN_GROWTH, _LARGE_GROWTH = 0.034, 1.25, 2.5
# A smaller share after the first pass at half the size is final: no second pass was seen to reach the above from it.
_MIN_FIRST_SHARE = 0.024


def _has_native_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively, according to torch. Emulation is slower than float32."""
    features: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(features.get(name) for name in ("avx512_bf16", "amx_bf16"))


_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()
# Whether to use bfloat16, in which the network was trained. It halves the time of a forward pass, and moves a mask's
# border by a voxel in a few places.
BFLOAT16_ON_CPU = _has_native_bfloat16()


def _untraced(function: _F) -> _F:
    """Exclude a function from torch.compile, which fails on tensors that are passed to numpy and SciPy.

    torch's own decorator imports the compiler at once, which takes as long as torch itself.
    """

    @functools.wraps(function)
    def untraced(*args: Any) -> Any:
        return (_disabled(function) if "torch._dynamo" in sys.modules else function)(*args)

    return cast(_F, untraced)


@functools.cache
def _disabled(function: Callable[..., object]) -> Callable[..., object]:
    disabled: Callable[..., object] = torch.compiler.disable(function)
    return disabled


class HalfResolutionUNet(nn.Module):
    """A network from (batch, 8, X, Y, Z) to two logits per voxel, (batch, 2, X, Y, Z); X, Y, Z multiples of 32.

    The image channel holds a z-scored volume, in which soft tissues differ by a few hundredths. Therefore the network
    computes further inputs: the difference to the mean intensity under the positive prompts, at two gains, and the
    likeness to the newest prompt, positive or negative. The latter helps because a correction often marks tissue of
    another intensity.

    Points and scribbles are small, and half the resolution blurs them. Therefore the head gets them at full resolution,
    and their marks are added to the logits as a bias. The previous segmentation adds a smaller bias, so that a
    correction changes the mask only with high confidence, and does not redraw every border.

    If there is no previous segmentation, the network runs twice, the second time with its first prediction as the
    previous segmentation. If the first prediction continues in its surroundings, as in an organ larger than a patch,
    the patch is predicted at half its size instead.
    """

    def __init__(self, input_channels: int, num_classes: int, features: list[int], deep_supervision: bool = False):
        super().__init__()
        if deep_supervision:
            raise ValueError("HalfResolutionUNet has no deep supervision. Build it with deep_supervision=False.")
        self.stem = _Conv3d(input_channels + _DERIVED_CHANNELS, features[0], 3, stride=2, padding=1)
        self.body = residual_encoder(features[0], features, [1] + [2] * (len(features) - 1), 16)
        # One convolution of both resolutions, in two parts. The fine part has only inputs, which need no gradient in
        # training.
        self.mix_coarse = _Conv3d(16, 24, 3, padding=1)
        self.mix_fine = _Conv3d(8 * _FULL_RESOLUTION_CHANNELS, 24, 3, padding=1, bias=False)
        self.head = _Conv3d(24, 8 * num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict from ``x``: float (batch, channels, X, Y, Z), the image first, then the interaction channels."""
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16_ON_CPU and x.device.type == "cpu"):
            x = _rescale_prompts(x)
            logits = self.logits(x)
            answers = [
                self._first_answer(patch, of_patch) if is_first else self.near_prompts(of_patch, patch)
                for patch, of_patch, is_first in zip(x.split(1), logits.split(1), _has_no_previous(x), strict=True)
            ]
        return torch.cat(answers)

    def _first_answer(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Predict a patch without a previous segmentation, (1, channels, X, Y, Z), from the logits of its first pass.

        The second pass is that of a wider view if the object is larger than the patch.
        """
        logits = _raise_threshold(logits)
        if _may_be_larger(x[0]):
            wide = self._wider_view(x[0], self.near_prompts(logits, x)[0])
            if wide is not None:
                return wide[None]
        return self._second_pass(x, _mask_of(logits))

    def _second_pass(self, x: torch.Tensor, first: torch.Tensor, center_only: bool = False) -> torch.Tensor:
        """Predict a patch again, with its first prediction, (1, X, Y, Z), as the previous segmentation."""
        again = torch.cat((x[:, :_PREVIOUS], first[:, None].to(x.dtype), x[:, _PREVIOUS + 1 :]), 1)
        logits = _raise_threshold(self.logits(again, center_only))
        return self.near_prompts(logits, _center(x) if center_only else x)

    def _wider_view(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor | None:
        """Combine the prediction of one patch with those at half its size. None if the object is not larger.

        ``x``: (channels, X, Y, Z). ``logits``: (2, X, Y, Z), the prediction so far. Return logits of the same shape.
        """
        own = _PatchPrediction.of(x[0], logits)
        if own.continuation <= _MIN_CONTINUATION:
            return None
        wide = _PatchPrediction.of(x[0], self._predict_shrunk(x, "constant"))
        if not _improves(own, wide):
            return None
        if wide.continuation > _MIN_CONTINUATION:
            # Padding with zeros truncates an organ that reaches them. Padding with the edge's values lets a prediction
            # leak, so it is for objects that are known to be large.
            replicated = _PatchPrediction.of(x[0], self._predict_shrunk(x, "replicate"))
            wide = min(wide, replicated, key=lambda prediction: prediction.continuation)
        return torch.where(own.mask & ~wide.mask, logits, wide.logits)

    def _predict_shrunk(self, x: torch.Tensor, padding: str) -> torch.Tensor:
        """Predict a patch, (channels, X, Y, Z), whose image is shrunk to half its size in the center of the patch.

        Return logits, (2, X, Y, Z), resampled to the original size. ``padding``: torch's mode for the border of the
        image and of the first prediction. The prompts, in the center, are not shrunk, because the network was trained
        with points of that size. There is no second pass if the first one finds too little.
        """
        margins = np.repeat([n // 4 for n in x.shape[:0:-1]], 2).tolist()
        image = functional.pad(functional.avg_pool3d(x[:1], 2)[None], margins, mode=padding)
        shrunk = torch.cat((image, x[None, 1:]), 1)
        logits = _raise_threshold(self.logits(shrunk, center_only=True))
        first = _mask_of(logits)
        if first.count_nonzero() >= _MIN_FIRST_SHARE * first.numel():
            first = functional.pad(first[None].to(x.dtype), margins, mode=padding)[0]
            logits = self._second_pass(shrunk, first, center_only=True)
        return functional.interpolate(logits, scale_factor=2, mode="trilinear")[0]

    def logits(self, x: torch.Tensor, center_only: bool = False) -> torch.Tensor:
        """Return the logits as trained, with changes anywhere in the patch, not only near the newest prompt.

        ``center_only``: only those of the center of the patch, half as long per axis. All prompts must be there.
        """
        kind = x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        newest, marks = self.newest(x), self._marks(x)
        image, previous = x[:, :1], x[:, _PREVIOUS : _PREVIOUS + 1]
        derived = (*self._contrast_to_prompts(x), *self.likeness_to_newest(x, newest))
        inputs, channels = _drop_empty_channels((*x.chunk(x.shape[1], 1), *derived), precision)
        coarse = self.body(functional.leaky_relu(self.stem.convolve_channels(inputs, channels), 0.01))
        planes: Sequence[torch.Tensor] = (image, *derived, previous, *marks.chunk(2, 1))
        if center_only:
            coarse, planes = _center(coarse, 1), [_center(plane, 2) for plane in planes]
            x, marks, newest = _center(x), _center(marks), (_center(newest[0]), _center(newest[1]))
        inputs, channels = _drop_empty_channels(planes, precision)
        fine, of_cubes = _space_to_depth(inputs), [8 * channel + voxel for voxel in range(8) for channel in channels]
        mixed = self.mix_coarse(coarse) + self.mix_fine.convolve_channels(fine, of_cubes)
        if center_only:
            mixed = mixed[..., 1:-1, 1:-1, 1:-1]
        logits = _depth_to_space(self.head(functional.leaky_relu(mixed, 0.01))).float()
        return torch.stack((logits[:, 0], logits[:, 1] + self._margin(marks, newest, x)), 1)

    @staticmethod
    @_untraced
    def near_prompts(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Revert those changes of the previous segmentation that the newest prompt is unlikely to intend."""
        positive, negative = HalfResolutionUNet.newest(x)
        newest = positive | negative
        marked = HalfResolutionUNet._marks(x) > _MARKED_THRESHOLD
        inputs = (logits[:, 1] - logits[:, 0], x[:, _PREVIOUS] > 0.5, newest, marked[:, 0], marked[:, 1])
        patches = zip(*(t.cpu().numpy() for t in inputs), strict=True)
        unwanted = np.stack([unwanted_changes(*patch) for patch in patches])
        if not unwanted.any():
            return logits
        return torch.where(torch.from_numpy(unwanted).to(logits.device)[:, None], logits.flip(1), logits)

    @staticmethod
    def _margin(marks: torch.Tensor, newest: _NewestMarks, x: torch.Tensor) -> torch.Tensor:
        """Bias of the logits' difference from marks and previous segmentation: (batch, X, Y, Z)."""
        # A power that is not computed by squaring takes ten times as long.
        negative, positive = (_MARK_GAIN * marks).clamp_max(1).square().square().unbind(1)
        if (negative * positive).any():
            # The newest point overrides older ones of the other polarity.
            point = (torch.stack((x[:, _POINT_NEG], x[:, _POINT_POS]), 1) > _NEWEST_THRESHOLD).to(marks.dtype)
            near_negative, near_positive = _dilate(point).unbind(1)
            margin = positive * (1 - negative * near_negative) - negative * (1 - positive * near_positive)
        else:
            margin = positive - negative
        return _PROMPT_BIAS * margin + HalfResolutionUNet._previous_bias(newest, x)

    @staticmethod
    def _previous_bias(newest: _NewestMarks, x: torch.Tensor) -> torch.Tensor:
        """Bias from the previous segmentation: (batch, X, Y, Z); 0 for patches without one."""
        previous = x[:, _PREVIOUS]
        has_previous = ~_has_no_previous(x)
        adds, removes = (
            (marked & ((previous > 0.5) != wanted)).flatten(1).any(1)
            for marked, wanted in zip(newest, (True, False), strict=True)
        )
        usual = torch.full_like(has_previous, _PREVIOUS_BIAS, dtype=previous.dtype)
        inside = has_previous * torch.where(adds & ~removes, _PROTECTED_BIAS, usual)
        outside = has_previous * torch.where(removes & ~adds, _PROTECTED_BIAS, usual)
        return inside[:, None, None, None] * previous - outside[:, None, None, None] * (1 - previous)

    @staticmethod
    def newest(x: torch.Tensor) -> _NewestMarks:
        """Voxels marked by the newest prompt if it is positive, and if it is negative: bool (batch, X, Y, Z) each."""
        return x[:, _REGION_POS::2].amax(1) > _NEWEST_THRESHOLD, x[:, _REGION_NEG::2].amax(1) > _NEWEST_THRESHOLD

    @staticmethod
    def _marks(x: torch.Tensor) -> torch.Tensor:
        """Marks of points and scribbles, negative and positive: (batch, 2, X, Y, Z), 1 for the newest."""
        points = torch.stack((x[:, _POINT_NEG], x[:, _POINT_POS]), 1)
        scribbles = torch.stack((x[:, _SCRIBBLE_NEG], x[:, _SCRIBBLE_POS]), 1)
        return torch.maximum(points, scribbles)

    @staticmethod
    def _contrast_to_prompts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Difference to the mean intensity under the positive prompts, from -1 to 1, 0 for a patch without a positive
        prompt: (batch, 1, X, Y, Z) for each of _CONTRAST_GAINS."""
        image = x[:, :1].float()
        weight = (
            _POINT_WEIGHT * x[:, _POINT_POS : _POINT_POS + 1].float() ** _POINT_POWER
            + x[:, _SCRIBBLE_POS : _SCRIBBLE_POS + 1].float()
            + _REGION_WEIGHT * x[:, _REGION_POS : _REGION_POS + 1].float()
            + _PREVIOUS_WEIGHT * x[:, _PREVIOUS : _PREVIOUS + 1].float()
        )
        has_prompt = (weight > 0).flatten(1).any(1)[:, None, None, None, None]
        difference = (image - _mean_under(weight, image)) * has_prompt
        return tuple(torch.tanh(gain * difference).to(x.dtype) for gain in _CONTRAST_GAINS)

    @staticmethod
    def likeness_to_newest(x: torch.Tensor, newest: _NewestMarks) -> tuple[torch.Tensor, ...]:
        """Likeness of intensities to those under the newest prompt: (batch, 1, X, Y, Z) for each of _LIKENESS_GAINS.

        From 0 to 1 for a positive prompt, from 0 to -1 for a negative one, 0 for a patch without the newest prompt.
        """
        image = x[:, :1].float()
        positive, negative = newest
        # The newest marks of a point are a single voxel. The mean of its neighborhood is less noisy.
        weight = _count_neighbors((positive | negative)[:, None].float())
        polarity = positive.flatten(1).any(1).float() - negative.flatten(1).any(1).float()
        square = (image - _mean_under(weight, image)) ** 2
        like = (torch.exp((-(gain**2) * square).clamp_min(_MIN_EXPONENT)) for gain in _LIKENESS_GAINS)
        return tuple((polarity[:, None, None, None, None] * likeness).to(x.dtype) for likeness in like)


class _Conv3d(nn.Conv3d):
    """A convolution that uses oneDNN at every size, and can skip channels that are 0 everywhere.

    In float32, with a kernel of 3 and a batch of one, torch uses oneDNN only if the channels times the first two sides
    are more than 20,480, else code of its own (``use_mkldnn`` in ATen's Convolution.cpp). For 32 channels of 24x24x24
    voxels that takes eleven times as long.
    """

    def convolve_channels(self, x: torch.Tensor, channels: list[int]) -> torch.Tensor:
        """Convolve the input channels of ``x``, whose numbers are ``channels``. The other ones are 0."""
        return self._conv_forward(x, self.weight[:, channels], self.bias)

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        autocast = torch.is_autocast_enabled(x.device.type)  # it does not cover the call below
        is_cpu_float32 = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not autocast
        convolved: torch.Tensor
        if torch.is_grad_enabled() or not (is_cpu_float32 and _HAS_ONEDNN) or isinstance(self.padding, str):
            convolved = super()._conv_forward(x, weight, bias)
        else:
            convolved = torch.mkldnn_convolution(x, weight, bias, self.padding, self.stride, self.dilation, self.groups)
        return convolved


def residual_encoder(inputs: int, features: list[int], blocks: list[int], outputs: int) -> ResidualEncoderUNet:
    """Return a residual-encoder U-Net, nnInteractive's architecture.

    ``features``, ``blocks``: their numbers in each stage. Each stage after the first halves the resolution. The network
    maps (batch, inputs, X, Y, Z) to (batch, outputs, X, Y, Z).
    """
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


def _raise_threshold(logits: torch.Tensor) -> torch.Tensor:
    """Add the threshold of first predictions to the logits of the background, (batch, 2, X, Y, Z)."""
    return torch.stack((logits[:, 0] + _FIRST_THRESHOLD, logits[:, 1]), 1)


def _mask_of(logits: torch.Tensor) -> torch.Tensor:
    """Mask of logits, (batch, 2, X, Y, Z): bool (batch, X, Y, Z)."""
    return logits[:, 1] > logits[:, 0]


def _center(x: torch.Tensor, margin: int = 0) -> torch.Tensor:
    """Return the center of the last three axes, half as long per axis, with a margin."""
    i, j, k = (slice(n // 4 - margin, n - n // 4 + margin) for n in x.shape[-3:])
    return x[..., i, j, k]


def _has_no_previous(x: torch.Tensor) -> torch.Tensor:
    """Whether each patch is without a previous segmentation: bool (batch,)."""
    return ~(x[:, _PREVIOUS] > 0.5).flatten(1).any(1)


def _rescale_prompts(x: torch.Tensor) -> torch.Tensor:
    """Scale the prompts of patches without a previous segmentation so that the strongest, the newest one, is 1.

    Zooming out averages voxels. A point is 0.8 then, which is less than an older one otherwise.
    """
    first = _has_no_previous(x)
    if not first.any():
        return x
    strongest = x[:, _REGION_POS:].flatten(1).amax(1)
    too_weak = first & (strongest > 0) & (strongest < 1)
    if not too_weak.any():
        return x
    scale = torch.where(too_weak, 1 / strongest, torch.ones_like(strongest))[:, None, None, None, None]
    return torch.cat((x[:, :_REGION_POS], x[:, _REGION_POS:] * scale), 1)


@_untraced
def _may_be_larger(x: torch.Tensor) -> bool:
    """Whether the object in a patch, (channels, X, Y, Z), may be larger than the patch.

    That is so if the only prompts are points near the center. A box, a lasso or a scribble shows the object's size.
    """
    if x[_PREVIOUS:_POINT_POS].any() or x[_SCRIBBLE_POS:].any() or x[_POINT_POS].amax() <= _NEWEST_THRESHOLD:
        return False
    prompted = masks.bounding_box((x[_POINT_POS:_SCRIBBLE_POS] > 0).any(0).cpu().numpy())
    assert prompted is not None
    sides = zip(prompted, x.shape[1:], strict=True)
    return all(n // 2 - _CENTER_RADIUS <= low and high <= n // 2 + _CENTER_RADIUS for (low, high), n in sides)


@dataclass(frozen=True)
class _PatchPrediction:
    """The prediction of a patch: logits, (2, X, Y, Z), their mask, bool (X, Y, Z), and its continuation ratio."""

    logits: torch.Tensor
    mask: torch.Tensor
    continuation: float

    @classmethod
    @_untraced
    def of(cls, image: torch.Tensor, logits: torch.Tensor) -> Self:
        """Compute mask and continuation ratio from the logits. ``image``: (X, Y, Z)."""
        mask = logits[1] > logits[0]
        return cls(logits, mask, continuation_ratio(image.float().cpu().numpy(), mask.cpu().numpy()))


def _improves(own: _PatchPrediction, wide: _PatchPrediction) -> bool:
    """Whether the prediction at half the size shows that the object exceeds the patch, and where it ends."""
    size, before = int(wide.mask.count_nonzero()), int(own.mask.count_nonzero())
    if size < _MIN_WIDE_SHARE * wide.mask.numel() or size < _MIN_GROWTH * before:
        return False
    return wide.continuation < (own.continuation if size >= _LARGE_GROWTH * before else own.continuation / 2)


def _mean_under(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Weighted mean of each image, (batch, 1, 1, 1, 1); both arguments: (batch, 1, X, Y, Z). 0 if all weights are 0."""
    axes = (2, 3, 4)
    return (weight * image).sum(axes, keepdim=True) / weight.sum(axes, keepdim=True).clamp_min(1e-6)


def _dilate(marks: torch.Tensor) -> torch.Tensor:
    """Maximum of the marks up to NEAR voxels away along each axis: (batch, c, X, Y, Z)."""
    width = 2 * NEAR + 1
    for kernel in ((width, 1, 1), (1, width, 1), (1, 1, width)):
        marks = functional.max_pool3d(marks, kernel, stride=1, padding=[n // 2 for n in kernel])
    return marks


def _count_neighbors(marked: torch.Tensor) -> torch.Tensor:
    """Number of marked voxels among each voxel and the 26 around it; both (batch, 1, X, Y, Z).

    torch's pooling takes 27 times as long.
    """
    padded = functional.pad(marked, (1,) * 6)
    for axis in (2, 3, 4):
        n = padded.shape[axis] - 2
        padded = padded.narrow(axis, 0, n) + padded.narrow(axis, 1, n) + padded.narrow(axis, 2, n)
    return padded


def _drop_empty_channels(planes: Sequence[torch.Tensor], precision: torch.dtype) -> tuple[torch.Tensor, list[int]]:
    """Return the channels, (batch, 1, X, Y, Z) each, that are not 0 everywhere, as one tensor, and their numbers.

    Most interaction channels are empty most of the time. On a GPU all channels are kept, because convolving them is
    faster than waiting for the result of the test.
    """
    cpu = planes[0].device.type == "cpu"
    channels = [n for n, plane in enumerate(planes) if not cpu or bool(plane.amax() != 0) or bool(plane.amin() != 0)]
    channels = channels or [0]  # all may be empty, in a patch outside of a thin image
    kept = torch.cat([planes[n].to(precision) for n in channels], 1)
    return kept.contiguous(memory_format=torch.channels_last_3d), channels


def _space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """Rearrange (batch, c, X, Y, Z) to (batch, 8 c, X/2, Y/2, Z/2).

    The channels of the first voxel of every 2x2x2 cube come first, then those of the second, and so on.
    """
    b, c, i, j, k = x.shape
    cubes = x.permute(0, 2, 3, 4, 1).reshape(b, i // 2, 2, j // 2, 2, k // 2, 2, c)
    channels_last = cubes.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, i // 2, j // 2, k // 2, 8 * c)
    return channels_last.permute(0, 4, 1, 2, 3)


def _depth_to_space(x: torch.Tensor) -> torch.Tensor:
    """Rearrange (batch, 8 c, X, Y, Z) to (batch, c, 2 X, 2 Y, 2 Z). Every eight channels become a 2x2x2 cube."""
    b, c, i, j, k = x.shape
    cubes = x.reshape(b, c // 8, 2, 2, 2, i, j, k)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // 8, 2 * i, 2 * j, 2 * k)
