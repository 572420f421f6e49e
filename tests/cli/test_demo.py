"""The table of ``demo``, and ``demo --open``: the web page on the phantom, in a browser or without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
import os
from pathlib import Path
import re
import signal
import subprocess
import sys

from helpers.end_to_end import command_with_page, health, wait_until
from helpers.web_page import write_page
import pytest
from rich.console import Console

from nninteractive_ws.cli.demo import results_table
from nninteractive_ws.demo.walkthrough import ORGANS, OrganResult
from nninteractive_ws.interrupts import INTERRUPTED

#: Variables that name a browser, or a screen for one.
BROWSERS = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")


@contextmanager
def demo(page: Path, log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``demo --open`` with a page, until the end of the block."""
    clean = {name: value for name, value in os.environ.items() if name not in BROWSERS}
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command_with_page(page, "demo", "--open"), stderr=stderr, cwd=log.parent, env={**clean, **environment}
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def opened_page(log: Path) -> str:
    """Wait until an address is printed, and return it."""
    wait_until(lambda: "until Ctrl-C" in log.read_text(), 60)
    (address,) = re.findall(r"http://127\.0\.0\.1:\d+/\?example\b", log.read_text())
    return str(address)


@pytest.mark.skipif(sys.platform == "win32", reason="a browser that is a shell script")
def test_the_browser_opens_the_page_until_ctrl_c(tmp_path: Path) -> None:
    browser, asked = tmp_path / "browser", tmp_path / "asked"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{asked}"\n')
    browser.chmod(0o755)
    log = tmp_path / "log"
    with demo(write_page(tmp_path / "page"), log, BROWSER=f"{browser} %s") as process:
        address = opened_page(log)
        assert asked.read_text().strip() == address
        assert health(address.removesuffix("/?example"))["model"] == "demo"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == INTERRUPTED
    assert "Stopped." in log.read_text()
    assert not (tmp_path / "demo-output").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="these systems always have a browser")
def test_without_a_browser_the_address_is_printed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with demo(write_page(tmp_path / "page"), log) as process:
        port = opened_page(log).removeprefix("http://127.0.0.1:").partition("/")[0]
        assert "No browser was found." in log.read_text()
        assert f"ssh -L {port}:127.0.0.1:{port} USER@THIS_MACHINE" in log.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == INTERRUPTED


def test_without_a_page_the_demo_says_how_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        command_with_page(tmp_path / "none", "demo", "--open"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "This server has no web page" in done.stderr
    assert "pip install 'nninteractive-ws[server]'" in done.stderr


def test_another_seed_is_refused(tmp_path: Path) -> None:
    command = command_with_page(write_page(tmp_path / "page"), "demo", "--open", "--seed", "3")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "phantom of seed 0" in done.stderr


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_has_one_line_for_each_organ(width: int) -> None:
    results = [
        OrganResult(organ, list(prompts), 0.9571, 12.345, 123.456, 1_679_234, 12_345)
        for organ, prompts in ORGANS.items()
    ]
    output = StringIO()
    Console(width=width, file=output).print(results_table(results))
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    rows = [line for line in lines if any(line.startswith(organ) for organ in ORGANS)]
    for organ, row in zip(ORGANS, rows, strict=True):
        figures = [str(len(ORGANS[organ])), "0.957", "12.35", "123.46", "1,679.2", "12.3"]
        assert row.removeprefix(organ).split() == figures
    assert max(map(len, lines)) <= width
    assert lines.index(rows[-1]) - lines.index(rows[0]) == len(rows) - 1, "no line between them"
