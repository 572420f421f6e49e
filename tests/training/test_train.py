"""Training of the embedded model: it learns from the official session's views, and can be resumed."""

from pathlib import Path

from helpers.engine import set_official_image
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import numpy as np
import pytest
import torch
from torch import nn

from nninteractive_ws.engine.model_registry import MODEL_FOLDER
from training.episodes import CHANNELS, PATCH, Episode
from training.rollout_workers import OBEY, POINTED_AT, TARGET, WRONG
from training.scenes import make_scene
from training.train import Trainer, loss_of

POSITIVE, NEGATIVE = (1 + channel for channel in CHANNELS["point"])


class Follower(nn.Module):
    """A network that adds the center of each positive point, and removes that of each negative one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.clone())
        return torch.stack((torch.zeros_like(x[:, 0]), 2.0 * self.answer(x) - 1), 1)

    @staticmethod
    def answer(x: torch.Tensor) -> torch.Tensor:
        return ((x[:, 1] > 0.5) | (x[:, POSITIVE] > 0.3)) & ~(x[:, NEGATIVE] > 0.3)


@pytest.mark.slow
def test_a_view_equals_the_network_input_of_the_official_session() -> None:
    compared = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng)
        episode = Episode(scene, rng)
        if episode.step:
            continue  # starts with a corrupted mask
        session, follower = official(scene.image)
        while not episode.over:
            view = episode.next_view()
            newest = [c for c in (POSITIVE, NEGATIVE) if view.inputs[c].max() == 1]
            if view.zoom > 1 or not newest or episode.again is not None:
                break  # other prompts are not determined by their center
            session.add_point_interaction([int(c) for c in view.center], view.positive)
            torch.testing.assert_close(view.inputs, follower.seen[-1][0], atol=2e-3, rtol=0)
            compared += 1
            episode.accept(view, Follower.answer(view.inputs[None])[0].numpy())
        if compared >= 6:
            return
    pytest.fail(f"{compared} views to compare")


def official(image: np.ndarray) -> tuple[nnInteractiveInferenceSession, Follower]:
    session = nnInteractiveInferenceSession(device=torch.device("cpu"), torch_n_threads=1)
    session.initialize_from_trained_model_folder(str(MODEL_FOLDER))
    follower = Follower()
    session.network = follower
    set_official_image(session, image)
    session.set_target_buffer(np.zeros(image.shape, np.uint8))
    return session, follower


def test_the_loss_of_a_batch_is_the_mean_of_its_views() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 8, 8, 8, generator=generator)
    bits = torch.randint(0, 16, (3, 8, 8, 8), generator=generator, dtype=torch.uint8)
    bits[1] &= TARGET | WRONG  # a view without a prompt
    apart = [loss_of(logits[n : n + 1], bits[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(loss_of(logits, bits), torch.stack(apart).mean())


@pytest.mark.parametrize("bit", [WRONG, OBEY, WRONG | POINTED_AT])
def test_the_loss_weights_prompts_and_errors(bit: int) -> None:
    marks = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    marks[0, 4:] = TARGET
    right = 20.0 * (marks & TARGET) - 10
    mistaken = right.clone()
    mistaken[0, 4, 4, 4] = -10
    elsewhere, there = marks.clone(), marks.clone()
    elsewhere[0, 7, 7, 7] |= bit
    there[0, 4, 4, 4] |= bit
    of_mistake = torch.stack((torch.zeros_like(mistaken), mistaken), 1)
    assert loss_of(of_mistake, there) > loss_of(of_mistake, elsewhere)


@pytest.mark.timeout(200)
@pytest.mark.release
def test_training_resumes(tmp_path: Path) -> None:
    first = Trainer(tmp_path, 5, start=MODEL_FOLDER, again=1)
    try:
        for _ in range(2):
            first.step()
        first.spent_s = 60.0
        first.save()
    finally:
        first.rollouts.stop()
    second = Trainer(tmp_path, 5, start=MODEL_FOLDER)
    try:
        assert (second.steps, second.spent_s) == (2, 60.0)
        for name, weights in second.network.state_dict().items():
            assert torch.equal(weights, first.network.state_dict()[name])
        before = second.average.state_dict()
        assert all(torch.equal(before[name], weights) for name, weights in first.average.state_dict().items())
        second.step()
        assert second.steps == 3
    finally:
        second.rollouts.stop()
    answers = second.buffer.answers
    assert answers.shape[1:] == (PATCH,) * 3
    assert np.abs(answers).any(axis=(1, 2, 3)).sum() == second.batch
