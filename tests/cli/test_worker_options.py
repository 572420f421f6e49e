"""Options of ``serve`` about its workers."""

import math
from pathlib import Path

import pytest
import typer

from nninteractive_ws.cli.worker_options import WorkerOptions, check_worker_options, parse_range, pool_settings
from nninteractive_ws.server.launchers import LocalLauncher


def options(**given: object) -> WorkerOptions:
    fields = {"devices": ("auto",), "launch": (), "host": None, "port": 0, "token_file": None, "workers": None}
    return WorkerOptions(**{**fields, "idle_end": None, "python": None, **given})  # type: ignore[arg-type]


def test_without_options_there_is_a_worker_for_each_device() -> None:
    settings, remote = pool_settings(options(devices=("cuda:0", "cuda:1")), ("--model-folder", "m"))
    assert settings.launchers == [
        LocalLauncher("cuda:0", 2, 1, ("--model-folder", "m")),
        LocalLauncher("cuda:1", 2, 1, ("--model-folder", "m")),
    ]
    assert (settings.min_workers, settings.idle_end_s, settings.join_token) == (2, math.inf, "")
    assert remote is None


@pytest.mark.parametrize(
    ("devices", "workers", "expected"),
    [
        ("auto", "4", [("auto", 4, 4)] * 4),
        ("auto", "0..2", [("auto", 2, 2)] * 2),
        ("cpu,cpu", None, [("cpu", 2, 2)] * 2),
        ("cuda:0,cuda:1", "1..3", [("cuda:0", 3, 2), ("cuda:1", 3, 1), ("cuda:0", 3, 2)]),
        ("cuda:0,cuda:1", "1", [("cuda:0", 1, 1)]),
    ],
)
def test_local_workers_know_how_many_share_the_machine_and_the_device(
    devices: str, workers: str | None, expected: list[tuple[str, int, int]]
) -> None:
    settings, _ = pool_settings(options(devices=tuple(devices.split(",")), workers=workers), ())
    assert settings.launchers == [LocalLauncher(*each) for each in expected]


def test_workers_through_ssh_know_how_many_share_their_machine() -> None:
    launch = ("ssh gpu1", "ssh -p 2222 gpu2", "srun")
    settings, _ = pool_settings(options(launch=launch, workers="0..4"), ())
    shares = [(each.name, getattr(each, "workers", None)) for each in settings.launchers]
    assert shares == [("ssh gpu1", 2), ("ssh gpu2", 1), ("srun", None), ("ssh gpu1", 2)]


def test_a_range_of_workers_takes_turns_on_the_launchers() -> None:
    given = options(launch=("srun", "ssh gpu1"), workers="0..3", idle_end=15.0, host="login1", port=1529)
    settings, remote = pool_settings(given, ())
    assert [launcher.name for launcher in settings.launchers] == ["srun", "ssh gpu1", "srun"]
    assert (settings.min_workers, settings.idle_end_s) == (0, 900)
    assert remote is not None
    assert (remote.host, remote.port) == ("login1", 1529)


def test_workers_through_ssh_alone_need_no_open_port() -> None:
    settings, remote = pool_settings(options(launch=("ssh gpu1", "ssh gpu2")), ())
    assert settings.min_workers == 2
    assert remote is None


def test_workers_that_join_need_no_launcher(tmp_path: Path) -> None:
    settings, remote = pool_settings(options(token_file=tmp_path / "workers"), ())
    assert settings.launchers == []
    assert settings.min_workers == 0
    assert settings.join_token
    assert remote is not None


@pytest.mark.parametrize(("text", "expected"), [("2", (2, 2)), ("0..4", (0, 4)), ("4..4", (4, 4)), (None, None)])
def test_ranges(text: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0..0", "4..2", "-1", "1..", "..3", "a", "1.5", "99999"])
def test_invalid_ranges(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"a range such as 0\.\.4"):
        parse_range(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"launch": ("srun",), "devices": ("cuda:0",)}, "choose their device themselves"),
        ({"idle_end": 5.0}, "Expected --workers with it"),
        ({"workers": "4..1"}, "a range such as 0..4"),
    ],
)
def test_invalid_combinations(given: dict[str, object], expected: str) -> None:
    with pytest.raises(typer.BadParameter, match=expected):
        check_worker_options(options(**given))


def test_an_invalid_command_is_a_usage_error() -> None:
    with pytest.raises(typer.BadParameter, match="names no machine"):
        pool_settings(options(launch=("ssh",)), ())
