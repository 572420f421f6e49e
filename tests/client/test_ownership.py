"""Sessions in a forked child of their process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

#: The child calls each function once, and must neither hang nor succeed. The parent then uses the session.
PROGRAM = """
import asyncio, gc, os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, from Python 3.12 on
import numpy as np
import nninteractive_ws as nni
from nninteractive_ws.errors import ConnectionFailed

address, ending = sys.argv[1:]
image = np.random.default_rng(0).integers(0, 100, (40, 40, 40)).astype(np.int16)

def fork(uses, leave):
    pid = os.fork()
    if pid == 0:
        threading.Thread(target=lambda: (time.sleep(20), os._exit(9)), daemon=True).start()  # it hangs
        for name, use in uses.items():
            try:
                use()
            except ConnectionFailed as e:
                assert "belongs to the process that opened it" in str(e), e
                assert "Open another session in the child" in str(e), e
            else:
                print("no error from", name, flush=True)
                os._exit(8)
        leave()
        if ending == "exit":
            sys.exit(0)  # with the finalization of the interpreter
        gc.collect()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed or hung"
"""
DRIVERS = {
    "blocking": """
session = nni.connect(address)
session.set_image(image)
segment = session.segment("a")
segment.add_point((20, 20, 20))
fork({
    "add_point": lambda: segment.add_point((21, 20, 20)),
    "undo": segment.undo,
    "set_image": lambda: session.set_image(image),
    "set_options": lambda: session.set_options(previews=False),
    "cancel": session.cancel,
    "save": lambda: session.save("/dev/null"),
    "on": lambda: session.on("done", print),
}, session.close)
def other():
    with session:
        segment.reset()
fork({"with": other}, lambda: None)
segment.add_point((21, 20, 20))
assert segment.can_undo == 2
session.close()
""",
    "asyncio": """
async def main():
    session = await nni.aconnect(address)
    await session.set_image(image)
    segment = session.segment("a")
    await segment.add_point((20, 20, 20))
    fork({
        "add_bbox": lambda: asyncio.run(segment.add_bbox(((1, 9), (1, 9), (3, 4)))),
        "redo": lambda: asyncio.run(segment.redo()),
        "set_image": lambda: asyncio.run(session.set_image(image)),
        "wait_open": lambda: asyncio.run(session.wait_open()),
        "cancel": session.cancel,
        "on": lambda: session.on("done", print),
    }, lambda: asyncio.run(session.close()))
    await segment.add_point((21, 20, 20))
    assert segment.can_undo == 2
    await session.close()
asyncio.run(main())
""",
    "polled": """
session = nni.PolledSession(address)
def until(true):
    end = time.monotonic() + 60
    while not true():
        for event in session.poll():
            assert event.name != "error", event
        assert time.monotonic() < end
        time.sleep(0.001)
session.set_image(image)
until(lambda: session.image is not None and not session.pending_requests)
segment = session.segment("a")
segment.add_point((20, 20, 20))
fork({
    "poll": session.poll,
    "add_point": lambda: segment.add_point((21, 20, 20)),
    "set_image": lambda: session.set_image(image),
    "set_options": lambda: session.set_options(previews=False),
    "cancel": session.cancel,
}, session.close)
segment.add_point((21, 20, 20))
until(lambda: not session.pending_requests)
assert segment.can_undo == 2
session.close()
""",
}


#: A child that leaves a running event loop by an exception makes asyncio close the loop, which removes the parent's
#: sockets from the selector that both share. No library can prevent it.
CASES = [
    (driver, ending) for driver in DRIVERS for ending in ("exit", "garbage") if (driver, ending) != ("asyncio", "exit")
]


@pytest.mark.parametrize(("driver", "ending"), CASES)
def test_a_forked_child_gets_an_error_and_leaves_the_session_alone(server: str, driver: str, ending: str) -> None:
    code = PROGRAM + DRIVERS[driver]
    done = subprocess.run([sys.executable, "-c", code, server, ending], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "Traceback" not in done.stderr


def test_a_child_can_open_its_own_session(server: str) -> None:
    code = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import nninteractive_ws as nni
with nni.connect(sys.argv[1]) as session:
    pid = os.fork()
    if pid == 0:
        with nni.connect(sys.argv[1]) as own:
            own.set_options(previews=False)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    session.set_options(previews=False)
"""
    done = subprocess.run([sys.executable, "-c", code, server], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
