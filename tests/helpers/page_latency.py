"""Benchmark of the web page: ``python -m helpers.page_latency``

``PYTHONPATH`` names the folder of the tests. The page and the Python client send the same points to one server with the
embedded model, in turns. Printed are the times from a click to its first preview and to its result, the bytes of the
first load, and the memory of the tab's process. Chromium renders on the CPU, so the times include software rendering.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
import tempfile
import time
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import psutil
from rich.console import Console
from rich.table import Table

from helpers.browser import PageUser, Voxel, build_page, chromium, page_user
from helpers.end_to_end import server_process
from nninteractive_ws import connect
from nninteractive_ws.demo.phantom import make_phantom

_TIMES = 5
_MIB = 1024**2
_SHAPES = ((160, 128, 112), (512, 512, 256))
#: The liver, as a fraction of the volume.
_POINT = (0.25, 0.4, 0.5)

# Resolves to the times from the release of the mouse button to the frame with the first preview, and to that with the
# result.
_WATCH = """() => {
  window.clickTimes = new Promise((done) => {
    let released = 0, preview = 0;
    addEventListener('pointerup', () => { released = performance.now(); }, { capture: true, once: true });
    const look = () => {
      const row = document.querySelector('#segments li');
      if (released && !preview && Number(row.dataset.voxels) > 0) preview = performance.now();
      if (preview && document.querySelector('#cancel').disabled) {
        return done([preview - released, performance.now() - released]);
      }
      requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
}"""
_LOADED = """() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
  .reduce((sum, entry) => sum + entry.transferSize, 0)"""


@dataclass
class _Times:
    """Milliseconds from a click to the first preview, and to the result."""

    preview: float
    result: float


def _volume(shape: Voxel) -> npt.NDArray[np.int16]:
    """Return the demo's phantom in a shape, by the nearest voxel. A phantom made in a large shape takes minutes."""
    image = make_phantom(0).image
    nearest = (np.arange(n) * old // n for n, old in zip(shape, image.shape, strict=True))
    return np.ascontiguousarray(image[np.ix_(*nearest)])


def _click(user: PageUser, voxel: Voxel) -> _Times:
    user.show(voxel)
    at = user.pixel(voxel)
    user.page.evaluate(_WATCH)
    user.page.mouse.click(*at)
    preview, result = user.page.evaluate("() => window.clickTimes")
    return _Times(preview, result)


def _ask(segment: Any, voxel: Voxel, changes: list[float]) -> _Times:
    changes.clear()
    started = time.perf_counter()
    segment.add_point(voxel)
    result = time.perf_counter()
    return _Times(1000 * (changes[0] - started), 1000 * (result - started))


def _resident_bytes() -> int:
    """Memory of the largest process that renders a tab."""
    tabs = [p for p in psutil.process_iter(["cmdline"]) if "--type=renderer" in (p.info["cmdline"] or [])]
    return max(int(tab.memory_info().rss) for tab in tabs)


def _measure(user: PageUser, address: str, file: Path, voxel: Voxel) -> list[tuple[_Times, _Times]]:
    """Send the same point through the page and the Python client, in turns."""
    user.page.set_input_files("#files", file)
    user.wait_for_status("The image is on the server.")
    volume = np.asarray(nib.nifti1.load(file).dataobj)
    found, changes = [], []
    with connect(address) as session:
        session.set_image(volume)
        session.on("mask_delta", lambda event: changes.append(time.perf_counter()))
        segment = session.segment("liver")
        segment.add_point(voxel)
        segment.undo()
        for _ in range(_TIMES):
            page = _click(user, voxel)
            user.press("Control+z")
            user.wait_for_voxels(0)
            found.append((page, _ask(segment, voxel, changes)))
            segment.undo()
    return found


def main() -> None:
    table = Table("volume", "first preview, ms", "result, ms", "tab, MiB", title="web page, Python client: difference")
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        build_page(folder / "page")
        with server_process("--model", "demo", page=folder / "page") as server:
            for shape in _SHAPES:
                file = folder / "volume.nii"
                nib.save(nib.Nifti1Image(_volume(shape), np.diag([-1, -1, 1, 1])), file)
                i, j, k = (int(n * f) for n, f in zip(shape, _POINT, strict=True))
                with page_user(browser, viewport={"width": 1280, "height": 720}) as user:
                    user.open(server.address)
                    user.wait_for_status("Connected.")
                    loaded = user.page.evaluate(_LOADED)
                    pairs = _measure(user, server.address, file, (i, j, k))
                    memory = _resident_bytes()
                cells = []
                for part in ("preview", "result"):
                    page, client = (median(getattr(pair[n], part) for pair in pairs) for n in (0, 1))
                    cells.append(f"{page:.0f}, {client:.0f}: {page - client:+.0f}, ratio {page / client:.2f}")
                table.add_row(" x ".join(map(str, shape)), *cells, f"{memory / _MIB:.0f}")
    Console(width=110).print(table)
    print(f"first load: {loaded / 1000:.0f} kB")


if __name__ == "__main__":
    main()
