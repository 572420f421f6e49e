"""Fixtures for tests of the page."""

from collections.abc import Iterator
from contextlib import ExitStack
import os
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from helpers.browser import build_page, chromium
from helpers.end_to_end import ServerProcess, server_process
from helpers.fast_server import NETWORK, write_model
from helpers.web_files import PageFiles, start_page_files
import pytest


@pytest.fixture(scope="session")
def page_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageFiles]:
    """The page's readers and writers of image files. Tests are skipped if Node.js or the packages are missing."""
    yield from start_page_files(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built page. Tests are skipped if Node.js or the packages are missing."""
    folder = tmp_path_factory.mktemp("built") / "page"
    build_page(folder)
    return folder


# Playwright's event loop runs as long as the browser, so that other modules could not start one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def start(page_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that starts a server with a network of the tests, and these arguments. ``log``: a file for its log."""
    with ExitStack() as running, pytest.MonkeyPatch.context() as patch:
        # The worker imports the network.
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path).rstrip(os.pathsep))

        def start_server(*arguments: str, network: str = NETWORK, log: Path | None = None) -> ServerProcess:
            model = tmp_path_factory.mktemp("model") / "quick"
            write_model(model, network)
            stderr = None if log is None else running.enter_context(log.open("w"))
            started = server_process("--model", str(model), *arguments, page=page_folder, stderr=stderr)
            return running.enter_context(started)

        yield start_server


@pytest.fixture(scope="module")
def server(start: Any) -> str:
    """The address of a server."""
    address: str = start().address
    return address


@pytest.fixture(scope="module")
def example(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example image."""
    path = tmp_path_factory.mktemp("example") / "example.nii.gz"
    with urlopen(server.replace("ws://", "http://") + "/example.nii.gz", timeout=60) as answer:
        path.write_bytes(answer.read())
    return path
