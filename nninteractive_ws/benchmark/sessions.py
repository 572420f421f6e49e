"""Instrumented sessions in this process, without servers: nnInteractive's and this project's."""

from collections import Counter
from collections.abc import Callable
import os
from pathlib import Path
import time
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.upload import BrickPart
from nninteractive_ws.engine.device_scheduler import DeviceScheduler, SchedulerSlot
from nninteractive_ws.engine.inference_session import nnInteractiveInferenceSession
from nninteractive_ws.engine.memory import MemoryPool, SessionAccount
from nninteractive_ws.engine.model_loader import load_model
from nninteractive_ws.engine.outbox import Outbox
from nninteractive_ws.engine.session import Session
from nninteractive_ws.messages import ImageBricks, Request, SetImage

P = ParamSpec("P")
T = TypeVar("T")

#: Names of the timed functions: passes of the network, and preparation of their inputs.
NETWORK, INPUTS = "network", "inputs"


class Stopwatch:
    """Accumulates ``seconds`` and ``calls`` of wrapped functions by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def wrap(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """Wrap a function to time it. The device is synchronized before and after each call."""

        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            self._wait()
            started = time.monotonic()
            result = function(*args, **kwargs)
            self._wait()
            self.seconds[name] += time.monotonic() - started  # type: ignore[assignment]
            self.calls[name] += 1
            return result

        return wrapper

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def official_session(folder: Path, device: torch.device, compiled: bool, stopwatch: Stopwatch) -> object:
    """Return nnInteractive's session with a model, timed by a stopwatch. Image and interactions are on the host."""
    session = nnInteractiveInferenceSession(
        device=device, use_torch_compile=compiled, torch_n_threads=os.cpu_count() or 1, verbose=False
    )
    session.initialize_from_trained_model_folder(str(folder), 0)
    session.network = stopwatch.wrap(NETWORK, session.network)
    session._build_network_input = stopwatch.wrap(INPUTS, session._build_network_input)
    return session


class InstrumentedSession:
    """This project's session with a model, timed by a stopwatch. Its outbox is emptied after each request.

    ``images``: the device of image and interactions.
    """

    def __init__(
        self, folder: Path, device: torch.device, images: torch.device, compiled: bool, stopwatch: Stopwatch
    ) -> None:
        self._thread = DeviceScheduler(str(device))
        # On the thread of its inference, because cuDNN caches the results of the warm-up per thread.
        model = self._thread.run(SchedulerSlot(lambda _: None), lambda: load_model("", folder, device, compiled))
        model.artifacts["network"] = stopwatch.wrap(NETWORK, model.artifacts["network"])
        self._outbox = Outbox(lambda: None)
        account = SessionAccount([MemoryPool(images, 2**62, lambda *_: False)])
        self._session = Session(model, self._thread, self._outbox, "blosc2", account)
        upstream = self._session._upstream
        upstream._build_network_input = stopwatch.wrap(INPUTS, upstream._build_network_input)  # type: ignore[method-assign]

    def open(self, volume: npt.NDArray[np.int16]) -> None:
        """Set a volume (i, j, k), with all its bricks."""
        source = ImageSource.of(volume)
        mean, std = source.statistics.mean, source.statistics.std
        shape, dtype = source.grid.shape, source.dtype
        self.do(SetImage(id=1, image=source.name, shape=shape, dtype=dtype, mean=mean, std=std))  # type: ignore[arg-type]
        for index in range(len(source.grid)):
            self._session.put_bricks(ImageBricks(image=source.name, bricks=[source.brick(BrickPart(index), "raw")]))

    def do(self, request: Request) -> None:
        """Process a request, with a greater id than the last. Raises the errors of the session."""
        self._outbox.open(request.id)
        self._outbox.begin(request.id)
        self._outbox.put(self._session.handle(request, time.monotonic()))
        while self._outbox.take() is not None:
            pass
