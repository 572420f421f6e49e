"""The gateway's process: the signals that end it."""

from collections.abc import Callable, Iterator
import contextlib
import signal

import pytest

from nninteractive_ws.server import run
from nninteractive_ws.server.pool import PoolSettings
from nninteractive_ws.server.settings import Settings

SETTINGS = Settings(worker=(), model_name="demo", pool=PoolSettings([], 0), port=0)


def test_an_interrupt_before_the_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio.run handles SIGINT until end_signals does. The exit status has to be that of an interrupt then, too."""

    @contextlib.contextmanager
    def interrupted_end_signals(callback: Callable[[int], object]) -> Iterator[None]:
        signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(run, "end_signals", interrupted_end_signals)
    with pytest.raises(KeyboardInterrupt):
        run.run_gateway(SETTINGS)
