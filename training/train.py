"""Train the embedded model on synthetic volumes.

    python -m training.train WORK_FOLDER --minutes 90      trains, or resumes from WORK_FOLDER/state.pth

Every forward pass is a training step: the prediction for one prompt is the previous segmentation of the next. If the
rollout workers are slower than the device, views are replayed in another orientation and gray scale. At the end
WORK_FOLDER has the model folder ``model``, the log ``log.csv``, its curves ``curves.png``, and the output of
``nninteractive-ws evaluate`` in ``evaluation``. ``python -m training.export WORK_FOLDER`` installs the model in the
package.

On a shared machine, set OMP_WAIT_POLICY=passive, so that waiting threads do not spin.
"""

import argparse
import copy
import csv
from pathlib import Path
import subprocess
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from nninteractive_ws.engine.demo_network import BFLOAT16_ON_CPU, HalfResolutionUNet
from nninteractive_ws.processes import python_module
from training.episodes import MAX_STEPS, PATCH
from training.export import build_network, export, weights_of
from training.rollout_workers import (
    OBEY,
    POINTED_AT,
    ROWS_PER_WORKER,
    TARGET,
    WRONG,
    RolloutWorkers,
    SharedBuffer,
    ViewMetrics,
)
from training.scenes import pose

EMA = 0.999
PEAK_RATE = 3e-4
REPLAY_VIEWS = 512  # capacity of the replay buffer
SAVES = 40  # number of checkpoints and lines of the log in a training
# Weights of the losses for obedience, correction and remaining errors, relative to cross entropy and Dice.
OBEDIENCE, CORRECTION, LEFT = 0.4, 0.5, 0.7
COLUMNS = [
    "steps", "seconds", "loss", *(f"dice_prompt_{k + 1}" for k in range(MAX_STEPS)),
    "obeyed_positive", "obeyed_negative", "error_lowered", "skipped",
]  # fmt: skip


def loss_of(logits: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """Return the loss, averaged over the views.

    logits: float (b, 2, P, P, P). marks: uint8 (b, P, P, P), as in the shared buffer.

    Object: cross entropy, with higher weights for errors of the previous segmentation, and soft Dice. Obedience: cross
    entropy of the voxels marked by the newest prompt, and additionally of the worst of them. Correction: cross entropy
    in the error targeted by the newest prompt. These are means over few voxels, which would vanish in the object's
    loss. Remaining errors: voxels of the targeted error that are still wrong, and correct voxels that became wrong,
    relative to the object's size. So a large leak must vanish entirely, and small objects count as much as large ones.
    """
    target, wrong, obey, pointed_at = ((marks & bit > 0).flatten(1) for bit in (TARGET, WRONG, OBEY, POINTED_AT))
    entropy = functional.cross_entropy(logits, (marks & TARGET).long(), reduction="none").flatten(1)
    probability = logits.softmax(1)[:, 1].flatten(1)
    size = target.sum(1)
    dice = (2 * (probability * target).sum(1) + 10) / (probability.sum(1) + size + 10)
    loss = ((1 + 1.5 * wrong) * entropy).mean(1) + 1 - dice
    loss = loss + OBEDIENCE * (_mean_where(obey, entropy) + 0.2 * (entropy * obey).amax(1))
    left = ((probability - target.float()).abs() * (~wrong | pointed_at)).sum(1)
    correction = CORRECTION * _mean_where(pointed_at, entropy) + LEFT * torch.log1p(left / (size + 100))
    return (loss + correction * pointed_at.any(1)).mean()


def _mean_where(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the mean over each view's mask, 0 for an empty mask."""
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)


class Trainer:
    """Network, optimizer, averaged weights and rollout workers. All but the latter are saved and resumed.

    batch: new views per step. again: replayed views per step, in addition. minutes: of the whole training.
    crop: edge in voxels of the region around the prompt that is used, a multiple of 32; None: the whole view. With it,
    the network's own predictions are not corrected, but a slow CPU processes several times as many views.
    """

    def __init__(
        self, folder: Path, minutes: float, *, device: str = "cpu", seed: int = 0, start: Path | None = None,
        workers: int = 1, batch: int = 2, again: int = 0, rate: float = PEAK_RATE,
        crop: int | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.budget_s, self.device = folder, 60 * minutes, torch.device(device)
        self.batch, self.again, self.rate, self.crop = batch, again, rate, crop
        self.steps, self.spent_s = 0, 0.0
        state = None
        if (folder / "state.pth").exists():
            state = torch.load(folder / "state.pth", weights_only=True)
            self.steps, self.spent_s = state["steps"], state["spent_s"]
        # Before any computation, because a process must not be forked while its threads compute.
        self.buffer = SharedBuffer(workers * ROWS_PER_WORKER)
        self.rollouts = RolloutWorkers(self.buffer, workers, seed + self.steps, once=crop is not None)
        self.rng = np.random.default_rng([seed, self.steps])
        network = build_network()
        if start is not None:
            network.load_state_dict(weights_of(start))
        on_device: Any = network.to(self.device)  # some releases of torch declare no memory_format
        self.network: HalfResolutionUNet = on_device.to(memory_format=torch.channels_last_3d)
        self.average = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=1e-4)
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.replay = ReplayBuffer(self.device) if again else None
        if self.device.type == "cuda":  # pinned memory, for asynchronous copies
            for array in (self.buffer.inputs, self.buffer.marks):
                torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0))
        self.recent: list[ViewMetrics] = []
        self.losses: list[torch.Tensor] = []
        self.skipped = torch.zeros((), device=self.device)  # steps whose gradient was not finite

    def run(self) -> None:
        started, saved = time.monotonic() - self.spent_s, time.monotonic()
        while self.spent_s < self.budget_s:
            self.step()
            now = time.monotonic()
            self.spent_s = now - started
            if now - saved > self.budget_s / SAVES:
                saved = now
                self.save()
        self.save()
        self.rollouts.stop()

    def step(self) -> None:
        """Learn from the next ready views, and write the predictions for them to the shared buffer."""
        rows = []
        for _ in range(self.batch):
            row, metrics = self.rollouts.ready.get()
            rows.append(row)
            if metrics is not None:
                self.recent.append(metrics)
        inputs, marks = (
            torch.stack([torch.from_numpy(of_all[row]).to(self.device, non_blocking=True) for row in rows])
            for of_all in (self.buffer.inputs, self.buffer.marks)
        )
        seen, wanted = inputs.float(), marks
        if self.replay is not None:
            old, old_marks = self.replay.draw(self.again, self.rng)
            self.replay.add(inputs, marks)
            seen, wanted = torch.cat((seen, old)), torch.cat((marks, old_marks))
        if self.crop is not None:
            inner = (..., *(slice((PATCH - self.crop) // 2, (PATCH + self.crop) // 2),) * 3)
            self._learn(seen[inner], wanted[inner])
            for row in rows:
                self.rollouts.report_answer(row)
            return
        logits = self._learn(seen, wanted)[: len(rows)]
        answers = (logits[:, 1] - logits[:, 0]).half().cpu().numpy()
        for row, answer in zip(rows, answers, strict=True):
            self.buffer.answers[row] = answer
            self.rollouts.report_answer(row)

    def _learn(self, inputs: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        fast = self.device.type != "cpu" or BFLOAT16_ON_CPU
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast):
            logits = self.network.logits(inputs)
        logits = logits.float()
        loss = loss_of(logits, marks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0).isfinite():
            self.optimizer.step()
        else:
            self.skipped += 1
        self.steps += 1
        decay = min(EMA, self.steps / (self.steps + 5))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        self.losses.append(loss.detach())
        detached: torch.Tensor = logits.detach()
        return detached

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.steps + 1) / 50)
        progress = min(1.0, self.spent_s / self.budget_s)
        return float(self.rate * warm * (1 - progress) ** 0.9 + 1e-6)

    def save(self) -> None:
        """Write a checkpoint and a line of the log: means since the last one, over new views."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "spent_s": self.spent_s,
        }
        partial = self.folder / "state.pth.part"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pth")
        log = self.folder / "log.csv"
        new = not log.exists()
        row = [self.steps, round(self.spent_s), *(round(x, 4) for x in self._means()), int(self.skipped)]
        with log.open("a", newline="") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow(row)
        print(*row, flush=True)
        self.recent.clear()
        self.losses.clear()

    def _means(self) -> list[float]:
        def mean(values: list[float] | list[bool]) -> float:
            return float(np.mean(values)) if values else float("nan")

        seen = self.recent
        return [
            mean([float(x) for x in self.losses]),
            *(mean([r.dice for r in seen if r.stage == k]) for k in range(MAX_STEPS)),
            mean([r.obeyed for r in seen if r.positive and r.obeyed is not None]),
            mean([r.obeyed for r in seen if not r.positive and r.obeyed is not None]),
            mean([r.lowered for r in seen if r.lowered is not None]),
        ]


class ReplayBuffer:
    """The latest views, kept on the device for replay."""

    def __init__(self, device: torch.device) -> None:
        self.inputs = torch.empty((REPLAY_VIEWS, 8, PATCH, PATCH, PATCH), dtype=torch.float16, device=device)
        self.marks = torch.empty((REPLAY_VIEWS, PATCH, PATCH, PATCH), dtype=torch.uint8, device=device)
        self.added = 0

    def add(self, inputs: torch.Tensor, marks: torch.Tensor) -> None:
        for view, marked in zip(inputs, marks, strict=True):
            self.inputs[self.added % REPLAY_VIEWS], self.marks[self.added % REPLAY_VIEWS] = view, marked
            self.added += 1

    def draw(self, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (float32) and marks of up to ``n`` views, reoriented, each with its own gray scale."""
        kept = min(self.added, REPLAY_VIEWS)
        rows = torch.from_numpy(rng.choice(kept, min(n, kept), replace=False)).to(self.inputs.device)
        inputs, marks = self.inputs[rows].float(), self.marks[rows]
        gain = np.exp(rng.uniform(-0.7, 0.7, len(rows))) * rng.choice((1, -1), len(rows), p=(0.8, 0.2))
        inputs[:, 0] *= torch.from_numpy(gain.astype(np.float32)).to(inputs.device)[:, None, None, None]
        order, mirrored = pose(rng)

        def reorient(views: torch.Tensor) -> torch.Tensor:
            others = range(views.ndim - 3)
            return views.permute(*others, *(n - 3 for n in order)).flip([n - 3 for n in mirrored])

        return reorient(inputs), reorient(marks)


def draw_curves(folder: Path) -> None:
    """Draw ``curves.png`` from ``log.csv``, smoothed over nine rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with (folder / "log.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for name in COLUMNS[2:-1]:
        values = np.array([float(r[name]) for r in rows])
        smooth = [np.nanmean(v) if np.isfinite(v).any() else np.nan for v in _windows(values, 9)]
        panel = 0 if name == "loss" else 1 if name.startswith("dice") else 2
        axes[panel].plot([float(r["seconds"]) / 60 for r in rows], smooth, label=name.replace("_", " "))
    for axis, title in zip(axes, ("loss", "Dice of the view", "share of prompts"), strict=True):
        axis.set(title=title, xlabel="minutes", ylim=(0, None if title == "loss" else 1))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="lower right", ncols=2)  # the curves end above
    figure.savefig(folder / "curves.png", dpi=100)


def _windows(values: np.ndarray, width: int) -> list[np.ndarray]:
    return [values[max(0, i - width // 2) : i + width // 2 + 1] for i in range(len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="work folder, from which a training is resumed")
    parser.add_argument("--minutes", type=float, default=90.0, help="duration of the whole training, default 90")
    parser.add_argument("--start", type=Path, help="model folder with initial weights, default random weights")
    parser.add_argument("--device", default="cpu", help="torch device, default cpu")
    parser.add_argument("--workers", type=int, default=1, help="rollout workers, one core each")
    parser.add_argument("--batch", type=int, default=2, help="new views per step, default 2")
    parser.add_argument("--again", type=int, default=0, help="replayed views per step, for a fast device, default 0")
    parser.add_argument(
        "--crop", type=int, help="edge in voxels of the region to learn from, for slow CPUs: see Trainer"
    )
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help=f"peak learning rate, default {PEAK_RATE:g}")
    parser.add_argument("--seed", type=int, default=0, help="random seed, default 0")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        args.folder, args.minutes, device=args.device, seed=args.seed, start=args.start, workers=args.workers,
        batch=args.batch, again=args.again, rate=args.rate, crop=args.crop,
    )  # fmt: skip
    trainer.run()
    export(trainer.average.state_dict(), args.folder / "model")
    draw_curves(args.folder)
    evaluate = python_module("nninteractive_ws", "evaluate", "phantom:10-13", "--prompts-per-object", "5")
    evaluate += ["--model", str(args.folder / "model"), "--output", str(args.folder / "evaluation")]
    subprocess.run(evaluate, check=True)


if __name__ == "__main__":
    main()
