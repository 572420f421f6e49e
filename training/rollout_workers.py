"""Worker processes that simulate users, one per core, and the memory that they share with the trainer.

A worker runs several episodes. It writes a view of one into a row of the buffer, and reports the row as ready. The
trainer learns from a batch of ready rows, writes its predictions beside them, and reports them. The worker continues
the episode from the prediction.
"""

from dataclasses import dataclass
import mmap
import multiprocessing
import queue
from typing import Any

import numpy as np
import torch

from nninteractive_ws.engine.demo_network import HalfResolutionUNet
from training.episodes import PATCH, Episode, View
from training.scenes import make_scene

ROWS_PER_WORKER = 8
EPISODES_PER_SCENE = 6
# Bits of SharedBuffer.marks.
TARGET, WRONG, OBEY, POINTED_AT = 1, 2, 4, 8
# Share of predictions used without the network's postprocessing (near_prompts), which may change.
RAW_SHARE = 0.3


@dataclass
class ViewMetrics:
    """Metrics of one view for the log; None if not applicable."""

    stage: int
    dice: float
    positive: bool
    obeyed: bool | None
    lowered: bool | None


class SharedBuffer:
    """Memory shared by the trainer and its workers.

    inputs: float16 (rows, 8, P, P, P), network inputs. marks: uint8 (rows, P, P, P), the bits above for each voxel.
    answers: float16 (rows, P, P, P), logit of "object" minus logit of "background".
    """

    def __init__(self, rows: int) -> None:
        self.inputs = _shared((rows, 8, PATCH, PATCH, PATCH), np.float16)
        self.marks = _shared((rows, PATCH, PATCH, PATCH), np.uint8)
        self.answers = _shared((rows, PATCH, PATCH, PATCH), np.float16)

    def write(self, row: int, view: View) -> None:
        self.inputs[row] = view.inputs.numpy()
        marks = view.target.numpy() > 0.5
        self.marks[row] = TARGET * marks
        for bit, marked in ((WRONG, view.wrong), (OBEY, view.obey), (POINTED_AT, view.pointed_at)):
            if marked is not None:
                self.marks[row] |= bit * marked.numpy().astype(np.uint8)


class RolloutWorkers:
    """The worker processes and their queues. The processes end with the trainer.

    once: each episode yields a single view, a first prompt or the correction of a corrupted mask, and no prediction is
    read.
    """

    def __init__(self, buffer: SharedBuffer, n: int, seed: int, *, once: bool = False) -> None:
        self.once = once
        context = multiprocessing.get_context("fork")  # the buffer is inherited
        self.ready: Any = context.Queue()  # (row, metrics of the view before it or None)
        self._answers: list[Any] = [context.Queue() for _ in range(n)]
        self._processes = [
            context.Process(target=_run_worker, args=(buffer, self, k, seed), daemon=True) for k in range(n)
        ]
        for process in self._processes:
            process.start()

    def report_answer(self, row: int) -> None:
        """Report that the prediction for a row is written."""
        self._answers[row // ROWS_PER_WORKER].put(row)

    def next_answer(self, worker: int) -> int:
        """Wait for the next row with a prediction, in a worker process. Exit if the trainer was killed."""
        trainer = multiprocessing.parent_process()
        while True:
            try:
                return int(self._answers[worker].get(timeout=5))
            except queue.Empty:
                if trainer is None or not trainer.is_alive():
                    raise SystemExit(1) from None

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _shared(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def _run_worker(buffer: SharedBuffer, workers: RolloutWorkers, worker: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, worker])
    pending: list[Episode] = []
    running: dict[int, tuple[Episode, View]] = {}

    def submit_view(row: int, episode: Episode, metrics: ViewMetrics | None) -> None:
        view = episode.next_view()
        running[row] = episode, view
        buffer.write(row, view)
        workers.ready.put((row, metrics))

    def next_episode() -> Episode:
        if not pending:
            scene = make_scene(rng)
            pending.extend(Episode(scene, rng) for _ in range(EPISODES_PER_SCENE))
        return pending.pop()

    for row in range(worker * ROWS_PER_WORKER, (worker + 1) * ROWS_PER_WORKER):
        submit_view(row, next_episode(), None)
    while True:
        row = workers.next_answer(worker)
        if workers.once:
            submit_view(row, next_episode(), None)
            continue
        episode, view = running[row]
        answer = _answer(buffer.answers[row], view, postprocess=rng.random() >= RAW_SHARE)
        metrics = _view_metrics(episode.step, view, answer)
        episode.accept(view, answer)
        submit_view(row, next_episode() if episode.over else episode, metrics)


def _answer(difference: np.ndarray, view: View, postprocess: bool) -> np.ndarray:
    logits = torch.from_numpy(difference.astype(np.float32))[None]
    logits = torch.stack((-logits / 2, logits / 2), 1)
    if postprocess:
        logits = HalfResolutionUNet.near_prompts(logits, view.inputs[None])
    return (logits[0, 1] > logits[0, 0]).numpy()


def _view_metrics(stage: int, view: View, answer: np.ndarray) -> ViewMetrics:
    truth = view.target.numpy() > 0.5
    dice = 2 * float((truth & answer).sum()) / max(1.0, float(truth.sum() + answer.sum()))
    obeyed = lowered = None
    if view.obey is not None and view.obey.any():
        obeyed = bool((answer == view.positive)[view.obey.numpy()].all())
    if view.pointed_at is not None and view.pointed_at.any():
        lowered = bool((answer != truth).sum() < int(view.wrong.sum()))
    return ViewMetrics(stage, dice, view.positive, obeyed, lowered)
