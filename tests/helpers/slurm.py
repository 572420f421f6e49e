"""A real Slurm cluster of three nodes with a GPU each, on loopback. Its daemons run as the user of the tests.

The GPUs are ``/dev/null``, so they are only counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
import getpass
from pathlib import Path
import secrets
import subprocess
import tempfile

import psutil
import pytest

from helpers.end_to_end import wait_until
from helpers.http import free_port
from helpers.programs import find_program

NODES = ("n1", "n2", "n3")
_START_TIMEOUT_S = 30.0

_SLURM_CONF = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
"""
_NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 CoresPerSocket=2 RealMemory=8000 "
    "Gres=gpu:1\n"
)


class Slurm:
    """The cluster. ``folder``: for its configuration, logs and state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        nodes = "".join(_NODE.format(name=name, port=free_port()) for name in NODES)
        partition = f"PartitionName=gpu Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n"
        general = _SLURM_CONF.format(folder=folder, user=getpass.getuser(), controller_port=free_port())
        self.configuration.write_text(general.lstrip() + nodes + partition)
        (folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File=/dev/null\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons, and wait until the nodes can be used. Raises TimeoutError."""
        files = {name: self.folder / f"munge.{name}" for name in ("key", "sock", "pid", "log", "seed")}
        self._start_daemon(
            "munged", "--foreground", f"--key-file={files['key']}", f"--socket={files['sock']}",
            f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}",
        )  # fmt: skip
        wait_until(files["sock"].exists, _START_TIMEOUT_S)
        self._start_daemon("slurmctld", "-D", "-i", "-f", str(self.configuration))
        for name in NODES:
            self.start_node(name)
        self.wait_until_idle()

    def start_node(self, name: str) -> None:
        """Start the daemon of a node, which may have been killed."""
        self._nodes[name] = self._start_daemon("slurmd", "-D", "-N", name, "-f", str(self.configuration))

    def _start_daemon(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{program}.output").open("ab") as output:
            daemon = subprocess.Popen(
                [str(find_program(program)), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._daemons.append(daemon)
        return daemon

    def stop(self) -> None:
        """Cancel all jobs, and end the daemons."""
        for job in self.jobs():
            subprocess.run(["scancel", "--signal=KILL", "--full", job], check=False, timeout=30)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    # ---- questions ----------------------------------------------------------------------------------------

    def wait_until_idle(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Wait until no node has a job. Raises TimeoutError."""
        wait_until(lambda: self._query("sinfo", "--format=%D %t") == [f"{len(NODES)} idle"], timeout_s)

    def jobs(self, state: str = "all") -> list[str]:
        """Return the numbers of the jobs in a state, or of all."""
        return self._query("squeue", f"--states={state}" if state != "all" else "--noheader", "--format=%i")

    def node_of(self, job: str) -> str:
        """Return the name of the node that a job runs on."""
        (node,) = self._query("squeue", f"--jobs={job}", "--format=%N")
        return node

    @staticmethod
    def _query(program: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [program, "--noheader", *arguments], stdout=subprocess.PIPE, text=True, check=False, timeout=30
        )
        return done.stdout.split("\n")[:-1]

    # ---- faults -------------------------------------------------------------------------------------------

    def kill_daemon(self, job: str) -> str:
        """Kill the daemon of the node of a job. Return the node's name."""
        node = self.node_of(job)
        self._nodes[node].kill()
        self._nodes[node].wait()
        return node

    @staticmethod
    def kill_step(job: str) -> None:
        """Kill the process that runs a job on its node."""
        steps = [p for p in psutil.process_iter(["cmdline"]) if _is_step(p.info["cmdline"], job)]
        assert steps
        for step in steps:
            step.kill()


def _is_step(command: list[str] | None, job: str) -> bool:
    return bool(command) and command is not None and command[0].startswith(f"slurmstepd: [{job}.")


@contextmanager
def slurm_cluster() -> Iterator[Slurm]:
    """A cluster to which the commands of this process belong. Skips the test if Slurm does not start here."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, pytest.MonkeyPatch.context() as environment:
        folder = Path(name)
        folder.chmod(0o755)  # munged refuses a folder that others cannot enter
        cluster = Slurm(folder)
        environment.setenv("SLURM_CONF", str(cluster.configuration))
        try:
            try:
                cluster.start()
            except TimeoutError:
                reasons = [line for path in sorted(folder.glob("*.output")) for line in path.read_text().splitlines()]
                pytest.skip(f"Slurm does not start here: {' | '.join(reasons[-3:])}")
            yield cluster
        finally:
            cluster.stop()
