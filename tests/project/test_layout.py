"""The architecture as docs/explanation/architecture.md describes it, and tests that mirror it."""

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import subprocess
import sys

import pytest

import nninteractive_ws

PACKAGE = Path(nninteractive_ws.__file__).parent
NAME = "nninteractive_ws"

# From the top down. Inside a package, PARTS gives the order of the modules.
ORDER = [
    "interrupts", "processes", "atomic_files", "units", "ip_addresses", "errors", "redaction", "logs", "host_resources",
    "eviction", "background_tasks",
    "geometry", "messages", "arrays", "masks", "layers", "bricks", "protocol", "history", "worker_protocol", "files",
    "client", "doctor", "server", "official_api", "engine", "evaluation", "demo", "benchmark", "jobs", "cli",
    "launch_ray",
]  # fmt: skip
PARTS = {
    "client": [
        "events", "array_like", "inputs", "link", "upload", "image_source", "journal", "ownership", "core", "address",
        "tls", "dns", "tokens", "proxies", "reconnect", "connection_errors", "tunnel", "dial", "stream", "aio",
        "display_grid", "slice_shapes", "notebook_panel", "notebook", "blocking", "polled",
    ],
    "doctor": ["http_probe", "identify", "results", "throughput", "checks"],
    "server": [
        "file_lock", "access", "tls", "worker_tls", "worker_token", "admission", "buffers", "hosts", "launchers",
        "slot", "pool", "web_page", "settings", "sessions", "metrics", "example_volume",
        "http_endpoints", "file_connections", "port_sharing", "official_api", "gateway", "local_server", "run",
    ],
    "official_api": ["nnia", "memory", "payloads", "lease", "leases", "bodies", "responses", "app", "process"],
    "engine": [
        "outbox", "model_registry", "demo_postprocessing", "demo_network", "device_scheduler", "memory", "image",
        "zoom_out", "deferred_imports", "inference_session", "upstream", "preview", "mask_updates", "model_loader",
        "prompts", "running_request", "prediction", "session", "request_queue", "session_host", "worker",
    ],
    "evaluation": ["simulated_user", "measures", "cases", "run", "report", "pictures"],
    "demo": ["phantom", "phantom_file", "cases", "walkthrough", "picture"],
    "benchmark": [
        "network_emulation", "models", "sessions", "workload", "systems", "client", "heavy_user", "measure", "fairness",
        "session_memory", "device", "run", "report",
    ],
    "files": [
        "cells", "names", "paths", "reason", "numbers", "rows", "read_options", "volume", "compression", "finite",
        "identify", "dicom_series", "data_files", "overwrites", "straighten", "nifti", "itk", "dicom_stack",
        "dicom_seg", "images", "pictures", "markups",
    ],
    "jobs": [
        "table", "prompts", "results", "measures", "records", "oddities", "report", "lock", "pipeline", "run", "batch",
    ],
    "cli": [
        "console", "server_options", "progress", "option_values", "read_options", "worker_options", "segment", "batch",
        "evaluate", "bench", "doctor",
        "models", "serve", "worker", "demo", "token", "main",
    ],
}  # fmt: skip

# Imported only under engine/ and benchmark/, because the base install and the gateway have none of these.
HEAVY = {"torch", "nnInteractive", "nnunetv2", "dynamic_network_architectures"}
MAY_IMPORT_HEAVY = {"engine", "benchmark"}
# Two processes that share only worker_protocol and the modules above it.
APART = {"engine": "server", "server": "engine"}


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
    """Return the position of a module (package, part), smaller is higher, or None for other names."""
    parts = dotted.split(".")[1:]
    if not parts:
        return None
    package = ORDER.index(parts[0])
    if parts[0] not in PARTS or len(parts) == 1 or parts[1] not in PARTS[parts[0]]:
        return package, -1
    return package, PARTS[parts[0]].index(parts[1])


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_modules_above(path: Path) -> None:
    own = ".".join((NAME, *path.relative_to(PACKAGE).with_suffix("").parts))
    here = place(own)
    assert here is not None
    for name in imports(path):
        if name != NAME and name.startswith(NAME + "."):
            there = place(name)
            assert there is not None
            assert there < here, f"{own} imports {name}, which stands below it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_is_imported_only_under_engine_and_benchmark(path: Path) -> None:
    if path.parent.name not in MAY_IMPORT_HEAVY:
        assert not HEAVY & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_engine_and_server_do_not_import_each_other(path: Path) -> None:
    other = APART.get(path.parent.name)
    assert not any(name.startswith(f"{NAME}.{other}.") for name in imports(path))


def test_the_architecture_page_has_this_order() -> None:
    page = (PACKAGE.parent / "docs" / "explanation" / "architecture.md").read_text()
    table = page.partition("## Layers\n")[2].partition("These folders are outside")[0]
    assert re.findall(r"^\| `(\w+)(?:\.py|/)` \|", table, re.MULTILINE) == ORDER


def test_every_module_has_a_position() -> None:
    listed = {f"{package}/{part}" for package, parts in PARTS.items() for part in parts}
    listed |= {name for name in ORDER if name not in PARTS}
    assert {str(p.relative_to(PACKAGE).with_suffix("")) for p in modules()} == listed


@pytest.mark.parametrize("module", ["nninteractive_ws", "nninteractive_ws.server.run", "nninteractive_ws.cli.main"])
def test_importing_the_package_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- tests ---------------------------------------------------------------------------------------------------

TESTS = Path(__file__).parents[1]
SOURCE = PACKAGE.parent
#: Folders with tests of more than one module.
NOT_MIRRORED = {"project", "end_to_end", "soak", "helpers", "web"}
SLICER_TESTS = SOURCE / "slicer_module" / "tests"


def relative(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def all_test_code() -> list[Path]:
    return sorted([*TESTS.rglob("*.py"), *SLICER_TESTS.rglob("*.py")])


def mirrored_tests() -> list[Path]:
    return sorted(p for p in TESTS.rglob("test_*.py") if p.relative_to(TESTS).parts[0] not in NOT_MIRRORED)


@pytest.mark.parametrize("path", mirrored_tests(), ids=relative)
def test_a_test_file_is_named_after_the_module_that_it_tests(path: Path) -> None:
    """The name is ``tests/<package>/test_<module>.py`` or ``test_<module>_<aspect>.py``."""
    package = path.relative_to(TESTS).parent.parts[:1]
    folder = SOURCE / "training" if package == ("training",) else PACKAGE.joinpath(*package)
    names = {p.stem for p in folder.glob("*.py")} - {"__init__", "__main__"}
    words = path.stem.removeprefix("test_").split("_")
    assert any("_".join(words[:n]) in names for n in range(1, len(words) + 1))


@pytest.mark.parametrize("path", all_test_code(), ids=relative)
def test_no_test_is_imported(path: Path) -> None:
    """Tests share code through helpers, which are neither tests nor a conftest."""
    for name in imports(path):
        assert not any(part == "conftest" or part.startswith("test_") for part in name.split(".")), name
