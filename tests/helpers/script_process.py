"""A program in a process of its own, which performs actions on request: one JSON array a line, and one answer each."""

import json
from pathlib import Path
import subprocess
from typing import Any


class ScriptFailed(AssertionError):
    """The program ended. The message is the end of its log."""


class ScriptProcess:
    """A running program. Its log is the file ``log`` in ``folder``."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self.folder = process, folder

    def do(self, action: str, *arguments: Any) -> Any:
        """Perform an action, and return its answer. Raises ScriptFailed."""
        assert self._process.stdin is not None
        print(json.dumps([action, *arguments]), file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """Return the next answer. Raises ScriptFailed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ScriptFailed((self.folder / "log").read_text()[-3000:])
        return json.loads(line)
