"""Redaction of secrets in addresses, proxies and logs, and in text from servers."""

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

from helpers.end_to_end import run, wait_until
from helpers.http import answers, free_port, http_server
from hypothesis import assume, given
from hypothesis import strategies as st
import pytest

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.cli.doctor import _document
from nninteractive_ws.client.address import parse_address, printable_address
from nninteractive_ws.doctor.checks import Doctor
from nninteractive_ws.doctor.results import StepResult
from nninteractive_ws.redaction import printable, redact

SECRET = "hunter2-S3cret"
TOKEN = "nws_hunter2-S3cret"


def error_text(error: BaseException | None) -> str:
    """Return the text of an error that a traceback prints."""
    if error is None:
        return ""
    context = None if error.__suppress_context__ else error.__context__
    return f"{error} {error!r} {error.args} {error_text(error.__cause__)} {error_text(context)}"


def findings(address: str, token: str | None = None) -> list[StepResult]:
    async def work() -> list[StepResult]:
        return [finding async for finding in Doctor(address, token=token, ca=None).run()]

    return asyncio.run(asyncio.wait_for(work(), 60))


def shown_by_doctor(address: str, token: str | None = None) -> str:
    found = findings(address, token)
    return json.dumps(_document(address, found, found[-1]))


# ---- addresses ------------------------------------------------------------------------------------------------

ODD = st.text(st.sampled_from(" :/?#@[]%&=;\\\"'<>{}|^~\t\n.-1aé\x00\u200b"), max_size=4)
SCHEMES = st.sampled_from(["", "ws://", "wss://", "http://", "https://", "ssh://", "ftp://", "ws:/", "://", "//"])
PLACES = ["scheme", "user", "password", "port", "query", "fragment", "token in host", "token in path"]


def refusal(text: str) -> errors.BadAddress | None:
    """Return the error for an address, or None if it is valid."""
    try:
        parse_address(text)
    except errors.BadAddress as e:
        return e
    return None


@given(scheme=SCHEMES, parts=st.lists(ODD, min_size=2, max_size=5), secret=st.sampled_from([SECRET, TOKEN]))
def test_malformed_addresses_are_redacted_in_errors(scheme: str, parts: list[str], secret: str) -> None:
    text = scheme + secret.join(parts)
    refused = refusal(text)
    assume(refused is not None)
    assert secret.lower() not in error_text(refused).lower()
    assert secret.lower() not in printable_address(text).lower()
    assert secret.lower() not in shown_by_doctor(text).lower()


@given(scheme=SCHEMES, place=st.sampled_from(PLACES), odd=ODD)
def test_a_secret_in_any_part_of_a_url_is_refused(scheme: str, place: str, odd: str) -> None:
    text = {
        "scheme": f"{SECRET}{odd}://gpu-box",
        "user": f"{scheme}{SECRET}{odd}@gpu-box",
        "password": f"{scheme}anna:{odd}{SECRET}{odd}@gpu-box",
        "port": f"{scheme}gpu-box:{odd}{SECRET}",
        "query": f"{scheme}gpu-box/?{odd}{SECRET}",
        "fragment": f"{scheme}gpu-box/{odd}#{SECRET}",
        "token in host": f"{scheme}{odd}{TOKEN}{odd}",
        "token in path": f"{scheme}gpu-box/{odd}{TOKEN}{odd}",
    }[place]
    assume(not (place == "user" and scheme == "ssh://"))  # a user name
    assume(not (place in ("password", "port") and "/" in odd))  # a path, which must not contain secrets
    refused = refusal(text)
    assert refused is not None
    assert SECRET.lower() not in error_text(refused).lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    "address",
    [f"anna:{SECRET}@gpu-box", f"ws://anna:{SECRET}@gpu-box:port", f"https://{TOKEN}@gpu-box", f"gpu-box:{SECRET}",
     f"ws://gpu-box/?token={SECRET}", f"ssh://anna:{SECRET}@gpu-box", f"ws://[{SECRET}", f"{SECRET}://gpu-box",
     f"ws://gpu-box/{TOKEN}/"],
)  # fmt: skip
def test_doctor_and_clients_redact_secrets_in_addresses(address: str) -> None:
    command = [sys.executable, "-m", "nninteractive_ws", "doctor", address]
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert SECRET not in done.stdout + done.stderr
    with pytest.raises(errors.BadAddress) as refused:
        nni.connect(address)
    assert SECRET not in error_text(refused.value)
    with pytest.raises(errors.BadAddress) as refused:
        nni.PolledSession(address)
    assert SECRET not in error_text(refused.value)


# ---- proxies --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ws_proxy", "wss_proxy", "socks_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    "proxy",
    [f"ftp://anna:{SECRET}@proxy:3128", f"anna:{SECRET}@proxy:3128", f"http://anna:{SECRET}/x@proxy:3128",
     f"http://{SECRET}@proxy:3128", f"http://anna:{SECRET}@proxy:3128/path", f"http://anna:{SECRET}@proxy:port",
     f"http://proxy:{SECRET}", f"http://proxy/?{SECRET}", f"http://proxy#{SECRET}", f"http://[{SECRET}", f"{SECRET}",
     f"{SECRET}://proxy", f"http://anna:%ff{SECRET}@proxy:3128", f"http://anna:{SECRET}@", f"http://anna:{SECRET}@:1"],
)  # fmt: skip
def test_errors_redact_an_invalid_proxy(no_proxies: None, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(errors.ConnectionFailed, match=r"proxy address .* is invalid") as refused:
        run(nni.aconnect("gpu-box.invalid:1528"))
    assert SECRET.lower() not in error_text(refused.value).lower()
    last = findings("gpu-box.invalid:1528")[-1]
    assert (last.step, last.code) == ("proxy", "bad_proxy")
    assert SECRET.lower() not in shown_by_doctor("gpu-box.invalid:1528").lower()


@pytest.mark.parametrize("status", [None, 403, 407])
def test_errors_redact_the_password_of_a_proxy(
    no_proxies: None, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    def attempt(place: str) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://anna:{SECRET}@{place}")
        with pytest.raises(errors.ConnectionFailed) as refused:
            run(nni.aconnect("gpu-box.invalid:1528", token=TOKEN))
        assert SECRET not in error_text(refused.value)
        shown = shown_by_doctor("gpu-box.invalid:1528", TOKEN)
        assert f"http://{place}" in shown
        assert SECRET not in shown

    if status is None:
        attempt(f"127.0.0.1:{free_port()}")
        return
    handler = answers(status, f"Proxy-Authorization: Basic {SECRET}")
    handler.do_CONNECT = handler.do_GET  # type: ignore[attr-defined]
    with http_server(handler) as place:
        attempt(place)


# ---- text from servers, and logs ------------------------------------------------------------------------------


def polled_error(address: str, token: str) -> str:
    session = nni.PolledSession(address, token=token)
    happened: list[Any] = []
    wait_until(lambda: happened.extend(session.poll()) or session.closed, 30)
    return " ".join(map(repr, happened))


@pytest.mark.parametrize("status", [200, 401, 403, 404, 421, 503])
@pytest.mark.parametrize(
    "form", ["{}", "Bearer {}", "you sent Authorization: {}, --allow-host origin stopped", "\x1b[31m{}"]
)
def test_errors_redact_a_token_that_the_server_repeats(status: int, form: str) -> None:
    token = "of-no-known-form"
    with http_server(answers(status, form.format(token))) as address:
        with pytest.raises(errors.Error) as refused:
            run(nni.aconnect(address, token=token))
        output = polled_error(address, token)
        doctor = shown_by_doctor(address, token)
    for shown in (str(refused.value), repr(refused.value), output, doctor):
        assert token not in shown
        assert "\x1b" not in shown
        assert "\\x1b" not in shown


def test_the_log_of_websockets_at_its_lowest_level(server: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with nni.connect(server, token=SECRET):
        pass
    session = nni.PolledSession(server, token=SECRET)
    happened: list[Any] = []
    wait_until(lambda: happened.extend(session.poll()) or session._core.welcome, 60)
    session.close()
    assert caplog.text.count("Authorization: ***") == 2
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://anna:pa/ss@word@proxy:3128/x now", "at http://***@proxy:3128/x now"),
        ("see wss://gpu-box/lab?k=1#t, please", "see wss://gpu-box/lab?*** please"),
        ("Authorization: Bearer abc def", "Authorization: ***"),
        ("bearer abc, nws_abc-d.", "bearer *** ***."),
        ("token=abc&x=1 API_KEY=abc", "token=***&x=1 API_KEY=***"),
        ("Nothing listens at gpu-box:1528.", "Nothing listens at gpu-box:1528."),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_redact_given_secrets_and_control_characters() -> None:
    assert redact("ab abc a", "ab", "abc", None, "") == "*** *** a"
    assert printable("a\x1b[0m\r\nb\u202e") == "a [0m  b "
