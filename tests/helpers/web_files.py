"""The page's readers and writers of image files, run by Node.js."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import json
from pathlib import Path
import subprocess
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from helpers.web_sources import bundle, missing_program
from nninteractive_ws.masks import Mask

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Color = tuple[float, float, float]


@dataclass(frozen=True)
class PageVolume:
    """Result of a reading by the page. ``error``: its sentence if it refused. The rest is then empty."""

    error: str = ""
    labels: Sequence[str] = ()
    voxels: npt.NDArray[Any] = field(default_factory=lambda: np.empty((0, 0, 0)))
    ijk_to_lps: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PageFiles:
    """The readers and writers. ``process``: takes a job a line. ``folder``: for its results."""

    process: "subprocess.Popen[str]"
    folder: Path

    def read(self, *files: Path, choice: int = 0) -> PageVolume:
        """Read the chosen image of the files and of the files in folders."""
        return self._run(files, choice, {})

    def save(
        self, path: Path, masks: Mapping[str, Mask | None], colors: Mapping[str, Color], *files: Path
    ) -> PageVolume:
        """Read an image, and save masks (i, j, k) of it as ``path``."""
        segments = []
        for number, (name, mask) in enumerate(masks.items()):
            file = self.folder / f"mask{number}"
            if mask is not None:
                file.write_bytes(np.ascontiguousarray(mask, np.uint8).tobytes())
            segments.append({"name": name, "color": colors[name], "mask": None if mask is None else str(file)})
        return self._run(files, 0, {"save": str(path), "segments": segments})

    def _run(self, files: Sequence[Path], choice: int, more: Mapping[str, Any]) -> PageVolume:
        paths = [str(path) for file in files for path in (sorted(file.rglob("*")) if file.is_dir() else [file])]
        voxels = self.folder / "voxels"
        job = {"files": paths, "choice": choice, "voxels": str(voxels), **more}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(job)}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the program failed: see its standard error"
        result = json.loads(line)
        if "error" in result:
            return PageVolume(error=result["error"])
        array = np.fromfile(voxels, result["dtype"]).reshape(result["shape"], order="F")
        return PageVolume("", result["labels"], array, _RAS_LPS @ np.array(result["affine"]), result["notes"])


def start_page_files(folder: Path) -> Iterator[PageFiles]:
    """Bundle and run the readers and writers. Skips the test if Node.js or the page's packages are missing."""
    if (reason := missing_program()) is not None:
        pytest.skip(reason)
    program = bundle("test/files/run.ts", folder)
    pipe = subprocess.PIPE
    with subprocess.Popen(["node", program], cwd=folder, stdin=pipe, stdout=pipe, text=True) as process:
        yield PageFiles(process, folder)
