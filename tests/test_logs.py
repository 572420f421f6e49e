"""The log as it comes out of a real process."""

from datetime import UTC, datetime, timedelta
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from nninteractive_ws.server.access import new_token
from nninteractive_ws.server.logs import configure_logging, without_secrets

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def logged(code: str, level: str = "info", as_json: bool = False) -> str:
    """What a process writes to standard error that configures its log and then runs some code."""
    program = (
        "import logging, sys, warnings\nfrom nninteractive_ws.server.logs import configure_logging\n"
        f"configure_logging('gateway', {level!r}, {as_json})\nlog = logging.getLogger('nninteractive_ws.test')\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def objects(code: str, level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(code, level, as_json=True).splitlines()]


def test_a_line_of_text() -> None:
    said = logged("log.warning('closed after %d s', 3, extra={'session': 'ab12', 'user': 'alice', 'request': 7})")
    assert re.fullmatch(
        TIME + r" gateway WARNING nninteractive_ws\.test: closed after 3 s session=ab12 user=alice request=7\n", said
    )


def test_without_fields_a_line_ends_with_its_message() -> None:
    assert logged("log.info('started')").endswith("nninteractive_ws.test: started\n")


def test_fields_can_be_told_apart() -> None:
    shown = {
        "two words": '"two words"',
        "": '""',
        'say "a"': r'"say \"a\""',
        "a=b": '"a=b"',
        "Zoë": "Zoë",
        None: "None",
        1.5: "1.5",
    }
    said = logged(f"for value in {list(shown)!r}: log.info('x', extra={{'a': value, 'b': 1}})")
    assert [line.partition(": x ")[2] for line in said.splitlines()] == [f"a={word} b=1" for word in shown.values()]


def test_an_object_in_json() -> None:
    (found,) = objects("log.warning('closed after %d s', 3, extra={'session': 'ab12', 'request': 7})")
    at = datetime.fromisoformat(found.pop("time"))
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert found == {
        "process": "gateway",
        "level": "WARNING",
        "logger": "nninteractive_ws.test",
        "message": "closed after 3 s",
        "session": "ab12",
        "request": 7,
    }


def test_a_client_cannot_write_lines_of_its_own() -> None:
    evil = "x\n2026-01-01 00:00:00,000 gateway INFO a: b\r\x1b[31m\u2028"
    code = f"log.info('opened by %s', {evil!r}, extra={{'user': {evil!r}}})"
    said = logged(code)
    assert len(said.splitlines()) == 1
    assert said.rstrip("\n").isprintable()
    (found,) = objects(code)
    assert found["user"] == evil


FAILING = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')"


def test_an_exception_comes_with_its_traceback() -> None:
    first, *rest = logged(FAILING).splitlines()
    assert first.endswith("failed")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ZeroDivisionError: division by zero"
    (found,) = objects(FAILING)
    assert found["message"] == "failed"
    assert found["exc_info"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("INFO", 2), ("error", 1), ("critical", 0)])
def test_the_level(level: str, count: int) -> None:
    assert len(logged("log.debug('a'); log.info('b'); log.error('c')", level).splitlines()) == count


@pytest.mark.parametrize(("level", "said"), [("debug", ["b"]), ("warning", ["b"]), ("error", [])])
def test_websockets_says_only_what_is_wrong(level: str, said: list[str]) -> None:
    code = (
        "log = logging.getLogger('websockets.server')\nlog.info('a'); log.warning('b', extra={'websocket': object()})"
    )
    assert [line.rpartition(": ")[2] for line in logged(code, level).splitlines()] == said
    assert ["websocket" in found for found in objects(code, level)] == [False] * len(said)


def test_warnings_are_in_the_log() -> None:
    (found,) = objects("warnings.warn('old', stacklevel=1)")
    assert (found["level"], found["logger"]) == ("WARNING", "py.warnings")
    assert "UserWarning: old" in found["message"]


def test_configuring_again_replaces() -> None:
    said = logged("configure_logging('worker', 'info', False)\nlog.info('once')")
    assert re.fullmatch(TIME + r" worker INFO nninteractive_ws\.test: once\n", said)


def test_an_unknown_level() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("worker", "loud", False)


# ---- secrets ----------------------------------------------------------------------------------------------

# {0} is a token of ours, {1} a secret that only what stands before it gives away.
LEAKS = [
    "log.info('token {0} came')",
    "log.info('token %s came', '{0}')",
    "log.info('headers %s', {{'Authorization': 'Bearer {1}'}})",
    "log.info('> Authorization: bearer   {1}')",
    "log.info('Bearer\\t{1}')",
    "log.info('x', extra={{'user': '{0}', 'header': 'Bearer {1}'}})",
    "log.info(b'Bearer {1}')",
    "log.info('a\\nnws_{0}')",
    "log.info('a\\n{0}'), log.info('a\\nBearer {1}')",
    "try:\n    raise ValueError('{0}\\n{0}\\tBearer\\n{1}')\nexcept ValueError:\n    log.exception('failed')",
    "log.info('x', stack_info=True, extra={{'url': 'wss://a/?token={0}&b'}})",
    "warnings.warn('Bearer {1}', stacklevel=1)",
]


@pytest.mark.parametrize("as_json", [False, True])
def test_no_secret_is_logged(as_json: bool) -> None:
    secret = "q" * 10 + "-._~+/=,;:" + "q" * 10
    said = logged("\nlog.info('next')\n".join(leak.format(new_token(), secret) for leak in LEAKS), as_json=as_json)
    parts = re.split(r'.*: next\n|.*"message": "next".*\n', said)
    for leak, part in zip(LEAKS, parts, strict=True):
        assert "***" in part, leak
        assert "nws_" not in part, leak
        assert "qqq" not in part, leak
        assert not as_json or all(json.loads(line) for line in part.splitlines()), leak


@pytest.mark.parametrize("said", ["the news_item", "a forbearer", "Bearer", "session=ab12 user=alice", "nws"])
def test_other_words_stay(said: str) -> None:
    assert without_secrets(said) == said


def test_what_stands_around_a_secret_stays() -> None:
    assert without_secrets('{"a": "Bearer x.y", "b": 1} nws_abc-D_9.') == '{"a": "Bearer ***", "b": 1} ***.'
