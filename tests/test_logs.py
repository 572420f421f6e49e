"""The log of a real process."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import time
from typing import Any
import urllib.error
import urllib.request

from helpers.end_to_end import health, http, server_process, wait_until
import pytest

from nninteractive_ws.logs import (
    MAX_QUEUED_BYTES,
    REPEAT_BURST,
    REPEAT_WINDOW_S,
    configure_logging,
)
from nninteractive_ws.redaction import redact_tokens
from nninteractive_ws.server.access import add_user, new_token

posix = pytest.mark.skipif(os.name != "posix", reason="fills pipes")

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def program(code: str, level: str = "info", as_json: bool = False) -> list[str]:
    """A command that configures its log and then runs some code."""
    setup = (
        "import logging, sys, time, warnings\nfrom nninteractive_ws.logs import configure_logging\n"
        f"configure_logging('gateway', {level!r}, {as_json})\nlog = logging.getLogger('nninteractive_ws.test')\n"
    )
    return [sys.executable, "-c", setup + code]


def logged(code: str, level: str = "info", as_json: bool = False) -> str:
    """Return the standard error of such a process."""
    done = subprocess.run(program(code, level, as_json), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def objects(code: str, level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(code, level, as_json=True).splitlines()]


def test_a_line_of_text() -> None:
    output = logged("log.warning('closed after %d s', 3, extra={'session': 'ab12', 'user': 'alice', 'request': 7})")
    assert re.fullmatch(
        TIME + r" gateway WARNING nninteractive_ws\.test: closed after 3 s session=ab12 user=alice request=7\n", output
    )


def test_without_fields_a_line_ends_with_its_message() -> None:
    assert logged("log.info('started')").endswith("nninteractive_ws.test: started\n")


def test_fields_are_unambiguous() -> None:
    shown = {
        "two words": '"two words"',
        "": '""',
        'say "a"': r'"say \"a\""',
        "a=b": '"a=b"',
        "Zoë": "Zoë",
        None: "None",
        1.5: "1.5",
    }
    output = logged(f"for value in {list(shown)!r}: log.info('x', extra={{'a': value, 'b': 1}})")
    assert [line.partition(": x ")[2] for line in output.splitlines()] == [f"a={word} b=1" for word in shown.values()]


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
    output = logged(code)
    assert len(output.splitlines()) == 1
    assert output.rstrip("\n").isprintable()
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


@pytest.mark.parametrize(("level", "expected"), [("debug", ["b"]), ("warning", ["b"]), ("error", [])])
def test_websockets_logs_only_warnings(level: str, expected: list[str]) -> None:
    code = (
        "log = logging.getLogger('websockets.server')\nlog.info('a'); log.warning('b', extra={'websocket': object()})"
    )
    assert [line.rpartition(": ")[2] for line in logged(code, level).splitlines()] == expected
    assert ["websocket" in found for found in objects(code, level)] == [False] * len(expected)


def test_warnings_are_in_the_log() -> None:
    (found,) = objects("warnings.warn('old', stacklevel=1)")
    assert (found["level"], found["logger"]) == ("WARNING", "py.warnings")
    assert "UserWarning: old" in found["message"]


def test_configuring_again_replaces() -> None:
    output = logged("configure_logging('worker', 'info', False)\nlog.info('once')")
    assert re.fullmatch(TIME + r" worker INFO nninteractive_ws\.test: once\n", output)


def test_an_unknown_level() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("worker", "loud", False)


# ---- a flood of records -----------------------------------------------------------------------------------


def test_repeated_lines_are_summed_up() -> None:
    output = logged("for n in range(1000): log.warning('refused %d', n, extra={'peer': n})\nlog.warning('another')")
    lines = output.splitlines()
    assert len(lines) == REPEAT_BURST + 2
    assert lines[REPEAT_BURST - 1].endswith(f"refused {REPEAT_BURST - 1} peer={REPEAT_BURST - 1}")
    assert lines[-2].endswith(": another"), "a line from elsewhere is not held back"
    held = 1000 - REPEAT_BURST
    assert re.search(
        rf"WARNING nninteractive_ws\.test: refused 999 \(the last of {held} more in \d+ s\) peer=999$", lines[-1]
    )


def test_repeated_tracebacks_are_summed_up() -> None:
    found = objects(f"for n in range(200):\n    {FAILING.replace(chr(10), chr(10) + '    ')}")
    assert len(found) == REPEAT_BURST + 1
    assert "exc_info" in found[0]
    assert "exc_info" not in found[-1]


@pytest.mark.slow
def test_a_repeated_line_is_logged_again_after_the_window() -> None:
    code = (
        f"for n in range(2):\n    for m in range({REPEAT_BURST + 5}): log.warning('window %d', n)\n"
        f"    if n == 0: time.sleep({REPEAT_WINDOW_S + 1})"
    )
    lines = logged(code).splitlines()
    assert len(lines) == 2 * (REPEAT_BURST + 1)
    assert "window 0 (the last of 5 more in" in lines[REPEAT_BURST]
    assert lines[REPEAT_BURST + 1].endswith("window 1")


def test_debug_lines_are_not_suppressed() -> None:
    assert len(logged("for n in range(1000): log.debug('x')", "debug").splitlines()) == 1000


# ---- an unread pipe ---------------------------------------------------------------------------------------

# Many lines of code, each of which logs once: about 20 times the size of the queue.
TORRENT = "text = 4000 * 'x'\nexec('\\n'.join(f'log.warning(\"{n} %s\", text)' for n in range(5000)))\n"


@pytest.mark.slow
@posix
def test_a_process_ends_with_an_unread_log() -> None:
    code = TORRENT + "import psutil; print(psutil.Process().memory_info().rss, flush=True)"
    read = subprocess.run(program(code), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    reader, writer = os.pipe()
    try:
        done = subprocess.run(program(code), stdout=subprocess.PIPE, stderr=writer, text=True, timeout=60)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0
    assert int(done.stdout) - int(read.stdout) < 4 * MAX_QUEUED_BYTES


@pytest.mark.slow
@posix
def test_dropped_lines_are_counted() -> None:
    code = TORRENT + "print('logged', flush=True)\nsys.stdin.readline()\nlog.warning('after')"
    with subprocess.Popen(
        program(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "logged\n"
        process.stdin.write("\n")
        process.stdin.close()
        lines = process.stderr.read().splitlines()
    numbers = [int(found[1]) for line in lines if (found := re.search(r"test: (\d+) x{4000}$", line))]
    assert numbers == list(range(len(numbers))), "the first ones, each a whole line"
    (dropped,) = [int(found[1]) for line in lines if (found := re.search(r"dropped (\d+) log records", line))]
    # The last line is dropped if the reader was too slow.
    assert len(numbers) + dropped + lines[-1].endswith(": after") in (5000, 5001)
    assert dropped > 1000


@posix
def test_the_end_of_the_log_is_written_for_a_slow_reader() -> None:
    code = "exec('\\n'.join(f'log.warning(\"{n} \" + 1000 * \"x\")' for n in range(500)))"
    with subprocess.Popen(program(code), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        time.sleep(0.5)
        lines = [process.stderr.readline()]
        time.sleep(0.5)
        lines += process.stderr.read().splitlines()
    assert len(lines) == 500
    assert process.returncode == 0


def test_a_closed_reader_is_no_error() -> None:
    with subprocess.Popen(
        program("sys.stdin.readline()\nfor n in range(9): log.warning('x')\nprint('done')"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.close()
        process.stdin.close()
        assert process.stdout.read() == "done\n"
    assert process.returncode == 0


@contextmanager
def full_pipe() -> Iterator[tuple[int, Any]]:
    """Return the write end of a pipe, and the bytes that fill it."""
    reader, writer = os.pipe()

    def fill() -> None:
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"x")
        except BlockingIOError:
            pass
        finally:
            os.set_blocking(writer, True)

    try:
        yield writer, fill
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.slow
@posix
def test_a_server_continues_with_an_unread_log(tmp_path: Path) -> None:
    """Its log of refused clients fills the pipe of standard error."""
    add_user(tmp_path / "tokens", "alice")
    with (
        full_pipe() as (writer, fill),
        server_process("--token-file", str(tmp_path / "tokens"), stderr=writer) as server,
    ):
        fill()
        for _ in range(300):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{http(server.address)}/metrics", timeout=30)
            assert refused.value.code == 401
            refused.value.close()
        wait_until(lambda: health(server.address)["status"] == "ready")  # the worker has the same pipe
        server.process.terminate()
        assert server.process.wait(20) == 0


@pytest.mark.slow
@posix
def test_a_failed_server_ends_with_an_unread_log(tmp_path: Path) -> None:
    with full_pipe() as (writer, fill), server_process("--device", "cuda:99", stderr=writer) as server:
        fill()
        assert server.process.wait(90) == 1


# ---- secrets ----------------------------------------------------------------------------------------------

# {0} is one of our tokens, {1} a secret that is recognized only by its context.
LEAKS = [
    "log.info('token {0} came')",
    "log.info('token %s came', '{0}')",
    "log.info('headers %s', {{'Authorization': 'Bearer {1}'}})",
    "log.info('> Authorization: bearer   {1}')",
    "log.info('Bearer\\t{1}')",
    "log.info('x', extra={{'user': '{0}', 'header': 'Bearer {1}'}})",
    "log.info(b'Bearer {1}')",
    "log.info('Sec-WebSocket-Protocol: nninteractive.v1, nninteractive.v1.bearer.{1}')",
    "log.info('a\\nnws_{0}')",
    "log.info('a\\n{0}'), log.info('a\\nBearer {1}')",
    "try:\n    raise ValueError('{0}\\n{0}\\tBearer\\n{1}')\nexcept ValueError:\n    log.exception('failed')",
    "log.info('x', stack_info=True, extra={{'url': 'wss://a/?token={0}&b'}})",
    "warnings.warn('Bearer {1}', stacklevel=1)",
]


@pytest.mark.parametrize("as_json", [False, True])
def test_no_secret_is_logged(as_json: bool) -> None:
    secret = "q" * 10 + "-._~+/=,;:" + "q" * 10
    output = logged("\nlog.info('next')\n".join(leak.format(new_token(), secret) for leak in LEAKS), as_json=as_json)
    parts = re.split(r'.*: next\n|.*"message": "next".*\n', output)
    for leak, part in zip(LEAKS, parts, strict=True):
        assert "***" in part, leak
        assert "nws_" not in part, leak
        assert "qqq" not in part, leak
        assert not as_json or all(json.loads(line) for line in part.splitlines()), leak


@pytest.mark.parametrize("expected", ["the news_item", "a forbearer", "Bearer", "session=ab12 user=alice", "nws"])
def test_redaction_keeps_other_words(expected: str) -> None:
    assert redact_tokens(expected) == expected


def test_redaction_keeps_the_surrounding_text() -> None:
    assert redact_tokens('{"a": "Bearer x.y", "b": 1} nws_abc-D_9.') == '{"a": "Bearer ***", "b": 1} ***.'
