"""Tokens as users paste them, in each place that takes one."""

import asyncio
from http.server import BaseHTTPRequestHandler
import json
import logging
import traceback

from helpers.end_to_end import run, wait_until
from helpers.http import http_server
import pytest

import nninteractive_ws as nni
from nninteractive_ws.cli.doctor import _document
from nninteractive_ws.cli.server_options import TOKEN_VARIABLE, server_options
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.dial import dial
from nninteractive_ws.client.tokens import checked_token
from nninteractive_ws.doctor.checks import Doctor
from nninteractive_ws.errors import Error, Unauthorized

WORD = "hunter2"
INVALID = {
    "line break": f"nws_{WORD}\nmore",
    "carriage return": f"{WORD}\rmore",
    "typographic quotes": f"\u201cnws_{WORD}\u201d",
    "NUL": f"{WORD}\0",
    "escape": f"\x1b[31m{WORD}",
    "Japanese": f"nws_{WORD}\u65e5\u672c",
    "Cyrillic a": f"{WORD}\u0430",
    "byte order mark": f"\ufeff{WORD}",
    "zero width space": f"{WORD}\u200b",
    "tab inside": f"{WORD}\t{WORD}",
    "no UTF-8": f"{WORD}\udcff",
}
invalid = pytest.mark.parametrize("token", INVALID.values(), ids=INVALID)


@pytest.mark.parametrize("token", ["nws_a-B", " nws_a-B", "nws_a-B\n", "\t\r\n nws_a-B \x0b\u00a0\u2028"])
def test_white_space_around_a_token_is_removed(token: str) -> None:
    assert checked_token(token) == "nws_a-B"


@pytest.mark.parametrize("token", [None, "", " ", "\r\n"])
def test_no_token(token: str | None) -> None:
    assert checked_token(token) is None


@invalid
def test_errors_do_not_contain_an_invalid_token(
    token: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("http_proxy", "")
    address = "127.0.0.1:9"

    def options() -> object:
        with monkeypatch.context() as patch:
            patch.setattr("os.environ", {TOKEN_VARIABLE: token})
            return server_options(address, None, None, None)

    uses = [
        lambda: nni.connect(address, token=token),
        lambda: run(nni.aconnect(address, token=token)),
        lambda: run(nni.aconnect("ssh://box", token=token)),
        lambda: run(dial(parse_address(address), token=token)),
        lambda: nni.PolledSession(address, token=token),
        options,
    ]
    for use in uses:
        with pytest.raises(Unauthorized, match="contains characters that cannot be sent") as refused:
            use()
        assert WORD not in "".join(traceback.format_exception(refused.value))
    assert WORD not in caplog.text


class _Recorder(BaseHTTPRequestHandler):
    tokens: list[str | None]

    def do_GET(self) -> None:
        self.tokens.append(self.headers["Authorization"])
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@invalid
def test_doctor_reports_an_invalid_token(token: str) -> None:
    handler = type("Handler", (_Recorder,), {"tokens": []})

    async def work(address: str) -> str:
        results = [result async for result in Doctor(address, token=token, ca=None).run()]
        assert (results[-1].step, results[-1].code) == ("websocket", "token_wrong")
        return json.dumps(_document(address, results, results[-1])) + repr(results)

    with http_server(handler) as address:
        shown = asyncio.run(work(address))
    assert WORD not in shown
    assert "contains characters that cannot be sent" in shown
    assert set(handler.tokens) == {None}  # type: ignore[attr-defined]


def test_the_clients_send_the_token_without_white_space() -> None:
    handler = type("Handler", (_Recorder,), {"tokens": []})
    with http_server(handler) as address:
        with pytest.raises(Error):
            run(nni.aconnect(address, token="\tnws_a \r\n"))
        session = nni.PolledSession(address, token="\tnws_a \r\n")
        wait_until(lambda: session.poll() and session.closed, 30)
    assert handler.tokens == ["Bearer nws_a"] * 2  # type: ignore[attr-defined]
