"""Selection of unit tests: those that start no process and need no torch."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
#: Modules that start processes or need torch. A test file that imports one, also through a helper, has no unit tests.
NOT_UNIT = (
    "subprocess",
    "torch",
    "nnInteractive",
    "nninteractive_ws.benchmark",
    "nninteractive_ws.engine",
    "nninteractive_ws.server.example_volume",
    "nninteractive_ws.server.local_server",
)
#: Fixtures of tests/conftest.py that start a server or load a model.
NOT_UNIT_FIXTURES = {"demo_model", "device", "driver", "quick_model", "server"}


def _imports(path: Path) -> Iterator[str]:
    """Return the modules that a file imports, without imports inside functions."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def may_have_unit_tests(path: Path) -> bool:
    """Whether a file imports no module that starts processes or needs torch, directly or through helpers."""
    for name in _imports(path):
        if any(name == module or name.startswith(f"{module}.") for module in NOT_UNIT):
            return False
        package, _, rest = name.partition(".")
        helper = TESTS / "helpers" / f"{rest.partition('.')[0]}.py"
        if package == "helpers" and helper.exists() and not may_have_unit_tests(helper):
            return False
    return True
