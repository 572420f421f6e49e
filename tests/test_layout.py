"""The architecture as the README draws it: a module imports only what stands above it."""

import ast
from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys

import pytest

import nninteractive_ws

PACKAGE = Path(nninteractive_ws.__file__).parent
NAME = "nninteractive_ws"

# From the top down. Inside a package of several modules the same holds, in the order that PARTS gives.
ORDER = [
    "processes", "errors", "redaction", "geometry", "messages", "arrays", "masks", "bricks", "protocol", "history",
    "files", "client", "server", "engine", "evaluation", "demo", "benchmark", "jobs", "cli",
]  # fmt: skip
PARTS = {
    "client": [
        "events", "given", "upload", "journal", "core", "address", "proxies", "reconnect", "tunnel", "dial", "stream",
        "aio", "blocking", "polled", "http", "recognise", "finding", "speed", "checkup",
    ],
    "server": [
        "link", "outbox", "logs", "file_lock", "access", "admission", "buffers", "hosts", "metrics", "workers",
        "sessions", "gateway", "local", "run",
    ],
    "engine": [
        "catalogue", "demo_rules", "demo_network", "device", "memory", "image", "zoomed", "upstream", "shown", "teller",
        "models", "prompts", "session", "dialogue", "hosted", "worker", "bench_models", "bench_sessions",
    ],
    "evaluation": ["user", "measures", "cases", "run", "report", "pictures"],
    "demo": ["phantom", "cases", "tour", "picture"],
    "benchmark": ["link", "work", "sides", "client", "measure", "session_memory", "device", "run", "report"],
    "files": ["cells", "names", "rows", "dicom", "images", "markups"],
    "jobs": ["table", "prompts", "results", "pipeline", "run", "batch"],
    "cli": [
        "console", "progress", "segment", "batch", "evaluate", "bench", "doctor", "models", "serve", "demo", "token",
        "main",
    ],
}  # fmt: skip

# What may be imported only under engine/: the base install, and the gateway, have none of it.
HEAVY = {"torch", "nnInteractive", "nnunetv2", "dynamic_network_architectures"}
# The benchmark's other side is nnInteractive's own client.
OTHER_SIDE = PACKAGE / "benchmark" / "sides.py"


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are written in full"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(dotted: str) -> tuple[int, int] | None:
    """Where a module of ours stands: (package, part), smaller is higher; None for names that are no module."""
    parts = dotted.split(".")[1:]
    if not parts:
        return None
    package = ORDER.index(parts[0])
    if parts[0] not in PARTS or len(parts) == 1 or parts[1] not in PARTS[parts[0]]:
        return package, -1
    return package, PARTS[parts[0]].index(parts[1])


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_what_stands_above(path: Path) -> None:
    own = ".".join((NAME, *path.relative_to(PACKAGE).with_suffix("").parts))
    here = place(own)
    assert here is not None
    for name in imports(path):
        if name != NAME and name.startswith(NAME + "."):
            there = place(name)
            assert there is not None
            assert there < here, f"{own} imports {name}, which stands below it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_is_imported_under_engine_alone(path: Path) -> None:
    if path.parent.name != "engine" and path != OTHER_SIDE:
        assert not HEAVY & {name.split(".")[0] for name in imports(path)}


def test_every_module_has_its_place() -> None:
    listed = {f"{package}/{part}" for package, parts in PARTS.items() for part in parts}
    listed |= {name for name in ORDER if name not in PARTS}
    assert {str(p.relative_to(PACKAGE).with_suffix("")) for p in modules()} == listed


@pytest.mark.parametrize("module", ["nninteractive_ws", "nninteractive_ws.server.run", "nninteractive_ws.cli.main"])
def test_importing_it_brings_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
