"""Predictions: previews, results, passes, and failures between passes."""

import dataclasses
import gc
import weakref

from helpers.engine import prompts_for, undo
from helpers.session_prompts import LONG, POINTS, SHAPE, WHOLE
import numpy as np
import pytest
import torch

from nninteractive_ws.errors import OutOfMemory
from nninteractive_ws.messages import MaskDelta, SetOptions


@pytest.mark.slow
def test_deltas_add_up_to_the_mask(client):
    # The client asserts revisions, checksums and counts of each delta, and compares masks after each request.
    client.send_all(prompts_for(SHAPE, 11))
    assert np.array_equal(client.snapshot(), client.mask())


def test_previews_come_before_the_result(client):
    done = client.send(LONG)
    finals = [d.final for d in client.deltas()]
    assert finals.count(True) <= 1
    assert True not in finals[:-1]  # none is final if the last preview equals the result
    assert len(finals) > 3
    passes = client.progress("refining")
    assert [(p.done, p.total) for p in passes] == [(n, len(passes)) for n in range(1, len(passes) + 1)]
    assert done.timings.passes == len(passes) + 1
    assert client.progress("predicting")


@pytest.mark.slow
def test_without_previews_there_is_one_delta_and_the_same_mask(make_client):
    shown, silent = make_client(), make_client()
    silent.send(SetOptions(id=1, previews=False))
    for request in (LONG, *POINTS):
        assert np.array_equal(shown.mask_after(request), silent.mask_after(request))
        assert [d.final for d in silent.deltas()] == [True]


def test_without_autozoom_a_prompt_takes_one_pass(make_client):
    zooming, still = make_client(), make_client()
    still.send(SetOptions(id=1, autozoom=False))
    request = POINTS[2]
    assert zooming.send(request).timings.passes > 1
    assert still.send(request).timings.passes == 1
    still.send(undo())
    still.send(SetOptions(id=1))
    assert still.send(request).timings.passes == 1, "an option that is left out stays as it is"
    still.send(undo())
    still.send(SetOptions(id=1, autozoom=True))
    assert np.array_equal(still.mask_after(request), zooming.mask())


def test_no_message_follows_a_finished_request(client):
    client.send_all([LONG, *POINTS, undo()])
    owners = [m.request for m in client.received if isinstance(m, MaskDelta)]
    assert owners == sorted(owners)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["Python", "torch"],
)
@pytest.mark.parametrize("request_", [LONG, WHOLE], ids=["add", "set"])
def test_running_out_of_memory_leaves_the_segment_as_it_was(hooked_client, make_client, error, request_):
    def fail(n: int) -> None:
        if n == 2:
            raise error

    twin = make_client()
    for one in (hooked_client, twin):
        one.send(POINTS[0])
    hooked_client.hook.restart(fail)
    with pytest.raises(OutOfMemory):
        hooked_client.send(request_)
    hooked_client.hook.restart(lambda n: None)
    for request in (request_, POINTS[1]):
        assert np.array_equal(hooked_client.mask_after(request), twin.mask_after(request))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported."),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=lambda error: str(error)[:60],
)
def test_a_lack_of_gpu_memory_is_recognized(hooked_client, error):
    def fail(n: int) -> None:
        raise error

    hooked_client.hook.restart(fail)
    with pytest.raises(OutOfMemory):
        hooked_client.send(POINTS[0])


@pytest.mark.parametrize(
    "sentence",
    ["CUDA error: an illegal memory access was encountered", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"],
)
def test_another_fault_of_the_gpu_is_no_lack_of_memory(hooked_client, sentence):
    def fail(n: int) -> None:
        raise RuntimeError(sentence)

    hooked_client.hook.restart(fail)
    with pytest.raises(RuntimeError, match=sentence):
        hooked_client.send(POINTS[0])


def test_a_failed_pass_is_freed_before_the_cache_of_the_gpu_is_emptied(hooked_client, monkeypatch):
    """The session takes its device for a GPU when it handles the error. All else is on the CPU."""
    held, left = [], []

    def fail(n: int) -> None:
        activations = torch.zeros(9)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    session = hooked_client.session
    session._model = dataclasses.replace(session._model, device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append([ref() is not None for ref in held]))
    hooked_client.hook.restart(fail)
    gc.disable()
    try:
        with pytest.raises(OutOfMemory):
            hooked_client.send(POINTS[0])
    finally:
        gc.enable()
    assert left == [[False]]


def test_only_bool_masks_are_copied_from_the_device(client, monkeypatch):
    copied = []
    really_copy = torch.Tensor.cpu

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.dtype)
        return really_copy(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", copy)
    client.send_all([POINTS[0], LONG])
    assert client.progress("refining")
    assert set(copied) == {torch.bool}


def test_a_fault_in_the_network_leaves_the_segment_as_it_was(hooked_client, make_client):
    def fail(n: int) -> None:
        raise RuntimeError("a fault")

    hooked_client.hook.restart(fail)
    with pytest.raises(RuntimeError, match="a fault"):
        hooked_client.send(LONG)
    hooked_client.hook.restart(lambda n: None)
    assert np.array_equal(hooked_client.mask_after(LONG), make_client().mask_after(LONG))
