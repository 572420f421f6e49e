"""Prompts on helpers.engine.bar_in_a_box, a volume of 84 x 72 x 66 voxels with a bar and a ball."""

from collections.abc import Callable

import numpy as np

from helpers.engine import Request, bbox, disc, lasso, point, scribble, set_mask, stroke
from helpers.shapes import ball

SHAPE = (84, 72, 66)
# A stroke through the bar is zoomed out, then refined in several passes. The points are in the ball and in the bar.
LONG = scribble(stroke(SHAPE, (4, 30, 28), (78, 30, 28)))
POINTS = [point((60, 56, 46)), point((60, 30, 28), positive=False), point((42, 32, 26))]
WAITING = point((30, 28, 30), run=False)
# Refined everywhere, independent of the model.
WHOLE = set_mask(ball(SHAPE, (42, 30, 28), 8), run=True)


def local_prompts(count: int, seed: int) -> list[Request]:
    """Return prompts of all kinds with one pass each (with autozoom off)."""
    rng = np.random.default_rng(seed)
    kinds: list[Callable[[tuple[int, int, int], bool], Request]] = [
        lambda at, positive: point(at, positive),
        lambda at, positive: scribble(ball(SHAPE, at, 2), positive),
        lambda at, positive: bbox([(at[0] - 8, at[0] + 8), (at[1] - 8, at[1] + 8), (at[2], at[2] + 1)], positive),
        lambda at, positive: lasso(disc(SHAPE, at, 7), positive),
    ]
    requests = []
    for n in range(count):
        i, j, k = (int(x) for x in rng.integers((20, 20, 20), (64, 52, 46)))
        requests.append(kinds[n % len(kinds)]((i, j, k), n % 3 != 2))
    return requests
