"""Error responses of the HTTP API."""

from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from nninteractive_ws import errors
from nninteractive_ws.official_api.bodies import BodyTimeout, LengthRequired
from nninteractive_ws.official_api.lease import AnswerTimeout
from nninteractive_ws.official_api.leases import LeaseGone

#: Seconds after which a client may try again.
RETRY_AFTER_S = 10

# The first class that an error belongs to decides. Clients take 410 as the request to claim another lease and send the
# image again, and 503 as a message for the user.
_STATUS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (LeaseGone, HTTPStatus.GONE),
    (errors.ConnectionFailed, HTTPStatus.GONE),
    (LengthRequired, HTTPStatus.LENGTH_REQUIRED),
    (BodyTimeout, HTTPStatus.REQUEST_TIMEOUT),
    (errors.Unauthorized, HTTPStatus.UNAUTHORIZED),
    (errors.AtCapacity, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (errors.InvalidRequest, HTTPStatus.BAD_REQUEST),
    (errors.ProtocolError, HTTPStatus.BAD_REQUEST),
    (errors.InternalError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (errors.Error, HTTPStatus.SERVICE_UNAVAILABLE),
    (AnswerTimeout, HTTPStatus.SERVICE_UNAVAILABLE),
    (ClientDisconnect, HTTPStatus.BAD_REQUEST),  # nobody receives it
)


def to_response(error: Exception) -> Response | None:
    """Return the response to an error; None for an error that is unexpected here."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
    return None if status is None else error_response(status, str(error))


def error_response(status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error response with a sentence."""
    headers = dict(headers or {})
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    if status is HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", 'Bearer realm="nninteractive-ws"')
    return JSONResponse({"detail": message}, status, headers)
