"""Memory of sessions: reservations, evictions, and errors if nothing fits."""

from pathlib import Path
import re
import subprocess
import sys
from typing import get_args

import psutil
import pytest
import torch

from nninteractive_ws.engine import memory as module
from nninteractive_ws.engine.memory import (
    _MASKS,
    MemoryPool,
    Purpose,
    SessionAccount,
    free_memory,
    memory_pools,
)
from nninteractive_ws.errors import OutOfMemory, TooLarge

MB, GB = 10**6, 10**9
CPU = torch.device("cpu")
META = torch.device("meta")  # replaces a GPU, which this machine may lack


def nobody_idle(requester: object, pool: MemoryPool, missing: int, connected: bool) -> bool:
    return False


# ---- a pool -----------------------------------------------------------------------------------------------


def test_memory_is_reserved_until_it_is_released() -> None:
    pool = MemoryPool(CPU, 100, nobody_idle)
    assert pool.reserve("a", "image", 60)
    assert pool.used_bytes == 60
    assert not pool.reserve("b", "image", 41)
    assert pool.reserve("b", "image", 40)
    assert pool.reserve("a", "image", 50), "an owner's own is replaced"
    assert not pool.reserve("a", "queue", 11), "what is for another purpose is added"
    assert pool.reserve("a", "queue", 10)
    assert pool.used_by("a") == {"image": 50, "queue": 10}
    pool.release("b")
    pool.release("b")
    assert pool.used_bytes == 60
    pool.release("a")
    assert pool.used_bytes == 0


def test_charges_may_exceed_the_limit_and_can_always_shrink() -> None:
    pool = MemoryPool(CPU, 100, nobody_idle)
    pool.charge("a", "segments", 150)
    assert pool.used_bytes == 150
    assert not pool.reserve("b", "queue", 1)
    assert pool.reserve("a", "segments", 140), "it shrinks"
    pool.charge("a", "segments", 0)
    assert pool.used_bytes == 0
    assert pool.used_by_purpose() == dict.fromkeys(get_args(Purpose), 0)


def test_idle_sessions_are_evicted_one_by_one_and_no_more_than_needed() -> None:
    evicted: list[str] = []

    def evict(requester: object, full: MemoryPool, missing: int, connected: bool) -> bool:
        assert (requester, full, connected) == ("new", pool, True)
        assert missing == pool.used_bytes + wanted - pool.limit
        for owner in ("old", "older"):
            if owner not in evicted:
                evicted.append(owner)
                pool.release(owner)
                return True
        return False

    pool = MemoryPool(CPU, 100, evict)
    for owner in ("old", "older", "busy"):
        assert pool.reserve(owner, "image", 30)
    assert not pool.reserve("new", "image", 101), "what never fits costs nobody's session"
    assert evicted == []
    wanted = 40
    assert pool.reserve("new", "image", 40)
    assert evicted == ["old"]
    wanted = 100 - 40
    assert not pool.reserve("new", "image", 100)
    assert evicted == ["old", "older"]
    assert pool.used_bytes == 30 + 40, "a session that is refused keeps what it has"


def test_memory_that_is_released_during_the_search_for_idle_sessions_is_used() -> None:
    def end(requester: object, full: MemoryPool, missing: int, connected: bool) -> bool:
        full.release("ending")
        return False

    pool = MemoryPool(CPU, 100, end)
    assert pool.reserve("ending", "image", 60)
    assert pool.reserve("new", "image", 60)
    assert not pool.reserve("third", "image", 60)


# ---- a session's account ----------------------------------------------------------------------------------


def test_the_error_for_a_too_large_image_suggests_a_crop() -> None:
    pool = MemoryPool(CPU, GB, nobody_idle)
    account = SessionAccount([pool])
    with pytest.raises(TooLarge) as refused:
        account.reserve_image((1024, 1024, 512), 7)
    output = str(refused.value)
    assert "1024 × 1024 × 512" in output
    assert "1.00 GB for images" in output
    side = int(re.findall(r"instance (\d+) × \1 × \1", output)[0])
    assert account.reserve_image((side, side, side), 7) == CPU
    account.release_image()
    with pytest.raises(TooLarge):
        account.reserve_image((side + 2, side + 2, side + 2), 7)


def test_the_error_for_a_full_pool_states_the_numbers() -> None:
    pool = MemoryPool(CPU, GB, nobody_idle)
    assert SessionAccount([pool]).reserve_image((256, 256, 256), 7) == CPU
    with pytest.raises(OutOfMemory, match=r"about 8\d\d MB .*1\.00 GB for images, 4\d\d MB of it in use"):
        SessionAccount([pool]).reserve_image((256, 256, 512), 7)


def test_the_image_uses_the_first_pool_with_space_and_the_rest_the_host() -> None:
    pools = [MemoryPool(META, 18 * MB, nobody_idle), MemoryPool(CPU, GB, nobody_idle)]
    first, second = SessionAccount(pools), SessionAccount(pools)
    assert first.reserve_image((100, 100, 100), 7) == META
    assert second.reserve_image((200, 200, 200), 7) == CPU
    first.reserve("queue", 1000)
    assert [pool.used_by(first) for pool in pools] == [{"image": 18 * MB}, {"image": _MASKS * MB, "queue": 1000}]
    assert [pool.used_by(second) for pool in pools] == [{}, {"image": (18 + _MASKS) * 8 * MB}]
    assert first.kept_bytes == 1000
    first.release_image()
    assert [pool.used_by(first) for pool in pools] == [{}, {"queue": 1000}]
    assert first.reserve_image((100, 100, 100), 7) == META
    first.release()
    assert pools[0].used_bytes == 0


def test_an_image_on_a_gpu_needs_host_memory_for_its_masks() -> None:
    def evict(requester: object, pool: MemoryPool, missing: int, connected: bool) -> bool:
        full.add(pool.device)
        return False

    full: set[torch.device] = set()
    pools = [MemoryPool(META, 20 * MB, evict), MemoryPool(CPU, 100 * MB, evict)]
    pools[1].charge("another", "image", (100 - _MASKS) * MB + 1)
    pools[0].charge("another", "image", 10 * MB)
    account = SessionAccount(pools)
    with pytest.raises(OutOfMemory, match=r"about 24\.0 MB .* 100 MB for images, 94\.0 MB of it in use"):
        account.reserve_image((100, 100, 100), 7)
    assert full == {CPU}, "no session is evicted from the GPU"
    assert [pool.used_by(account) for pool in pools] == [{}, {}]
    pools[1].charge("another", "image", (100 - _MASKS) * MB)
    pools[0].charge("another", "image", 2 * MB)
    assert account.reserve_image((100, 100, 100), 7) == META


def test_a_session_has_a_limit_besides_its_image() -> None:
    pool = MemoryPool(CPU, 1600 * MB, nobody_idle)
    account = SessionAccount([pool])
    account.reserve_image((256, 256, 128), 7)
    account.reserve("queue", 60 * MB)
    account.charge("segments", 30 * MB)
    assert account.kept_bytes == 90 * MB
    with pytest.raises(OutOfMemory, match=r"keeps 90\.0 MB beyond its image, and 20\.0 MB more .* limit of 100 MB"):
        account.reserve("queue", 80 * MB)
    account.reserve("request", 500 * MB)  # it ends with the request
    assert account.kept_bytes == 90 * MB
    account.charge("segments", 110 * MB)
    with pytest.raises(OutOfMemory):
        account.reserve("request", 0)
    account.charge("segments", 10 * MB)
    account.reserve("queue", 80 * MB)


def test_all_sessions_share_the_limit_of_the_pool() -> None:
    pool = MemoryPool(CPU, GB, nobody_idle)
    SessionAccount([pool]).charge("segments", 900 * MB)
    other = SessionAccount([pool])
    other.reserve("queue", 50 * MB)
    assert pool.used_bytes == 950 * MB
    with pytest.raises(OutOfMemory, match=r"about 200 MB .* 1\.00 GB for\s+sessions, 950 MB of it in use"):
        other.reserve("request", 200 * MB)


def test_a_small_request_fits_into_a_full_pool() -> None:
    pool = MemoryPool(CPU, GB, nobody_idle)
    SessionAccount([pool]).charge("segments", GB)
    account = SessionAccount([pool])
    account.reserve("queue", MB)
    account.reserve("request", MB)
    assert pool.used_bytes == GB + 2 * MB
    with pytest.raises(OutOfMemory):
        account.reserve("queue", 5 * MB)


@pytest.mark.parametrize(("pool_gb", "limit_mib"), [(1, 64), (2, 119), (10, 596), (100, 1024)])
def test_the_limit_of_a_session_is_a_part_of_the_pool(pool_gb: int, limit_mib: int) -> None:
    assert MemoryPool(CPU, pool_gb * GB, nobody_idle).session_limit // 2**20 == limit_mib


def test_a_closed_session_is_not_charged() -> None:
    pool = MemoryPool(CPU, GB, nobody_idle)
    account = SessionAccount([pool])
    account.charge("outbox", MB)
    account.release()
    account.charge("outbox", MB)
    account.reserve("queue", MB)
    account.reserve("request", 50 * MB)
    assert pool.used_bytes == 0


def test_a_session_closed_during_eviction_reserves_nothing() -> None:
    def evict(requester: object, full: MemoryPool, missing: int, connected: bool) -> bool:
        account.release()
        pool.release("other")
        return True

    pool = MemoryPool(CPU, 100 * MB, evict)
    pool.charge("other", "image", 100 * MB)
    account = SessionAccount([pool])
    account.reserve("request", 50 * MB)
    assert pool.used_bytes == 0


# ---- free memory ------------------------------------------------------------------------------------------


def test_the_limit_is_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    (pool,) = memory_pools(CPU, 12345, 1, 1, nobody_idle)
    assert pool.limit == 12345
    free = psutil.virtual_memory().available
    assert memory_pools(CPU, None, 1, 1, nobody_idle)[0].limit < 0.9 * free
    monkeypatch.setattr(module, "available_memory", lambda: 1_000_000)
    assert memory_pools(CPU, None, 1, 1, nobody_idle)[0].limit == 800_000


def test_the_workers_of_a_host_divide_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 1_000_000)
    assert memory_pools(CPU, None, 4, 2, nobody_idle)[0].limit == 200_000
    assert memory_pools(CPU, 12345, 4, 2, nobody_idle)[0].limit == 12345, "a number that is given is for each"


def test_the_workers_of_a_gpu_divide_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (80 * gib, 96 * gib))
    cuda = torch.device("cuda:0")
    for workers_on_device, expected in ((1, 72), (2, 32), (4, 12), (16, 0)):
        gpu, host = memory_pools(cuda, 12345, 16, workers_on_device, nobody_idle)
        assert (gpu.device, gpu.limit, host.limit) == (cuda, expected * gib, 12345)


def test_free_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [MemoryPool(CPU, GB, nobody_idle), MemoryPool(CPU, 2 * GB, nobody_idle)]
    pools[1].reserve("a", "image", 500 * MB)
    found = free_memory(pools)
    assert found.images == 1500 * MB
    assert 0 < found.device <= found.device_total <= psutil.virtual_memory().total
    monkeypatch.setattr(module, "available_memory", lambda: 1_000_000)
    monkeypatch.setattr(module, "total_memory", lambda: 2_000_000)
    found = free_memory(pools)
    assert (found.device, found.device_total) == (1_000_000, 2_000_000)


MEASURE = """
import sys
from typing import get_args
import numpy as np
import psutil
import torch
sys.path.insert(0, {tests})
from helpers.engine import Client
from nninteractive_ws.engine.model_registry import DEMO, MODEL_FOLDER
from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.model_loader import load_model
from nninteractive_ws.engine.memory import bytes_per_voxel

cpu, shape = torch.device("cpu"), (340, 300, 250)
device, model = DeviceScheduler("cpu"), load_model(DEMO, MODEL_FOLDER, cpu)
volume = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
before = psutil.Process().memory_info().rss
client = Client(model, device).set_image(volume)
client.session._upstream.interactions[:] = 1.0  # prompts everywhere: what is zero is not allocated yet
took = psutil.Process().memory_info().rss - before
channels = client.session._upstream.num_interaction_channels
print(volume.size * bytes_per_voxel(cpu, volume.size, channels), took)
device.close()
"""


@pytest.mark.slow
def test_the_estimate_matches_the_memory_of_an_image() -> None:
    """Measured on the real session with every brick sent. It runs in a separate process, because this one would reuse
    freed memory."""
    code = MEASURE.replace("{tests}", repr(str(Path(__file__).parents[1])))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=110)
    estimate, took = map(int, done.stdout.splitlines()[-1].split())
    print(f"estimated {estimate / 1e6:.0f} MB, took {took / 1e6:.0f} MB")
    assert 0.9 * estimate < took < 1.15 * estimate
