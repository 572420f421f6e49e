"""Sessions in this process whose time is taken apart: nnInteractive's own and this project's, without servers."""

from collections import Counter
from collections.abc import Callable
import os
from pathlib import Path
import time
from typing import ParamSpec, TypeVar

from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import numpy as np
import numpy.typing as npt
import torch

from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.engine.device import DeviceThread, Seat
from nninteractive_ws.engine.memory import MemoryPool, SessionAccount
from nninteractive_ws.engine.models import load_model
from nninteractive_ws.engine.session import Session
from nninteractive_ws.messages import ImageBricks, Request, SetImage
from nninteractive_ws.server.outbox import Outbox

P = ParamSpec("P")
T = TypeVar("T")

#: What is watched: passes of the network, and the making of their inputs.
NETWORK, INPUTS = "network", "inputs"


class Stopwatch:
    """Where the time goes. ``seconds``, ``calls``: by what was watched."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def watch(self, what: str, work: Callable[P, T]) -> Callable[P, T]:
        """The same work, whose time is taken; before and after it the device is waited for."""

        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            self._wait()
            started = time.monotonic()
            result = work(*args, **kwargs)
            self._wait()
            self.seconds[what] += time.monotonic() - started  # type: ignore[assignment]
            self.calls[what] += 1
            return result

        return watched

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def official_session(folder: Path, device: torch.device, compiled: bool, watch: Stopwatch) -> object:
    """nnInteractive's own session with a model. It keeps image and interactions on the host."""
    session = nnInteractiveInferenceSession(
        device=device, use_torch_compile=compiled, torch_n_threads=os.cpu_count() or 1, verbose=False
    )
    session.initialize_from_trained_model_folder(str(folder), 0)
    session.network = watch.watch(NETWORK, session.network)
    session._build_network_input = watch.watch(INPUTS, session._build_network_input)
    return session


class WatchedSession:
    """This project's session with a model, and an outbox that is emptied after every request.

    ``images``: where image and interactions are kept.
    """

    def __init__(
        self, folder: Path, device: torch.device, images: torch.device, compiled: bool, watch: Stopwatch
    ) -> None:
        self._thread = DeviceThread(str(device))
        # On the thread that will run it: cuDNN keeps what the warm-up finds per thread.
        model = self._thread.run(Seat(lambda _: None), lambda: load_model("", folder, device, compiled))
        model.artifacts["network"] = watch.watch(NETWORK, model.artifacts["network"])
        self._outbox = Outbox(lambda: None)
        account = SessionAccount([MemoryPool(images, 2**62, lambda _: False)])
        self._session = Session(model, self._thread, self._outbox, "blosc2", account)
        upstream = self._session._upstream
        upstream._build_network_input = watch.watch(INPUTS, upstream._build_network_input)  # type: ignore[method-assign]

    def open(self, volume: npt.NDArray[np.int16]) -> None:
        """Use a volume (i, j, k), all of it."""
        source = ImageSource.of(volume)
        mean, std = source.statistics.mean, source.statistics.std
        shape, dtype = source.grid.shape, source.dtype
        self.do(SetImage(id=1, image=source.name, shape=shape, dtype=dtype, mean=mean, std=std))  # type: ignore[arg-type]
        for index in range(len(source.grid)):
            self._session.put_bricks(ImageBricks(image=source.name, bricks=[source.brick(index, "raw")]))

    def do(self, request: Request) -> None:
        """Do a request. Ids grow. Raises what the session does."""
        self._outbox.open(request.id)
        self._outbox.begin(request.id)
        self._outbox.put(self._session.handle(request, time.monotonic()))
        while self._outbox.take() is not None:
            pass
