"""The network of the embedded model, named by its plans.json.

A residual-encoder U-Net at half resolution whose head answers for the 2x2x2 voxels of each position.
nnInteractive's refinement keeps a margin of 24 voxels in every patch, so a small patch wastes most of a pass; a
patch of 96 with an eighth of the work per voxel is the better bargain on a CPU.
"""

from collections.abc import Mapping

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
import numpy as np
from scipy import ndimage
import torch
from torch import nn
from torch.nn import functional

# Interaction channels behind the image, as in nnInteractive's default mapping: previous segmentation,
# box and lasso (positive, negative), points, scribbles.
_PREVIOUS, _REGION_POS, _REGION_NEG, _POINT_POS, _POINT_NEG, _SCRIBBLE_POS, _SCRIBBLE_NEG = 1, 2, 3, 4, 5, 6, 7
# What is seen of the object's intensity: a voxel of a scribble says more than one of a box or of the previous mask. Of
# a point it is the middle that counts, as its ball is larger than a small object: to the third power, more than half
# of its weight lies within two voxels.
_REGION_WEIGHT, _PREVIOUS_WEIGHT, _POINT_WEIGHT, _POINT_POWER = 0.02, 0.005, 5.0, 3
# How far an intensity may be from that of the newest prompt to count as alike: 1 over these, of the z-scored image.
_ALIKE = (5.0, 20.0)
# Channels that the network adds: two contrasts to all positive prompts, two likenesses to the newest of either kind.
_ADDED = 2 + len(_ALIKE)
# Channels that reach the head at full resolution: the image and what is added to it, the previous segmentation, and
# what positive and negative points and scribbles mark.
_SEEN_FINELY = 4 + _ADDED
# A point is a ball of radius 4 that falls from 1 in the middle to 0.34 at 3 voxels: up to there it counts in full, and
# beyond hardly, as a ball that is larger than a lesion fills it, or empties it from outside.
_MARK_GAIN, _MARK_EDGE = 3.0, 4
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
# A prompt means what is up to so many voxels away from what it marks.
_NEAR = 3
# A prompt so close to the border of the previous segmentation corrects a thin error. Farther away than _NEAR, it then
# changes only what the logits say by so much: there a change is more often a mistake than meant. Chosen on phantoms.
_THIN, _SURE = 3, 4.0
# A first answer ends at a neck thinner than this share of what it is at the prompt, and than so many voxels to either
# side: behind it lies something else. Chosen on phantoms and on real volumes; on two CTs
# corrections are better without.
_NECK, _WIDEST_NECK = 1 / 3, 4.0


def _multiplies_bfloat16() -> bool:
    """Whether the CPU does so itself, as torch says; one that has to emulate it is slower than with float32."""
    features: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(features.get(name) for name in ("avx512_bf16", "amx_bf16"))


# The precision the network was trained in. It halves a pass, and moves a mask's border by a voxel here and there.
BFLOAT16_ON_CPU = _multiplies_bfloat16()


class HalfResolutionUNet(nn.Module):
    """Maps (batch, 8, X, Y, Z) to two logits per voxel, (batch, 2, X, Y, Z); X, Y, Z multiples of 32.

    The image channel holds a z-scored volume, which leaves soft tissues a few hundredths apart. So the
    network also sees the difference to the mean intensity under the positive prompts, at two gains. A correction often
    points at what looks otherwise; so it also sees what is like the newest prompt, positive or negative.

    Points and scribbles are small, and half a resolution blurs them: the head sees them at full resolution, and
    what they mark is added to the logits. The previous segmentation is added, too, less: so a correction changes
    what the network is sure of, and does not redraw every border.

    Where there is no previous segmentation, it looks twice: the first answer is the second look's previous one.
    """

    def __init__(self, input_channels: int, num_classes: int, features: list[int], deep_supervision: bool = False):
        super().__init__()
        if deep_supervision:
            raise ValueError("HalfResolutionUNet has no deep supervision: build it with deep_supervision=False")
        seen = input_channels + _ADDED
        self.stem = nn.Conv3d(seen, features[0], 3, stride=2, padding=1)
        self.body = residual_encoder(features[0], features, [1] + [2] * (len(features) - 1), 16)
        # One convolution of both in two: what is seen finely is input, and needs no gradient in training.
        self.mix_coarse = nn.Conv3d(16, 24, 3, padding=1)
        self.mix_fine = nn.Conv3d(8 * _SEEN_FINELY, 24, 3, padding=1, bias=False)
        self.head = nn.Conv3d(24, 8 * num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (batch, channels, X, Y, Z), image first, then the interaction channels."""
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16_ON_CPU and x.device.type == "cpu"):
            logits = self.logits(x)
            first = ~(x[:, _PREVIOUS] > 0.5).flatten(1).any(1)
            if first.any():
                again = x[first]
                again[:, _PREVIOUS] = logits[first, 1] - logits[first, 0] > _CAUTION
                logits[first] = self.logits(again)
                logits[first, 1] -= _CAUTION
        return self.near_prompts(logits, x)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The answer as it is trained: wherever something is to change, not only where the newest prompt is."""
        kind = x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        added = torch.cat((self._contrast_to_prompts(x), self.likeness_to_newest(x)), 1).to(precision)
        marks = self._marks(x)
        coarse_x = x.to(precision)
        seen = torch.cat((coarse_x, added), 1).contiguous(memory_format=torch.channels_last_3d)
        coarse = self.body(functional.leaky_relu(self.stem(seen), 0.01))
        previous = coarse_x[:, _PREVIOUS : _PREVIOUS + 1]
        fine = _space_to_depth(torch.cat((coarse_x[:, :1], added, previous, marks.to(precision)), 1))
        mixed = functional.leaky_relu(self.mix_coarse(coarse) + self.mix_fine(fine), 0.01)
        logits = _depth_to_space(self.head(mixed)).float()
        return torch.stack((logits[:, 0], logits[:, 1] + self._margin(marks, x)), 1)

    @staticmethod
    def near_prompts(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The answer without changes of the previous segmentation that the newest prompt is not believed to mean."""
        positive, negative = HalfResolutionUNet._newest(x)
        newest = positive | negative
        marked = HalfResolutionUNet._marks(x) > _MARKED
        seen = (logits[:, 1] - logits[:, 0], x[:, _PREVIOUS] > 0.5, newest, marked[:, 0], marked[:, 1])
        undone = np.stack([_undone(*of_one) for of_one in zip(*(t.cpu().numpy() for t in seen), strict=True)])
        if not undone.any():
            return logits
        return torch.where(torch.from_numpy(undone).to(logits.device)[:, None], logits.flip(1), logits)

    @staticmethod
    def _margin(marks: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """By how much marks and previous segmentation say "object" rather than not: (batch, X, Y, Z)."""
        negative, positive = ((_MARK_GAIN * marks).clamp_max(1) ** _MARK_EDGE).unbind(1)
        if (negative * positive).any():
            # The newest point overrules older ones of the other polarity.
            newest = (torch.stack((x[:, _POINT_NEG], x[:, _POINT_POS]), 1) > _NEWEST).to(marks.dtype)
            near_negative, near_positive = _reach(newest).unbind(1)
            margin = positive * (1 - negative * near_negative) - negative * (1 - positive * near_positive)
        else:
            margin = positive - negative
        return _OBEDIENCE * margin + HalfResolutionUNet._inertia(x)

    @staticmethod
    def _inertia(x: torch.Tensor) -> torch.Tensor:
        """What the previous segmentation adds to the margin: (batch, X, Y, Z); 0 where there is none."""
        previous = x[:, _PREVIOUS]
        given = (previous > 0.5).flatten(1).any(1)
        adds, removes = (
            (newest & ((previous > 0.5) != wanted)).flatten(1).any(1)
            for newest, wanted in zip(HalfResolutionUNet._newest(x), (True, False), strict=True)
        )
        usual = torch.full_like(given, _INERTIA, dtype=previous.dtype)
        inside = given * torch.where(adds & ~removes, _PROTECTION, usual)
        outside = given * torch.where(removes & ~adds, _PROTECTION, usual)
        return inside[:, None, None, None] * previous - outside[:, None, None, None] * (1 - previous)

    @staticmethod
    def _newest(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the newest prompt marks if it is positive, and if it is negative: bool (batch, X, Y, Z) each."""
        return x[:, _REGION_POS::2].amax(1) > _NEWEST, x[:, _REGION_NEG::2].amax(1) > _NEWEST

    @staticmethod
    def _marks(x: torch.Tensor) -> torch.Tensor:
        """What points and scribbles mark as not object and as object: (batch, 2, X, Y, Z), 1 for the newest."""
        points = torch.stack((x[:, _POINT_NEG], x[:, _POINT_POS]), 1)
        scribbles = torch.stack((x[:, _SCRIBBLE_NEG], x[:, _SCRIBBLE_POS]), 1)
        return torch.maximum(points, scribbles)

    @staticmethod
    def _contrast_to_prompts(x: torch.Tensor) -> torch.Tensor:
        image = x[:, :1].float()
        weight = (
            _POINT_WEIGHT * x[:, _POINT_POS : _POINT_POS + 1].float() ** _POINT_POWER
            + x[:, _SCRIBBLE_POS : _SCRIBBLE_POS + 1].float()
            + _REGION_WEIGHT * x[:, _REGION_POS : _REGION_POS + 1].float()
            + _PREVIOUS_WEIGHT * x[:, _PREVIOUS : _PREVIOUS + 1].float()
        )
        given = (weight > 0).flatten(1).any(1)[:, None, None, None, None]
        difference = (image - _mean_under(weight, image)) * given
        return torch.cat((torch.tanh(2 * difference), torch.tanh(8 * difference)), 1).to(x.dtype)

    @staticmethod
    def likeness_to_newest(x: torch.Tensor) -> torch.Tensor:
        """From 1, as bright as what the newest prompt marks, to 0; negative for a negative prompt, and 0 everywhere
        where the patch holds no newest one: (batch, len(_ALIKE), X, Y, Z)."""
        image = x[:, :1].float()
        positive, negative = HalfResolutionUNet._newest(x)
        # Of a point, a single voxel is above: the mean of its neighbours is less noisy.
        weight = functional.avg_pool3d((positive | negative)[:, None].float(), 3, stride=1, padding=1)
        polarity = positive.flatten(1).any(1).float() - negative.flatten(1).any(1).float()
        square = (image - _mean_under(weight, image)) ** 2
        like = torch.cat([torch.exp(-(gain**2) * square) for gain in _ALIKE], 1)
        return (polarity[:, None, None, None, None] * like).to(x.dtype)


def residual_encoder(inputs: int, features: list[int], blocks: list[int], outputs: int) -> ResidualEncoderUNet:
    """nnInteractive's architecture: a residual encoder U-Net. ``features``, ``blocks``: of every stage; each after the
    first halves the resolution. Maps (batch, inputs, X, Y, Z) to (batch, outputs, X, Y, Z)."""
    return ResidualEncoderUNet(
        input_channels=inputs,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=nn.Conv3d,
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


def _mean_under(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The weighted mean of each image, both (batch, 1, X, Y, Z), as (batch, 1, 1, 1, 1); 0 where all weights are."""
    axes = (2, 3, 4)
    return (weight * image).sum(axes, keepdim=True) / weight.sum(axes, keepdim=True).clamp_min(1e-6)


def _undone(
    difference: np.ndarray, previous: np.ndarray, newest: np.ndarray, negative: np.ndarray, positive: np.ndarray
) -> np.ndarray:
    """The changes that the newest prompt is not believed to mean: those that do not hang together with it, in a first
    answer by more than a neck, that lie nearer to a prompt that says the contrary, and, where it corrects a thin error,
    those farther away of which the network is not sure. difference: of the logits, float; previous; what the newest
    prompt marks; what points and scribbles mark: bool; all (X, Y, Z)."""
    changed: np.ndarray = (difference > 0) != previous
    undone: np.ndarray = np.zeros_like(changed)
    if not (newest.any() and changed.any()):
        return undone
    near = _near(newest)
    far = changed & ~near
    if _is_thin(newest, previous):
        undone = far & (np.abs(difference) < _SURE)
    says_object, says_not = positive | (newest & ~negative), negative | (newest & ~positive)
    if (says_not.any() and (far & ~previous).any()) or (says_object.any() and (far & previous).any()):
        box = _around(far | says_object | says_not, 0)
        undone[box] |= far[box] & _confirmed(previous[box], says_object[box], says_not[box])
    left = changed & ~undone
    undone |= _apart(left, near) if previous.any() else _behind_necks(left, near)
    return undone


def _confirmed(previous: np.ndarray, says_object: np.ndarray, says_not: np.ndarray) -> np.ndarray:
    """Where the nearest mark says what the previous segmentation says. All bool (X, Y, Z)."""
    to_object, to_not = (
        ndimage.distance_transform_edt(~marks) if marks.any() else np.full(marks.shape, np.inf)
        for marks in (says_object, says_not)
    )
    return np.where(previous, to_object < to_not, to_not < to_object)


def _is_thin(prompt: np.ndarray, previous: np.ndarray) -> bool:
    """Whether all of a prompt is less than _THIN from the border of the previous segmentation. Both bool (X, Y, Z)."""
    box = _around(prompt, _THIN)
    inside = previous[box]
    if inside.all() or not inside.any():
        return False
    depth = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside)
    return bool(depth[prompt[box]].max() < _THIN)


def _near(prompt: np.ndarray) -> np.ndarray:
    """The voxels up to _NEAR away from a prompt that is there. Both bool (X, Y, Z)."""
    box = _around(prompt, _NEAR)
    near = np.zeros_like(prompt)
    near[box] = ndimage.distance_transform_edt(~prompt[box]) <= _NEAR
    return near


def _around(prompt: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The box around a prompt that is there, and so many voxels more."""
    (marked,) = ndimage.find_objects(prompt.view(np.uint8))
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in marked)


def _apart(changed: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The changes of which no voxel that they are connected with is near. All bool (X, Y, Z)."""
    parts, n = ndimage.label(changed)
    apart = np.ones(n + 1, bool)
    apart[parts[near]] = False
    apart[0] = False  # what does not change at all
    return np.asarray(apart[parts])


def _behind_necks(answer: np.ndarray, near: np.ndarray) -> np.ndarray:
    """What of an answer hangs together with what is near by nothing, or by a neck: what an opening by reconstruction
    leaves out. All bool (X, Y, Z)."""
    if not (answer & near).any():
        return answer
    box = _around(answer, 1)
    inside, close = answer[box], near[box]
    # What reaches the border of the patch goes on behind it.
    depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    neck = min(_WIDEST_NECK, _NECK * depth[close].max())
    thick = depth > neck
    kept = thick & ~_apart(thick, close)
    if neck >= 1:
        kept = ndimage.distance_transform_edt(~kept) < neck + 1
    behind = answer.copy()
    behind[box] &= ~(kept | close)
    return behind


def _reach(marks: torch.Tensor) -> torch.Tensor:
    """The greatest of each voxel's neighbours that a prompt there would mean; (batch, c, X, Y, Z)."""
    width = 2 * _NEAR + 1
    for kernel in ((width, 1, 1), (1, width, 1), (1, 1, width)):
        marks = functional.max_pool3d(marks, kernel, stride=1, padding=[n // 2 for n in kernel])
    return marks


def _space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """(batch, c, X, Y, Z) to (batch, 8 c, X/2, Y/2, Z/2): every voxel of a 2x2x2 cube becomes a channel."""
    b, c, i, j, k = x.shape
    cubes = x.reshape(b, c, i // 2, 2, j // 2, 2, k // 2, 2)
    channels_last = cubes.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, i // 2, j // 2, k // 2, 8 * c)
    return channels_last.permute(0, 4, 1, 2, 3)


def _depth_to_space(x: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_space_to_depth`."""
    b, c, i, j, k = x.shape
    cubes = x.reshape(b, c // 8, 2, 2, 2, i, j, k)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // 8, 2 * i, 2 * j, 2 * k)
