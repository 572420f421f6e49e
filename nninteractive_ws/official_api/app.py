"""The routes of nnInteractive's HTTP API, 2.5.1 to 2.6 (``inference/server/app.py``), on leases of this server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
import http.client
import json
import logging
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nninteractive_ws import errors
from nninteractive_ws.official_api import nnia, payloads
from nninteractive_ws.official_api.bodies import content_length, headers_of, read_body, read_json, token_of
from nninteractive_ws.official_api.lease import Answer, Lease
from nninteractive_ws.official_api.leases import IDLE_TIMEOUT_S, LIVENESS_TIMEOUT_S, WRONG_TOKEN, LeaseGone, Leases
from nninteractive_ws.official_api.responses import error_response, to_response
from nninteractive_ws.server.hosts import WebPageGuard

_log = logging.getLogger(__name__)

LEASE_HEADER, META_HEADER = "X-Lease-Token", "X-Meta"
#: Timeout of the gateway, which answers at once.
_GATEWAY_TIMEOUT_S = 10.0

_Handler = Callable[[Request], Awaitable[Response]]
_LeaseHandler = Callable[[Lease, Request], Awaitable[Response]]


class OfficialApi:
    """The HTTP API. ``gateway``: its address, as ``ws://HOST:PORT``."""

    def __init__(self, gateway: str, leases: Leases, guard: WebPageGuard) -> None:
        self._gateway, self._leases, self._guard = urlsplit(gateway).netloc, leases, guard

    def make_app(self) -> Starlette:
        """Return the ASGI application."""
        get: dict[str, _Handler] = {
            "/healthz": self._ask_gateway,
            "/capabilities": self._ask_gateway,
            "/metrics": self._ask_gateway,
            "/lease_status": self._lease_status,
        }
        post: dict[str, _Handler] = {
            "/claim": self._claim,
            "/release": self._release,
            "/heartbeat": self._heartbeat,
            "/set_image": self._on_lease(self._set_image),
            "/set_target_buffer": self._on_lease(self._set_target_buffer),
            "/set_do_autozoom": self._on_lease(self._set_do_autozoom),
            "/reset_interactions": self._on_lease(self._reset),
            "/undo": self._on_lease(self._undo),
            "/predict": self._on_lease(self._predict),
            "/add_point_interaction": self._on_lease(self._add_point),
            "/add_bbox_interaction": self._on_lease(self._add_bbox),
            "/add_scribble_interaction": self._on_lease(self._add_scribble),
            "/add_lasso_interaction": self._on_lease(self._add_lasso),
            "/add_initial_seg_interaction": self._on_lease(self._add_initial_segmentation),
        }
        routes = [Route(path, self._guarded(handle), methods=["GET"]) for path, handle in get.items()]
        routes += [Route(path, self._guarded(handle), methods=["POST"]) for path, handle in post.items()]
        app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._no_route})
        app.router.redirect_slashes = False
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        expiring = asyncio.ensure_future(self._leases.expire())
        try:
            yield
        finally:
            expiring.cancel()
            await self._leases.close()

    def _guarded(self, handle: _Handler) -> _Handler:
        """Refuse foreign web pages, and answer errors."""

        async def guarded(request: Request) -> Response:
            try:
                return self._refuse_web_page(request) or await handle(request)
            except Exception as e:
                return await self._to_response(e, request)

        return guarded

    def _refuse_web_page(self, request: Request) -> Response | None:
        refusal = self._guard.refusal(headers_of(request))
        return None if refusal is None else error_response(refusal.status, refusal.message.strip())

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """Answer a request for an unknown path or with a wrong method."""
        assert isinstance(error, HTTPException)
        path, headers = request.scope["path"], dict(error.headers or {})
        message = f"There is no {request.method} {path:.200} in nnInteractive's HTTP API. See the documentation."
        response = error_response(HTTPStatus(error.status_code), message, headers)

        async def no_route(request: Request) -> Response:
            return response

        return await self._guarded(no_route)(request)

    async def _to_response(self, error: Exception, request: Request) -> Response:
        if isinstance(error, LeaseGone) and not await self._has_valid_token(request):
            error = errors.Unauthorized(WRONG_TOKEN)
        if (response := to_response(error)) is None:
            raise error
        # Clients show the status alone.
        peer = request.client.host if request.client else "?"
        _log.info("refused %s: %s", request.scope["path"], error, extra={"peer": peer})
        return response

    async def _has_valid_token(self, request: Request) -> bool:
        return (await self._ask_gateway(request, "/metrics")).status_code != HTTPStatus.UNAUTHORIZED

    # ---- without a lease ----------------------------------------------------------------------------------

    async def _ask_gateway(self, request: Request, path: str | None = None) -> Response:
        """Return the gateway's answer. It knows the model and the tokens."""
        path, authorization = path or request.scope["path"], request.headers.get("Authorization")
        try:
            return await asyncio.to_thread(self._fetch, path, authorization)
        except (OSError, http.client.HTTPException):
            return error_response(HTTPStatus.SERVICE_UNAVAILABLE, "The server does not answer. Try again in a moment.")

    def _fetch(self, path: str, authorization: str | None) -> Response:
        connection = http.client.HTTPConnection(self._gateway, timeout=_GATEWAY_TIMEOUT_S)
        try:
            connection.request("GET", path, headers={} if authorization is None else {"Authorization": authorization})
            answer = connection.getresponse()
            body, kind = answer.read(), answer.headers.get_content_type()
        finally:
            connection.close()
        headers = {name: answer.headers[name] for name in ("Retry-After", "WWW-Authenticate") if name in answer.headers}
        if answer.status >= HTTPStatus.BAD_REQUEST:
            return error_response(HTTPStatus(answer.status), body.decode().strip(), headers)
        return Response(body, answer.status, headers, kind)

    async def _claim(self, request: Request) -> Response:
        # Before anything is counted or ended for the sake of this claim.
        if not await self._has_valid_token(request):
            raise errors.Unauthorized(WRONG_TOKEN)
        name = await self._leases.claim(token_of(request))
        if await request.is_disconnected():
            await self._leases.release(name)
        return JSONResponse(
            {
                "lease_token": name,
                "idle_timeout_seconds": IDLE_TIMEOUT_S,
                "liveness_timeout_seconds": LIVENESS_TIMEOUT_S,
                "max_sessions": self._leases.limits.max_leases,
            }
        )

    async def _release(self, request: Request) -> Response:
        try:
            self._lease(request)
        except LeaseGone:  # released before, or expired
            if not await self._has_valid_token(request):
                raise errors.Unauthorized(WRONG_TOKEN) from None
        else:
            await self._leases.release(request.headers[LEASE_HEADER])
        return JSONResponse({"released": True})

    async def _heartbeat(self, request: Request) -> Response:
        return JSONResponse({"remaining_seconds": Leases.remaining_seconds(self._lease(request))})

    async def _lease_status(self, request: Request) -> Response:
        lease = self._lease(request, mark_seen=False)
        return JSONResponse(
            {"remaining_seconds": Leases.remaining_seconds(lease), "idle_timeout_seconds": IDLE_TIMEOUT_S}
        )

    # ---- on a lease ---------------------------------------------------------------------------------------

    def _lease(self, request: Request, *, mark_seen: bool = True) -> Lease:
        return self._leases.find(request.headers.get(LEASE_HEADER, ""), token_of(request), mark_seen=mark_seen)

    def _on_lease(self, handle: _LeaseHandler) -> _Handler:
        """Do the requests of a lease one after another."""

        async def on_lease(request: Request) -> Response:
            lease = self._lease(request)
            lease.mark_active()
            async with lease.lock:
                self._lease(request)  # it may have ended meanwhile
                try:
                    return await handle(lease, request)
                finally:
                    lease.mark_active()

        return on_lease

    async def _set_image(self, lease: Lease, request: Request) -> Response:
        async with self._packed_body(request) as packed:
            await lease.set_image(packed)
            return JSONResponse({"original_image_shape": packed.shape})

    async def _set_target_buffer(self, lease: Lease, request: Request) -> Response:
        await lease.set_target_buffer(await read_json(request, payloads.SetTargetBuffer))
        return JSONResponse({})

    async def _set_do_autozoom(self, lease: Lease, request: Request) -> Response:
        await lease.set_do_autozoom((await read_json(request, payloads.SetDoAutozoom)).do_autozoom)
        return JSONResponse({})

    async def _reset(self, lease: Lease, request: Request) -> Response:
        await lease.reset()
        return JSONResponse({})

    async def _undo(self, lease: Lease, request: Request) -> Response:
        return await self._answer(lease, request, lease.undo())

    async def _predict(self, lease: Lease, request: Request) -> Response:
        (await read_json(request, payloads.Predict)).check()
        return await self._answer(lease, request, lease.predict())

    async def _add_point(self, lease: Lease, request: Request) -> Response:
        payload = await read_json(request, payloads.AddPoint)
        payload.check()
        return await self._answer(lease, request, lease.add_point(payload))

    async def _add_bbox(self, lease: Lease, request: Request) -> Response:
        payload = await read_json(request, payloads.AddBbox)
        payload.check()
        return await self._answer(lease, request, lease.add_bbox(payload))

    async def _add_scribble(self, lease: Lease, request: Request) -> Response:
        payload = payloads.decode(request.headers.get(META_HEADER, ""), payloads.AddMask)
        payload.check()
        async with self._packed_body(request) as packed:
            return await self._answer(lease, request, lease.add_scribble(payload, packed))

    async def _add_lasso(self, lease: Lease, request: Request) -> Response:
        payload = payloads.decode(request.headers.get(META_HEADER, ""), payloads.AddMask)
        payload.check()
        async with self._packed_body(request) as packed:
            return await self._answer(lease, request, lease.add_lasso(payload, packed))

    async def _add_initial_segmentation(self, lease: Lease, request: Request) -> Response:
        payload = payloads.decode(request.headers.get(META_HEADER, ""), payloads.AddInitialSegmentation)
        payload.check()
        async with self._packed_body(request) as packed:
            return await self._answer(lease, request, lease.add_initial_segmentation(payload, packed))

    @asynccontextmanager
    async def _packed_body(self, request: Request) -> AsyncIterator[nnia.PackedArray]:
        """Read a packed array, whose bytes are counted from their arrival until the end of the request."""
        length, budget = content_length(request), self._leases.budget
        # Refuse it before it is sent if there is no memory for it, but reserve none for a client that may not send it.
        budget.reserve(length).release()
        with budget.reserve(0) as reservation:
            yield nnia.parse(await read_body(request, length, reservation))

    async def _answer(self, lease: Lease, request: Request, prompt: Awaitable[Answer]) -> Response:
        answer = await prompt
        meta: dict[str, object] = {"ran_prediction": answer.ran, "bbox": None}
        content = b""
        try:
            if answer.box is not None:
                with lease.reserve_part(answer.box):
                    part = await asyncio.to_thread(lease.part, answer.box)
                    meta |= {"bbox": answer.box.pairs, "dtype": part.dtype.name, "shape": part.shape}
                    content = await asyncio.to_thread(nnia.pack, part)
            received = not await request.is_disconnected()
        except BaseException:
            lease.not_received(answer)
            raise
        if not received:
            lease.not_received(answer)
        headers = {META_HEADER: json.dumps(meta, separators=(",", ":"))}
        return Response(content, media_type=nnia.MEDIA_TYPE, headers=headers)
