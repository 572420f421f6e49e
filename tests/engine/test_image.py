"""The image on a GPU, without one: stand-ins for CUDA streams record the order of the work."""

from collections.abc import Iterator
import contextlib

from helpers.engine import brick_message
import numpy as np
import pytest
import torch

from nninteractive_ws.engine import image as module
from nninteractive_ws.engine.image import BrickImage
from nninteractive_ws.messages import SetImage

CUDA, SHAPE = torch.device("cuda"), (32, 32, 32)


def test_bricks_are_copied_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        assert device == CUDA
        order.append("zeros on the default stream")
        return torch.zeros(shape, dtype=dtype)

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device == CUDA

        def wait_stream(self, other: str) -> None:
            order.append(f"wait for the {other}")

        def synchronize(self) -> None:
            assert 0 not in image.presence
            order.append("synchronize")

    @contextlib.contextmanager
    def on_stream(stream: Stream) -> Iterator[None]:
        assert isinstance(stream, Stream)
        assert not image.voxels.any()
        yield
        assert image.voxels.all()
        order.append("copy on the other stream")

    monkeypatch.setattr(module, "zeros", zeros)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "default stream")
    image = BrickImage(SetImage(id=1, image="x", shape=SHAPE, dtype="int16", mean=0.0, std=1.0), CUDA)
    image.put(brick_message(np.ones(SHAPE, np.int16), "x", [0]).bricks)
    assert order == [
        "zeros on the default stream",
        "wait for the default stream",
        "copy on the other stream",
        "synchronize",
    ]
    assert 0 in image.presence
