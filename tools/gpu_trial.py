"""Try the whole chain on a GPU within nine minutes: ``python3 -m tools.gpu_trial OUT``.

First prompts are measured as by ``bench --part gpu``. Then sessions on a real server: previews, several segments, where
the image is, out of memory, a lost worker, and torch.compile. Each step is a process of its own with a time limit, and
a failed one does not stop the next ones. Each result is printed and written to OUT/report.md, OUT/report.json and
OUT/bench.json as it comes, so that a run that is cut keeps what it has. OUT/log.txt has the messages of the steps.

With ``--network tiny --device cpu``, everything runs without a GPU. torch.compile has no effect there.

The project must be installed with its extra "server" for the interpreter that runs the trial, because servers do not
import from the working folder. On a machine without internet, where torch for its GPU is installed, pip installs from
wheels. Get them in this folder with the same version of Python, all except torch and its libraries:

    NNINTERACTIVE_WS_PAGE=skip python3 -m pip wheel -w wheels '.[server]'
    rm wheels/torch* wheels/triton* wheels/nvidia_* wheels/cuda_*

They take 260 MB. pip keeps what is installed, such as torch and torchvision:

    python3 -m pip install --no-index --find-links wheels 'nninteractive-ws[server]'

Where torchvision, timm, einops, scikit-image, pandas, requests, httpx, rich, typer, psutil and prometheus-client are
installed, 28 MB suffice for the trial:

    NAMES='nnInteractive nninteractive-client nnunetv2 acvl-utils batchgenerators batchgeneratorsv2
    dynamic-network-architectures blosc2 ndindex numexpr msgspec websockets connected-components-3d cryptography cffi
    pycparser pydantic pydantic-core typing-inspection annotated-types python-json-logger'
    NNINTERACTIVE_WS_PAGE=skip python3 -m pip wheel --no-deps -w wheels . $NAMES
    python3 -m pip install --no-index --no-deps --find-links wheels nninteractive-ws $NAMES

For another version of Python, the compiled ones of them come from ``pip download --no-deps --only-binary=:all:
--python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels NAME``, with further options ``--platform`` if pip
finds none. If the interpreter must stay as it is, install with ``--target site`` and set ``PYTHONPATH=site``.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import threading
import time

try:
    import numpy as np
    import numpy.typing as npt
    import psutil
    import torch

    import nninteractive_ws as nni
    from nninteractive_ws import errors
    from nninteractive_ws.atomic_files import atomic_write
    from nninteractive_ws.benchmark import report
    from nninteractive_ws.benchmark.measure import Measurement, describe
    from nninteractive_ws.benchmark.models import write_embedded, write_official_size, write_thin
    from nninteractive_ws.benchmark.run import machine, on_device
    from nninteractive_ws.benchmark.systems import OFFICIAL, OWN, ServedModel, Server
    from nninteractive_ws.benchmark.workload import Workload, large_prompt, make_workload
    from nninteractive_ws.client import events
    from nninteractive_ws.engine.model_loader import pick_device
    from nninteractive_ws.evaluation.simulated_user import SimulatedPrompt
    from nninteractive_ws.masks import Mask
    from nninteractive_ws.processes import end_process
except ImportError as e:
    sys.exit(f"The trial cannot start ({e}). Install the project as described at the top of {__file__}.")

#: For each network: the volume, in which a large box does not fit into a patch, and the number of runs of each prompt.
SHAPES = {"official": (512, 512, 256), "tiny": (224, 208, 64)}
RUNS = {"official": 3, "tiny": 1}
_TINY_PATCH = 96
#: Memory that is left when it is limited.
_LEFT_BYTES = 2**30
#: Edges of an oversized image: on the host, where only the image itself is allocated at once, and at most on a GPU.
_OVERSIZED, _MAX_OVERSIZED = 700, 1000
_BYTES_PER_VOXEL = 24
#: At the most, and without an image.
_MASK_BYTES_PER_VOXEL = 8
_REPEATED = 5
_PASS, _RESULT = "a pass, median ms", "result, ms"
#: Time for killed processes to end, and the shortest useful time of a step.
_END_TIMEOUT_S, _MIN_STEP_S = 10.0, 5.0
_LOG_CHARACTERS = 3000

#: A case, a quantity with its unit, and its value; or a case, a check, and whether it passed.
Row = tuple[str, str, float | bool | str]


@dataclass(frozen=True)
class Trial:
    """Settings of all steps. ``output``: the folder of the results. ``work``: a folder with models and the workload."""

    output: Path
    work: Path
    device: str
    network: str

    @property
    def bench(self) -> Path:
        return self.output / "bench.json"

    @property
    def log(self) -> Path:
        return self.output / "log.txt"

    @property
    def model(self) -> Path:
        return self.work / "model"

    @property
    def embedded(self) -> Path:
        return self.work / "embedded"

    def workload(self) -> Workload:
        return Workload.load(self.work)

    def server(self, model: Path, *options: str) -> AbstractContextManager[Server]:
        """Run a server with a model folder. ``options``: further ones of ``serve``."""
        system = replace(OWN, command=lambda port, served: [*OWN.command(port, served), *options])
        return system.serve(ServedModel(model, self.device))


@dataclass
class Outcome:
    """The outcome of a step. ``status``: running, ok, failed, timed out, or no time. ``notes``: what it printed that
    is no row."""

    name: str
    status: str
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""


# ---- steps, each in a process of its own -------------------------------------------------------------------


def bench(trial: Trial) -> Iterator[Row]:
    """Measure prompts as ``bench --part gpu`` does, also on a CPU. They are in bench.json and the report.

    A row compares the first run of a prompt, as soon as both systems have done it.
    """
    about = machine()
    measurements: list[Measurement] = []
    official: dict[tuple[str, str], float] = {}
    for measurement in on_device(trial.model, trial.work, RUNS[trial.network], trial.device):
        measurements.append(measurement)
        report.write_json(trial.bench, about, measurements)
        value = measurement.measured.get(_RESULT)
        if value is None or measurement.run > 0:
            continue
        prompt = measurement.part, measurement.case
        if measurement.system == OFFICIAL.name:
            official[prompt] = value
        else:
            yield ", ".join(prompt), "official / ours, result", official[prompt] / value
    yield "", "measurements", len(measurements)


def session(trial: Trial) -> Iterator[Row]:
    """Use one session as a person does, on several segments."""
    workload = trial.workload()
    with trial.server(trial.model) as server, _connected(server) as session:
        previews = _PreviewTimes(session)
        before = sum(server.gauge("device_memory_bytes", "device").values())
        session.set_image(workload.volume)
        yield from _prompt("first point", workload.prompts["point", True], session.segment("point"), previews)
        yield "the image", "complete after, s", previews.wait_for_image()
        used = sum(server.gauge("device_memory_bytes", "device").values()) - before
        on_host = server.gauge("session_memory_bytes", "purpose")["image"]
        # Passes are not in it, because nnInteractive frees their memory before the worker reports.
        yield "the image", "device memory kept between prompts, MB", used / 1e6
        yield "the image", "charged to the host, MB", on_host / 1e6
        yield "the image", "is on the device", _is_on_host(on_host, workload.volume.size) != _is_gpu(trial.device)
        for (kind, positive), prompt in workload.prompts.items():
            yield from _prompt(describe(kind, positive), prompt, session.segment(kind), previews)
        large = session.segment("large box")
        yield from _prompt("large box", large_prompt(workload.volume.shape), large, previews)
        yield "large box", "has previews", previews.count > 0
        segment = session.segment("point")
        mask = segment.mask.copy()
        yield from _prompt("back to the first segment", workload.prompts["lasso", True], segment, previews)
        segment.undo()
        yield "back to the first segment", "undo returns to the mask before", np.array_equal(segment.mask, mask)


def out_of_memory(trial: Trial) -> Iterator[Row]:
    """Use up the memory, and continue afterwards, at the same speed."""
    workload = trial.workload()
    first, second = workload.prompts["point", True], workload.prompts["scribble", True]
    with trial.server(trial.model) as server:
        expected = _undisturbed(server, workload, (first, second))
        with _connected(server) as session, _connected(server) as other:
            previews = _PreviewTimes(session)
            session.set_image(workload.volume)
            segment, timed = session.segment("a"), session.segment("timed")
            first.send(segment)
            mask = segment.mask.copy()
            previews.wait_for_image()
            before, _ = _repeat(first, timed)
            yield "before", _PASS, before
            oversized = _oversized_image(trial.device)
            with _limited_memory(server, trial.device):
                code = _error_code(lambda: other.set_image(oversized))
                yield "an oversized image", "outcome", code
                yield "an oversized image", "is refused as out_of_memory", code == errors.OutOfMemory.code
                code = _error_code(lambda: second.send(segment))
                yield "a prompt meanwhile", "outcome", code
                yield "a prompt meanwhile", "is out_of_memory or done", code in ("done", errors.OutOfMemory.code)
            if code != "done":
                yield "a prompt meanwhile", "leaves its segment unchanged", np.array_equal(segment.mask, mask)
                second.send(segment)
            yield from _differing("afterwards", segment.mask, expected[1], trial.device)
            # cuDNN keeps the plan that it chooses, and with little memory it may choose a slower one.
            after, _ = _repeat(first, timed)
            yield "afterwards", _PASS, after
            yield "afterwards / before", "a pass", after / before
            other.set_image(workload.volume)
            first.send(other.segment("b"))
            yield from _differing("in the refused session", other.segment("b").mask, expected[0], trial.device)


def lost_worker(trial: Trial) -> Iterator[Row]:
    """Kill the worker between prompts of a session, which is restored on the next one.

    The masks of the trial's network depend on little but the prompts, so the embedded model is tried, too.
    """
    workload = trial.workload()
    few = [workload.prompts[kind] for kind in (("point", True), ("point", False), ("scribble", True))]
    killed_before = 2
    # The large box takes the embedded model too many passes on a CPU.
    for model, prompts in ((trial.model, [*few, large_prompt(workload.volume.shape)]), (trial.embedded, few)):
        with trial.server(model) as server:
            expected = _undisturbed(server, workload, prompts)
            with _connected(server) as session:
                session.set_image(workload.volume)
                segment = session.segment("a")
                for number, prompt in enumerate(prompts):
                    if number == killed_before:
                        _worker(server).kill()
                    started = time.monotonic()
                    timings = prompt.send(segment).timings
                    if number == killed_before:
                        yield model.name, "from the kill to the next result, s", time.monotonic() - started
                        yield model.name, "of it the network, s", timings.network
                    case = f"{model.name}, after prompt {number + 1}"
                    yield from _differing(case, segment.mask, expected[number], trial.device)


def compile_network(trial: Trial) -> Iterator[Row]:
    """Compare ``serve --compile`` with the default: the first start, and another one with torch's cache."""
    workload = trial.workload()
    point = workload.prompts["point", True]
    passes: list[float] = []
    for case in ("without --compile", "with --compile", "with --compile again"):
        options = ("--compile",) if passes else ()
        started = time.monotonic()
        with trial.server(trial.model, *options) as server, _connected(server) as session:
            yield case, "model ready, s", time.monotonic() - started
            opened = time.monotonic()
            previews = _PreviewTimes(session)
            session.set_image(workload.volume)
            segment = session.segment("a")
            point.send(segment)
            yield case, "first prompt with its image, s", time.monotonic() - opened
            previews.wait_for_image()
            segment.reset()
            a_pass, a_prompt = _repeat(point, segment)
            yield case, _PASS, a_pass
            yield case, "a prompt, median ms", a_prompt
            passes.append(a_pass)
            if len(passes) == 2:
                yield "without / with", "a pass", passes[0] / passes[1]


#: The steps, the most valuable first, and the seconds of each. A step may also use the time that earlier ones left.
STEPS: dict[str, tuple[Callable[[Trial], Iterator[Row]], float]] = {
    "bench --part gpu": (bench, 210.0),
    "a session": (session, 75.0),
    "out of memory": (out_of_memory, 70.0),
    "a lost worker": (lost_worker, 70.0),
    "serve --compile": (compile_network, 70.0),
}
#: Time limit of the trial. Beyond the steps, it includes their preparation, which takes half a minute.
MINUTES = 9.0


class _PreviewTimes:
    """Notes when the first change of a prompt arrives, its number of previews, and when the image is complete."""

    def __init__(self, session: nni.Session) -> None:
        self.first, self.count = 0.0, 0
        self._opened, self._complete = time.monotonic(), 0.0
        session.on("mask_delta", self._on_delta)
        session.on("image_progress", self._on_image)

    def _on_delta(self, event: events.MaskDelta) -> None:
        self.first = self.first or time.monotonic()
        self.count += not event.final

    def _on_image(self, event: events.ImageProgress) -> None:
        if event.present == event.total:
            self._complete = time.monotonic()

    def wait_for_image(self) -> float:
        """Return the seconds from the start until the image was complete."""
        while not self._complete:
            time.sleep(1e-3)
        return self._complete - self._opened


def _prompt(name: str, prompt: SimulatedPrompt, segment: nni.Segment, previews: _PreviewTimes) -> Iterator[Row]:
    previews.first, previews.count = 0.0, 0
    started = time.monotonic()
    timings = prompt.send(segment).timings
    seconds = time.monotonic() - started
    yield name, "first mask, ms", 1e3 * ((previews.first or time.monotonic()) - started)
    yield name, "result, ms", 1e3 * seconds
    yield name, "beyond the network, ms", 1e3 * (seconds - timings.network)
    yield name, "a pass, ms", 1e3 * timings.network / max(1, timings.passes)
    yield name, "passes", timings.passes
    yield name, "previews", previews.count


def _repeat(prompt: SimulatedPrompt, segment: nni.Segment) -> tuple[float, float]:
    """Repeat a prompt on an empty segment, which is empty again then. Return median ms of a pass and of the prompt."""
    results = []
    for _ in range(_REPEATED):
        results.append(prompt.send(segment).timings)
        segment.reset()
    a_pass = statistics.median(1e3 * timings.network / timings.passes for timings in results)
    return a_pass, statistics.median(1e3 * timings.total for timings in results)


def _connected(server: Server) -> nni.Session:
    return nni.connect(f"ws://127.0.0.1:{server.port}")


def _undisturbed(server: Server, workload: Workload, prompts: Sequence[SimulatedPrompt]) -> list[Mask]:
    """Send prompts in a session of their own. Return the mask after each."""
    masks = []
    with _connected(server) as session:
        session.set_image(workload.volume)
        for prompt in prompts:
            prompt.send(session.segment("a"))
            masks.append(session.segment("a").mask.copy())
    return masks


def _differing(case: str, mask: Mask, expected: Mask, device: str) -> Iterator[Row]:
    """Count differing voxels. On a CPU, the masks must be equal; on a GPU, passes do not repeat themselves exactly."""
    differing = int(np.count_nonzero(mask != expected))
    yield case, "voxels", int(np.count_nonzero(expected))
    yield case, "differing voxels", differing
    if not _is_gpu(device):
        yield case, "equals the undisturbed mask", differing == 0


def _is_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _is_on_host(charged_bytes: int, voxels: int) -> bool:
    """Whether the host is charged for an image, and not only for its masks."""
    return charged_bytes > _MASK_BYTES_PER_VOXEL * voxels


def _error_code(action: Callable[[], object]) -> str:
    """Return the code of the error that an action raises, or "done"."""
    try:
        action()
    except errors.Error as e:
        return e.code
    return "done"


def _oversized_image(device: str) -> npt.NDArray[np.int16]:
    """Return an image that fits into the memory for sessions, but not into what is left of it.

    On a GPU, that is with what torch keeps for passes. Almost all voxels are 0, so that the client needs little memory.
    """
    edge = _OVERSIZED
    if _is_gpu(device):
        free, _ = torch.cuda.mem_get_info(device)
        edge = min(_MAX_OVERSIZED, int((free / 2 / _BYTES_PER_VOXEL) ** (1 / 3)))
    image = np.zeros((edge, edge, edge), np.int16)
    image[0, 0, :2] = (1, 2)
    return image


def _worker(server: Server) -> psutil.Process:
    """Return the process of a server's only worker."""
    children = psutil.Process(server.pid).children()
    (worker,) = (child for child in children if "nninteractive_ws.engine.worker" in child.cmdline())
    return worker


@contextmanager
def _limited_memory(server: Server, device: str) -> Iterator[None]:
    """Leave little memory for the worker: this process fills the GPU, or the system refuses further allocations."""
    if _is_gpu(device):
        free, _ = torch.cuda.mem_get_info(device)
        filler = torch.empty(max(0, free - _LEFT_BYTES), dtype=torch.uint8, device=device)
        try:
            yield
        finally:
            del filler
            torch.cuda.empty_cache()
        return
    worker = _worker(server)
    unlimited = psutil.RLIM_INFINITY
    worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms + _LEFT_BYTES, unlimited))
    try:
        yield
    finally:
        worker.rlimit(psutil.RLIMIT_AS, (unlimited, unlimited))


# ---- the trial ---------------------------------------------------------------------------------------------


def run_step(outcome: Outcome, trial: Trial, limit_s: float, on_change: Callable[[], None]) -> None:
    """Run a step in a process of its own, and end it after ``limit_s`` seconds.

    ``outcome``: of the step's name. It is filled, and ``on_change`` is called after each row and at the end.
    """
    command = [sys.executable, "-m", "tools.gpu_trial", str(trial.output), "--device", trial.device]
    command += ["--network", trial.network, "--step", outcome.name, "--work", str(trial.work)]
    # A cache of its own, so that no step profits from the compilation of another.
    cache = trial.work / "cache" / STEPS[outcome.name][0].__name__
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    started = time.monotonic()
    with trial.log.open("ab") as stderr:
        begin = stderr.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
    assert process.stdout is not None
    timer = threading.Timer(limit_s, _end_session, (process.pid,))
    timer.start()
    try:
        for line in process.stdout:
            _add_line(outcome, line.decode(errors="replace").rstrip("\n"))
            outcome.seconds = time.monotonic() - started
            on_change()
        status = process.wait()
    finally:
        timer.cancel()
        _end_session(process.pid)
        end_process(process, _END_TIMEOUT_S)
    outcome.seconds = time.monotonic() - started
    passed = status == 0 and all(value is not False for *_, value in outcome.rows)
    outcome.status = "ok" if passed else "failed" if outcome.seconds < limit_s else "timed out"
    if not passed:
        with trial.log.open("rb") as file:
            file.seek(begin)
            logs = [file.read(), *(path.read_bytes() for path in trial.work.glob("*-ws.log"))]
        outcome.error = "\n".join(data.decode(errors="replace")[-_LOG_CHARACTERS:] for data in logs)
    on_change()


def _add_line(outcome: Outcome, line: str) -> None:
    """Add what a step printed to its outcome. The last line of a step that was ended may be cut."""
    try:
        case, quantity, value = json.loads(line)
    except (ValueError, TypeError):
        outcome.notes.append(line)
    else:
        outcome.rows.append((case, quantity, value))
        print(f"{outcome.name}: {case}, {quantity}: {_format(value)}", flush=True)


def _end_session(leader: int) -> None:
    """Kill all processes of a session except for this one, also those that they start meanwhile.

    Servers and their workers have process groups of their own, and live on if a step crashes.
    """
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (running := list(_others_in_session(leader))) and time.monotonic() < deadline:
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def _others_in_session(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if (
                process.pid != os.getpid()
                and os.getsid(process.pid) == leader
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                yield process


def write_report(trial: Trial, about: dict[str, object], outcomes: Sequence[Outcome]) -> None:
    """Write report.json and report.md."""
    content = {"machine": about, "steps": [asdict(outcome) for outcome in outcomes]}
    with atomic_write(trial.output / "report.json") as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_write(trial.output / "report.md") as partial:
        partial.write_text(_as_markdown(trial, about, outcomes), encoding="utf-8")


def _as_markdown(trial: Trial, about: dict[str, object], outcomes: Sequence[Outcome]) -> str:
    steps = Counter(outcome.status for outcome in outcomes)
    rows = [(outcome.name, outcome.status, f"{outcome.seconds:.0f}") for outcome in outcomes]
    summary = ", ".join(f"{n} {status}" for status, n in steps.items())
    sections = [
        "# Trial",
        ", ".join(f"{name}: {value}" for name, value in about.items()),
        report.ReportTable("Steps", summary, ("step", "outcome", "seconds"), rows).as_markdown(),
    ]
    for outcome in outcomes:
        values, last = [], ""
        for case, quantity, value in outcome.rows:
            values.append(("" if case == last else case, quantity, _format(value)))
            last = case
        if values:
            table = report.ReportTable(outcome.name, outcome.status, ("", "measured", "value"), values)
            sections += [f"## {table.title}", table.as_markdown()]
        if outcome.notes:
            sections += [f"## {outcome.name}: also printed", "```\n{}\n```".format("\n".join(outcome.notes))]
        if outcome.error:
            sections += [f"## {outcome.name}: end of its log", f"```\n{outcome.error}\n```"]
    if trial.bench.exists():
        records = [Measurement(**record) for record in json.loads(trial.bench.read_text())["records"]]
        for table in report.tables(records):
            sections += [f"## {table.title}", table.as_markdown()]
    return "\n\n".join(sections) + "\n"


def _format(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return value if isinstance(value, str) else report.format_number(value, 3)


def _prepare(trial: Trial) -> None:
    """Create the model folders, and save the workload."""
    passes_file = trial.work / "passes"
    if trial.network == "official":
        write_official_size(trial.model)
    else:
        write_thin(trial.model, passes_file, _TINY_PATCH)
    write_embedded(trial.embedded, passes_file)
    make_workload(SHAPES[trial.network]).save(trial.work)


def _about(device: str) -> dict[str, object]:
    about = {**machine(), "torch": torch.__version__, "device": device}
    if _is_gpu(device):
        properties = torch.cuda.get_device_properties(device)
        about |= {"GPU": properties.name, "its memory, GB": round(properties.total_memory / 1e9, 1)}
    return about


def check_installation() -> None:
    """Exit with a sentence unless the servers of the steps can start.

    Like all processes of the package, they do not import from the working folder, which is the project's here.
    """
    modules = "nninteractive_ws.cli.main, nninteractive_ws.engine.worker, nninteractive_ws.benchmark.device"
    code = f"import importlib.metadata, {modules}; importlib.metadata.version('nninteractive-ws')"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        sys.exit(
            f"The servers of the trial cannot start ({reason}). Install the project for {sys.executable}, as described "
            f"at the top of {__file__}."
        )


def _print_rows(name: str, trial: Trial) -> None:
    """Run a step in this process, and print its rows."""
    threading.Thread(target=_end_with_trial, daemon=True).start()
    # Libraries and child processes print elsewhere.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as rows:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for row in STEPS[name][0](trial):
            print(json.dumps(row), file=rows, flush=True)


def _end_with_trial() -> None:
    """Kill this step once the trial is gone, which holds the other end of standard input.

    It would otherwise keep the GPU, because the end of the trial's process group or session does not reach it.
    """
    while os.read(sys.stdin.fileno(), 1):
        pass
    _end_session(os.getpid())
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--network", choices=SHAPES, default="official", help="size of the network, default official")
    parser.add_argument(
        "--device", default="auto", help="name of the device for torch, default the GPU if there is one"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"time limit of the trial, default {MINUTES:.0f}"
    )
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        _print_rows(args.step, Trial(args.output, args.work, args.device, args.network))
        return 0
    end = time.monotonic() + 60 * args.minutes
    check_installation()
    try:
        device = str(pick_device(args.device))
    except ValueError as e:
        parser.error(str(e))
    if args.network == "official" and not _is_gpu(device):
        parser.error(f"torch {torch.__version__} finds no GPU. Try the chain with --network tiny --device cpu.")
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        trial = Trial(args.output.absolute(), Path(work), device, args.network)
        for earlier in (trial.bench, trial.log):
            earlier.unlink(missing_ok=True)
        _prepare(trial)
        outcomes = _run_steps(trial, end)
    return int(any(outcome.status != "ok" for outcome in outcomes))


def _run_steps(trial: Trial, end: float) -> list[Outcome]:
    """Run the steps until ``end``, a time of time.monotonic(). Print their rows, and keep the report up to date."""
    about = _about(trial.device)
    outcomes: list[Outcome] = []

    def on_change() -> None:
        write_report(trial, about, outcomes)

    later_s = sum(limit_s for _, limit_s in STEPS.values())
    for name, (_, limit_s) in STEPS.items():
        later_s -= limit_s
        left_s = end - time.monotonic()
        outcomes.append(Outcome(name, "no time" if left_s < _MIN_STEP_S else "running"))
        on_change()
        if outcomes[-1].status == "running":
            run_step(outcomes[-1], trial, min(left_s, max(limit_s, left_s - later_s)), on_change)
        print(f"{name}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
