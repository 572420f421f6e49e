"""Memory for images: what one takes, what there is, and whose is given up when another needs it."""

from collections.abc import Callable, Sequence
import math
from pathlib import Path
import threading

import psutil
import torch

from nninteractive_ws.errors import OutOfMemory, TooLarge
from nninteractive_ws.geometry import Index
from nninteractive_ws.messages import FreeMemory

#: Of what is free when a worker starts, this much is for images; the rest is for the model, passes and messages.
_SHARE = 0.8
# Beyond image and interactions, a pass of the official network and the refinement's cache need room on a GPU.
_DEVICE_HEADROOM_BYTES = 8 * 1024**3
# Up to this many voxels nnInteractive 2.6 keeps interactions as a dense tensor on the CPU ("auto"), else compressed.
_DENSE_VOXELS = 512 * 512 * 1024
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Room:
    """The memory for images on one device. ``make_room(asker)`` gives up an idle session; False where none is."""

    def __init__(self, device: torch.device, limit: int, make_room: Callable[[object], bool]) -> None:
        self.device, self.limit = device, limit
        self._make_room = make_room
        self._taken: dict[object, int] = {}
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Bytes in use."""
        with self._lock:
            return sum(self._taken.values())

    def take(self, owner: object, needed: int) -> bool:
        """Reserve bytes for an owner, in place of others that are idle if need be; whether there was room."""
        while not self._try_to_take(owner, needed):
            if needed > self.limit or not self._make_room(owner):
                return False
        return True

    def _try_to_take(self, owner: object, needed: int) -> bool:
        with self._lock:
            fits = sum(self._taken.values()) - self._taken.get(owner, 0) + needed <= self.limit
            if fits:
                self._taken[owner] = needed
            return fits

    def leave(self, owner: object) -> None:
        """Give back what an owner has reserved, if anything."""
        with self._lock:
            self._taken.pop(owner, None)


def rooms_for(device: torch.device, host_limit: int | None, make_room: Callable[[object], bool]) -> list[Room]:
    """Where the images of a worker may be, the best place first. ``host_limit``: bytes, or None for a share of
    what is free now."""
    cpu = torch.device("cpu")
    rooms = [Room(cpu, host_limit if host_limit is not None else int(_SHARE * _free_host_bytes()), make_room)]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        rooms.insert(0, Room(device, max(0, free - _DEVICE_HEADROOM_BYTES), make_room))
    return rooms


def _free_host_bytes() -> int:
    return _of_this_process(psutil.virtual_memory().available)


def _of_this_process(n: int) -> int:
    # In a container the machine's memory is not the process's; the kernel's file says "max" where it is.
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(n, int(limit)) if limit.isdigit() else n


def free_memory(rooms: Sequence[Room]) -> FreeMemory:
    """What is free now on the device of a worker, and in the larger of the rooms that it has for images."""
    device = rooms[0].device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        free, total = _free_host_bytes(), _of_this_process(psutil.virtual_memory().total)
    images = max(room.limit - room.taken for room in rooms)
    return FreeMemory(device=free, device_total=total, images=images)


def used_memory(device: torch.device) -> int:
    """Bytes in use on a worker's device: by all on a GPU, by this process on the host."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return int(psutil.Process().memory_info().rss)


def bytes_per_voxel(device: torch.device, voxels: int, channels: int) -> int:
    """What a voxel of an image takes: the image in float32, the interactions in float16, and two masks."""
    dense = device.type != "cpu" or voxels <= _DENSE_VOXELS
    return 4 + (2 * channels if dense else 1) + 2


def find_room(rooms: Sequence[Room], owner: object, shape: Index, channels: int) -> torch.device:
    """Reserve room for an image; where. Raises TooLarge where it never fits, OutOfMemory where it does not now."""
    voxels = math.prod(shape)
    for room in rooms:
        if room.take(owner, voxels * bytes_per_voxel(room.device, voxels, channels)):
            return room.device
    last = rooms[-1]
    needed = voxels * bytes_per_voxel(last.device, voxels, channels)
    if needed > last.limit:
        fitting = last.limit // bytes_per_voxel(last.device, 0, channels)
        side = math.floor(fitting ** (1 / 3))
        raise TooLarge(
            f"The image of {' × '.join(map(str, shape))} voxels needs about {_gb(needed)} on the server, which has "
            f"{_gb(last.limit)} for images. A crop of at most {fitting:,} voxels around the object would fit, "
            f"for instance {side} × {side} × {side}."
        )
    raise OutOfMemory(
        f"The image needs about {_gb(needed)} on the server, which has {_gb(last.limit)} for images, "
        f"{_gb(last.taken)} of it in use by sessions at work. Try again later, or send a crop around the object."
    )


def _gb(n: int) -> str:
    return f"{n / 1e9:.2f} GB"
