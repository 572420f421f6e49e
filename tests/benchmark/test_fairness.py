"""Clicks and a heavy user, alone and at once, on a simulated clock."""

from dataclasses import replace
import json
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from nninteractive_ws.benchmark import fairness
from nninteractive_ws.benchmark.measure import PassLog
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN, OWN_HTTP, PromptTimes, Server
from nninteractive_ws.benchmark.workload import Workload

WORK = Workload(np.zeros((1, 2, 3), np.int16), {("point", True): "click"})
#: Seconds of a click, alone and beside the heavy user.
CLICK_S = {OFFICIAL.name: (1.0, 6.0), OWN_HTTP.name: (1.0, 2.0), OWN.name: (1.0, 1.5)}
ALONE, BESIDE = "heavy user alone, prompts a minute", "heavy user beside clicks, prompts a minute"
SHARE = "share that the heavy user keeps, %"


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class HeavyUser:
    """The process of a heavy user. Its prompts take five seconds alone, and ten beside clicks."""

    clock: Clock
    running = False
    #: When each of them was ready and told to stop.
    periods: list[tuple[float, float]]

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = MagicMock()
        self.ready = 0.0

    def read_line(self) -> str:
        if HeavyUser.running:
            HeavyUser.running = False
            joined = self.ready + fairness._HEAVY_ALONE_S
            return json.dumps([*np.arange(self.ready + 4, joined, 5), *np.arange(joined + 8, self.clock.now + 10, 10)])
        HeavyUser.running = True
        self.ready = self.clock.now
        return ""

    def write_line(self) -> None:
        self.periods.append((self.ready, self.clock.now))


def test_both_users_are_measured_alone_and_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()
    monkeypatch.setattr(HeavyUser, "clock", clock, raising=False)
    monkeypatch.setattr(HeavyUser, "periods", [], raising=False)
    clicks: dict[str, list[float]] = {name: [] for name in CLICK_S}

    def connect(name: str) -> MagicMock:
        def send_prompt(_: object) -> PromptTimes:
            if HeavyUser.running:
                clicks[name].append(clock.now)
            clock.now += CLICK_S[name][HeavyUser.running]
            return PromptTimes(clock.now, clock.now)

        client = MagicMock()
        client.send_prompt.side_effect = send_prompt
        return client

    systems = [replace(s, connect=lambda _, name=s.name: connect(name)) for s in (OFFICIAL, OWN_HTTP, OWN)]
    for name, system in zip(("OFFICIAL", "OWN_HTTP", "OWN"), systems, strict=True):
        monkeypatch.setattr(fairness, name, system)
    monkeypatch.setattr(fairness, "_SYSTEMS", systems)
    monkeypatch.setattr(fairness, "time", clock)
    monkeypatch.setattr(fairness, "ClientProcess", HeavyUser)
    (tmp_path / "passes").touch()
    servers = {system.name: Server(1, 1) for system in (OFFICIAL, OWN)}
    records = list(fairness.fairness(servers, PassLog(tmp_path / "passes"), WORK, tmp_path, 1))

    for times, (ready, stopped) in zip(clicks.values(), HeavyUser.periods, strict=True):
        assert times[0] == ready + 30, "the heavy user is alone before"
        assert 60 <= stopped - ready < 67, "clicks go on for as long on each system"
    for record in records:
        assert record.measured["a click alone, median s"] == pytest.approx(1)
        assert (record.measured[ALONE], record.measured[BESIDE]) == pytest.approx((12, 6))
        assert record.measured[SHARE] == pytest.approx(50)


def test_only_whole_prompts_of_the_heavy_user_count() -> None:
    # The prompt at 30 s is in progress when clicks begin at 32 s, and the prompt at 68 s when they end at 70 s.
    results = [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 38.0, 48.0, 58.0, 68.0, 74.0]
    assert fairness._heavy_summary(results, 0.0, 32.0, 70.0) == pytest.approx({ALONE: 12, BESIDE: 6, SHARE: 50})


def test_rates_without_two_results_are_left_out() -> None:
    assert fairness._heavy_summary([5.0, 10.0, 40.0], 0.0, 30.0, 60.0) == pytest.approx({ALONE: 12})
