"""Routes: the status of each error, its sentence, and requests that a web page can cause."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
import json
import math
from typing import Any

from helpers.fake_session import FakeSession
from helpers.http import answers, free_port, http_server
from nnInteractive.inference.remote.serialization import pack_array, unpack_array
import numpy as np
import pytest

from nninteractive_ws import errors
from nninteractive_ws.official_api import bodies, nnia
from nninteractive_ws.official_api import leases as leases_module
from nninteractive_ws.official_api.app import OfficialApi
from nninteractive_ws.official_api.bodies import MAX_JSON_BYTES
from nninteractive_ws.official_api.lease import AnswerTimeout
from nninteractive_ws.official_api.leases import IDLE_TIMEOUT_S, Leases, Limits
from nninteractive_ws.official_api.responses import to_response
from nninteractive_ws.server.hosts import WebPageGuard

SHAPE = (9, 8, 7)
IMAGE = np.random.default_rng(0).integers(-99, 99, (1, *SHAPE), np.int16)
GET = ("/healthz", "/capabilities", "/metrics", "/lease_status")
JSON_ROUTES: dict[str, Any] = {
    "/set_target_buffer": {"shape": SHAPE, "dtype": "uint8"},
    "/set_do_autozoom": {"do_autozoom": True},
    "/predict": {},
    "/add_point_interaction": {"coordinates": [4, 4, 3], "include_interaction": True},
    "/add_bbox_interaction": {"bbox_coords": [[1, 4], [2, 4], [3, 4]], "include_interaction": True},
}
PACKED_ROUTES: dict[str, tuple[np.ndarray, Any]] = {
    "/set_image": (IMAGE, {}),
    "/add_scribble_interaction": (np.ones(SHAPE, np.uint8), {"include_interaction": True}),
    "/add_lasso_interaction": (np.ones(SHAPE, np.uint8), {"include_interaction": True}),
    "/add_initial_seg_interaction": (np.ones(SHAPE, np.uint8), {}),
}
ON_LEASE = (*PACKED_ROUTES, *JSON_ROUTES, "/reset_interactions", "/undo")
POST = ("/claim", "/release", "/heartbeat", *ON_LEASE)


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def check_error(self, status: int, sentence: str = "") -> None:
        """Check an error, whose sentence is for the user."""
        assert self.status == status, (self.status, self.body)
        assert set(self.json) == {"detail"}
        detail = self.json["detail"]
        assert detail == detail.strip()
        assert detail.endswith(".")
        assert sentence in detail
        assert self.headers["content-type"] == "application/json"


class Client:
    """Sends requests to the application without a socket."""

    def __init__(self, app: Any, leases: Leases, sessions: list[FakeSession]) -> None:
        self._app, self.leases, self.sessions = app, leases, sessions
        self.headers: dict[str, str] = {}

    @property
    def session(self) -> FakeSession:
        return self.sessions[-1]

    async def send(
        self,
        method: str,
        path: str,
        *parts: bytes,
        headers: dict[str, str | None] | None = None,
        end: bool | None = True,
        leave: bool = False,
        pause_s: float = 0.0,
    ) -> Answer:
        """Send a body in parts. ``end``: whether it ends; False: the client disconnects; None: it stalls. ``leave``:
        disconnect after the end. ``pause_s``: before each part."""
        given: dict[str, str | None] = {"Host": "127.0.0.1", "Content-Length": str(sum(map(len, parts)))}
        given |= self.headers | (headers or {})
        raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in given.items() if v is not None]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": raw,
            "client": ("192.0.2.1", 1), "server": ("127.0.0.1", 1527),
        }  # fmt: skip
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if end:
            messages.append({"type": "http.request", "body": b"", "more_body": False})
        if end is False or leave:
            messages.append({"type": "http.disconnect"})
        answer = Answer()

        async def receive() -> Any:
            if not messages:
                await asyncio.Event().wait()
            if pause_s:
                await asyncio.sleep(pause_s)
            return messages.pop(0)

        async def reply(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        await self._app(scope, receive, reply)
        return answer

    async def post(self, path: str, value: Any = None, **headers: str | None) -> Answer:
        """Send a valid request, except for ``value`` and ``headers``."""
        if path in PACKED_ROUTES:
            array, meta = PACKED_ROUTES[path]
            data = pack_array(array) if value is None else value
            return await self.send("POST", path, data, headers={"X-Meta": json.dumps(meta), **headers})
        value = JSON_ROUTES.get(path) if value is None else value
        return await self.send(
            "POST", path, b"" if value is None else json.dumps(value).encode(), headers=headers or None
        )

    async def claim(self, image: bool = True) -> None:
        answer = await self.post("/claim")
        assert answer.status == 200, answer.body
        self.headers["X-Lease-Token"] = answer.json["lease_token"]
        if image:
            assert (await self.post("/set_image")).status == 200
            assert (await self.post("/set_target_buffer")).status == 200


@asynccontextmanager
async def serving(
    gateway: str = "127.0.0.1:1", hosts: tuple[str, ...] | None = None, max_bytes: int = 10**6
) -> AsyncIterator[Client]:
    """The application, with fake sessions."""
    sessions: list[FakeSession] = []

    async def connect(address: str, token: str | None) -> FakeSession:
        if token == "refused":
            raise errors.Unauthorized("The server refused this token.")
        sessions.append(FakeSession())
        return sessions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases_module, "connect_to_gateway", connect)
        leases = Leases(f"ws://{gateway}", Limits(3, 2, max_bytes))
        api = OfficialApi(f"ws://{gateway}", leases, WebPageGuard(hosts, ["https://allowed.example"]))
        app = api.make_app()
        async with app.router.lifespan_context(app):
            yield Client(app, leases, sessions)
        assert leases.budget.used == 0
        assert all(session.closed for session in sessions)


def run(work: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))  # type: ignore[arg-type]


# ---- valid requests -----------------------------------------------------------------------------------------


def test_a_lease_from_claim_to_release() -> None:
    async def work() -> None:
        async with serving() as client:
            claimed = await client.post("/claim")
            assert claimed.json == {
                "lease_token": claimed.json["lease_token"],
                "idle_timeout_seconds": 600.0,
                "liveness_timeout_seconds": 60.0,
                "max_sessions": 3,
            }
            client.headers["X-Lease-Token"] = claimed.json["lease_token"]
            assert (await client.post("/set_image")).json == {"original_image_shape": [1, *SHAPE]}
            assert (await client.post("/set_target_buffer")).json == {}
            assert (await client.post("/set_do_autozoom")).json == {}
            assert client.session.options["autozoom"] is True
            assert 590 < (await client.post("/heartbeat")).json["remaining_seconds"] <= 600
            status = (await client.send("GET", "/lease_status")).json
            assert status["idle_timeout_seconds"] == 600
            assert (await client.post("/reset_interactions")).json == {}
            assert (await client.post("/release")).json == {"released": True}
            assert (await client.post("/release")).json == {"released": True}
            assert client.session.closed

    run(work)


@pytest.mark.parametrize("path", [route for route in ON_LEASE if "interaction" in route and "reset" not in route])
def test_prompts_are_answered_with_a_part_of_the_mask(path: str) -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            answer = await client.post(path)
            assert answer.status == 200, answer.body
            assert answer.headers["content-type"] == "application/octet-stream"
            meta = json.loads(answer.headers["x-meta"])
            if "initial" in path:
                assert meta == {"ran_prediction": False, "bbox": None}
                return
            part = unpack_array(answer.body)
            assert meta["ran_prediction"] is True
            assert (meta["dtype"], tuple(meta["shape"])) == ("uint8", part.shape)
            region = tuple(slice(*pair) for pair in meta["bbox"])
            assert np.array_equal(client.session.segment("object").mask[region], part)
            undone = await client.post("/undo")
            assert json.loads(undone.headers["x-meta"])["bbox"] == meta["bbox"]
            assert not unpack_array(undone.body).any()
            nothing = await client.post("/undo")
            assert json.loads(nothing.headers["x-meta"]) == {"ran_prediction": False, "bbox": None}
            assert nothing.body == b""

    run(work)


def test_the_memory_of_an_answer_is_counted_until_it_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take the place of an idle lease."""
    whole = {"bbox_coords": [[0, n] for n in SHAPE], "include_interaction": True}
    voxels = math.prod(SHAPE)
    of_lease, of_answer = (IMAGE.itemsize + 1) * voxels, 8 * voxels
    used = []

    async def work() -> None:
        async with serving(max_bytes=2 * of_lease + of_answer - 1) as client:

            def pack(part: np.ndarray) -> bytes:
                used.append(client.leases.budget.used)
                return pack_array(part)

            monkeypatch.setattr(nnia, "pack", pack)
            await client.claim()
            idle = client.leases.find(client.headers["X-Lease-Token"] or "", "")
            await client.claim()
            idle.last_active -= 1 + IDLE_TIMEOUT_S
            assert (await client.post("/set_target_buffer", {"shape": SHAPE, "dtype": "int64"})).status == 200
            answer = await client.post("/add_bbox_interaction", whole)
            assert answer.status == 200, answer.body
            assert unpack_array(answer.body).all()
            assert used == [of_lease + of_answer]
            assert len(client.leases) == 1

    run(work)


def test_an_answer_that_is_lost_is_repeated() -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            body = json.dumps(JSON_ROUTES["/add_point_interaction"]).encode()
            await client.send("POST", "/add_point_interaction", body, leave=True)
            received = await client.post("/add_bbox_interaction")
            assert json.loads(received.headers["x-meta"])["bbox"] == [[1, 7], [2, 7], [1, 6]]
            again = await client.post("/add_bbox_interaction")
            assert json.loads(again.headers["x-meta"])["bbox"] is None

    run(work)


# ---- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConnectionFailed("It is gone."), 410),
        (leases_module.LeaseGone("It is gone."), 410),
        (errors.Unauthorized("It is wrong."), 401),
        (errors.AtCapacity("All are in use."), 503),
        (errors.TooLarge("It is too large."), 413),
        (errors.BadImage("It is constant."), 400),
        (errors.OutOfBounds("It is outside."), 400),
        (errors.NoImage("There is none."), 400),
        (errors.UnsupportedPrompt("It is not supported."), 400),
        (errors.BadMessage("It is wrong."), 400),
        (errors.OutOfMemory("It is full."), 503),
        (errors.WorkerLost("It ended."), 503),
        (errors.ShuttingDown("It ends."), 503),
        (errors.Cancelled("It was cancelled."), 503),
        (errors.InternalError("It is broken."), 500),
        (bodies.LengthRequired("It has none."), 411),
        (bodies.BodyTimeout("It stopped."), 408),
        (AnswerTimeout("It is slow."), 503),
    ],
)
def test_the_status_of_each_error(error: Exception, status: int) -> None:
    response = to_response(error)
    assert response is not None
    answer = Answer(response.status_code, dict(response.headers), bytes(response.body))
    answer.check_error(status, str(error))
    assert ("retry-after" in answer.headers) == (status == 503)
    assert ("www-authenticate" in answer.headers) == (status == 401)


def test_an_unexpected_error_has_no_response() -> None:
    assert to_response(ZeroDivisionError()) is None


def test_every_error_of_the_project_has_a_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Error)]
    assert kinds
    assert all(to_response(kind("A sentence.")) is not None for kind in kinds)


@pytest.mark.parametrize("path", ON_LEASE)
def test_an_error_of_a_session_is_answered(path: str) -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            if path in ("/undo", "/predict", "/reset_interactions"):
                await client.post("/add_point_interaction")
            used = client.leases.budget.used
            if path != "/set_target_buffer":
                client.session.error = errors.OutOfMemory("The worker has no memory.")
                (await client.post(path)).check_error(503, "no memory")
            assert client.leases.budget.used == used
            assert (await client.post(path)).status == 200

    run(work)


@pytest.mark.parametrize("path", [*ON_LEASE, "/heartbeat"])
@pytest.mark.parametrize("lease", ["", "0" * 32, "é", None])
def test_an_unknown_lease_is_gone(path: str, lease: str | None) -> None:
    async def work() -> None:
        with http_server(answers(200, "metrics")) as gateway:
            async with serving(gateway) as client:
                (await client.post(path, **{"X-Lease-Token": lease})).check_error(410, "Start another one")

    run(work)


def test_an_unknown_lease_with_a_wrong_token_is_unauthorized() -> None:
    """A client that is restarted with another token is told about the token."""

    async def work() -> None:
        with http_server(answers(401, "The server refused this token.\n")) as gateway:
            async with serving(gateway) as client:
                answer = await client.post("/undo", Authorization="Bearer wrong")
                answer.check_error(401, "token is missing or wrong")
                (await client.send("GET", "/lease_status")).check_error(401)
                (await client.post("/release")).check_error(401)

    run(work)


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer other", "Basic own", "Bearer own ", "bearer own2", "Bearer é"])
def test_a_lease_of_another_user(token: str) -> None:
    async def work() -> None:
        async with serving() as client:
            client.headers["Authorization"] = "Bearer own"
            await client.claim()
            for path in (*ON_LEASE, "/heartbeat", "/release"):
                answer = await client.post(path, Authorization=token)
                answer.check_error(401, "not that of the lease")
            (await client.send("GET", "/lease_status", headers={"Authorization": token})).check_error(401)
            assert (await client.post("/heartbeat")).status == 200

    run(work)


def test_claims_that_are_refused() -> None:
    async def work() -> None:
        async with serving() as client:
            (await client.post("/claim", Authorization="Bearer refused")).check_error(401, "token is missing or wrong")
            for _ in range(2):
                assert (await client.post("/claim")).status == 200
            full = await client.post("/claim")
            full.check_error(503, "All 2 sessions that a user may have")
            assert full.headers["retry-after"] == "10"

    run(work)


def test_claims_with_a_wrong_token_end_no_lease() -> None:
    """Nor do they take the place of another."""

    async def work() -> None:
        with http_server(answers(401, "The server refused this token.\n")) as gateway:
            async with serving(gateway) as client:
                owner = await client.leases.claim("own")
                client.leases.find(owner, "own").last_active -= 10 * IDLE_TIMEOUT_S
                answers_ = await asyncio.gather(
                    *(client.post("/claim", Authorization=f"Bearer wrong{n}") for n in range(6))
                )
                for answer in answers_:
                    answer.check_error(401, "token is missing or wrong")
                assert client.leases.find(owner, "own")

    run(work)


def test_a_server_that_does_not_answer() -> None:
    async def work() -> None:
        async with serving(f"127.0.0.1:{free_port()}") as client:
            for path in ("/healthz", "/capabilities", "/metrics"):
                (await client.send("GET", path)).check_error(503, "does not answer")
            (await client.post("/undo")).check_error(410)

    run(work)


@pytest.mark.parametrize(("status", "detail"), [(503, "It is loading."), (401, "It needs a token.")])
def test_errors_of_the_gateway_are_relayed(status: int, detail: str) -> None:
    async def work() -> None:
        with http_server(answers(status, detail + "\n")) as gateway:
            async with serving(gateway) as client:
                (await client.send("GET", "/capabilities")).check_error(status, detail)

    run(work)


# ---- bodies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*JSON_ROUTES, *PACKED_ROUTES])
def test_the_length_of_a_body_is_required(path: str) -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            (await client.post(path, **{"Content-Length": None})).check_error(411, "Content-Length")
            chunked = {"Content-Length": "3", "Transfer-Encoding": "chunked"}
            (await client.post(path, **chunked)).check_error(411, "without chunked")

    run(work)


@pytest.mark.parametrize("path", [*JSON_ROUTES, *PACKED_ROUTES])
@pytest.mark.parametrize("length", [10**6 + 1, 2**63, 10**19])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(path: str, length: int) -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            meta = json.dumps({"include_interaction": True})
            headers: Any = {"Content-Length": str(length), "X-Meta": meta}
            (await client.send("POST", path, headers=headers, end=None)).check_error(413)

    run(work)


def test_the_limit_of_json() -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            body = b'{"do_autozoom": true}'
            longest = await client.send("POST", "/set_do_autozoom", body.ljust(MAX_JSON_BYTES))
            assert longest.status == 200
            longer = await client.send("POST", "/set_do_autozoom", body.ljust(MAX_JSON_BYTES + 1))
            longer.check_error(413, "65,536 bytes")

    run(work)


@pytest.mark.parametrize("path", [*JSON_ROUTES, *PACKED_ROUTES])
def test_a_body_that_stalls(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(bodies, "BODY_STALL_TIMEOUT_S", 0.05)

    async def work() -> None:
        async with serving() as client:
            await client.claim()
            used = client.leases.budget.used
            headers: Any = {"Content-Length": "1000", "X-Meta": json.dumps({"include_interaction": True})}
            stalled = await client.send("POST", path, b"NNIA", b"{", headers=headers, end=None)
            stalled.check_error(408, "5 of 1,000 bytes")
            gone = await client.send("POST", path, b"NNIA", b"{", headers=headers, end=False)
            assert gone.status == 400
            assert client.leases.budget.used == used
            assert (await client.post(path)).status == 200

    run(work)


def test_a_body_that_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part arrives in time, but its memory would stay reserved for hours."""
    monkeypatch.setattr(bodies, "BODY_STALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(bodies, "MIN_BYTES_PER_S", 10_000)

    async def work() -> None:
        async with serving() as client:
            await client.claim()
            used = client.leases.budget.used
            headers: Any = {"Content-Length": "1000"}
            answer = await client.send("POST", "/set_image", *[b"N"] * 1000, headers=headers, pause_s=0.05)
            answer.check_error(408, "of 1,000 bytes")
            assert client.leases.budget.used == used

    run(work)


def test_a_body_has_a_total_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its length allows more time at the minimum rate."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.3)

    async def work() -> None:
        async with serving() as client:
            await client.claim()
            answer = await client.send("POST", "/set_image", *[b"N"] * 1000, pause_s=0.05)
            answer.check_error(408, "of 1,000 bytes")

    run(work)


def test_the_memory_of_a_body_is_reserved_as_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a client that sends little of a large body leaves the rest to others."""
    monkeypatch.setattr(bodies, "_STEP_BYTES", 1000)

    async def work() -> None:
        async with serving() as client:
            await client.claim()
            budget = client.leases.budget
            used = budget.used
            headers: Any = {"Content-Length": str(budget.limit - used)}
            parts = [bytes(600), bytes(600)]
            stalled = asyncio.ensure_future(client.send("POST", "/set_image", *parts, headers=headers, end=None))
            async with asyncio.timeout(10):
                while budget.used < used + 2000:
                    await asyncio.sleep(0)
            assert budget.used == used + 2000
            stalled.cancel()
            await asyncio.gather(stalled, return_exceptions=True)
            assert budget.used == used

    run(work)


def test_a_body_for_which_there_is_no_memory_is_refused_before_it_is_read() -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            with client.leases.budget.reserve(client.leases.budget.limit - client.leases.budget.used - 1000):
                headers: Any = {"Content-Length": "1001"}
                (await client.send("POST", "/set_image", headers=headers, end=None)).check_error(503, "in use")

    run(work)


def test_a_body_for_which_memory_runs_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_STEP_BYTES", 1000)

    async def work() -> None:
        async with serving() as client:
            await client.claim()
            budget = client.leases.budget
            used = budget.used
            parts = [bytes(900), bytes(900)]
            sent = asyncio.ensure_future(client.send("POST", "/set_image", *parts, pause_s=0.05))
            while budget.used < used + 1000:
                await asyncio.sleep(0)
            with budget.reserve(budget.limit - budget.used):
                (await sent).check_error(503, "in use")
            assert budget.used == used

    run(work)


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'{"include_interaction": 3}'])
def test_json_that_is_wrong(path: str, body: bytes) -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            answer = await client.send("POST", path, body)
            if path == "/predict" and body.endswith(b"3}"):
                assert answer.status == 200  # other fields are ignored
            else:
                answer.check_error(400, "JSON of this request is not valid")

    run(work)


@pytest.mark.parametrize("path", [path for path in PACKED_ROUTES if path != "/set_image"])
@pytest.mark.parametrize("meta", [None, "", "{", "[]", '{"include_interaction": "x", "run_prediction": 7}', "é"])
def test_meta_that_is_wrong(path: str, meta: str | None) -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            (await client.post(path, **{"X-Meta": meta})).check_error(400, "JSON of this request is not valid")

    run(work)


@pytest.mark.parametrize("path", PACKED_ROUTES)
@pytest.mark.parametrize("data", [b"", b"NNIA", b"x" * 100, pack_array(IMAGE)[:-1], pack_array(IMAGE) + b"x"])
def test_arrays_that_are_wrong(path: str, data: bytes) -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            used = client.leases.budget.used
            (await client.post(path, data)).check_error(400)
            assert client.leases.budget.used == used
            assert (await client.post("/add_point_interaction")).status == 200

    run(work)


def test_options_and_prompts_that_are_refused() -> None:
    async def work() -> None:
        async with serving() as client:
            await client.claim()
            point = JSON_ROUTES["/add_point_interaction"]
            (await client.post("/predict", {"force_full_refine": True})).check_error(400, "not supported")
            overridden = await client.post("/add_point_interaction", point | {"override_capability_checks": True})
            overridden.check_error(400, "not supported")
            box = JSON_ROUTES["/add_bbox_interaction"]
            for pairs in ([["nan", 4], [2, 4], [3, 4]], [[0, "inf"], [2, 4], [3, 4]], [[50, 60], [2, 4], [3, 4]]):
                (await client.post("/add_bbox_interaction", box | {"bbox_coords": pairs})).check_error(400, "box")

    run(work)


# ---- web pages and unknown routes ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
@pytest.mark.parametrize("path", [*GET, *POST, "/", "/unknown"])
def test_requests_of_web_pages_are_refused_on_every_route(method: str, path: str) -> None:
    async def work() -> None:
        async with serving(hosts=("gpu-box",)) as client:
            await client.claim()
            (await client.send(method, path, headers={"Host": "attacker.example"})).check_error(421, "attacker.example")
            foreign: dict[str, str | None] = {"Origin": "https://attacker.example"}
            (await client.send(method, path, headers=foreign)).check_error(403, "--allow-origin")
            assert len(client.leases) == 1
            assert client.session.segments == []

    run(work)


def test_allowed_hosts_and_origins() -> None:
    async def work() -> None:
        async with serving(hosts=("gpu-box",)) as client:
            for name, value in (("Host", "gpu-box:1527"), ("Origin", "https://allowed.example")):
                assert (await client.post("/release", **{name: value})).status == 200

    run(work)


@pytest.mark.parametrize("host", ["[", "a]b", "x:99999999", "x/y?z#", "", "\xe9", "a@b", "x:-1"])
def test_any_host_is_read_on_a_server_with_tokens(host: str) -> None:
    async def work() -> None:
        with http_server(answers(200, "{}")) as gateway:
            async with serving(gateway) as client:
                (await client.send("GET", "/none", headers={"Host": host})).check_error(404)
                (await client.send("PUT", "/claim", headers={"Host": host})).check_error(405)
                assert (await client.send("GET", "/healthz", headers={"Host": host})).status == 200

    run(work)


@pytest.mark.parametrize("name", ["X-Meta", "Authorization", "Host", "Origin", "X"])
@pytest.mark.parametrize("path", ["/claim", "/undo", "/unknown"])
def test_headers_with_control_characters(path: str, name: str) -> None:
    async def work() -> None:
        async with serving() as client:
            (await client.send("POST", path, headers={name: "a\x08b"})).check_error(400, "control character")

    run(work)


@pytest.mark.parametrize("path", ["/", "/claim/", "//claim", "/undo/x", "/docs", "/openapi.json", "/é", "/a b", "/\0"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_routes(path: str, method: str) -> None:
    async def work() -> None:
        async with serving() as client:
            (await client.send(method, path)).check_error(404, f"There is no {method} /")
            long = await client.send(method, "/" + "x" * 10_000)
            long.check_error(404)
            assert len(long.body) < 400

    run(work)


def test_wrong_methods() -> None:
    async def work() -> None:
        async with serving() as client:
            for path in POST:
                answer = await client.send("GET", path)
                answer.check_error(405, f"There is no GET {path}")
                assert answer.headers["allow"] == "POST"
            for path in GET:
                (await client.send("POST", path)).check_error(405)
            for method in ("PUT", "DELETE", "OPTIONS", "X"):
                (await client.send(method, "/claim")).check_error(405)

    run(work)
