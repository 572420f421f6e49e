"""A prompt that takes longer than the limit of an answer: the client gets 503, and nothing else changes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
import socket

from helpers.end_to_end import WIDE_SHAPE, phantom, sessions, wide_lasso
from helpers.official_client import call, point, with_image
from helpers.threads import run_in_thread
from nnInteractive.inference.remote.remote_session import ServerAtCapacityError
import numpy as np
import pytest
import uvicorn

from nninteractive_ws.official_api import lease
from nninteractive_ws.official_api.app import OfficialApi
from nninteractive_ws.official_api.leases import Leases, Limits
from nninteractive_ws.official_api.responses import RETRY_AFTER_S
from nninteractive_ws.server.hosts import WebPageGuard


@contextmanager
def official_api(gateway: str) -> Iterator[str]:
    """The HTTP API in this process, so that its constants can be changed. Gives its URL."""
    app = OfficialApi(gateway, Leases(gateway, Limits(4, 4, 2**30)), WebPageGuard(["127.0.0.1"], [])).make_app()
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))

    def stop() -> None:
        running.should_exit = True

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        run_in_thread(lambda: running.run(sockets=[listening]), stop),
    ):
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
def test_a_prompt_beyond_the_limit_is_cancelled(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = point((65, 36, 32)), point((70, 30, 32), positive=False)
    before = sessions(server, "connected")
    with official_api(server) as url, closing(with_image(url, phantom(shape=WIDE_SHAPE))) as client:
        client.do(call("set_do_autozoom", False))  # a point is one pass then
        masks = [client.do(request).buffer for request in (first, second)]
        client.do(call("undo"))
        assert sessions(server, "connected") == before + 1
        responses = []
        client.session._http.event_hooks["response"].append(responses.append)
        with monkeypatch.context() as patch:
            patch.setattr(lease, "ANSWER_TIMEOUT_S", 0.2)
            client.do(call("set_do_autozoom", True))
            with pytest.raises(ServerAtCapacityError, match=r"cancelled it\. The segment is as before"):
                client.do(call("add_lasso_interaction", wide_lasso().astype(np.uint8), True))
        assert (responses[-1].status_code, responses[-1].headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
        assert np.array_equal(client.buffer, masks[0])
        client.do(call("set_do_autozoom", False))
        assert np.array_equal(client.do(second).buffer, masks[1])
        assert client.do(call("undo")).returned
        assert np.array_equal(client.buffer, masks[0])
        assert client.do(call("undo")).returned
        assert not client.buffer.any()
        assert client.do(call("undo")).returned is False
    assert sessions(server, "connected") == before
