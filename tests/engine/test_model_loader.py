"""Selection of the device."""

import pytest
import torch

from nninteractive_ws.engine.model_loader import pick_device


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3", "mps", "xpu", "xpu:1"])
def test_a_missing_device_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"There is no device {name}, since torch .* finds 0 devices"):
        pick_device(name)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_used() -> None:
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_the_index_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="finds 2 devices of the type cuda"):
        pick_device("cuda:2")


def test_an_invalid_device_name_is_refused() -> None:
    with pytest.raises(ValueError, match='"gpu" is not a device'):
        pick_device("gpu")
