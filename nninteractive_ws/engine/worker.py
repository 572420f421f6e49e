"""The worker process: dials in to the gateway, loads the model, and serves the sessions it is asked to open.

``python -m nninteractive_ws.engine.worker --port N --model-name NAME --model-folder FOLDER --device DEVICE``,
with the gateway's secret as the first line of standard input. It ends when its standard input does.
"""

import argparse
import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
import contextlib
import gc
import logging
from pathlib import Path
import sys
import time

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import protocol
from nninteractive_ws.engine.device import DeviceThread, Seat
from nninteractive_ws.engine.models import LoadedModel, load_model, pick_device
from nninteractive_ws.engine.session import LIMITS, Session
from nninteractive_ws.errors import BadMessage, Error, InternalError
from nninteractive_ws.messages import Bye, Cancel, Encoding, ImageBricks, Message, Request
from nninteractive_ws.server import link

_log = logging.getLogger(__name__)

# Answers kept, so that a request that comes twice gets its answer twice and is done once.
_ANSWERS_KEPT = 1024


class SessionServer:
    """Messages of one session's connection to its engine, and back."""

    def __init__(
        self, model: LoadedModel, device: DeviceThread, encoding: Encoding, connection: ClientConnection
    ) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._requests: asyncio.Queue[tuple[Request, float]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "session")
        self._session = Session(model, device, self._emit, encoding)
        self._last_id = 0
        self._unanswered: set[int] = set()
        self._answers: OrderedDict[int, Message] = OrderedDict()

    async def serve(self) -> None:
        """Until the connection closes; then whatever runs is cancelled."""
        write, work = asyncio.ensure_future(self._write()), asyncio.ensure_future(self._work())
        try:
            async for data in self._connection:
                if not await self._receive(data):
                    break
        except ConnectionClosed:
            pass  # the gateway, or the client behind it, went; what follows is the same
        finally:
            self._session.cancel(Cancel(), self._last_id)
            work.cancel()
            await asyncio.to_thread(self._thread.shutdown)
            # The client may still be there, and be told what was wrong with its last message.
            sent = asyncio.ensure_future(self._outgoing.join())
            await asyncio.wait({write, sent}, return_when=asyncio.FIRST_COMPLETED)
            for task in (write, sent):
                task.cancel()
            await asyncio.gather(write, work, sent, return_exceptions=True)
            await self._connection.close()

    async def _receive(self, data: str | bytes) -> bool:
        """Take one message; False where the connection is to be closed."""
        try:
            if isinstance(data, str):
                raise BadMessage("A text message came; messages are msgpack in binary frames.")
            message = protocol.decode_client(data)
            if isinstance(message, Bye):
                return False
            if isinstance(message, Cancel):
                self._session.cancel(message, self._last_id)
            elif isinstance(message, ImageBricks):
                if (progress := await asyncio.to_thread(self._session.put_bricks, message)) is not None:
                    self._emit(progress)
            elif isinstance(message, Request):
                self._enqueue(message)
        except Error as e:
            request = protocol.request_id(data) if isinstance(data, bytes) else None
            self._emit(protocol.to_error_message(e, request))
            return request is not None
        return True

    def _enqueue(self, request: Request) -> None:
        if request.id in self._answers:
            self._emit(self._answers[request.id])
        elif request.id > self._last_id:
            self._last_id = request.id
            self._unanswered.add(request.id)
            self._requests.put_nowait((request, time.monotonic()))
        elif request.id not in self._unanswered:
            raise BadMessage(f"Request ids must grow: {request.id} came after {self._last_id}.")

    async def _work(self) -> None:
        while True:
            request, arrived = await self._requests.get()
            answer = await self._loop.run_in_executor(self._thread, self._answer, request, arrived)
            self._answers[request.id] = answer
            self._unanswered.discard(request.id)
            while len(self._answers) > _ANSWERS_KEPT:
                self._answers.popitem(last=False)
            self._emit(answer)

    def _answer(self, request: Request, arrived: float) -> Message:
        try:
            return self._session.handle(request, arrived)
        except Error as e:
            return protocol.to_error_message(e, request.id)
        except Exception:
            _log.exception("request %d of type %s failed", request.id, type(request).__name__)
            error = InternalError("The server failed on this request; its log has the details. The session goes on.")
            return protocol.to_error_message(error, request.id)

    def _emit(self, message: Message) -> None:
        """Queue a message for the client; from any thread, in the order of the calls of that thread."""
        self._loop.call_soon_threadsafe(self._outgoing.put_nowait, protocol.encode(message))

    async def _write(self) -> None:
        while True:
            await self._connection.send(await self._outgoing.get())
            self._outgoing.task_done()


class Worker:
    """One model on one device, and the sessions on it."""

    def __init__(self, port: int, secret: str) -> None:
        self._address, self._secret = f"ws://127.0.0.1:{port}", secret
        self._sessions: set[asyncio.Task[None]] = set()

    async def run(self, name: str, folder: Path, device_name: str) -> None:
        """Serve until the gateway closes the connection."""
        async with self._dial(link.WORKER_PATH, self._secret) as control:
            device = pick_device(device_name)
            thread = DeviceThread(str(device))
            try:
                # On the thread that will run it: cuDNN keeps what the warm-up finds per thread.
                model = await asyncio.to_thread(
                    thread.run, Seat(lambda _: None), lambda: load_model(name, folder, device)
                )
            except Exception as e:
                _log.exception("the model in %s could not be loaded", folder)
                await control.send(link.encode(link.Failed(f"The model {name} in {folder} could not be loaded: {e}")))
                return
            # What lives as long as the process need not be looked at whenever a session's memory is freed.
            gc.collect()
            gc.freeze()
            await control.send(link.encode(link.Ready(model.description, str(device), LIMITS)))
            async for data in control:
                assert isinstance(data, bytes)
                order = link.decode_gateway(data)
                task = asyncio.ensure_future(self._serve_session(model, thread, order))
                self._sessions.add(task)
                task.add_done_callback(self._sessions.discard)

    async def _serve_session(self, model: LoadedModel, device: DeviceThread, order: link.Open) -> None:
        try:
            async with self._dial(link.SESSION_PATH, order.token) as connection:
                await SessionServer(model, device, order.encoding, connection).serve()
        except Exception:
            _log.exception("a session could not be served")
        finally:
            gc.collect()  # session and image refer to each other, and gigabytes must not wait for the next time

    def _dial(self, path: str, secret: str) -> connect:
        return connect(
            self._address + path,
            additional_headers=link.bearer(secret),
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            ping_interval=None,  # the gateway pings
            proxy=None,
        )


async def _until_stdin_closes() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def _main(args: argparse.Namespace, secret: str) -> None:
    work = asyncio.ensure_future(Worker(args.port, secret).run(args.model_name, args.model_folder, args.device))
    parent = asyncio.ensure_future(_until_stdin_closes())
    await asyncio.wait({work, parent}, return_when=asyncio.FIRST_COMPLETED)
    for task in (work, parent):
        task.cancel()
    results = await asyncio.gather(work, parent, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
            raise result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--model-folder", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--log-level", default="INFO")
    args = parser.parse_args()
    logging.basicConfig(level=args.log_level, format="%(asctime)s worker %(levelname)s %(name)s: %(message)s")
    secret = sys.stdin.readline().strip()
    # Ctrl-C in the terminal reaches the gateway too, which says what there is to say.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(args, secret))


if __name__ == "__main__":
    main()
