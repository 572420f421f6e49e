"""The benchmark: network emulation, equal work on both systems, and the command."""

from collections.abc import Iterator
from dataclasses import replace
import json
import os
from pathlib import Path
import socket
import subprocess
import sys
import time
from typing import Any

from helpers.end_to_end import wait_until
from helpers.threads import run_in_thread
import numpy as np
import pytest
import torch

from nninteractive_ws import messages as wire
from nninteractive_ws.benchmark import device, fairness, measure, run, session_memory, sessions
from nninteractive_ws.benchmark.measure import Measurement, PassLog, clients_at, prompt_at_once, prompts_within
from nninteractive_ws.benchmark.models import write_local, write_official_size
from nninteractive_ws.benchmark.network_emulation import LinkSpeed, link
from nninteractive_ws.benchmark.report import tables
from nninteractive_ws.benchmark.run import make_models
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN, OWN_HTTP, SYSTEMS, ServedModel, Server
from nninteractive_ws.benchmark.workload import Workload, make_workload
from nninteractive_ws.engine.model_loader import load_model
from nninteractive_ws.evaluation.simulated_user import KINDS
from nninteractive_ws.geometry import Box
from nninteractive_ws.history import STEP_BYTES, Segment, make_step
from nninteractive_ws.masks import Delta

SHAPE = (96, 80, 72)


@pytest.fixture(scope="module")
def work() -> Workload:
    return make_workload(SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    with measure.serve_both(ServedModel(folder / "embedded", "cpu", 4)) as servers:
        yield servers


def echo(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def test_an_emulated_link_limits_the_rate_and_preserves_bytes() -> None:
    speed = LinkSpeed("slow", 8e6, 0.05)
    sent = os.urandom(500_000)

    def send(connection: socket.socket) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        run_in_thread(lambda: echo(listening)),
        link(listening.getsockname()[1], speed) as relay,
        socket.create_connection(("127.0.0.1", relay.port)) as client,
    ):
        started = time.monotonic()
        received = b""
        with run_in_thread(lambda: send(client)):
            while data := client.recv(65536):
                received += data
        took = time.monotonic() - started
        assert relay.count() == (len(sent), len(sent))
    assert received == sent
    assert took >= len(sent) / 1e6 + 2 * speed.delay_s


def test_the_workload_has_every_prompt_kind_and_both_polarities(work: Workload) -> None:
    assert set(work.prompts) == {(kind, positive) for kind in KINDS for positive in (True, False)}
    assert all(p.kind == kind and p.positive == positive for (kind, positive), p in work.prompts.items())
    assert work.volume.shape == SHAPE
    assert work.volume.dtype == np.int16


@pytest.mark.slow
def test_both_systems_give_equal_masks(folder: Path, servers: dict[str, Server], work: Workload) -> None:
    found = []
    for side in SYSTEMS:
        client = side.connect(servers[side.name].port)
        before = servers[side.name].processor_seconds()
        client.open(work.volume)
        started = time.monotonic()
        answer = client.send_prompt(work.prompts["point", True])
        assert started < answer.first <= answer.final
        pass_log = PassLog(folder / "passes")
        assert 0 < pass_log.seconds_beyond(started, answer.final) < answer.final - started
        masks = [client.mask().copy()]
        client.send_prompt(replace(work.prompts["scribble", True], positive=False))
        masks.append(client.mask().copy())
        client.undo()
        masks.append(client.mask().copy())
        found.append(masks)
        client.close()
        # Two passes and more, on all processors.
        assert 0.1 < servers[side.name].processor_seconds() - before < (os.cpu_count() or 1) * 60
    for official, own in zip(*found, strict=True):
        assert np.array_equal(official, own)
    assert found[0][0].any()
    assert not np.array_equal(found[0][0], found[0][1])
    assert np.array_equal(found[0][0], found[0][2])


@pytest.mark.release
def test_clients_run_concurrently_in_separate_processes(
    folder: Path, servers: dict[str, Server], work: Workload
) -> None:
    work.save(folder)
    for side in SYSTEMS:
        with clients_at(side, servers[side.name].port, 2, folder) as made:
            received = prompt_at_once(made)
            if side is OWN:
                made[0].write_line("another object")
                made[0].read_line()
        begins, ends = zip(*((t["answers"][0][0], t["answers"][-1][2]) for t in received), strict=True)
        assert max(begins) < min(ends), "one was done before the other began"
        assert all(given < first <= final for t in received for given, first, final in t["answers"])
        assert all(0 < t["added"] < 1e9 for t in received)
        assert servers[side.name].peak_bytes() > 200e6


def by_client(records: list[Measurement], client: str) -> list[dict[str, float]]:
    """Return what was measured with a client of this project's server: the official value, and ours."""
    of_client = [r for r in records if r.case == client]
    assert [r.system for r in of_client] == [OFFICIAL.name, OWN.name]
    return [dict(r.measured) for r in of_client]


@pytest.mark.release
def test_clicks_beside_a_heavy_user(folder: Path, work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_CLICKS_ALONE_S": 0.5, "_HEAVY_ALONE_S": 5.0, "_BOTH_S": 5.0}.items():
        monkeypatch.setattr(fairness, name, seconds)
    work.save(folder)
    with measure.serve_both(ServedModel(folder / "local", "cpu")) as servers:
        records = list(fairness.fairness(servers, PassLog(folder / "passes"), work, folder, 1))
    values = [by_client(records, client) for client in ("official client", "own client")]
    assert values[0][0] == values[1][0], "the official server is measured once"
    assert values[0][1] != values[1][1]
    for measured in (*values[0], *values[1]):
        assert 0 < measured["a click alone, median s"] <= measured["a click alone, maximum s"]
        assert 0 < measured["beside the heavy user, median s"] <= measured["beside the heavy user, maximum s"]
        assert measured["heavy user alone, prompts a minute"] > 0
        assert measured["heavy user beside clicks, prompts a minute"] > 0


def test_prompts_at_the_ends_of_an_interval_count_in_part() -> None:
    prompts = [(0.0, 10.0), (10.0, 12.0), (12.0, 20.0), (30.0, 40.0)]
    assert prompts_within(prompts, 5.0, 14.0) == pytest.approx(0.5 + 1 + 0.25)


def test_only_passes_within_an_interval_are_subtracted_from_it(tmp_path: Path) -> None:
    pass_log = PassLog(tmp_path / "passes")
    (tmp_path / "passes").write_text("0.0 1.0\n2.0 2.0\n5.0 1.0\n7.0 4.0\n20.0 1.0\n")  # start, duration
    assert pass_log.within(3.0, 8.0) == [1.0, 1.0, 1.0], "the passes at the ends count in part"
    assert pass_log.seconds_beyond(3.0, 8.0) == pytest.approx(2.0)
    assert pass_log.seconds_beyond(11.5, 12.0) == pytest.approx(0.5)


def test_the_first_mask_is_also_timed_without_the_passes_before_it(tmp_path: Path) -> None:
    pass_log = PassLog(tmp_path / "passes")
    (tmp_path / "passes").write_text("11.0 2.0\n13.5 3.0\n")  # the second one refines the first mask
    measured = measure.times_to_mask(measure.Opening(10.0, 14.0, 17.0, 19.0), pass_log)
    assert measured == {"first mask, s": 4.0, "beyond the network, s": 1.5, "result, s": 7.0}


def test_what_the_slowest_client_loses(tmp_path: Path) -> None:
    (tmp_path / "passes").write_text("0.0 2.0\n")
    fast = [(float(n), n + 0.5, n + 1.0) for n in range(6)]
    slow = [(2.0 * n, 2.0 * n + 1, 2.0 * n + 2) for n in range(6)]
    measured = measure._times_of_clients([fast, slow], PassLog(tmp_path / "passes"))
    assert measured["slowest client's prompts, % of the mean"] == pytest.approx(100 * 3 / 4.5), (
        "until the first is done"
    )
    assert measured["a prompt on average, s"] == pytest.approx(12 / 12)
    assert measured["beyond the network, s"] == pytest.approx(10 / 12)
    assert "slowest client's prompts, % of the mean" not in measure._times_of_clients(
        [fast], PassLog(tmp_path / "passes")
    )


@pytest.mark.release
def test_the_cost_of_the_http_api(folder: Path, servers: dict[str, Server], work: Workload) -> None:
    records = list(fairness.api_cost(servers, PassLog(folder / "passes"), work, 1))
    for client in ("official client", "own client"):
        official, own = by_client(records, client)
        assert official.keys() == own.keys()
        assert len([name for name in own if name.endswith("beyond the network, ms")]) == 2 * len(KINDS)
        assert official["passes of all prompts"] == own["passes of all prompts"] >= 2 * len(KINDS)
        assert min(*official.values(), *own.values()) > 0


@pytest.mark.slow
def test_both_kinds_of_clients_of_one_server_give_equal_masks(servers: dict[str, Server], work: Workload) -> None:
    masks = []
    for system in (OFFICIAL, OWN_HTTP, OWN):
        client = system.connect(servers[OWN.name if system is OWN_HTTP else system.name].port)
        client.open(work.volume)
        client.send_prompt(work.prompts["point", True])
        masks.append(client.mask().copy())
        client.close()
    assert masks[0].any()
    assert all(np.array_equal(masks[0], mask) for mask in masks[1:])


@pytest.mark.release
def test_the_time_of_prompts_is_broken_down_on_a_device(folder: Path, work: Workload) -> None:
    records = list(device.measure(folder / "embedded", work, 1, "cpu"))
    prompts = 2 * len(KINDS)
    for place in ("on the host", "on the device"):
        sides = [[r for r in records if r.system == side.name and place in r.part] for side in SYSTEMS]
        assert [len(side) for side in sides] == [prompts, prompts]
        assert [r.case for r in sides[0]] == [r.case for r in sides[1]]
        assert [r.measured["passes"] for r in sides[0]] == [r.measured["passes"] for r in sides[1]]
    for record in records:
        total, *parts = (
            record.measured[what] for what in ("result, ms", "network, ms", "its inputs, ms", "all else, ms")
        )
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(total)


@pytest.mark.slow
def test_prompts_on_a_device_are_measured_without_libraries_that_read_images() -> None:
    code = "import sys, nninteractive_ws.benchmark.device; print({'SimpleITK', 'nibabel'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.compile provides little benefit")
def test_on_a_gpu_the_first_run_of_a_session_precedes_the_next_session(
    folder: Path, work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling the networks of all sessions takes minutes."""
    started = []

    def official_session(*arguments: Any) -> object:
        started.append(OFFICIAL.name)
        return sessions.official_session(*arguments)

    def own_session(*arguments: Any) -> object:
        started.append(OWN.name)
        return sessions.InstrumentedSession(*arguments)

    monkeypatch.setattr(device, "official_session", official_session)
    monkeypatch.setattr(device, "InstrumentedSession", own_session)
    # In use before each session, and at the most.
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1_000_000 * len(started))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 100_000_000)
    # A device that is not the host.
    records = [(r, len(started)) for r in device.measure(folder / "local", work, 2, "cpu:0")]
    assert started == 2 * [OFFICIAL.name, OWN.name, OWN.name]
    prompts = 2 * len(KINDS)
    for n, location in enumerate(("on the device", "on the host")):
        own = [(r, count) for r, count in records if r.system == OWN.name and location in r.part]
        first = [count for r, count in own if r.run == 0 and "result, ms" in r.measured]
        assert first == prompts * [2 + n] + prompts * [5 + n]
        assert len([r for r, _ in own if r.run == 1]) == 2 * prompts
        peaks = [(r.case, r.measured) for r, _ in own if "result, ms" not in r.measured]
        assert peaks == [
            ("all prompts", {"peak device memory, MB": 99 - n}),
            ("compiled, all prompts", {"peak device memory, MB": 96 - n}),
        ]
    assert "peak device memory, MB" in next(tables([r for r, _ in records])).as_markdown()


@pytest.mark.slow
def test_the_large_network_has_the_official_size_and_follows_prompts(tmp_path: Path) -> None:
    write_official_size(tmp_path / "large")
    model = load_model("large", tmp_path / "large", torch.device("cpu"))
    assert model.description.patch_size == (192, 192, 192)
    network = model.artifacts["network"]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(102e6, rel=0.01)
    x = torch.zeros(1, 8, 64, 64, 64)
    x[:, 0] = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(0))
    x[0, 4, 30:33, 30:33, 30:33] = x[0, 1, 10:20, 10:20, 10:20] = 1
    x[0, 5, 10:13, 10:13, 10:13] = 1
    with torch.inference_mode():
        logits = network(x)
    marked = (x[0, 4] > 0) | ((x[0, 1] > 0) & (x[0, 5] == 0))
    assert torch.equal(logits[0, 1] > logits[0, 0], marked)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nninteractive_ws", "bench", "-o", str(tmp_path), "--part", "gpu"]
    done = subprocess.run([*command, "--shape", "96,80,72"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "--part gpu needs a GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_is_measured_on_the_cpu(tmp_path: Path, work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ServedModel] = []
    monkeypatch.setattr(run, "make_workload", lambda _: work)
    monkeypatch.setattr(measure, "memory", lambda model, *_: served.append(model) or ())
    monkeypatch.setattr(session_memory, "CASES", ())
    assert list(run._memory(run._Setting(tmp_path, "cuda:0", None, None, lambda _: None))) == []
    assert [model.device for model in served] == ["cpu"]


@pytest.mark.release
def test_the_command_measures_both_systems(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nninteractive_ws", "bench", "-o", str(tmp_path / "report")]
    command += ["--shape", "96,80,72", "--times", "1", "--part", "prompts"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    content = json.loads((tmp_path / "report" / "bench.json").read_text())
    assert content["machine"]["processors"] == os.cpu_count()
    records = content["records"]
    for side in (OFFICIAL.name, OWN.name):
        timed = [r for r in records if r["system"] == side and "result, ms" in r["measured"]]
        counted = [r for r in records if r["system"] == side and "up, kB" in r["measured"]]
        assert len(timed) == len(counted) == 2 * len(KINDS)
        assert all(r["measured"]["beyond the network, ms"] < r["measured"]["result, ms"] for r in timed)
        assert all(min(r["measured"].values()) > 0 for r in timed + counted)
    assert (tmp_path / "report" / "bench.png").stat().st_size > 10_000
    assert "| positive point | result, ms | " in (tmp_path / "report" / "bench.md").read_text()


@pytest.mark.slow
def test_an_invalid_shape_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nninteractive_ws", "bench", "-o", str(tmp_path), "--shape"]
    for shape, message, status in (("512", "three whole numbers", 2), ("8,512,256", "at least 64 voxels", 1)):
        done = subprocess.run([*command, shape], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status
        assert message in done.stderr
        assert "Traceback" not in done.stderr


# ---- memory of a session ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_local_network_changes_masks_of_realistic_size(tmp_path: Path) -> None:
    write_local(tmp_path / "local")
    model = load_model("local", tmp_path / "local", torch.device("cpu"))
    x = torch.zeros(1, 8, *model.description.patch_size)
    x[:, 0] = 0.05 * torch.randn(x.shape[2:], generator=torch.Generator().manual_seed(0))
    x[0, 4, 34:38, 34:38, 34:38] = 1
    x[0, 1, :10] = 1
    with torch.inference_mode():
        logits = model.artifacts["network"](x)
    answer = logits[0, 1] > logits[0, 0]
    assert answer[:10].all(), "the mask stays as it was away from the prompt"
    assert 50_000 < answer[10:].sum() < 250_000
    assert not answer[-4:].any(), "nothing changes at the border, so nnInteractive does not zoom out"


@pytest.mark.slow
def test_charged_memory_is_compared_with_used_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_CLICKS": 12, "_WARM_UP_CLICKS": 2, "_POINT_STRIDE": 24}.items():
        monkeypatch.setattr(session_memory, name, value)
    write_local(tmp_path / "local")
    volume = session_memory._noisy_phantom((72, 72, 72))
    with OWN.serve(ServedModel(tmp_path / "local", "cpu")) as server:
        user = session_memory._User(server.port, volume)
        user.touch()
        image = server.gauge("session_memory_bytes", "purpose")
        assert image["image"] >= 18 * volume.size
        kept = user.kept_bytes()
        assert kept > volume.size
        session_memory._click(user)
        assert len(user.histories["clicked"].steps) == 12
        assert user.kept_bytes() > kept
        # The worker reports after its answer.
        wait_until(
            lambda: server.gauge("session_memory_bytes", "purpose")["segments"] > image["segments"] + 12 * STEP_BYTES
        )
        user.close()


def test_changed_pages_of_a_mask_are_counted() -> None:
    segment = Segment.empty("a", (64, 64, 64))  # 4096 bytes a plane
    assert session_memory._written_bytes(segment) == 0
    change = Delta(Box((3, 10, 0), (8, 20, 64)), np.ones((5, 10, 64), bool))
    segment.append(make_step(wire.AddPoint(id=1, segment="a", point=(1, 2, 3)), change, "raw"))
    assert session_memory._written_bytes(segment) == 5 * 4096
    thin = Segment.empty("a", (64, 8, 8))  # 64 planes a page
    whole = Delta(Box.whole((64, 8, 8)), np.ones((64, 8, 8), bool))
    thin.append(make_step(wire.AddPoint(id=1, segment="a", point=(1, 2, 3)), whole, "raw"))
    assert session_memory._written_bytes(thin) == 4096
