"""Runs a command on a node of a Ray cluster with free GPUs, as srun does with Slurm.

``python -m nninteractive_ws.launch_ray --gpus 1 COMMAND`` passes standard input and the environment on, and ends with
the status of the command. The command ends when standard input closes, at SIGTERM, and when this process is killed.
"""

import argparse
import asyncio
import contextlib
import os
from pathlib import Path
import signal
import sys
from typing import Any

from nninteractive_ws.processes import stdin_stream

#: Printed if no node is free. The gateway tells its clients.
WAITING = "ray: waiting for a node with a free GPU"
_READ_BYTES = 64 * 1024
#: Time for the command to end by itself, before it is killed.
END_TIMEOUT_S = 3.0
# A node with a free GPU starts the command within seconds.
_QUICK_START_S = 5.0
# Ray sets these on the node.
_OF_THE_NODE = ("RAY_", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class Runner:
    """The command on its node, as a Ray actor. Ray kills it if the process that launched it is gone."""

    def __init__(self) -> None:
        self._started = asyncio.Event()

    async def start(self, command: list[str], environment: dict[str, str], folder: str) -> None:
        """Start the command, in the same folder if the node has it."""
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
            cwd=folder if Path(folder).is_dir() else None,
        )
        self._started.set()

    async def write(self, data: bytes) -> None:
        """Write to the command's standard input, once it has started."""
        await self._started.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    async def wait(self) -> int:
        """Wait until the command ends. Return its status."""
        return await self._process.wait()

    async def end(self) -> int:
        """Close the command's standard input, and kill it if it does not end. Return its status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return await asyncio.wait_for(self._process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            return await self._process.wait()


async def run(ray: Any, command: list[str], gpus: float) -> int:
    """Run the command on a node. Return its status."""
    stdin, terminated = stdin_stream(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    runner = ray.remote(Runner).options(num_gpus=gpus, num_cpus=0).remote()
    started = asyncio.ensure_future(_start(runner, command))
    status = asyncio.ensure_future(_wait(runner, started))
    ends = [status, asyncio.ensure_future(_feed(runner, stdin, started)), asyncio.ensure_future(terminated.wait())]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if status.done():
            return status.result()
        return int(await runner.end.remote()) if started.done() else 128 + signal.SIGTERM
    finally:
        for task in (started, *ends):
            task.cancel()
        ray.kill(runner)


async def _start(runner: Any, command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_NODE)}
    starting = asyncio.ensure_future(_await(runner.start.remote(command, environment, str(Path.cwd()))))
    if not (await asyncio.wait({starting}, timeout=_QUICK_START_S))[0]:
        print(WAITING, file=sys.stderr, flush=True)
    await starting


async def _wait(runner: Any, started: "asyncio.Task[None]") -> int:
    await started
    return int(await runner.wait.remote())


async def _feed(runner: Any, stdin: asyncio.StreamReader, started: "asyncio.Task[None]") -> None:
    """Pass standard input on until it closes, which is noticed before the command has started too."""
    while data := await stdin.read(_READ_BYTES):
        written = runner.write.remote(data)
        if started.done():
            await written


async def _await(reference: Any) -> Any:
    return await reference


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nninteractive_ws.launch_ray", description=__doc__)
    parser.add_argument("--gpus", type=float, default=1.0, help="number of GPUs; may be a fraction")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if not args.command:
        parser.error("Expected a command.")
    try:
        import ray
    except ModuleNotFoundError:
        return _fail("launch_ray needs the package ray. Install it with: pip install ray")
    try:
        ray.init(address="auto", logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as e:
        return _fail(
            f"There is no connection to a Ray cluster ({_first_line(e)}). Run `ray start --address HEAD:6379` on this "
            "machine first."
        )
    try:
        return asyncio.run(run(ray, args.command, args.gpus))
    except ray.exceptions.RayTaskError as e:
        return _fail(f"The command {args.command[0]} cannot be started: {e.cause}.")
    except ray.exceptions.RayError as e:
        return _fail(f"The command was lost: {_first_line(e)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _fail(message: str) -> int:
    print(f"ray: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
