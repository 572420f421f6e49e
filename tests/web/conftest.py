"""Fixtures for tests of the page."""

from collections.abc import Iterator

from helpers.web_files import PageFiles, start_page_files
import pytest


@pytest.fixture(scope="session")
def page_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageFiles]:
    """The page's readers and writers of image files. Tests are skipped if Node.js or the packages are missing."""
    yield from start_page_files(tmp_path_factory.mktemp("page"))
