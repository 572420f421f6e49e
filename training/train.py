"""Train the embedded model on volumes made by code.

    python -m training.train WORK_FOLDER --minutes 90      trains, or goes on from WORK_FOLDER/state.pth
    python -m training.export WORK_FOLDER                  writes the model folder that the package ships

Every forward pass is a training step: the answer to one prompt is the previous segmentation of the next.
"""

import argparse
import copy
import csv
from pathlib import Path
import time

import numpy as np
import torch
from torch.nn import functional

from nninteractive_ws.engine.demo_network import HalfResolutionUNet
from training.episodes import MAX_STEPS, Episode, View
from training.scenes import make_scene

FEATURES = [16, 32, 64, 96, 112]
BATCH = 2
EPISODES = 8
EPISODES_PER_SCENE = 3
SAVE_EVERY_S = 120.0
EMA = 0.998


def build_network() -> HalfResolutionUNet:
    return HalfResolutionUNet(8, 2, FEATURES)


def loss_of(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted cross entropy and soft Dice, averaged over the batch. logits (b, 2, P, P, P)."""
    entropy = functional.cross_entropy(logits, target.long(), reduction="none")
    entropy = (weight * entropy).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    probability = logits.softmax(1)[:, 1]
    overlap = (weight * probability * target).sum((1, 2, 3))
    total = (weight * (probability + target)).sum((1, 2, 3))
    dice = (2 * overlap + 10) / (total + 10)
    return (entropy + 1 - dice).mean()


class Trainer:
    """Network, optimiser, averaged weights and the episodes in play; all of it saved and resumed."""

    def __init__(self, folder: Path, budget_s: float, device: torch.device, seed: int) -> None:
        self.folder, self.budget_s, self.device = folder, budget_s, device
        self.rng = np.random.default_rng(seed)
        self.network = build_network().to(device, memory_format=torch.channels_last_3d)
        self.average = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=2e-3, weight_decay=1e-4)
        self.steps, self.spent_s = 0, 0.0
        self.recent: list[tuple[int, float, float]] = []
        self.episodes: list[Episode] = []
        if (folder / "state.pth").exists():
            self._load()

    def run(self) -> None:
        started, saved = time.monotonic() - self.spent_s, time.monotonic()
        while self.spent_s < self.budget_s:
            self.step()
            now = time.monotonic()
            self.spent_s = now - started
            if now - saved > SAVE_EVERY_S:
                saved = now
                self.save()
        self.save()

    def step(self) -> None:
        while len(self.episodes) < EPISODES:
            scene = make_scene(self.rng)
            self.episodes += [Episode(scene, self.rng) for _ in range(EPISODES_PER_SCENE)]
        playing = [self.episodes[i] for i in self.rng.choice(len(self.episodes), BATCH, replace=False)]
        stages = [e.step for e in playing]
        views = [e.next_view() for e in playing]
        logits, loss = self._learn(views)
        answers = (logits[:, 1] > logits[:, 0]).cpu().numpy()
        for episode, view, answer, stage in zip(playing, views, answers, stages, strict=True):
            truth = view.target.numpy() > 0.5
            dice = 2 * float((truth & answer).sum()) / max(1.0, float(truth.sum() + answer.sum()))
            self.recent.append((stage, loss, dice))
            episode.accept(view, answer)
        self.episodes = [e for e in self.episodes if not e.over]

    def _learn(self, views: list[View]) -> tuple[torch.Tensor, float]:
        inputs = torch.stack([v.inputs for v in views]).to(self.device)
        target = torch.stack([v.target for v in views]).to(self.device)
        weight = torch.stack([v.weight for v in views]).to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.network(inputs)
        loss = loss_of(logits.float(), target, weight)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.steps += 1
        decay = min(EMA, self.steps / (self.steps + 20))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        return logits.detach(), float(loss.detach())

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.steps + 1) / 50)
        progress = min(1.0, self.spent_s / self.budget_s)
        return 2e-3 * warm * (1 - progress) ** 0.9 + 1e-6

    def save(self) -> None:
        """Write the state and one line of the log: mean loss, and mean Dice of the view by prompt number."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
            "spent_s": self.spent_s,
        }
        partial = self.folder / "state.pth.part"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pth")
        by_stage = [np.mean([d for s, _, d in self.recent if s == k] or [np.nan]) for k in range(MAX_STEPS)]
        row = [self.steps, round(self.spent_s), round(float(np.mean([r[1] for r in self.recent])), 4)]
        row += [round(float(d), 3) for d in by_stage]
        log = self.folder / "log.csv"
        new = not log.exists()
        with log.open("a", newline="") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(["steps", "seconds", "loss", *(f"dice_prompt_{k + 1}" for k in range(MAX_STEPS))])
            writer.writerow(row)
        print(*row, flush=True)
        self.recent.clear()

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pth", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps, self.spent_s = state["steps"], state["spent_s"]
        self.rng = np.random.default_rng(self.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    Trainer(args.folder, 60 * args.minutes, torch.device(args.device), args.seed).run()


if __name__ == "__main__":
    main()
