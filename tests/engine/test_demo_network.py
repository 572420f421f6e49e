"""Properties of the embedded model, on a phantom whose seed training never uses (its seeds start at a million)."""

import numpy as np
import pytest
import torch

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.engine.demo_network import HalfResolutionUNet
from nninteractive_ws.engine.demo_postprocessing import continuation_ratio
from nninteractive_ws.engine.model_registry import MODEL_FOLDER
from nninteractive_ws.evaluation import simulated_user
from nninteractive_ws.evaluation.measures import dice, obeyed

# A selection of large, small, round and long organs. All of them would take a minute.
ORGANS = ("spleen", "right kidney", "left kidney", "stomach", "vena cava", "right lung")
PROMPTS = 3


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_the_model_segments_an_unseen_phantom_and_obeys_corrections(server: str) -> None:
    phantom = make_phantom(11)
    after: dict[str, list[float]] = {}
    listened: list[bool] = []
    with nni.connect(server) as session:
        session.set_image(phantom.image)
        for organ in ORGANS:
            truth, segment = phantom.mask(organ), session.segment(organ)
            for _ in range(PROMPTS):
                correction = simulated_user.correction(truth, segment.mask)
                assert correction is not None, "a mask without any error"
                point, positive = correction
                segment.add_point(point, positive=positive)
                listened.append(obeyed(segment.mask, truth, point, positive))
                after.setdefault(organ, []).append(dice(truth, segment.mask))
    means = np.mean(list(after.values()), 0)
    assert means[0] >= 0.85, after
    assert means[-1] >= 0.92, after
    assert np.mean(listened) >= 0.9, after


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_one_point_segments_an_organ_larger_than_a_patch(server: str) -> None:
    """A lung of 99 x 125 x 66 voxels, and a patch of 96 per side, as in a typical CT."""
    phantom = make_phantom(20, (112, 136, 96), (1.25, 1.25, 1.25), offset=(-65, 0, 75))
    truth = phantom.mask("right lung")
    correction = simulated_user.correction(truth, np.zeros_like(truth))
    assert correction is not None
    with nni.connect(server) as session:
        session.set_image(phantom.image)
        segment = session.segment("right lung")
        segment.add_point(correction[0])
        assert dice(truth, segment.mask) >= 0.85


def test_the_model_is_small_and_states_its_license() -> None:
    assert sum(f.stat().st_size for f in MODEL_FOLDER.rglob("*") if f.is_file()) <= 10e6
    assert (MODEL_FOLDER / "LICENSE").read_text().startswith("Apache-2.0\n")


# Channels: the image, the previous segmentation, and positive and negative regions, points and scribbles.
PREVIOUS, POSITIVE_REGION, NEGATIVE_REGION, POSITIVE_POINT, NEGATIVE_POINT, POSITIVE_SCRIBBLE = 1, 2, 3, 4, 5, 6
FIRST, SECOND = (0, slice(4, 10), slice(4, 10), slice(4, 10)), (0, slice(20, 26), slice(4, 10), slice(4, 10))


def answer(wanted: torch.Tensor, x: torch.Tensor, sure: float = 10.0) -> torch.Tensor:
    """Return the model's answer if the network gives ``wanted``, bool (1, X, Y, Z), with logits ``sure`` apart."""
    logits = torch.stack((sure * ~wanted, sure * wanted), 1)
    found = HalfResolutionUNet.near_prompts(logits, x)
    return found[:, 1] > found[:, 0]


def blobs(*boxes: tuple[int | slice, ...]) -> torch.Tensor:
    mask = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    for box in boxes:
        mask[box] = True
    return mask


@pytest.mark.parametrize("polarity", [POSITIVE_POINT, NEGATIVE_POINT])
def test_a_prompt_changes_only_its_connected_component(polarity: int) -> None:
    both = blobs(FIRST, SECOND)
    before, wanted = (~both, both | ~both) if polarity == POSITIVE_POINT else (both, both & ~both)
    x = torch.zeros(1, 8, 32, 32, 32)
    x[:, PREVIOUS] = before
    x[0, polarity, 6, 6, 6] = 1.0
    x[0, polarity, 22, 6, 6] = 0.9  # an older one
    expected = before ^ blobs(FIRST)
    assert torch.equal(answer(wanted, x), expected)


@pytest.mark.parametrize("width", [2, 4, 12])
def test_a_first_answer_ends_at_a_neck_and_a_correction_does_not(width: int) -> None:
    """Two balls 18 voxels wide with a bridge between them. The point is in the center of one."""
    x = torch.zeros(1, 8, 48, 48, 48)
    i, j, k = torch.meshgrid(*[torch.arange(48)] * 3, indexing="ij")
    here, there = ((i - at) ** 2 + (j - 20) ** 2 + (k - 20) ** 2 <= 81 for at in (11, 35))
    between, middle = (i > 11) & (i < 35), slice(20 - width // 2, 20 + width // 2)
    bridge = torch.zeros_like(here)
    bridge[:, middle, middle] = True
    every = (here | there | (bridge & between))[None]
    x[0, POSITIVE_POINT, 11, 20, 20] = 1.0
    found = answer(every, x)
    assert not (found & ~every).any()
    assert (found[0] & here).sum() > 0.99 * here.sum()  # the rest is surface roughness
    if width == 12:
        assert (found[0] & there).sum() > 0.99 * there.sum()
    else:
        assert not found[0, 24:].any()
    x[0, PREVIOUS, 11, 40] = 1.0
    assert torch.equal(answer(every, x)[0] & every[0], every[0])


def test_a_point_selects_a_nearby_change() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[0, POSITIVE_POINT, 12, 6, 6] = 1.0
    assert torch.equal(answer(blobs(FIRST, SECOND), x), blobs(FIRST))
    x[0, POSITIVE_POINT, 12, 6, 6], x[0, POSITIVE_POINT, 14, 6, 6] = 0.0, 1.0
    assert not answer(blobs(FIRST, SECOND), x).any()


def prompt_near_border(polarity: int, depth: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Half of a patch is segmented, and a prompt at a depth below the border contradicts that.

    Return the input of the network, the previous segmentation, and the squared distance from the prompt.
    """
    x = torch.zeros(1, 8, 32, 32, 32)
    at = 16 - depth if polarity == NEGATIVE_POINT else 15 + depth
    before = blobs((0, slice(0, 16)))
    x[:, PREVIOUS] = before
    x[0, polarity, at, 16, 16] = 1.0
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    return x, before, (grid - torch.tensor([at, 16.0, 16.0])[:, None, None, None]).square().sum(0)[None]


@pytest.mark.parametrize("polarity", [POSITIVE_POINT, NEGATIVE_POINT])
@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_a_prompt_at_the_border_changes_distant_voxels_only_if_confident(polarity: int, depth: int) -> None:
    x, before, away = prompt_near_border(polarity, depth)
    half = before if polarity == NEGATIVE_POINT else ~before
    changed = half & blobs((0, slice(None), slice(12, 20), slice(12, 20)))  # a sixteenth of the mask's size
    changed_if_unsure = changed & (away <= 9) if depth < 3 else changed
    assert torch.equal(answer(before ^ changed, x, sure=5.0), before ^ changed)
    assert torch.equal(answer(before ^ changed, x, sure=3.0), before ^ changed_if_unsure)


@pytest.mark.parametrize("polarity", [POSITIVE_POINT, NEGATIVE_POINT])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_large_correction_of_a_thin_error_goes_no_deeper_than_the_prompt(polarity: int, depth: int) -> None:
    x, before, _ = prompt_near_border(polarity, depth)
    half = before if polarity == NEGATIVE_POINT else ~before
    layer = blobs((0, slice(16 - depth, 16 + depth)))
    assert torch.equal(answer(before ^ half, x), before ^ (half & layer if depth < 3 else half))


@pytest.mark.parametrize("polarity", [POSITIVE_POINT, NEGATIVE_POINT])
@pytest.mark.parametrize("agrees", [False, True])
def test_voxels_nearer_to_a_prompt_of_opposite_polarity_are_kept(polarity: int, agrees: bool) -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    before = torch.full((1, 32, 32, 32), polarity == NEGATIVE_POINT)
    contrary = NEGATIVE_POINT if polarity == POSITIVE_POINT else POSITIVE_POINT
    x[:, PREVIOUS] = before
    x[0, contrary, 4, 16, 16] = 0.3  # an old prompt
    x[0, polarity, 24, 16, 16] = 1.0
    if agrees:
        x[0, polarity, 2, 16, 16] = 0.5
    expected = before ^ blobs((0, slice(14, 32)))  # voxels at the same distance from both may change
    assert torch.equal(answer(~before, x), expected)


def test_a_negative_box_keeps_voxels_near_positive_points() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[:, PREVIOUS] = 1.0
    x[0, POSITIVE_POINT, 16, 16, 4] = 0.9
    x[0, NEGATIVE_REGION, 8:24, 8:24, 20] = 1.0
    changed = ~answer(blobs(), x)
    assert changed[0, 16, 16, 14:].all()
    assert not changed[0, 16, 16, :10].any()


def test_the_first_answer_needs_no_confidence() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[0, POSITIVE_POINT, 6, 6, 6] = 1.0
    assert torch.equal(answer(blobs(FIRST), x, sure=0.1), blobs(FIRST))


class Noted(HalfResolutionUNet):
    """A network that adds a plane to the previous segmentation in each pass, and records its inputs."""

    def __init__(self, sure: float) -> None:
        torch.nn.Module.__init__(self)
        self.sure = sure
        self.shown: list[torch.Tensor] = []

    def logits(self, x: torch.Tensor, center_only: bool = False) -> torch.Tensor:
        assert not center_only
        self.shown.append(x.clone())
        wanted = x[:, PREVIOUS] > 0.5
        wanted[:, 4] = True
        wanted[:, 1:] |= wanted[:, :-1].clone()
        return torch.stack((self.sure * ~wanted, self.sure * wanted), 1)


@pytest.mark.parametrize("sure", [0.9, 1.1])
def test_a_first_prompt_runs_two_passes_with_a_higher_threshold(sure: float) -> None:
    network = Noted(sure)
    x = torch.zeros(2, 8, 32, 32, 32)
    x[:, POSITIVE_POINT, 4, 6, 6] = 1.0
    x[1, PREVIOUS, 4] = 1.0
    before = x.clone()
    found = network(x).argmax(1).bool()
    both, again = network.shown
    assert torch.equal(x, before)
    assert torch.equal(both, x)
    once = x[:1].clone()
    once[0, PREVIOUS, 4:6] = float(sure > 1)
    assert torch.equal(again, once)
    planes = [found[n].any((1, 2)).nonzero().flatten().tolist() for n in range(2)]
    assert planes == [[4, 5, 6] if sure > 1 else [], [4, 5]]


def cube(image: torch.Tensor, side: int) -> tuple[slice, slice, slice]:
    """The cube in the center of the patch."""
    i, j, k = (slice((n - side) // 2, (n + side) // 2) for n in image.shape[-3:])
    return i, j, k


def test_a_first_prompt_is_rescaled_after_zooming_out() -> None:
    """Averaging voxels makes a point less than 1. With a previous segmentation, that may be an old point."""
    network = Noted(sure=10.0)
    x = torch.zeros(3, 8, 32, 32, 32)
    x[:, POSITIVE_POINT, 4, 6, 6] = 0.8
    x[:, NEGATIVE_POINT, 20, 6, 6] = 0.4
    x[1, PREVIOUS, 4] = 1.0
    x[2, POSITIVE_POINT:] = 0.0
    before = x.clone()
    network(x)
    assert torch.equal(x, before)
    seen = network.shown[0]
    assert seen[:, POSITIVE_POINT, 4, 6, 6].tolist() == pytest.approx([1.0, 0.8, 0.0])
    assert seen[:, NEGATIVE_POINT, 20, 6, 6].tolist() == pytest.approx([0.5, 0.4, 0.0])
    assert torch.equal(seen[:, :2], before[:, :2])


@pytest.mark.parametrize(("side", "expected"), [(8, 0.95), (14, 0.95), (20, 0.24), (24, 0.0), (32, 0.0)])
def test_continuation_ratio(side: int, expected: float) -> None:
    """A cube of 24 with noise, darker outside. Of a normal distribution, 95 % are within two standard deviations.

    A quarter of the voxels at a distance of 2 to 5 from a cube of 20 is inside that of 24.
    """
    image = np.full((32, 32, 32), -1.0, np.float32)
    image[cube(image, 24)] = np.random.default_rng(0).normal(1, 0.1, (24, 24, 24))
    answer = np.zeros(image.shape, bool)
    answer[cube(image, side)] = True
    assert continuation_ratio(image, answer) == pytest.approx(expected, abs=0.02)


def test_continuation_ratio_of_an_empty_answer() -> None:
    image = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    assert continuation_ratio(image, np.zeros(image.shape, bool)) == 0


class Sized(HalfResolutionUNet):
    """A network that finds one of three cubes: in the center of a patch, in a patch that is shrunk and padded with
    zeros, or in one that is shrunk and padded with its edges. It records its inputs."""

    def __init__(self, side: int, shrunk: int, edged: int = 0) -> None:
        torch.nn.Module.__init__(self)
        self.side, self.shrunk, self.edged = side, shrunk, edged
        self.shown: list[torch.Tensor] = []

    def logits(self, x: torch.Tensor, center_only: bool = False) -> torch.Tensor:
        self.shown.append(x.clone())
        wanted = torch.zeros_like(x[:, 0], dtype=torch.bool)
        for n, image in enumerate(x[:, 0]):
            is_shrunk = image[cube(image, 4)].std() < 0.06  # the mean of eight voxels is less noisy
            side = self.side if not is_shrunk else self.shrunk if image[0, 0, 0] == 0 else self.edged
            wanted[n, *cube(image, side)] = True
        if center_only:
            wanted = wanted[:, *cube(wanted, wanted.shape[-1] // 2)]
        return torch.stack((10.0 * ~wanted, 10.0 * wanted), 1)


def patch_of_large_organ(side: int = 24) -> torch.Tensor:
    x = torch.full((1, 8, 32, 32, 32), -1.0)
    x[:, 1:] = 0
    noise = np.random.default_rng(0).normal(1, 0.1, (side,) * 3)
    x[:, 0, *cube(x, side)] = torch.from_numpy(noise).float()
    x[0, POSITIVE_POINT, 16, 16, 16] = 1.0
    return x


def assert_is_cube(found: torch.Tensor, side: int) -> None:
    """Compare except for the edges, which are as narrow as a neck."""
    inside = found[cube(found, side)]
    assert inside.sum() == found.sum()
    assert inside.float().mean() > 0.9


def test_a_continuing_answer_is_repeated_at_half_resolution() -> None:
    network, x = Sized(side=6, shrunk=12), patch_of_large_organ()
    before = x.clone()
    found = network(x).argmax(1).bool()[0]
    assert torch.equal(x, before)
    assert [len(shown) for shown in network.shown] == [1] * 3  # a pass, and two at half the resolution
    smaller, again = network.shown[1][0], network.shown[2][0]
    image = x[0, 0].numpy().reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
    assert smaller[0, *cube(smaller, 16)].numpy() == pytest.approx(image, abs=1e-6)
    assert smaller[0].count_nonzero() == 16**3
    assert torch.equal(smaller[1:], x[0, 1:])
    assert_is_cube(again[PREVIOUS].bool(), 12)
    assert_is_cube(found, 24)


@pytest.mark.parametrize(
    ("side", "shrunk", "organ", "appearance"),
    [
        (18, 14, 18, 2),  # the first answer ends at the border of the organ
        (6, 4, 24, 3),  # the result of a first pass is small
        (6, 5, 24, 4),  # the result is small
        (20, 11, 24, 4),  # the result hardly grows
        (14, 9, 24, 4),  # the result grows, but does not end either
        (14, 13, 20, 4),  # more of its surroundings is similar than for the first answer
    ],
)
def test_a_closed_answer_is_kept(side: int, shrunk: int, organ: int, appearance: int) -> None:
    network = Sized(side, shrunk, edged=16)
    assert_is_cube(network(patch_of_large_organ(organ)).argmax(1).bool()[0], side)
    assert len(network.shown) == appearance


@pytest.mark.parametrize(("edged", "side"), [(12, 24), (8, 20)])
def test_a_large_continuing_organ_is_repeated_with_replicated_edges(edged: int, side: int) -> None:
    """The better result is used: the cube of 24 ends, that of 20 almost, that of 16 less."""
    network = Sized(6, 10, edged)
    assert_is_cube(network(patch_of_large_organ(24)).argmax(1).bool()[0], side)
    image = network.shown[3][0, 0]
    assert len(network.shown) == 5
    assert torch.equal(image[cube(image, 16)], network.shown[1][0, 0][cube(image, 16)])
    assert (image[:8] == image[8]).all()
    assert (image[24:] == image[23]).all()


@pytest.mark.parametrize(
    ("channel", "at"),
    [(PREVIOUS, 16), (POSITIVE_REGION, 16), (NEGATIVE_REGION, 16), (POSITIVE_SCRIBBLE, 16), (POSITIVE_POINT, 25)],
)
def test_other_prompts_prevent_the_half_resolution_pass(channel: int, at: int) -> None:
    x = patch_of_large_organ()
    x[0, channel, 16, 16, at] = 1.0
    network = Sized(side=6, shrunk=12)
    network(x)
    assert all(shown[0, 0, 0, 0, 0] == -1 for shown in network.shown)


@pytest.mark.filterwarnings("ignore")  # torch's own warnings about untraced code
@pytest.mark.slow
def test_the_compiled_network_gives_equal_results() -> None:
    x = patch_of_large_organ()
    with torch.inference_mode():
        expected = Sized(side=6, shrunk=12)(x)
        found = torch.compile(Sized(side=6, shrunk=12), backend="eager")(x)
    assert torch.equal(found, expected)


def test_patches_of_a_batch_are_independent() -> None:
    x = patch_of_large_organ().repeat(3, 1, 1, 1, 1)
    x[1, PREVIOUS, *cube(x, 6)] = 1.0
    network = Sized(side=6, shrunk=12)
    for found, side in zip(network(x).argmax(1).bool(), (24, 6, 24), strict=True):
        assert_is_cube(found, side)


def test_refinement_moves_borders_and_does_not_hollow_out() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[0, POSITIVE_POINT, 6, 6, 6] = 0.9  # an old one
    before = blobs((0, slice(8, 32), slice(8, 24), slice(8, 24)))  # it continues beyond the patch
    x[:, PREVIOUS] = before
    assert torch.equal(answer(blobs(), x), blobs((0, slice(11, 32), slice(11, 21), slice(11, 21))))
    assert answer(~blobs(), x).all()
    more = blobs((0, slice(2, 32), slice(8, 24), slice(10, 24)))
    assert torch.equal(answer(more, x), more)


def test_a_patch_without_a_new_prompt_keeps_its_answer() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[0, POSITIVE_POINT, 6, 6, 6] = 0.9
    assert torch.equal(answer(blobs(FIRST, SECOND), x), blobs(FIRST, SECOND))


@pytest.mark.parametrize(("newest", "sign"), [(POSITIVE_POINT, 1.0), (NEGATIVE_POINT, -1.0), (NEGATIVE_REGION, -1.0)])
def test_likeness_to_the_newest_prompt(newest: int, sign: float) -> None:
    x = torch.zeros(2, 8, 32, 32, 32)
    x[0, 0, 16:], x[0, 0, 24:] = 0.2, 3.0
    x[0, newest, 20, 16, 16] = 1.0  # in the middle of three parts
    for older in (POSITIVE_POINT, NEGATIVE_POINT):
        x[:, older, 28, 16, 16] = 0.9
    seen = HalfResolutionUNet.likeness_to_newest(x, HalfResolutionUNet.newest(x))
    for gain, likeness in zip((5.0, 20.0), seen, strict=True):
        expected = [sign * np.exp(-((gain * difference) ** 2)) for difference in (0.2, 0.0, 2.8)]
        assert [likeness[0, 0, at, 3, 3].item() for at in (2, 20, 28)] == pytest.approx(expected, abs=1e-5)
        assert not likeness[1].any(), "the second of the batch has only older prompts"


def test_the_first_prediction_is_padded_like_the_image() -> None:
    network = Sized(6, 10, edged=16)
    network(patch_of_large_organ(24))
    constant, replicated = network.shown[2][0, PREVIOUS], network.shown[4][0, PREVIOUS]
    assert constant.sum() == constant[cube(constant, 10)].sum() == 10**3
    assert replicated.all()


def test_logits_of_the_center_are_those_of_the_patch() -> None:
    torch.manual_seed(0)
    network = HalfResolutionUNet(8, 2, [16, 32]).eval()
    x = torch.zeros(2, 8, 64, 64, 64)
    x[:, 0].normal_()
    x[:, PREVIOUS, :40] = 1.0
    x[0, POSITIVE_POINT, 28, 32, 36] = 1.0
    x[1, NEGATIVE_POINT, 20, 32, 32] = 1.0
    with torch.inference_mode():
        whole, center = network.logits(x), network.logits(x, center_only=True)
    assert torch.allclose(center, whole[..., 16:48, 16:48, 16:48], atol=1e-5)
    assert center.std() > 0.1


def test_skipping_empty_channels_matches_torch() -> None:
    torch.manual_seed(0)
    network = HalfResolutionUNet(8, 2, [16, 32]).eval()
    x = torch.zeros(1, 8, 32, 32, 32)
    x[:, 0].normal_()
    x[0, POSITIVE_POINT, 20, 16, 16] = 1.0
    all_channels = x.clone()
    all_channels[:, 1:, 0, 0, 0] = 1e-30  # so none of them is empty
    # With gradients, all convolutions are left to torch.
    expected = network.logits(all_channels).detach()
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        found = network.logits(x)
    assert torch.allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1
    if torch.backends.mkldnn.is_available():
        assert not {"aten::slow_conv3d", "aten::slow_conv3d_forward"} & {event.name for event in seen.events()}
