"""Processors and memory of a process in a control group, with the files that the kernel writes."""

import os
from pathlib import Path
import subprocess
import sys

import psutil
import pytest

from nninteractive_ws import host_resources
from nninteractive_ws.host_resources import available_memory, processor_count, total_memory

MB = 1024**2
#: What version 1 of control groups has for "no limit".
UNLIMITED_V1 = "9223372036854771712"


class Groups:
    """Control groups as files."""

    def __init__(self, folder: Path) -> None:
        self.own, self.mount = folder / "own", folder / "mount"

    def set(self, own: str, **limits: str) -> None:
        """Set the group of the process, and limits by file."""
        self.own.write_text(own)
        for name, limit in limits.items():
            path = self.mount / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(limit + "\n")


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Groups:
    found = Groups(tmp_path)
    monkeypatch.setattr(host_resources, "_OWN_CGROUPS", found.own)
    monkeypatch.setattr(host_resources, "_CGROUP_MOUNT", found.mount)
    return found


def test_without_control_groups(groups: Groups) -> None:
    assert total_memory() == psutil.virtual_memory().total
    assert 0 < available_memory() <= total_memory()


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        ("0::/job_7/step_0\n", {"job_7/step_0/memory.max": str(100 * MB)}),
        # Slurm limits the job, and not the step.
        ("0::/job_7/step_0\n", {"job_7/step_0/memory.max": "max", "job_7/memory.max": str(100 * MB)}),
        ("0::/a/b\n", {"a/b/memory.max": str(300 * MB), "a/memory.max": str(100 * MB), "memory.max": "max"}),
        # In a container that has a namespace of its own, and in one that has none.
        ("0::/\n", {"memory.max": str(100 * MB)}),
        ("0::/docker/0123\n", {"memory.max": str(100 * MB)}),
        ("4:cpu,cpuacct:/a\n3:memory:/b\n", {"memory/b/memory.limit_in_bytes": str(100 * MB)}),
        (
            "3:memory:/b\n",
            {"memory/b/memory.limit_in_bytes": UNLIMITED_V1, "memory/memory.limit_in_bytes": str(100 * MB)},
        ),
        # Both versions mounted, with memory in version 1.
        ("3:memory:/b\n0::/c\n", {"memory/b/memory.limit_in_bytes": str(100 * MB), "unified/c/memory.max": "max"}),
    ],
)
def test_the_lowest_limit_holds(groups: Groups, own: str, limits: dict[str, str]) -> None:
    groups.set(own, **limits)
    assert total_memory() == 100 * MB
    assert available_memory() == 100 * MB


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        ("0::/a\n", {"a/memory.max": "max"}),
        ("0::/a\n", {"b/memory.max": str(100 * MB)}),
        ("3:memory:/a\n", {"memory/a/memory.limit_in_bytes": UNLIMITED_V1}),
        ("3:cpu:/a\n", {"memory/a/memory.limit_in_bytes": str(100 * MB)}),
    ],
)
def test_limits_of_others_do_not_hold(groups: Groups, own: str, limits: dict[str, str]) -> None:
    groups.set(own, **limits)
    assert total_memory() == psutil.virtual_memory().total


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes")
def test_processors_of_a_pinned_process() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); "
        "from nninteractive_ws.host_resources import processor_count; print(processor_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert processor_count() == len(os.sched_getaffinity(0))
