"""Processes that play the simulated user, each on a core of its own, and the memory they share with the trainer.

A player keeps some episodes going. It writes the view of one into a row of the table and says so; the trainer learns
from rows that are ready, a batch at a time, writes its answers beside them, and says so; the player goes on from there.
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

ROWS_PER_PLAYER = 8
EPISODES_PER_SCENE = 6
# Bits of Table.marks.
TARGET, WRONG, OBEY, POINTED_AT = 1, 2, 4, 8
# How often the answer is taken without the rules of the network's near_prompts, which may change.
UNRULED = 0.3


@dataclass
class Record:
    """What the log counts of one view; None where it does not apply."""

    stage: int
    dice: float
    positive: bool
    obeyed: bool | None
    lowered: bool | None


class Table:
    """Memory that the trainer and its players share.

    inputs: float16 (rows, 8, P, P, P), what the network sees. marks: uint8 (rows, P, P, P), the bits above of every
    voxel. answers: float16 (rows, P, P, P), by how much more the network's logits say "object" than not.
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


class Players:
    """The processes and the two ways to speak with them; they end with the trainer.

    once: every episode gives one view, a first prompt or the correction of a spoilt mask, and no answer is read.
    """

    def __init__(self, table: Table, n: int, seed: int, *, once: bool = False) -> None:
        self.once = once
        context = multiprocessing.get_context("fork")  # the table is inherited
        self.ready: Any = context.Queue()  # (row, record of the view before it or None)
        self._answered: list[Any] = [context.Queue() for _ in range(n)]
        self._processes = [context.Process(target=_play, args=(table, self, k, seed), daemon=True) for k in range(n)]
        for process in self._processes:
            process.start()

    def answered(self, row: int) -> None:
        """Say that the answer of a row is there."""
        self._answered[row // ROWS_PER_PLAYER].put(row)

    def next_answer(self, player: int) -> int:
        """Wait for the next row to go on with; in the player's process, which ends if the trainer was killed."""
        trainer = multiprocessing.parent_process()
        while True:
            try:
                return int(self._answered[player].get(timeout=5))
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


def _play(table: Table, players: Players, player: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, player])
    waiting: list[Episode] = []
    playing: dict[int, tuple[Episode, View]] = {}

    def go_on(row: int, episode: Episode, record: Record | None) -> None:
        view = episode.next_view()
        playing[row] = episode, view
        table.write(row, view)
        players.ready.put((row, record))

    def another() -> Episode:
        if not waiting:
            scene = make_scene(rng)
            waiting.extend(Episode(scene, rng) for _ in range(EPISODES_PER_SCENE))
        return waiting.pop()

    for row in range(player * ROWS_PER_PLAYER, (player + 1) * ROWS_PER_PLAYER):
        go_on(row, another(), None)
    while True:
        row = players.next_answer(player)
        if players.once:
            go_on(row, another(), None)
            continue
        episode, view = playing[row]
        answer = _answer(table.answers[row], view, ruled=rng.random() >= UNRULED)
        record = _record(episode.step, view, answer)
        episode.accept(view, answer)
        go_on(row, another() if episode.over else episode, record)


def _answer(difference: np.ndarray, view: View, ruled: bool) -> np.ndarray:
    logits = torch.from_numpy(difference.astype(np.float32))[None]
    logits = torch.stack((-logits / 2, logits / 2), 1)
    if ruled:
        logits = HalfResolutionUNet.near_prompts(logits, view.inputs[None])
    return (logits[0, 1] > logits[0, 0]).numpy()


def _record(stage: int, view: View, answer: np.ndarray) -> Record:
    truth = view.target.numpy() > 0.5
    dice = 2 * float((truth & answer).sum()) / max(1.0, float(truth.sum() + answer.sum()))
    obeyed = lowered = None
    if view.obey is not None and view.obey.any():
        obeyed = bool((answer == view.positive)[view.obey.numpy()].all())
    if view.pointed_at is not None and view.pointed_at.any():
        lowered = bool((answer != truth).sum() < int(view.wrong.sum()))
    return Record(stage, dice, view.positive, obeyed, lowered)
