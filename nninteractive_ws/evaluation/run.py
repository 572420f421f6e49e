"""Run the evaluation: a simulated user prompts a session, object by object."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
import time
import zlib

import numpy as np

from nninteractive_ws.client.blocking import Segment, Session
from nninteractive_ws.errors import BadImage, InternalError, InvalidRequest, OutOfMemory, UnsupportedPrompt, WorkerLost
from nninteractive_ws.evaluation import measures
from nninteractive_ws.evaluation.cases import Case, Scan
from nninteractive_ws.evaluation.simulated_user import KINDS, Kind, SimulatedPrompt, SimulatedUser
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Mask

#: Structures of fewer voxels are skipped, because their Dice depends on single voxels.
MIN_VOXELS = 10
#: Maximum number of labels in an error message.
_MAX_LISTED = 20
#: Errors of a single case or prompt. Any other error ends the evaluation.
_ITEM_ERRORS = (InvalidRequest, OutOfMemory, WorkerLost, InternalError)


@dataclass(frozen=True)
class PromptResult:
    """The result of a prompt.

    ``at``: voxels, of a point "60 70 60", otherwise the bounding box "40:80 30:70 12:13". ``region_voxels``: size of
    the prompted error; ``region_left``: voxels of it that are still wrong. ``obeyed``: for a point, see
    :func:`measures.obeyed`. ``nsd``: see :func:`measures.surface_dice`. ``seconds``: from the prompt to its result,
    without the time of the simulated user and of the metrics. It includes ``waiting_s`` in the queue and for the upload
    of the image, and ``network_s`` in the network, with ``passes``.
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
    """The result for a structure of a case. ``structure`` is empty for a case that could not be read.

    ``voxels``: of the ground truth. ``budget``: maximum number of prompts. ``steps``: fewer if no error was left, or
    if a prompt failed. ``left_out``: the reason if it was skipped. ``warnings``: sentences about the files of the case.
    ``error``: the error message, if any.
    """

    case: str
    structure: str
    budget: int
    voxels: int = 0
    steps: tuple[PromptResult, ...] = ()
    left_out: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether it contributes to the means. Everything that was tried does, even if the server failed."""
        return self.voxels > 0 and not self.left_out

    @property
    def dice(self) -> list[float]:
        """Values after each prompt of the budget, see :func:`measures.curve`."""
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
        """Number of prompts for each of :data:`measures.TARGETS`."""
        return tuple(measures.prompts_to(self.dice, target) for target in measures.TARGETS)


@dataclass(frozen=True, eq=False)
class EvaluatedObject:
    """A result with its volumes. ``mask``: after the last prompt. All three are None if nothing was tried."""

    result: ObjectResult
    scan: Scan | None = None
    truth: Mask | None = None
    mask: Mask | None = None


def supported_kinds(requested: Sequence[Kind], supported: Sequence[str]) -> list[Kind]:
    """Return the requested kinds that a model supports. Raises UnsupportedPrompt if there is none."""
    known = {"bbox" if name.startswith("bbox") else name for name in supported}
    kinds = [kind for kind in requested if kind in known]
    if not kinds:
        raise UnsupportedPrompt(
            f"The model does not support {' or '.join(requested)} prompts. Supported kinds: "
            f"{', '.join(kind for kind in KINDS if kind in known) or 'none that can be simulated'}."
        )
    return kinds


@dataclass(frozen=True)
class Plan:
    """Settings of an evaluation. ``kinds``: the kinds from which each prompt is drawn, for each object with its own
    generator from ``seed``. ``budget``: maximum number of prompts per object."""

    kinds: Sequence[Kind]
    budget: int
    seed: int


def evaluate(
    session: Session, cases: Iterable[Case], plan: Plan, on_status: Callable[[str, int], object]
) -> Iterator[EvaluatedObject]:
    """Prompt every structure of every case, and yield the results.

    ``on_status``: called with the current activity and the number of finished cases. A failed case or prompt is a
    result with ``error`` set. Raises ConnectionFailed and other errors that concern all cases.
    """
    session.set_options(previews=False)
    for done, case in enumerate(cases):
        on_status(f"{case.name}: reading", done)
        try:
            scan = case.read()
            session.set_image(scan.voxels)
        except BadImage as e:
            yield EvaluatedObject(ObjectResult(case.name, "", plan.budget, error=str(e)))
        except _ITEM_ERRORS as e:
            for name, label in scan.structures.items():
                voxels = int(np.count_nonzero(scan.labels == label))
                result = ObjectResult(case.name, name, plan.budget, voxels, error=str(e), warnings=scan.warnings)
                yield EvaluatedObject(result)
        else:
            for name in scan.structures:
                on_status(f"{case.name}: {name}", done)
                yield _evaluate_one(session, case.name, scan, name, plan)


def _evaluate_one(session: Session, case: str, scan: Scan, name: str, plan: Plan) -> EvaluatedObject:
    truth = np.asarray(scan.labels == scan.structures[name])
    result = ObjectResult(case, name, plan.budget, int(np.count_nonzero(truth)), warnings=scan.warnings)
    if result.voxels == 0:
        return EvaluatedObject(replace(result, error=_describe_missing(scan, name)))
    if result.voxels < MIN_VOXELS:
        return EvaluatedObject(replace(result, left_out=f"{result.voxels} voxels, expected at least {MIN_VOXELS}"))
    # One generator per object, so that its prompts do not depend on the other cases.
    rng = np.random.default_rng([plan.seed, zlib.crc32(case.encode()), zlib.crc32(name.encode())])
    user = SimulatedUser(truth, scan.spacing, plan.kinds, rng, session.server.model.scribble_thickness)
    segment = session.segment(name)
    steps: list[PromptResult] = []
    while len(steps) < plan.budget and not result.error and (prompt := user.next(segment.mask)) is not None:
        try:
            steps.append(_step(segment, prompt, truth, scan.spacing))
        except _ITEM_ERRORS as e:
            result = replace(result, error=f"prompt {len(steps) + 1}: {e}")
    mask = segment.mask
    if steps:
        segment.remove()
    return EvaluatedObject(replace(result, steps=tuple(steps)), scan, truth, mask)


def _describe_missing(scan: Scan, name: str) -> str:
    values = [str(value) for value in np.unique(scan.labels) if value]
    listed = ", ".join(values[:_MAX_LISTED]) + (", ..." if len(values) > _MAX_LISTED else "")
    return f"The label map has no voxel of label {scan.structures[name]}. Its labels are {listed or 'all 0'}."


def _step(segment: Segment, prompt: SimulatedPrompt, truth: Mask, spacing: tuple[float, float, float]) -> PromptResult:
    started = time.monotonic()
    timings = prompt.send(segment).timings
    seconds = time.monotonic() - started
    mask, shape = segment.mask, prompt.shape
    point = shape if isinstance(shape, tuple) else None
    return PromptResult(
        kind=prompt.kind,
        positive=prompt.positive,
        at=_format_location(prompt),
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


def _format_location(prompt: SimulatedPrompt) -> str:
    if isinstance(prompt.shape, tuple):
        return " ".join(map(str, prompt.shape))
    box = prompt.shape if isinstance(prompt.shape, Box) else prompt.shape.box
    assert box is not None
    return " ".join(f"{start}:{stop}" for start, stop in box)
