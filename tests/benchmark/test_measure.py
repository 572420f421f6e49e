"""Equal conditions for both systems, with clients on a simulated clock: history and lost connections."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nninteractive_ws.benchmark import measure
from nninteractive_ws.benchmark.measure import PassLog
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN, PromptTimes, ServedModel, Server, SystemUnderTest
from nninteractive_ws.benchmark.workload import Workload

FIRST, SECOND = "first", "second"
WORK = Workload(np.zeros((1, 2, 3), np.int16), {("point", True): FIRST, ("point", False): SECOND})
OPENING_S, PROMPT_S, CLOSING_S = 10.0, 1.0, 100.0


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Client:
    """A client whose objects are lists of prompts. ``before``: the state of the object before each prompt."""

    clock: Clock
    created: list["Client"]

    def __init__(self, port: int) -> None:
        self.objects: dict[str, list[str]] = {"": []}
        self.name = ""
        self.undone = ""
        self.before: list[list[str]] = []
        self.created.append(self)

    def open(self, volume: object) -> None:
        self.clock.now += OPENING_S

    def wait_for_upload(self) -> float:
        return self.clock.now

    def send_prompt(self, prompt: str) -> PromptTimes:
        self.before.append(self.mask())
        self.objects[self.name].append(prompt)
        self.clock.now += PROMPT_S
        return PromptTimes(self.clock.now, self.clock.now)

    def mask(self) -> list[str]:
        return list(self.objects[self.name])

    def undo(self) -> None:
        self.undone = self.objects[self.name].pop()

    def reset(self) -> None:
        self.objects[self.name].clear()

    def close(self) -> None:
        self.clock.now += CLOSING_S


class Own(Client):
    def redo(self) -> None:
        self.objects[self.name].append(self.undone)

    def segment(self, name: str) -> None:
        self.name = name
        self.objects.setdefault(name, [])


class Official(Client):
    @classmethod
    def at(cls, port: int) -> "Official":
        return cls(port)

    def start_from(self, mask: list[str]) -> None:
        self.objects[self.name] = list(mask)


@contextmanager
def serve(system: SystemUnderTest, served: ServedModel) -> Iterator[Server]:
    yield Server(1, 1)


@pytest.fixture
def pass_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PassLog:
    """The log of servers without a network, to which the simulated clients connect."""
    monkeypatch.setattr(Client, "clock", Clock(), raising=False)
    monkeypatch.setattr(Client, "created", [], raising=False)
    monkeypatch.setattr(measure, "time", Client.clock)
    monkeypatch.setattr(measure, "OwnClient", Own)
    monkeypatch.setattr(measure, "OfficialClient", Official)
    monkeypatch.setattr(measure, "SYSTEMS", (replace(OFFICIAL, connect=Official), replace(OWN, connect=Own)))
    monkeypatch.setattr(measure, "link", lambda *_: nullcontext(SimpleNamespace(port=1)))
    monkeypatch.setattr(SystemUnderTest, "serve", serve)
    (tmp_path / "passes").touch()
    return PassLog(tmp_path / "passes")


def test_clicks_for_other_objects_start_from_the_same_state_in_every_run(pass_log: PassLog) -> None:
    servers = {system.name: Server(1, 1) for system in (OFFICIAL, OWN)}
    records = list(measure.history(servers, pass_log, WORK, 3))
    for client in Client.created:
        # An empty object, its second prompt, another object, and the first one again.
        assert client.before == 3 * [[], [FIRST], [], [FIRST]], type(client)
    for system, cases in ((OFFICIAL, 3), (OWN, 4)):
        assert len({r.case for r in records if r.system == system.name}) == cases


def test_a_loss_ends_with_the_result_of_the_next_prompt(pass_log: PassLog) -> None:
    records = list(measure.losses(ServedModel(Path(), "cpu"), pass_log, WORK, 1))
    seconds = {(r.case, r.system): r.measured["result, ms"] / 1e3 for r in records}
    assert seconds == {
        ("a cut connection", OFFICIAL.name): PROMPT_S,
        ("a restarted server", OFFICIAL.name): OPENING_S + PROMPT_S,
        ("a cut connection", OWN.name): PROMPT_S,
        ("a restarted server", OWN.name): PROMPT_S,
    }
    official = [client for client in Client.created if isinstance(client, Official)]
    assert [client.before for client in official] == [[[], [FIRST]], [[FIRST, SECOND]]]
    closings = len(Client.created)
    assert Client.clock.now == pytest.approx(3 * OPENING_S + 6 * PROMPT_S + closings * CLOSING_S), "all are closed"
