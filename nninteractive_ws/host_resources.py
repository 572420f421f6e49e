"""Processors and memory that this process may use, which a batch system or a container may limit."""

from collections.abc import Iterator
import os
from pathlib import Path

import psutil

_OWN_CGROUPS, _CGROUP_MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def processor_count() -> int:
    """Return the number of processors on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of memory that are free, at most the limit of this process."""
    return min([int(psutil.virtual_memory().available), *_cgroup_limits()])


def total_memory() -> int:
    """Return the bytes of memory of this machine, at most the limit of this process."""
    return min([int(psutil.virtual_memory().total), *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """Yield the memory limits of this process's control groups and their parents (Linux, version 1 and 2).

    The files are described in the kernel's ``cgroup-v2.rst`` and ``cgroup-v1/memory.rst``. Inside a container, the path
    may be that of the host. Then only the mount itself exists, which is the container's group.
    """
    for mount, path, name in _memory_groups():
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (file := folder / name).is_file():
                limit = file.read_text().strip()  # without a limit "max", or a huge number in version 1
                if limit.isdigit():
                    yield int(limit)


def _memory_groups() -> Iterator[tuple[Path, str, str]]:
    """Yield the mount and the path of this process's groups that limit memory, and the name of the file."""
    if not _OWN_CGROUPS.is_file():
        return
    for line in _OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield _CGROUP_MOUNT, path, "memory.max"
        elif "memory" in controllers.split(","):
            yield _CGROUP_MOUNT / "memory", path, "memory.limit_in_bytes"
