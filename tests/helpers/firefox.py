"""Firefox, driven over WebDriver BiDi (https://w3c.github.io/webdriver-bidi/), which needs no other program."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import json
from pathlib import Path
import re
import shutil
import subprocess
import tempfile
import time
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

TIMEOUT_S = 120.0
_SIZE = (1280, 720)
_LISTENING = re.compile(r"WebDriver BiDi listening on (ws://\S+)")
# WebGL on the CPU, and no traffic of the browser's own.
_PREFERENCES = {
    "webgl.force-enabled": True,
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


class FirefoxPage:
    """A tab. ``problems``: errors of the console and of scripts."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._last_id = connection, 0
        self.problems: list[str] = []
        self._call("session.new", capabilities={})
        self._call("session.subscribe", events=["log.entryAdded"])
        (context,) = self._call("browsingContext.getTree")["contexts"]
        self._context = context["context"]
        self._call(
            "browsingContext.setViewport", context=self._context, viewport={"width": _SIZE[0], "height": _SIZE[1]}
        )

    def open(self, address: str) -> None:
        """Open an address, and wait until it is loaded."""
        self._call("browsingContext.navigate", context=self._context, url=address, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, a string or a number."""
        target = {"context": self._context}
        answer = self._call("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert answer["type"] == "success", answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, condition: Callable[[Any], bool]) -> Any:
        """Wait until a condition holds for the value of an expression, and return the value."""
        end = time.monotonic() + TIMEOUT_S
        while not condition(value := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} is still {value!r}"
            time.sleep(0.1)
        return value

    def click(self, x: float, y: float) -> None:
        """Click with the mouse."""
        move = {"type": "pointerMove", "x": round(x), "y": round(y)}
        down, up = ({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))
        self._act("pointer", [move, down, up], parameters={"pointerType": "mouse"})

    def press(self, *keys: str) -> None:
        """Press keys together."""
        down = [{"type": "keyDown", "value": key} for key in keys]
        self._act("key", [*down, *({"type": "keyUp", "value": key} for key in reversed(keys))])

    def close(self) -> None:
        """End the browser."""
        self._call("browser.close")

    def _act(self, kind: str, actions: Sequence[dict[str, Any]], **more: Any) -> None:
        source = {"type": kind, "id": kind, "actions": list(actions), **more}
        self._call("input.performActions", context=self._context, actions=[source])

    def _call(self, method: str, **parameters: Any) -> Any:
        self._last_id += 1
        self._connection.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(TIMEOUT_S))
            if message.get("method") == "log.entryAdded" and message["params"]["level"] in ("warn", "error"):
                self.problems.append(str(message["params"]["text"]))
            if message.get("id") == self._last_id:
                assert message["type"] == "success", message
                return message["result"]


@contextmanager
def firefox() -> Iterator[FirefoxPage]:
    """A tab of a new Firefox. Skips the test if Firefox or a virtual screen is missing: without a screen it has no
    WebGL."""
    program, screen = shutil.which("firefox-esr") or shutil.which("firefox"), shutil.which("xvfb-run")
    if program is None or screen is None:
        pytest.skip(f"{'Firefox' if program is None else 'xvfb-run'} is not installed")
    with tempfile.TemporaryDirectory() as profile:
        preferences = "".join(f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in _PREFERENCES.items())
        (Path(profile) / "user.js").write_text(preferences)
        arguments = ["--profile", profile, "--no-remote", "--remote-debugging-port", "0"]
        with _process([screen, "-a", "-s", "-screen 0 1600x1000x24", program, *arguments]) as process:
            assert process.stderr is not None
            found = next(filter(None, map(_LISTENING.search, process.stderr)))
            with connect(f"{found[1]}/session", max_size=None) as connection:
                page = FirefoxPage(connection)
                yield page
                page.close()
            process.communicate(timeout=30)


@contextmanager
def _process(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
