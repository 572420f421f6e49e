"""JupyterLab in Chromium, operated by mouse and keyboard: ``python -m helpers.notebook_script FOLDER CHROMIUM``

It opens an empty notebook in the folder. Each line of the input is a JSON list, an action of ``User`` with its
arguments. The answer is a line of JSON.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import json
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

from playwright.sync_api import Page, ViewportSize, sync_playwright

from helpers.chromium import ARGUMENTS

TIMEOUT_MS = 120_000
WINDOW: ViewportSize = {"width": 1000, "height": 1000}
NOTEBOOK = {
    "cells": [{"cell_type": "code", "id": "0", "source": "", "metadata": {}, "outputs": [], "execution_count": None}],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"codeCellConfig": {"autoClosingBrackets": False}},
}


class User:
    """Uses a notebook as a person does. Positions are pixels of the view's canvas."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def run(self, code: str) -> str:
        """Run code in the last cell, and return its text output."""
        cell = self._page.locator(".jp-Notebook .jp-Cell").last.element_handle()
        assert cell is not None
        editor = cell.query_selector(".cm-content")
        assert editor is not None
        editor.click()
        self._page.keyboard.insert_text(code)
        self._page.keyboard.press("Shift+Enter")
        done = "cell => /\\[\\d+\\]/.test(cell.querySelector('.jp-InputPrompt').textContent)"
        self._page.wait_for_function(done, arg=cell)
        return "\n".join(output.inner_text() for output in cell.query_selector_all(".jp-RenderedText"))

    def wait_for_text(self, text: str) -> str:
        """Wait until a text is in the view's lines, and return the line."""
        line = self._page.locator(".widget-html", has_text=text).last
        line.wait_for()
        shown: str = line.inner_text()
        return shown

    def select(self, button: str) -> None:
        self._page.get_by_role("button", name=button, exact=True).click()

    def new_segment(self, name: str) -> None:
        self._page.get_by_placeholder("Name of a new segment").fill(name)
        self._page.keyboard.press("Enter")

    def drag(self, *path: Sequence[float]) -> None:
        """Press the left button at a position, move to the others, and release it. One position is a click."""
        canvas = self._page.locator(".jp-OutputArea canvas").first
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        for n, (x, y) in enumerate(path):
            self._page.mouse.move(box["x"] + x, box["y"] + y)
            if n == 0:
                self._page.mouse.down()
        self._page.mouse.up()

    def canvas(self, path: str) -> None:
        """Save a picture of the canvas."""
        self._page.locator(".jp-OutputArea canvas").first.screenshot(path=path)

    def output(self, path: str) -> None:
        """Save a picture of the view."""
        self._page.locator(".jp-OutputArea-output", has=self._page.locator("canvas")).screenshot(path=path)


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """Run JupyterLab on a free port of loopback, and yield the address of the notebook."""
    (folder / "notebook.ipynb").write_text(json.dumps(NOTEBOOK))
    settings = folder / "settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={folder}", f"--LabApp.app_settings_dir={settings}"]
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        try:
            server = _wait_for_server(folder)
            yield f"{server['url']}lab/tree/notebook.ipynb?token={server['token']}"
        finally:
            process.terminate()


def _wait_for_server(folder: Path) -> dict[str, Any]:
    """Return JupyterLab's description of itself. Raises TimeoutError."""
    until = time.monotonic() + TIMEOUT_MS / 1000
    while time.monotonic() < until:
        for file in (folder / "runtime").glob("jpserver-*.json"):
            described: dict[str, Any] = json.loads(file.read_text())
            return described
        time.sleep(0.1)
    raise TimeoutError


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    folder, chromium = sys.argv[1:]
    with jupyter_lab(Path(folder)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(address)
        page.get_by_text("| Idle").wait_for()
        page.keyboard.press("Control+B")  # hides the list of files
        user = User(page)
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            action, *arguments = json.loads(line)
            print(json.dumps(getattr(user, action)(*arguments)), file=answers, flush=True)
        browser.close()


if __name__ == "__main__":
    main()
