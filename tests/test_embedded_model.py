"""What the embedded model promises, on a phantom of a seed that training never sees (they begin at a million)."""

import numpy as np
import pytest
import torch

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.engine.catalogue import MODEL_FOLDER
from nninteractive_ws.engine.demo_network import HalfResolutionUNet
from nninteractive_ws.evaluation import user
from nninteractive_ws.evaluation.measures import dice, obeyed

# Some of its organs, large and small, round and long: all of them would take CI a minute.
ORGANS = ("spleen", "right kidney", "left kidney", "stomach", "vena cava", "right lung")
PROMPTS = 3


@pytest.mark.timeout(200)
def test_it_finds_organs_of_an_unseen_phantom_and_listens_to_corrections(server: str) -> None:
    phantom = make_phantom(11)
    after: dict[str, list[float]] = {}
    listened: list[bool] = []
    with nni.connect(server) as session:
        session.set_image(phantom.image)
        for organ in ORGANS:
            truth, segment = phantom.mask(organ), session.segment(organ)
            for _ in range(PROMPTS):
                correction = user.correction(truth, segment.mask)
                assert correction is not None, "a mask without any error"
                point, positive = correction
                segment.add_point(point, positive=positive)
                listened.append(obeyed(segment.mask, truth, point, positive))
                after.setdefault(organ, []).append(dice(truth, segment.mask))
    means = np.mean(list(after.values()), 0)
    assert means[0] >= 0.85, after
    assert means[-1] >= 0.92, after
    assert np.mean(listened) >= 0.9, after


def test_it_is_small_and_says_its_licence() -> None:
    assert sum(f.stat().st_size for f in MODEL_FOLDER.rglob("*") if f.is_file()) <= 10e6
    assert (MODEL_FOLDER / "LICENSE").read_text().startswith("Apache-2.0\n")


# Channels: the image, the previous segmentation, and positive and negative regions, points and scribbles.
PREVIOUS, NEGATIVE_REGION, POSITIVE_POINT, NEGATIVE_POINT = 1, 3, 4, 5
FIRST, SECOND = (0, slice(4, 10), slice(4, 10), slice(4, 10)), (0, slice(20, 26), slice(4, 10), slice(4, 10))


def answer(wanted: torch.Tensor, x: torch.Tensor, sure: float = 10.0) -> torch.Tensor:
    """What becomes of the network's answer ``wanted``, bool (1, X, Y, Z), with logits that are so far apart."""
    logits = torch.stack((sure * ~wanted, sure * wanted), 1)
    found = HalfResolutionUNet.near_prompts(logits, x)
    return found[:, 1] > found[:, 0]


def blobs(*boxes: tuple[int | slice, ...]) -> torch.Tensor:
    mask = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    for box in boxes:
        mask[box] = True
    return mask


@pytest.mark.parametrize("polarity", [POSITIVE_POINT, NEGATIVE_POINT])
def test_a_prompt_changes_what_hangs_together_with_it(polarity: int) -> None:
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
    """Two balls 18 voxels wide with a bridge between them: in the middle of one of them is the point."""
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
    assert (found[0] & here).sum() > 0.99 * here.sum()  # the rest is its roughness
    if width == 12:
        assert (found[0] & there).sum() > 0.99 * there.sum()
    else:
        assert not found[0, 24:].any()
    x[0, PREVIOUS, 11, 40] = 1.0
    assert torch.equal(answer(every, x)[0] & every[0], every[0])


def test_a_point_beside_a_change_means_it() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[0, POSITIVE_POINT, 12, 6, 6] = 1.0
    assert torch.equal(answer(blobs(FIRST, SECOND), x), blobs(FIRST))
    x[0, POSITIVE_POINT, 12, 6, 6], x[0, POSITIVE_POINT, 14, 6, 6] = 0.0, 1.0
    assert not answer(blobs(FIRST, SECOND), x).any()


@pytest.mark.parametrize("polarity", [POSITIVE_POINT, NEGATIVE_POINT])
@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_a_prompt_at_the_border_changes_only_what_is_sure_far_from_it(polarity: int, depth: int) -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    half = blobs((0, slice(0, 16)))
    before, wanted = (half, ~half & half) if polarity == NEGATIVE_POINT else (half, half | ~half)
    at = 16 - depth if polarity == NEGATIVE_POINT else 15 + depth
    x[:, PREVIOUS] = before
    x[0, polarity, at, 16, 16] = 1.0
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    away = (grid - torch.tensor([at, 16.0, 16.0])[:, None, None, None]).square().sum(0)[None]
    changed_if_unsure = (before ^ wanted) & (away <= 9) if depth < 3 else before ^ wanted
    assert torch.equal(answer(wanted, x, sure=5.0), wanted)
    assert torch.equal(answer(wanted, x, sure=3.0), before ^ changed_if_unsure)


@pytest.mark.parametrize("polarity", [POSITIVE_POINT, NEGATIVE_POINT])
@pytest.mark.parametrize("agrees", [False, True])
def test_what_lies_nearer_to_a_prompt_that_says_the_contrary_stays(polarity: int, agrees: bool) -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    before = torch.full((1, 32, 32, 32), polarity == NEGATIVE_POINT)
    contrary = NEGATIVE_POINT if polarity == POSITIVE_POINT else POSITIVE_POINT
    x[:, PREVIOUS] = before
    x[0, contrary, 4, 16, 16] = 0.3  # long ago
    x[0, polarity, 24, 16, 16] = 1.0
    if agrees:
        x[0, polarity, 2, 16, 16] = 0.5
    expected = before ^ blobs((0, slice(14, 32)))  # what is as far from both may change
    assert torch.equal(answer(~before, x), expected)


def test_a_box_inside_the_mask_may_take_away_what_is_far_from_points() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[:, PREVIOUS] = 1.0
    x[0, POSITIVE_POINT, 16, 16, 4] = 0.9
    x[0, NEGATIVE_REGION, 8:24, 8:24, 20] = 1.0
    changed = ~answer(blobs(), x)
    assert changed[0, 16, 16, 14:].all()
    assert not changed[0, 16, 16, :10].any()


def test_the_first_answer_need_not_be_sure() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[0, POSITIVE_POINT, 6, 6, 6] = 1.0
    assert torch.equal(answer(blobs(FIRST), x, sure=0.1), blobs(FIRST))


class Noted(HalfResolutionUNet):
    """It adds a plane to the previous segmentation with every look, and keeps what it was shown."""

    def __init__(self, sure: float) -> None:
        torch.nn.Module.__init__(self)
        self.sure = sure
        self.shown: list[torch.Tensor] = []

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        self.shown.append(x.clone())
        wanted = x[:, PREVIOUS] > 0.5
        wanted[:, 4] = True
        wanted[:, 1:] |= wanted[:, :-1].clone()
        return torch.stack((self.sure * ~wanted, self.sure * wanted), 1)


@pytest.mark.parametrize("sure", [0.9, 1.1])
def test_without_a_previous_segmentation_it_looks_twice_and_must_be_surer(sure: float) -> None:
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


def test_where_there_is_no_new_prompt_the_answer_stays() -> None:
    x = torch.zeros(1, 8, 32, 32, 32)
    x[0, POSITIVE_POINT, 6, 6, 6] = 0.9
    assert torch.equal(answer(blobs(FIRST, SECOND), x), blobs(FIRST, SECOND))


@pytest.mark.parametrize(("newest", "sign"), [(POSITIVE_POINT, 1.0), (NEGATIVE_POINT, -1.0), (NEGATIVE_REGION, -1.0)])
def test_it_sees_what_is_as_bright_as_what_the_newest_prompt_marks(newest: int, sign: float) -> None:
    x = torch.zeros(2, 8, 32, 32, 32)
    x[0, 0, 16:], x[0, 0, 24:] = 0.2, 3.0
    x[0, newest, 20, 16, 16] = 1.0  # in the middle one of three parts
    for older in (POSITIVE_POINT, NEGATIVE_POINT):
        x[:, older, 28, 16, 16] = 0.9
    seen = HalfResolutionUNet.likeness_to_newest(x, HalfResolutionUNet.newest(x))
    for gain, likeness in zip((5.0, 20.0), seen, strict=True):
        expected = [sign * np.exp(-((gain * difference) ** 2)) for difference in (0.2, 0.0, 2.8)]
        assert [likeness[0, 0, at, 3, 3].item() for at in (2, 20, 28)] == pytest.approx(expected, abs=1e-5)
        assert not likeness[1].any(), "the second of the batch has only older prompts"


def test_the_fast_way_gives_what_torch_gives_for_all_channels() -> None:
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
