"""Memory of the sessions on a worker, which is counted by session and limited.

A session keeps an image with its interaction channels. Beyond it, the session keeps segments with their histories,
queued requests, and messages for its client. Everything is charged to its account, before the allocation if its size is
known by then.
"""

from collections.abc import Callable, Sequence
import math
import threading
from typing import Literal, get_args

import psutil
import torch

from nninteractive_ws.errors import OutOfMemory, TooLarge
from nninteractive_ws.geometry import Index
from nninteractive_ws.host_resources import available_memory, total_memory
from nninteractive_ws.messages import FreeMemory
from nninteractive_ws.units import format_bytes

#: Purposes of a session's memory. "base layers": of bricks whose enhancement layer is missing. "request": temporary
#: memory of the running request.
Purpose = Literal["image", "base layers", "segments", "queue", "outbox", "request"]
#: Memory that is not limited for a session, but by the size of its image, or by its request.
_NOT_LIMITED: tuple[Purpose, ...] = ("image", "base layers", "request")

#: Share of the memory free at the start of a host's workers that is for sessions. The rest is for models and passes.
_SHARE = 0.8
# Limit of a session's memory beyond its image. It is a share of the pool, so that a few sessions cannot use it up, and
# lies within these bounds. Thousands of prompts and manual edits take less than the lower bound.
_SESSION_SHARE, _MIN_SESSION_BYTES, _MAX_SESSION_BYTES = 1 / 16, 64 * 1024**2, 2**30
# A session may always keep this much beyond its image, so that clicks work even if other sessions use up the pool.
_GUARANTEED_BYTES = 4 * 1024**2
# This much may always be queued, so that requests that free memory are accepted.
_SMALL_QUEUE_BYTES = 1024**2
# GPU memory for a pass of the official network and the refinement's cache, besides image and interactions.
_DEVICE_HEADROOM_BYTES = 8 * 1024**3
# Up to this many voxels, nnInteractive 2.6 keeps interactions as a dense tensor on the CPU ("auto"), else compressed.
_DENSE_VOXELS = 512 * 512 * 1024
# Masks of the image's size that exist at the same time, including the current segment's. Measured with tracemalloc: 5
# while a mask is set, 6 while a mask that fills the image is predicted, 3 while a step is undone or a history restored.
_MASKS = 6


#: ``evict(requester, pool, missing, connected)`` evicts an idle session with memory in a pool, or returns False.
#: ``missing``: the bytes to be freed; if all evictions together would free less, there is none. ``connected``: whether
#: sessions with a connection may be evicted.
Evict = Callable[[object, "MemoryPool", int, bool], bool]


class MemoryPool:
    """The memory for sessions on one device."""

    def __init__(self, device: torch.device, limit: int, evict: Evict) -> None:
        self.device, self.limit = device, limit
        self._evict = evict
        self._used: dict[object, dict[Purpose, int]] = {}
        self._total = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        return self._total

    @property
    def session_limit(self) -> int:
        """Bytes that a session may keep beyond its image."""
        return max(_MIN_SESSION_BYTES, min(_MAX_SESSION_BYTES, int(_SESSION_SHARE * self.limit)))

    def reserve(self, owner: object, purpose: Purpose, needed: int, *, evict_connected: bool = True) -> bool:
        """Reserve ``needed`` bytes for a purpose, and evict idle sessions if necessary. Return whether that worked."""
        while missing := self._try_to_reserve(owner, purpose, needed):
            if needed > self.limit:
                return False
            if not self._evict(owner, self, missing, evict_connected):
                # Once more, because a session may have ended meanwhile.
                return not self._try_to_reserve(owner, purpose, needed)
        return True

    def _try_to_reserve(self, owner: object, purpose: Purpose, needed: int) -> int:
        """Reserve bytes if they fit. Return the bytes that are missing."""
        with self._lock:
            more = needed - self._used.get(owner, {}).get(purpose, 0)
            missing = max(0, self._total + more - self.limit) if more > 0 else 0
            if not missing:
                self._set(owner, purpose, needed)
            return missing

    def charge(self, owner: object, purpose: Purpose, used: int) -> None:
        """Count memory that an owner has allocated, even beyond the limit. Later reservations are then refused."""
        with self._lock:
            self._set(owner, purpose, used)

    def _set(self, owner: object, purpose: Purpose, used: int) -> None:
        account = self._used.setdefault(owner, {})
        self._total += used - account.pop(purpose, 0)
        if used:
            account[purpose] = used
        if not account:
            del self._used[owner]

    def release(self, owner: object) -> None:
        """Release all memory of an owner."""
        with self._lock:
            self._total -= sum(self._used.pop(owner, {}).values())

    def used_by(self, owner: object) -> dict[Purpose, int]:
        """Return the bytes of an owner, by purpose."""
        with self._lock:
            return dict(self._used.get(owner, {}))

    def used_by_purpose(self) -> dict[str, int]:
        """Return the bytes of all owners, by purpose."""
        with self._lock:
            totals: dict[str, int] = dict.fromkeys(get_args(Purpose), 0)
            for account in self._used.values():
                for purpose, used in account.items():
                    totals[purpose] += used
            return totals


class SessionAccount:
    """The memory of one session. Its image is in one of the pools, everything else in the last one, the host's."""

    def __init__(self, pools: Sequence[MemoryPool]) -> None:
        self._pools, self._host = pools, pools[-1]
        self._lock = threading.Lock()
        self._released = False

    def reserve_image(self, shape: Index, channels: int) -> torch.device:
        """Reserve memory for an image, and return its device.

        Raises TooLarge if the image can never fit, and OutOfMemory if it does not fit now.
        """
        voxels = math.prod(shape)
        masks = voxels * _MASKS
        # To free memory of a GPU, a disconnected session is evicted: its user may never return, and an image on the GPU
        # is faster. A connected one is not, as long as the host has space. Its user would wait for a new upload, which
        # takes longer than many prompts with an image on the host.
        for evict_connected in (False, True):
            for pool in self._pools:
                image = voxels * bytes_per_voxel(pool.device, voxels, channels)
                if self._reserve_image_in(pool, image, masks, evict_connected):
                    return pool.device
        self.release_image()
        last = self._host
        needed = voxels * bytes_per_voxel(last.device, voxels, channels) + masks
        if needed > last.limit:
            fitting = last.limit // (bytes_per_voxel(last.device, 0, channels) + _MASKS)
            side = math.floor(fitting ** (1 / 3))
            raise TooLarge(
                f"The image of {' × '.join(map(str, shape))} voxels needs about {format_bytes(needed)} on the "
                f"server, which has {format_bytes(last.limit)} for images. Send a crop of at most {fitting:,} voxels "
                f"around the object, for instance {side} × {side} × {side}."
            )
        raise OutOfMemory(
            f"The image needs about {format_bytes(needed)} on the server, which has {format_bytes(last.limit)} for "
            f"images, {format_bytes(last.used_bytes)} of it in use by active sessions. Try again later, or send a "
            "crop around the object."
        )

    def _reserve_image_in(self, pool: MemoryPool, image: int, masks: int, evict_connected: bool) -> bool:
        """Reserve memory for an image in a pool, and for its masks on the host."""
        if pool is self._host:
            return pool.reserve(self, "image", image + masks, evict_connected=evict_connected)
        # The masks first, so that no session is evicted from a GPU if the host has no memory for them.
        return self._host.reserve(self, "image", masks, evict_connected=evict_connected) and pool.reserve(
            self, "image", image, evict_connected=evict_connected
        )

    def release_image(self) -> None:
        for pool in self._pools:
            pool.charge(self, "image", 0)
        self.charge("base layers", 0)

    def reserve(self, purpose: Purpose, needed: int) -> None:
        """Reserve bytes before they are allocated. Raises OutOfMemory, with the numbers in its message."""
        # Temporary memory of a request is not kept after it.
        kept = self.kept_bytes
        more = 0 if purpose == "request" else needed - self._host.used_by(self).get(purpose, 0)
        small = purpose == "queue" and needed <= _SMALL_QUEUE_BYTES
        if kept + more > self._host.session_limit and not small:
            raise OutOfMemory(
                f"This session keeps {format_bytes(kept)} beyond its image, and {format_bytes(max(more, 0))} more "
                f"would exceed the limit of {format_bytes(self._host.session_limit)}. Remove finished segments, or "
                "wait until pending requests are answered."
            )
        if small or kept + needed <= _GUARANTEED_BYTES:
            self.charge(purpose, needed)
        elif self._host.reserve(self, purpose, needed):
            with self._lock:
                if self._released:  # evicting other sessions takes time
                    self._host.release(self)
        else:
            raise OutOfMemory(
                f"This request needs about {format_bytes(needed)} on the server, which has "
                f"{format_bytes(self._host.limit)} for sessions, {format_bytes(self._host.used_bytes)} of it in use. "
                "Try again later."
            )

    def charge(self, purpose: Purpose, used: int) -> None:
        """Count memory that has been allocated already."""
        with self._lock:
            if not self._released:
                self._host.charge(self, purpose, used)

    def release(self) -> None:
        """Release everything. Later charges are ignored; there may be one for a message that is being received."""
        with self._lock:
            self._released = True
            for pool in self._pools:
                pool.release(self)

    @property
    def kept_bytes(self) -> int:
        """Bytes kept beyond the image and its layers, without the temporary memory of the running request."""
        return sum(used for purpose, used in self._host.used_by(self).items() if purpose not in _NOT_LIMITED)


def memory_pools(
    device: torch.device, host_limit: int | None, workers: int, workers_on_device: int, evict: Evict
) -> list[MemoryPool]:
    """Return the memory pools of a worker, the preferred one for images first, the host's last.

    ``host_limit``: bytes on the host; None: a share of the memory that is free now, divided by the number of
    ``workers`` on this host. The free memory of a GPU is divided by ``workers_on_device``. ``evict``: see Evict.
    """
    cpu = torch.device("cpu")
    limit = host_limit if host_limit is not None else int(_SHARE * available_memory() / workers)
    pools = [MemoryPool(cpu, limit, evict)]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Each worker on the device needs the headroom for its own passes.
        pools.insert(0, MemoryPool(device, max(0, free // workers_on_device - _DEVICE_HEADROOM_BYTES), evict))
    return pools


def free_memory(pools: Sequence[MemoryPool]) -> FreeMemory:
    """Return the memory that is free now on a worker's device, and in the pool with the most free memory."""
    device = pools[0].device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        free, total = available_memory(), total_memory()
    images = max(0, *(pool.limit - pool.used_bytes for pool in pools))
    return FreeMemory(device=free, device_total=total, images=images)


def used_memory(device: torch.device) -> int:
    """Return the bytes in use on a worker's device: by all processes on a GPU, by this process on the host."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return int(psutil.Process().memory_info().rss)


def bytes_per_voxel(device: torch.device, voxels: int, channels: int) -> int:
    """Return the bytes per voxel of the image in float32 and the interactions in float16, without the masks.

    ``voxels``: of the image. ``channels``: of the interactions.
    """
    dense = device.type != "cpu" or voxels <= _DENSE_VOXELS
    return 4 + (2 * channels if dense else 1)
