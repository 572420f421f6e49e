"""The hooks of the documentation: links, code blocks, and the reference of the commands."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tools.docs_hooks import PAGES, PICTURES, REPOSITORY, ROOT, on_page_markdown, site_link


@pytest.mark.parametrize(
    ("target", "source", "uri", "expected"),
    [
        ("../../protocol.md", "docs/guides/python.md", "guides/python.md", "../reference/protocol.md"),
        ("batch.md", "docs/guides/python.md", "guides/python.md", "batch.md"),
        ("docs/guides/security.md", "SECURITY.md", "contributing/security-policy.md", "../guides/security.md"),
        ("Screenshots/panel.png", "slicer_module/README.md", "get-started/slicer.md", "Screenshots/panel.png"),
        ("../../compose.yaml", "docs/guides/docker.md", "guides/docker.md", f"{REPOSITORY}/blob/main/compose.yaml"),
        ("../tools", "docs/index.md", "index.md", f"{REPOSITORY}/tree/main/tools"),
        ("no-such-page.md", "docs/index.md", "index.md", "no-such-page.md"),
    ],
)
def test_a_link_leads_to_the_site_or_to_the_repository(target: str, source: str, uri: str, expected: str) -> None:
    assert site_link(target, source, uri) == expected


def convert(markdown: str, uri: str) -> str:
    page = cast(Any, SimpleNamespace(file=SimpleNamespace(src_uri=uri)))
    return on_page_markdown(markdown, page, cast(Any, None), cast(Any, None))


def test_links_in_code_are_unchanged() -> None:
    text = "[a](../../protocol.md#errors)\n\n```sh\necho '[a](../../protocol.md)'\n```\n"
    assert convert(text, "guides/python.md") == text.replace("../../protocol.md#", "../reference/protocol.md#")


def test_the_names_of_the_protocol_blocks_are_omitted() -> None:
    assert convert("```hex add_point\n86\n```\n", "reference/protocol.md") == "```hex\n86\n```\n"


def test_a_marker_becomes_the_reference_of_its_command() -> None:
    text = convert("<!-- command token -->\n", "reference/commands.md")
    assert "nninteractive-ws token NAME [OPTIONS]" in text
    assert "`--remove`" in text


def test_the_sources_of_pages_and_pictures_exist() -> None:
    assert [source for source in (*PAGES, *PICTURES) if not (ROOT / source).exists()] == []
