"""Train the embedded model on volumes made by code.

    python -m training.train WORK_FOLDER --minutes 90      trains, or goes on from WORK_FOLDER/state.pth

Every forward pass is a training step: the answer to one prompt is the previous segmentation of the next. At the
end WORK_FOLDER holds the model folder ``model``, the log ``log.csv``, its curves ``curves.png``, and in ``evaluation``
what ``nninteractive-ws evaluate`` writes. ``python -m training.export WORK_FOLDER`` makes the model the one that the
package ships.

On a machine that others use too, set OMP_WAIT_POLICY=passive: threads that wait for each other then do not spin.
"""

import argparse
import copy
import csv
from dataclasses import dataclass
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
import torch
from torch.nn import functional

from training.episodes import MAX_STEPS, Episode, View
from training.export import build_network, export, weights_of
from training.scenes import make_scene

BATCH = 2
EPISODES = 8
EPISODES_PER_SCENE = 3
SAVE_EVERY_S = 120.0
EMA = 0.999
PEAK_RATE = 3e-4
# Weights of obedience, correction and what is left wrong beside the object's cross entropy and Dice.
OBEDIENCE, CORRECTION, LEFT = 0.4, 0.5, 0.7
COLUMNS = [
    "steps", "seconds", "loss", *(f"dice_prompt_{k + 1}" for k in range(MAX_STEPS)),
    "obeyed_positive", "obeyed_negative", "error_lowered", "skipped",
]  # fmt: skip


def loss_of(logits: torch.Tensor, views: list[View]) -> torch.Tensor:
    """What is learned, averaged over the views: object, obedience, correction, what is left. logits (b, 2, P, P, P).

    The object: cross entropy, in which the previous segmentation's errors count more, and soft Dice. Obedience:
    cross entropy of the voxels that the newest prompt marks, and once more of the worst of them. Correction: cross
    entropy where the newest prompt points at an error. Means over a few voxels, which the object's would drown. What
    is left wrong of that error, and what is made wrong that was right, as a share of the object: so a large leak must
    go whole, and small objects count as much as large ones.
    """
    losses = []
    for answer, view in zip(logits, views, strict=True):
        target = view.target.to(answer.device)
        entropy = functional.cross_entropy(answer[None], target[None].long(), reduction="none")[0]
        weight = 1 + 1.5 * view.wrong.to(answer.device)
        probability = answer.softmax(0)[1]
        dice = (2 * (probability * target).sum() + 10) / ((probability + target).sum() + 10)
        loss = (weight * entropy).mean() + 1 - dice
        if view.obey is not None and view.obey.any():
            marked = entropy[view.obey.to(answer.device)]
            loss = loss + OBEDIENCE * (marked.mean() + 0.2 * marked.max())
        if view.pointed_at is not None and view.pointed_at.any():
            loss = loss + CORRECTION * entropy[view.pointed_at.to(answer.device)].mean()
            elsewhere = (view.wrong & ~view.pointed_at).to(answer.device)
            wrong = (probability - target).abs()[~elsewhere].sum()
            loss = loss + LEFT * torch.log1p(wrong / (target.sum() + 100))
        losses.append(loss)
    return torch.stack(losses).mean()


@dataclass
class Record:
    """What the log counts of one view; None where it does not apply."""

    loss: float
    stage: int
    dice: float
    positive: bool
    obeyed: bool | None
    lowered: bool | None


def record_of(loss: float, stage: int, view: View, answer: np.ndarray) -> Record:
    truth = view.target.numpy() > 0.5
    dice = 2 * float((truth & answer).sum()) / max(1.0, float(truth.sum() + answer.sum()))
    obeyed = lowered = None
    if view.obey is not None and view.obey.any():
        obeyed = bool((answer == view.positive)[view.obey.numpy()].all())
    if view.pointed_at is not None and view.pointed_at.any():
        lowered = bool((answer != truth).sum() < int(view.wrong.sum()))
    return Record(loss, stage, dice, view.positive, obeyed, lowered)


class Trainer:
    """Network, optimiser, averaged weights and the episodes in play; all of it saved and resumed."""

    def __init__(self, folder: Path, budget_s: float, device: torch.device, seed: int, start: Path | None) -> None:
        self.folder, self.budget_s, self.device = folder, budget_s, device
        self.rng = np.random.default_rng(seed)
        network = build_network()
        if start is not None:
            network.load_state_dict(weights_of(start))
        self.network = network.to(device, memory_format=torch.channels_last_3d)
        self.average = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=PEAK_RATE, weight_decay=1e-4)
        self.steps, self.spent_s = 0, 0.0
        self.recent: list[Record] = []
        self.skipped = 0  # steps whose gradient was not finite
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
        inputs = torch.stack([v.inputs for v in views]).to(self.device)
        logits, loss = self._learn(inputs, views)
        given = self.network.near_prompts(logits, inputs)
        answers = (given[:, 1] > given[:, 0]).cpu().numpy()
        for episode, view, answer, stage in zip(playing, views, answers, stages, strict=True):
            self.recent.append(record_of(loss, stage, view, answer))
            episode.accept(view, answer)
        self.episodes = [e for e in self.episodes if not e.over]

    def _learn(self, inputs: torch.Tensor, views: list[View]) -> tuple[torch.Tensor, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.network.logits(inputs)
        loss = loss_of(logits.float(), views)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0).isfinite():
            self.optimiser.step()
        else:
            self.skipped += 1
        self.steps += 1
        decay = min(EMA, self.steps / (self.steps + 5))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        return logits.detach().float(), float(loss.detach())

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.steps + 1) / 50)
        progress = min(1.0, self.spent_s / self.budget_s)
        return PEAK_RATE * warm * (1 - progress) ** 0.9 + 1e-6

    def save(self) -> None:
        """Write the state and one line of the log: means since the last, of the views as the network met them."""
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
        log = self.folder / "log.csv"
        new = not log.exists()
        row = [self.steps, round(self.spent_s), *(round(x, 4) for x in self._means()), self.skipped]
        with log.open("a", newline="") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow(row)
        print(*row, flush=True)
        self.recent.clear()

    def _means(self) -> list[float]:
        def mean(values: list[float] | list[bool]) -> float:
            return float(np.mean(values)) if values else float("nan")

        seen = self.recent
        return [
            mean([r.loss for r in seen]),
            *(mean([r.dice for r in seen if r.stage == k]) for k in range(MAX_STEPS)),
            mean([r.obeyed for r in seen if r.positive and r.obeyed is not None]),
            mean([r.obeyed for r in seen if not r.positive and r.obeyed is not None]),
            mean([r.lowered for r in seen if r.lowered is not None]),
        ]

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pth", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps, self.spent_s = state["steps"], state["spent_s"]
        self.rng = np.random.default_rng(self.steps)


def draw_curves(folder: Path) -> None:
    """``curves.png`` from ``log.csv``, smoothed over nine rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with (folder / "log.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for name in COLUMNS[2:-1]:
        values = np.array([float(r[name]) for r in rows])
        smooth = [np.nanmean(v) if np.isfinite(v).any() else np.nan for v in _windows(values, 9)]
        place = 0 if name == "loss" else 1 if name.startswith("dice") else 2
        axes[place].plot([float(r["seconds"]) / 60 for r in rows], smooth, label=name.replace("_", " "))
    for axis, title in zip(axes, ("loss", "Dice of the view", "share of prompts"), strict=True):
        axis.set(title=title, xlabel="minutes")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(folder / "curves.png", dpi=100)


def _windows(values: np.ndarray, width: int) -> list[np.ndarray]:
    return [values[max(0, i - width // 2) : i + width // 2 + 1] for i in range(len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--start", type=Path, help="a model folder whose weights to begin with; default: random ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args.folder, 60 * args.minutes, torch.device(args.device), args.seed, args.start)
    trainer.run()
    export(trainer.average.state_dict(), args.folder / "model")
    draw_curves(args.folder)
    evaluate = [sys.executable, "-m", "nninteractive_ws", "evaluate", "phantom:10-13", "--clicks", "5"]
    evaluate += ["--model", str(args.folder / "model"), "--output", str(args.folder / "evaluation")]
    subprocess.run(evaluate, check=True)


if __name__ == "__main__":
    main()
