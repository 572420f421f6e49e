"""Memory for images: what fits, whose is given up, and what is said where nothing fits."""

from pathlib import Path
import re
import subprocess
import sys

import psutil
import pytest
import torch

from nninteractive_ws.engine import room as module
from nninteractive_ws.engine.room import Room, find_room, free_memory, rooms_for
from nninteractive_ws.errors import OutOfMemory, TooLarge

CPU = torch.device("cpu")


def no_room(asker: object) -> bool:
    return False


def test_what_fits_is_reserved_until_it_is_given_back() -> None:
    room = Room(CPU, 100, no_room)
    assert room.take("a", 60)
    assert room.taken == 60
    assert not room.take("b", 41)
    assert room.take("b", 40)
    assert room.take("a", 50), "an owner's own is replaced"
    room.leave("b")
    room.leave("b")
    assert room.taken == 50


def test_idle_sessions_make_room_one_by_one_and_no_more_than_needed() -> None:
    given_up: list[str] = []

    def make_room(asker: object) -> bool:
        assert asker == "new"
        for owner in ("old", "older"):
            if owner not in given_up:
                given_up.append(owner)
                room.leave(owner)
                return True
        return False

    room = Room(CPU, 100, make_room)
    for owner in ("old", "older", "busy"):
        assert room.take(owner, 30)
    assert not room.take("new", 101), "what never fits costs nobody's session"
    assert given_up == []
    assert room.take("new", 40)
    assert given_up == ["old"]
    assert not room.take("new", 100)
    assert given_up == ["old", "older"]
    assert room.taken == 30 + 40, "who gets no room keeps what it has"


def test_an_image_that_never_fits_is_refused_with_a_crop_that_does() -> None:
    room = Room(CPU, 10**9, no_room)
    with pytest.raises(TooLarge) as refused:
        find_room([room], "a", (1024, 1024, 512), 7)
    said = str(refused.value)
    assert "1024 × 1024 × 512" in said
    assert "1.00 GB for images" in said
    side = int(re.findall(r"instance (\d+) × \1 × \1", said)[0])
    assert find_room([room], "a", (side, side, side), 7) == CPU
    room.leave("a")
    with pytest.raises(TooLarge):
        find_room([room], "a", (side + 2, side + 2, side + 2), 7)


def test_an_image_that_does_not_fit_now_is_refused_with_the_numbers() -> None:
    room = Room(CPU, 10**9, no_room)
    assert find_room([room], "a", (256, 256, 256), 7) == CPU
    with pytest.raises(OutOfMemory, match=r"about 0\.67 GB .*1\.00 GB for images, 0\.34 GB of it in use"):
        find_room([room], "b", (256, 256, 512), 7)


def test_the_next_best_place_is_taken() -> None:
    meta = torch.device("meta")  # in the place of a GPU, which this machine may not have
    rooms = [Room(meta, 10**8, no_room), Room(CPU, 10**9, no_room)]
    assert find_room(rooms, "a", (100, 100, 100), 7) == meta
    assert find_room(rooms, "b", (200, 200, 200), 7) == CPU


def test_the_limit_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (room,) = rooms_for(CPU, 12345, no_room)
    assert room.limit == 12345
    free = psutil.virtual_memory().available
    monkeypatch.setattr(module, "_CGROUP_LIMIT", tmp_path / "not there")
    assert 0.5 * free < rooms_for(CPU, None, no_room)[0].limit < 0.9 * free
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(module, "_CGROUP_LIMIT", limit)
    limit.write_text("max\n")
    assert rooms_for(CPU, None, no_room)[0].limit > 0.5 * free
    limit.write_text("1000000\n")
    assert rooms_for(CPU, None, no_room)[0].limit == 800_000


def test_what_is_free_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rooms = [Room(CPU, 10**9, no_room), Room(CPU, 2 * 10**9, no_room)]
    rooms[1].take("a", 500_000_000)
    found = free_memory(rooms)
    assert found.images == 1_500_000_000
    assert 0 < found.device <= found.device_total <= psutil.virtual_memory().total
    monkeypatch.setattr(module, "_CGROUP_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("1000000\n")
    found = free_memory(rooms)
    assert (found.device, found.device_total) == (1_000_000, 1_000_000)


MEASURE = """
import sys
import numpy as np
import psutil
import torch
sys.path.insert(0, {tests})
from engine_helpers import Client
from nninteractive_ws.engine.catalogue import DEMO, MODEL_FOLDER
from nninteractive_ws.engine.device import DeviceThread
from nninteractive_ws.engine.models import load_model
from nninteractive_ws.engine.room import bytes_per_voxel

cpu, shape = torch.device("cpu"), (340, 300, 250)
device, model = DeviceThread("cpu"), load_model(DEMO, MODEL_FOLDER, cpu)
volume = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
before = psutil.Process().memory_info().rss
client = Client(model, device).set_image(volume)
client.session._upstream.interactions[:] = 1.0  # prompts everywhere: what is zero is not allocated yet
took = psutil.Process().memory_info().rss - before
channels = client.session._upstream.num_interaction_channels
print(volume.size * bytes_per_voxel(cpu, volume.size, channels), took)
device.close()
"""


def test_the_estimate_is_what_an_image_takes() -> None:
    """Measured on the real session with every brick sent, in a process of its own: here, memory that was given back
    would be used again."""
    code = MEASURE.replace("{tests}", repr(str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=110)
    estimate, took = map(int, done.stdout.splitlines()[-1].split())
    print(f"estimated {estimate / 1e6:.0f} MB, took {took / 1e6:.0f} MB")
    assert 0.7 * estimate < took < 1.15 * estimate
