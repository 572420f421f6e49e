"""A slot for a worker: its process, its secret, its state, and back-off."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
import sys
import time
from typing import Any

import pytest

from nninteractive_ws import launch_ray, worker_protocol
from nninteractive_ws.server import slot as module
from nninteractive_ws.server.launchers import Endpoints, WorkerCommand
from nninteractive_ws.server.slot import LaunchedSlot, SlotState, WorkerSlot

ENDPOINTS = Endpoints(local_port=1)


@dataclass
class Owner:
    """Notes what a slot reports."""

    states: list[tuple[SlotState, str]] = field(default_factory=list)
    lost: int = 0

    def on_message(self, message: worker_protocol.WorkerMessage) -> None:
        raise AssertionError

    def on_state(self, slot: WorkerSlot) -> None:
        self.states.append((slot.state, slot.status))

    def on_ending(self, slot: WorkerSlot) -> None:
        raise AssertionError

    def on_lost(self, slot: WorkerSlot) -> None:
        self.lost += 1


@dataclass(frozen=True)
class PythonLauncher:
    """Runs Python code in place of a worker."""

    code: str
    name: str = "srun"
    is_local: bool = False

    def command(self, endpoints: Endpoints, worker: Sequence[str]) -> WorkerCommand:
        return WorkerCommand([sys.executable, "-c", self.code], b"certificate")


@dataclass(frozen=True)
class MissingLauncher(PythonLauncher):
    """Names a program that does not exist."""

    def command(self, endpoints: Endpoints, worker: Sequence[str]) -> WorkerCommand:
        return WorkerCommand(["/does/not/exist"])


def make_slot(launcher: PythonLauncher) -> tuple[LaunchedSlot, Owner, list[str]]:
    owner, counted = Owner(), []
    slot = LaunchedSlot(
        "srun 1", launcher, [], owner, lambda name: counted.append(f"start {name}"),
        lambda name: counted.append(f"failure {name}"),
    )  # fmt: skip
    return slot, owner, counted


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_secret_is_accepted_once() -> None:
    async def check() -> None:
        slot, _, _ = make_slot(PythonLauncher("import sys; sys.stdin.read()"))
        slot.want(True)
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await until(lambda: slot._secret)
        secret = slot._secret
        assert not slot.accept_secret("another")
        assert not slot.accept_secret("")
        assert slot.accept_secret(secret)
        assert not slot.accept_secret(secret)
        await cancel(task)

    run(check())


def test_a_stolen_secret_raises_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        slot, _, _ = make_slot(PythonLauncher("import sys; sys.stdin.read()"))
        slot.want(True)
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await until(lambda: slot._secret)
        secret = slot._secret
        assert slot.accept_secret(secret)  # the thief was first
        assert not slot.accept_secret(secret)
        await cancel(task)

    run(check())
    assert "secret that was used before" in caplog.text
    assert caplog.records[-1].levelname == "CRITICAL" or any(r.levelname == "CRITICAL" for r in caplog.records)


def test_nothing_runs_before_it_is_wanted() -> None:
    async def check() -> None:
        slot, owner, counted = make_slot(PythonLauncher(""))
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await asyncio.sleep(0.2)
        assert slot.state is SlotState.STOPPED
        assert owner.states == []
        assert counted == []
        await cancel(task)

    run(check())


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        (PythonLauncher("raise SystemExit('srun: error: no such partition')"), "no such partition"),
        (PythonLauncher("raise SystemExit(0)"), "ended with status 0 before it was ready"),
        (MissingLauncher(""), "The worker cannot be started: srun: No such file or directory."),
    ],
)  # fmt: skip
def test_a_launcher_that_fails_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, launcher: PythonLauncher, expected: str
) -> None:
    monkeypatch.setattr(module, "RESTART_AFTER_S", 0.2)

    async def check() -> None:
        slot, owner, counted = make_slot(launcher)
        slot.want(True)
        started = time.monotonic()
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await until(lambda: counted.count("failure srun") == 3)
        assert time.monotonic() - started > 0.2 + 0.4, "the delay doubles"
        failed = [status for state, status in owner.states if state is SlotState.FAILED]
        assert expected in failed[0]
        assert "The next attempt is in 0 seconds." in failed[0]
        await cancel(task)

    run(check())


def test_clients_are_told_what_the_cluster_does() -> None:
    code = (
        "import sys, time; print('nonsense on standard output', flush=True)\n"
        "for line in ['srun: job 12 queued and waiting for resources', 'srun: job 12 has been allocated resources']:\n"
        "    print(line, file=sys.stderr, flush=True); time.sleep(0.1)\n"
        "sys.stderr.write('x' * 300_000); sys.stderr.flush(); sys.stdin.read()"
    )

    async def check() -> None:
        slot, owner, _ = make_slot(PythonLauncher(code))
        slot.want(True)
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await until(lambda: len(owner.states) == 3)
        assert owner.states == [
            (SlotState.STARTING, "Starting a worker (srun)."),
            (SlotState.STARTING, "Waiting for the cluster: job 12 is pending."),
            (SlotState.STARTING, "The cluster has started job 12."),
        ]
        await until(lambda: len(slot._last_line) == 300)  # a line of any length is read
        await cancel(task)

    run(check())


def test_clients_are_told_that_ray_has_no_free_gpu() -> None:
    code = f"import sys; print({launch_ray.WAITING!r}, file=sys.stderr, flush=True); sys.stdin.read()"

    async def check() -> None:
        slot, owner, _ = make_slot(PythonLauncher(code, name="launch_ray"))
        slot.want(True)
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await until(lambda: len(owner.states) == 2)
        assert owner.states[1] == (SlotState.STARTING, "Waiting for the cluster: no GPU is free.")
        await cancel(task)

    run(check())


def test_an_unwanted_worker_ends_with_its_standard_input() -> None:
    async def check() -> None:
        slot, _, counted = make_slot(PythonLauncher("import sys; sys.stdin.read(); sys.exit(7)"))
        slot.want(True)
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await until(lambda: slot.state is SlotState.STARTING)
        slot.want(False)
        await until(lambda: slot.state is SlotState.STOPPED)
        await until(lambda: not slot._ending)
        assert counted == ["start srun"], "this is no failure"
        slot.want(True)
        await until(lambda: slot.state is SlotState.STARTING)
        await cancel(task)

    run(check())


def test_a_process_that_does_not_end_does_not_delay_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a machine that cannot be reached: its control connection is lost, and its process stays."""
    monkeypatch.setattr(module, "RESTART_AFTER_S", 0.05)
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(1, file=sys.stderr, flush=True); time.sleep(60)"
    )

    async def check() -> None:
        slot, _, counted = make_slot(PythonLauncher(code))
        slot.want(True)
        task = asyncio.ensure_future(slot.run(ENDPOINTS))
        await until(lambda: slot._last_line == "1")
        lost = time.monotonic()
        slot._on_disconnected()
        await until(lambda: counted.count("start srun") == 2)
        assert time.monotonic() - lost < 0.8 * module.END_TIMEOUT_S
        assert slot._ending
        monkeypatch.setattr(module, "END_TIMEOUT_S", 0.1)
        await cancel(task)
        assert not slot._ending, "every process has ended"

    run(check())
