"""The responses with the files of the web page."""

import gzip
from http import HTTPStatus
from pathlib import Path

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Response

from nninteractive_ws.server.web_page import WebPage, explanation

SCRIPT = b"console.log(1);" * 100
NAME = "page.ABCD2345.js"


@pytest.fixture
def page(tmp_path: Path) -> WebPage:
    (tmp_path / "index.html").write_bytes(b"<!doctype html>")
    (tmp_path / NAME).write_bytes(SCRIPT)
    (tmp_path / f"{NAME}.gz").write_bytes(gzip.compress(SCRIPT))
    (tmp_path / "LICENSES.txt").write_bytes(b"none")
    (tmp_path / "codecs").mkdir()
    (tmp_path / "codecs" / "one.wasm").write_bytes(b"\0asm")
    return WebPage(tmp_path)


def get(page: WebPage, name: str, **headers: str) -> Response:
    file = page.file(name)
    assert file is not None
    return file.respond(Headers({key.replace("_", "-"): value for key, value in headers.items()}))


def test_all_files_are_served_but_compressed_ones(page: WebPage) -> None:
    assert page.is_built
    assert sorted(page.file_names) == ["LICENSES.txt", "codecs/one.wasm", NAME]
    assert page.file("../index.html") is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("index.html", "text/html; charset=utf-8"),
        (NAME, "text/javascript; charset=utf-8"),
        ("codecs/one.wasm", "application/wasm"),  # browsers compile no other type as it arrives
        ("LICENSES.txt", "text/plain; charset=utf-8"),
    ],
)
def test_the_type_and_the_policy_of_a_file(page: WebPage, name: str, kind: str) -> None:
    response = get(page, name)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == kind
    assert response.headers["Content-Length"] == str(len(response.body))
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert "*" not in response.headers["Content-Security-Policy"]


def test_the_opener_policy_is_sent_where_browsers_accept_it(page: WebPage) -> None:
    """They send this header only to https and loopback."""
    assert get(page, "index.html", Sec_Fetch_Site="none").headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "Cross-Origin-Opener-Policy" not in get(page, "index.html").headers


def test_only_names_with_a_hash_are_kept_forever(page: WebPage) -> None:
    assert get(page, NAME).headers["Cache-Control"] == "public, max-age=31536000, immutable"
    for name in ("index.html", "LICENSES.txt", "codecs/one.wasm"):
        assert get(page, name).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("accepted", ["gzip", "br, gzip;q=0.5", "GZIP", "deflate,gzip ; q=1"])
def test_a_file_is_compressed_if_the_client_accepts_it(page: WebPage, accepted: str) -> None:
    response = get(page, NAME, Accept_Encoding=accepted)
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(response.body) == SCRIPT
    assert response.headers["ETag"] != get(page, NAME).headers["ETag"]


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "gzip;q=0.00", "xgzip", "identity"])
def test_a_file_is_not_compressed_otherwise(page: WebPage, accepted: str) -> None:
    response = get(page, NAME, Accept_Encoding=accepted)
    assert "Content-Encoding" not in response.headers
    assert response.headers["Vary"] == "Accept-Encoding"
    assert response.body == SCRIPT


def test_a_file_that_the_client_has_is_not_sent(page: WebPage) -> None:
    tag = get(page, "index.html").headers["ETag"]
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        response = get(page, "index.html", If_None_Match=known)
        assert (response.status_code, response.body) == (304, b"")
        assert response.headers["ETag"] == tag
        assert "Content-Length" not in response.headers
    for other in ('"x"', tag.strip('"'), ""):
        assert get(page, "index.html", If_None_Match=other).status_code == 200


def test_a_missing_page_is_explained_to_browsers(tmp_path: Path) -> None:
    page = WebPage(tmp_path / "page")
    assert not page.is_built
    response = page.index(Headers({"Accept": "text/html,*/*;q=0.8"}))
    assert response is not None
    assert response.status_code == 404
    assert b"pip install &#x27;nninteractive-ws[server]&#x27;" in response.body
    assert page.index(Headers({"Accept": "*/*"})) is None


def test_a_sentence_is_text_in_html() -> None:
    response = explanation(HTTPStatus.FORBIDDEN, "a <b> & c")
    assert b"<p>a &lt;b&gt; &amp; c</p>" in response.body
