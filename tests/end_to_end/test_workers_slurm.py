"""Workers that a real Slurm starts, and takes away. The masks are those of an undisturbed run, bit for bit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import subprocess

from helpers.end_to_end import metrics, wait_until
from helpers.fast_server import SLOW_NETWORK, QuickServer, quick_server
from helpers.fault_script import State
from helpers.slurm import NODES, Slurm, slurm_cluster
from helpers.worker_user import WorkerUser, worker_user
import pytest

SRUN = "srun --gres=gpu:1"

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600), pytest.mark.usefixtures("back_at_once")]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected() -> list[dict[str, State]]:
    """The result on this machine, without a loss."""
    with quick_server(network=SLOW_NETWORK) as server, worker_user(server) as user:
        return user.run_undisturbed()


@contextmanager
def gateway(slurm: Slurm, launch: str = SRUN) -> Iterator[QuickServer]:
    """A gateway whose workers are jobs. It leaves none behind."""
    with quick_server(
        "--launch", launch, "--worker-host", "127.0.0.1", "--log-level", "info", network=SLOW_NETWORK
    ) as server:
        try:
            yield server
        finally:
            print(server.log.read_text())
    wait_until(lambda: not slurm.jobs(), 20)


def running_job(slurm: Slurm) -> str:
    """Return the number of the only job."""
    wait_until(lambda: len(slurm.jobs("RUNNING")) == 1, 20)
    return slurm.jobs("RUNNING")[0]


def cancel(slurm: Slurm) -> None:
    subprocess.run(["scancel", running_job(slurm)], check=True, timeout=30)


def kill_step(slurm: Slurm) -> None:
    slurm.kill_step(running_job(slurm))


def test_a_worker_is_a_job(slurm: Slurm, expected: list[dict[str, State]]) -> None:
    with gateway(slurm) as server, worker_user(server) as user:
        assert len(slurm.jobs("RUNNING")) == 1
        assert user.run_undisturbed() == expected
        assert any(message.startswith("Starting a worker (srun).") for message in user.notices)
        assert 'worker_starts_total{launcher="srun"} 1.0' in metrics(server.address)


def test_a_pending_job_is_waited_for(slurm: Slurm, expected: list[dict[str, State]]) -> None:
    with subprocess.Popen(["srun", f"--nodes={len(NODES)}", "--gres=gpu:1", "sleep", "600"]) as other:
        wait_until(lambda: len(slurm.jobs("RUNNING")) == 1, 20)
        with gateway(slurm) as server:
            wait_until(lambda: len(slurm.jobs("PENDING")) == 1, 20)
            (job,) = slurm.jobs("PENDING")

            class Waiting(WorkerUser):
                def _on_notice(self, event: object) -> None:
                    super()._on_notice(event)  # type: ignore[arg-type]
                    if self.notices[-1] == f"Waiting for the cluster: job {job} is pending.":
                        other.terminate()

            user = Waiting(server.address)
            try:
                assert f"Waiting for the cluster: job {job} is pending." in user.notices
                assert f"The cluster has started job {job}." in user.notices
                assert user.run_undisturbed() == expected
            finally:
                user.session.close()


@pytest.mark.parametrize("end", [cancel, kill_step], ids=["scancel", "killed step"])
def test_a_job_ends_in_the_middle_of_a_prompt(
    slurm: Slurm, expected: list[dict[str, State]], end: Callable[[Slurm], None]
) -> None:
    with gateway(slurm) as server, worker_user(server) as user:
        user.begin()
        user.prompt_through(lambda: end(slurm))
        print(user.losses)
        user.finish(expected)
    slurm.wait_until_idle(60)


def test_a_node_fails(slurm: Slurm, expected: list[dict[str, State]]) -> None:
    """Its daemon is killed. Slurm gives the node up after a while, and the worker is started on another one."""
    with gateway(slurm) as server, worker_user(server) as user:
        user.begin()
        job = running_job(slurm)
        node = slurm.kill_daemon(job)
        try:
            wait_until(lambda: job not in slurm.jobs("RUNNING"), 120)
            user.prompt_long()
            user.finish(expected)
            assert slurm.node_of(running_job(slurm)) != node
        finally:
            slurm.start_node(node)
    slurm.wait_until_idle(60)


@pytest.mark.release
def test_the_time_limit_is_reached(slurm: Slurm, expected: list[dict[str, State]]) -> None:
    """Without a warning: the job is ended like one of any other program."""
    with gateway(slurm, f"{SRUN} --time=1") as server, worker_user(server) as user:
        user.begin()
        job = running_job(slurm)
        wait_until(lambda: job not in slurm.jobs("RUNNING"), 180)
        user.prompt_long()
        user.finish(expected)
        assert running_job(slurm) != job


def test_a_job_that_is_about_to_end_is_replaced(slurm: Slurm, expected: list[dict[str, State]]) -> None:
    """Slurm sends SIGTERM before the time limit. The successor starts, and an idle session moves before the end."""
    with gateway(slurm, f"{SRUN} --time=2 --signal=TERM@60") as server, worker_user(server) as user:
        user.begin()
        old = running_job(slurm)
        wait_until(lambda: len(slurm.jobs("RUNNING")) == 2, 150)
        wait_until(lambda: "sessions_moved_total 1.0" in metrics(server.address), 120)
        wait_until(lambda: old not in slurm.jobs(), 30)
        user.prompt_long()
        user.finish(expected)
        assert not any("ended unexpectedly" in loss.reason for loss in user.losses)
        assert not any("ended unexpectedly" in message for message in user.notices)


def test_the_gateway_is_killed(slurm: Slurm, expected: list[dict[str, State]]) -> None:
    """Its job ends by itself. The next gateway starts another one, and the session goes on."""
    with gateway(slurm) as server, worker_user(server) as user:
        user.begin()
        job = running_job(slurm)

        def kill() -> None:
            server.kill()
            wait_until(lambda: not slurm.jobs(), 30)
            server.start()

        user.prompt_through(kill)
        user.finish(expected)
        assert running_job(slurm) != job
