"""The servers under test have equal settings."""

from pathlib import Path

from nninteractive_ws.benchmark.systems import OFFICIAL, OWN, ServedModel


def test_neither_server_compiles_the_network() -> None:
    official, own = (system.command(1, ServedModel(Path("model"), "cuda:0")) for system in (OFFICIAL, OWN))
    assert "--no-torch-compile" in official  # else it does on a GPU
    assert "--compile" not in own
