"""The evaluation: a simulated user at a session, one object of one case after another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
import time
import zlib

import numpy as np

from nninteractive_ws.client.blocking import Segment, Session
from nninteractive_ws.errors import BadImage, InternalError, InvalidRequest, OutOfMemory, UnsupportedPrompt, WorkerLost
from nninteractive_ws.evaluation import measures
from nninteractive_ws.evaluation.cases import Case, Scan
from nninteractive_ws.evaluation.user import KINDS, Kind, Prompt, SimulatedUser
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Mask

#: A structure of fewer voxels is left out: its Dice hangs on single voxels.
MIN_VOXELS = 10
#: What concerns a case or a prompt alone. Any other error ends the evaluation.
_ITS_OWN = (InvalidRequest, OutOfMemory, WorkerLost, InternalError)


@dataclass(frozen=True)
class Step:
    """A prompt and what came of it.

    ``at``: voxels, of a point "60 70 60", of all others the box around them "40:80 30:70 12:13".
    ``region_voxels``: how large the error was that it pointed at, and ``region_left``: how much of that is still
    wrong. ``obeyed``: for a point, see :func:`measures.obeyed`. ``nsd``: see :func:`measures.surface_dice`.
    ``seconds``: from the prompt to its answer, without what the user and measuring took; of them ``waiting_s`` for
    others and for the image on its way, and ``network_s`` in the network, with ``passes``.
    """

    kind: Kind
    positive: bool
    at: str
    region_voxels: int
    region_left: int
    obeyed: bool | None
    dice: float
    nsd: float
    passes: int
    seconds: float
    waiting_s: float
    network_s: float


@dataclass(frozen=True)
class ObjectResult:
    """What became of a structure of a case; of a case that could not be read, ``structure`` is empty.

    ``voxels``: of the truth. ``budget``: how many prompts there might have been. ``steps`` are fewer where no error
    was left, or where one failed. ``left_out``: why it was not tried. ``error``: what went wrong.
    """

    case: str
    structure: str
    budget: int
    voxels: int = 0
    steps: tuple[Step, ...] = ()
    left_out: str = ""
    error: str = ""

    @property
    def counts(self) -> bool:
        """Whether it belongs to the means: all that was tried does, also where the server failed."""
        return self.voxels > 0 and not self.left_out

    @property
    def dice(self) -> list[float]:
        """After each prompt of the budget: see :func:`measures.curve`."""
        return measures.curve([s.dice for s in self.steps], self.budget)

    @property
    def nsd(self) -> list[float]:
        return measures.curve([s.nsd for s in self.steps], self.budget)

    @property
    def dice_auc(self) -> float:
        return measures.area_under_curve(self.dice)

    @property
    def nsd_auc(self) -> float:
        return measures.area_under_curve(self.nsd)

    @property
    def prompts_to(self) -> tuple[int | None, ...]:
        """For each of :data:`measures.TARGETS`."""
        return tuple(measures.prompts_to(self.dice, target) for target in measures.TARGETS)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A result with what it was measured on; ``mask`` is the last one. All three are None where nothing was tried."""

    result: ObjectResult
    scan: Scan | None = None
    truth: Mask | None = None
    mask: Mask | None = None


def supported_kinds(asked: Sequence[Kind], supported: Sequence[str]) -> list[Kind]:
    """Those of the kinds that are asked for that a model supports. Raises UnsupportedPrompt where there is none."""
    known = {"bbox" if name.startswith("bbox") else name for name in supported}
    kinds = [kind for kind in asked if kind in known]
    if not kinds:
        raise UnsupportedPrompt(
            f"The model does not support {' or '.join(asked)} prompts; it supports "
            f"{', '.join(kind for kind in KINDS if kind in known) or 'none of the simulated user'}."
        )
    return kinds


@dataclass(frozen=True)
class Plan:
    """``kinds``: from which every prompt is drawn, for each object with a generator of its own from ``seed``.
    ``budget``: how many prompts an object gets at most."""

    kinds: Sequence[Kind]
    budget: int
    seed: int


def evaluate(
    session: Session, cases: Iterable[Case], plan: Plan, say: Callable[[str, int], object]
) -> Iterator[Evaluated]:
    """Prompt every structure of every case; the results as they come.

    ``say``: is told what is being done, and how many cases are done. A case or prompt that fails is a result with
    ``error`` set, and the rest goes on. Raises ConnectionFailed and the like where nothing can go on.
    """
    session.set_options(previews=False)
    for done, case in enumerate(cases):
        say(f"{case.name}: reading", done)
        try:
            scan = case.read()
            session.set_image(scan.voxels)
        except (BadImage, OSError) as e:
            yield Evaluated(ObjectResult(case.name, "", plan.budget, error=str(e)))
        except _ITS_OWN as e:
            for name, label in scan.structures.items():
                voxels = int(np.count_nonzero(scan.labels == label))
                yield Evaluated(ObjectResult(case.name, name, plan.budget, voxels, error=str(e)))
        else:
            for name in scan.structures:
                say(f"{case.name}: {name}", done)
                yield _evaluate_one(session, case.name, scan, name, plan)


def _evaluate_one(session: Session, case: str, scan: Scan, name: str, plan: Plan) -> Evaluated:
    truth = np.asarray(scan.labels == scan.structures[name])
    result = ObjectResult(case, name, plan.budget, int(np.count_nonzero(truth)))
    if result.voxels < MIN_VOXELS:
        return Evaluated(replace(result, left_out=f"{result.voxels} voxels; at least {MIN_VOXELS} are needed"))
    # Of its own for each object, so that other cases do not change it.
    rng = np.random.default_rng([plan.seed, zlib.crc32(case.encode()), zlib.crc32(name.encode())])
    user = SimulatedUser(truth, scan.spacing, plan.kinds, rng, session.server.model.scribble_thickness)
    segment = session.segment(name)
    steps: list[Step] = []
    while len(steps) < plan.budget and not result.error and (prompt := user.next(segment.mask)) is not None:
        try:
            steps.append(_step(segment, prompt, truth, scan.spacing))
        except _ITS_OWN as e:
            result = replace(result, error=f"prompt {len(steps) + 1}: {e}")
    mask = segment.mask
    if steps:
        segment.remove()
    return Evaluated(replace(result, steps=tuple(steps)), scan, truth, mask)


def _step(segment: Segment, prompt: Prompt, truth: Mask, spacing: tuple[float, float, float]) -> Step:
    started = time.monotonic()
    timings = prompt.give(segment).timings
    seconds = time.monotonic() - started
    mask, shape = segment.mask, prompt.shape
    point = shape if isinstance(shape, tuple) else None
    return Step(
        kind=prompt.kind,
        positive=prompt.positive,
        at=_written(prompt),
        region_voxels=prompt.region.voxels,
        region_left=measures.error_left(prompt.region, mask, truth),
        obeyed=None if point is None else measures.obeyed(mask, truth, point, prompt.positive),
        dice=measures.dice(mask, truth),
        nsd=measures.surface_dice(mask, truth, spacing),
        passes=timings.passes,
        seconds=seconds,
        waiting_s=timings.queued + timings.waiting_for_image,
        network_s=timings.network,
    )


def _written(prompt: Prompt) -> str:
    if isinstance(prompt.shape, tuple):
        return " ".join(map(str, prompt.shape))
    box = prompt.shape if isinstance(prompt.shape, Box) else prompt.shape.box
    assert box is not None
    return " ".join(f"{start}:{stop}" for start, stop in box)
