"""Sessions that a worker evicts for memory. torch's meta device replaces the GPU, which this machine may lack."""

import asyncio
from collections.abc import Awaitable, Callable
import math

import pytest
import torch

from nninteractive_ws import protocol
from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.memory import _MASKS, MemoryPool, bytes_per_voxel
from nninteractive_ws.engine.model_loader import LoadedModel
from nninteractive_ws.engine.session_host import SessionHost
from nninteractive_ws.engine.worker import Worker
from nninteractive_ws.geometry import Index
from nninteractive_ws.messages import SetImage
from nninteractive_ws.worker_protocol import OpenSession, RequestAnswered

CPU, GPU = torch.device("cpu"), torch.device("meta")
IDLE_S = 1000.0
SHAPE: Index = (64, 64, 64)
SMALL: Index = (32, 64, 64)
VOXELS, CHANNELS = math.prod(SHAPE), 7


class Sessions:
    """The sessions of a worker without a gateway. ``on_gpu``, ``on_host``: the number of images that fit there.

    The host also has memory for the masks of images on the GPU, and for messages.
    """

    def __init__(self, model: LoadedModel, scheduler: DeviceScheduler, on_gpu: float, on_host: int) -> None:
        worker = self._worker = Worker("", "", b"", None, 1, 1, IDLE_S, False)
        gpu_limit = int(on_gpu * VOXELS * bytes_per_voxel(GPU, VOXELS, CHANNELS))
        others = int(on_gpu * VOXELS * _MASKS) + VOXELS
        host_limit = on_host * VOXELS * (bytes_per_voxel(CPU, VOXELS, CHANNELS) + _MASKS) + others
        worker._model, worker._scheduler = model, scheduler
        worker._pools = [
            MemoryPool(GPU, gpu_limit, worker._evict_idle_session),
            MemoryPool(CPU, host_limit, worker._evict_idle_session),
        ]
        self._ending: list[asyncio.Task[None]] = []

    async def open(
        self, *, connected: bool, idle: bool = False, shape: Index = SHAPE, code: str | None = None
    ) -> SessionHost:
        """Open a session with an image. ``code``: of the expected error."""
        name = str(len(self._ending))
        command = OpenSession(token="", session=name, encoding="blosc2", resume=False, allow_eviction=True)
        session = self._worker._sessions[name] = self._worker._new_session(command)
        self._ending.append(asyncio.ensure_future(self._worker._end_when_over(session)))
        if connected:
            await session._connection_lock.acquire()
        announced = SetImage(id=1, image="x", shape=shape, dtype="int16", mean=0.0, std=1.0)
        session.queue.receive(protocol.encode(announced))
        session._requests_waiting.set()
        while not isinstance(answered := await self._worker._to_gateway.get(), RequestAnswered):
            pass
        assert (answered.session, answered.code) == (name, code)
        if idle:
            session.queue.last_used -= 2 * IDLE_S
        return session

    @staticmethod
    async def end(session: SessionHost) -> None:
        session.over.set()
        await asyncio.wrap_future(session.ended)

    async def close(self) -> None:
        for session in list(self._worker._sessions.values()):
            await self.end(session)
        await asyncio.gather(*self._ending)


def device_of(session: SessionHost) -> torch.device:
    image, _ = session.queue._session.state()
    assert image is not None
    return image.voxels.device


@pytest.fixture
def with_sessions(
    quick_model: LoadedModel, device: DeviceScheduler
) -> Callable[[float, int, Callable[[Sessions], Awaitable[None]]], None]:
    """Return a function that runs another one with the sessions of a worker."""

    def run(on_gpu: float, on_host: int, work: Callable[[Sessions], Awaitable[None]]) -> None:
        async def open_and_close() -> None:
            sessions = Sessions(quick_model, device, on_gpu, on_host)
            try:
                await work(sessions)
            finally:
                await sessions.close()

        asyncio.run(open_and_close())

    return run


def test_a_full_gpu_evicts_a_disconnected_session_on_it_and_none_on_the_host(with_sessions) -> None:
    async def work(sessions: Sessions) -> None:
        active = await sessions.open(connected=True)
        on_host = await sessions.open(connected=False, idle=True)
        await sessions.end(active)
        on_gpu = await sessions.open(connected=False)
        assert (device_of(on_host), device_of(on_gpu)) == (CPU, GPU)
        assert device_of(await sessions.open(connected=True)) == GPU
        assert on_gpu.evicted
        assert not on_host.evicted, "it was used longer ago, but frees no memory of the GPU"

    with_sessions(1, 2, work)


def test_a_full_gpu_evicts_no_connected_session_while_the_host_has_space(with_sessions) -> None:
    async def work(sessions: Sessions) -> None:
        idle = await sessions.open(connected=True, idle=True)
        on_host = await sessions.open(connected=True)
        assert (device_of(idle), device_of(on_host)) == (GPU, CPU)
        last = await sessions.open(connected=True)
        assert idle.evicted, "the host is full, too"
        assert (device_of(on_host), device_of(last)) == (CPU, GPU)

    with_sessions(1, 1, work)


def test_no_session_is_evicted_from_a_gpu_if_all_would_not_suffice(with_sessions) -> None:
    async def work(sessions: Sessions) -> None:
        active = await sessions.open(connected=True, shape=SMALL)
        lingering = await sessions.open(connected=False, shape=SMALL)
        assert device_of(active) == device_of(lingering) == GPU
        assert device_of(await sessions.open(connected=True)) == CPU
        assert not lingering.evicted

    with_sessions(1, 1, work)


def test_busy_sessions_do_not_count_among_those_that_would_suffice(with_sessions) -> None:
    async def work(sessions: Sessions) -> None:
        active = await sessions.open(connected=True)
        lingering = await sessions.open(connected=False, shape=SMALL)
        on_host = await sessions.open(connected=True)
        assert (device_of(active), device_of(lingering), device_of(on_host)) == (GPU, GPU, CPU)
        await sessions.open(connected=True, code="out_of_memory")
        assert not lingering.evicted, "its memory alone would not suffice"

    with_sessions(1.5, 1, work)
