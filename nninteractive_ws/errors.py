"""Every error of this project, one tree, each with the code it has on the wire.

::

    Error
    ├── ProtocolError            one side sent what the protocol does not allow
    │   ├── BadMessage               bad_message
    │   └── UnsupportedVersion       unsupported_version
    ├── Refused                  the server does not let this client in, or not now
    │   ├── Unauthorized             unauthorized
    │   ├── ForbiddenOrigin          forbidden_origin
    │   └── AtCapacity               at_capacity
    ├── InvalidRequest           the request was understood and cannot be done as it stands
    │   ├── TooLarge                 too_large
    │   ├── BadImage                 bad_image
    │   ├── NoImage                  no_image
    │   ├── OutOfBounds              out_of_bounds
    │   ├── UnsupportedPrompt        unsupported_prompt
    │   ├── UnknownSegment           unknown_segment
    │   └── NothingToUndo            nothing_to_undo
    ├── Cancelled                    cancelled
    ├── ServerError              not the client's doing
    │   ├── OutOfMemory              out_of_memory
    │   ├── WorkerLost               worker_lost
    │   ├── ShuttingDown             shutting_down
    │   └── InternalError            internal
    ├── BadJournal                   bad_journal (client only)
    ├── BadJobs                      bad_jobs (client only)
    └── ConnectionFailed             connection_failed (client only, never on the wire)
        ├── BadAddress               bad_address (client only)
        └── Untrusted                untrusted (client only)

An error that answers a request concerns that request alone: the session goes on and the segment is as it was
before. After an error that names no request the connection is closed.
"""

from typing import ClassVar


class Error(Exception):
    """The base of every error here. ``str(error)`` is a sentence for the user."""

    code: ClassVar[str] = "internal"


class ProtocolError(Error):
    """One side sent what the protocol does not allow."""


class BadMessage(ProtocolError):
    """Bytes that are not a message, or a message whose fields are wrong."""

    code = "bad_message"


class UnsupportedVersion(ProtocolError):
    """Client and server speak different versions of the protocol."""

    code = "unsupported_version"


class Refused(Error):
    """The server does not let this client in, or not now."""


class Unauthorized(Refused):
    """No token, or a wrong one."""

    code = "unauthorized"


class ForbiddenOrigin(Refused):
    """A web page that is not allowed to use this server."""

    code = "forbidden_origin"


class AtCapacity(Refused):
    """The server has as many sessions as it takes."""

    code = "at_capacity"


class InvalidRequest(Error):
    """The request was understood and cannot be done as it stands."""


class TooLarge(InvalidRequest):
    """A message, an image or a mask over a limit."""

    code = "too_large"


class BadImage(InvalidRequest):
    """An image that cannot be segmented: wrong dimensions, not finite, constant, of an unknown type."""

    code = "bad_image"


class NoImage(InvalidRequest):
    """A prompt before any image."""

    code = "no_image"


class OutOfBounds(InvalidRequest):
    """A point or box that is not inside the volume."""

    code = "out_of_bounds"


class UnsupportedPrompt(InvalidRequest):
    """A prompt that the loaded model was not trained for, or that is empty."""

    code = "unsupported_prompt"


class UnknownSegment(InvalidRequest):
    """A segment that the session does not have."""

    code = "unknown_segment"


class NothingToUndo(InvalidRequest):
    """No prompt to undo, or nothing undone to redo."""

    code = "nothing_to_undo"


class Cancelled(Error):
    """The request was cancelled; the segment is as it was before it."""

    code = "cancelled"


class ServerError(Error):
    """Not the client's doing."""


class OutOfMemory(ServerError):
    """The device or the machine has not enough memory for the request."""

    code = "out_of_memory"


class WorkerLost(ServerError):
    """The process that held the session ended."""

    code = "worker_lost"


class ShuttingDown(ServerError):
    """The server is being stopped."""

    code = "shutting_down"


class InternalError(ServerError):
    """A fault in the server; its log has the details."""

    code = "internal"


class BadJournal(Error):
    """A file that is no journal, or a damaged one."""

    code = "bad_journal"


class BadJobs(Error):
    """A table of jobs that is none, or a row or a file of prompts in it that cannot be used."""

    code = "bad_jobs"


class ConnectionFailed(Error):
    """The client could not reach the server, or lost it."""

    code = "connection_failed"


class BadAddress(ConnectionFailed):
    """An address that names no server."""

    code = "bad_address"


class Untrusted(ConnectionFailed):
    """A server whose certificate does not prove that it is the one that was asked for."""

    code = "untrusted"


def _leaves(kind: type[Error]) -> list[type[Error]]:
    below = [leaf for child in kind.__subclasses__() for leaf in _leaves(child)]
    return [kind, *below] if "code" in vars(kind) and kind is not Error else below


#: The errors that may travel, by code.
WIRE_ERRORS: dict[str, type[Error]] = {
    kind.code: kind for kind in _leaves(Error) if not issubclass(kind, ConnectionFailed | BadJournal | BadJobs)
}


def error_from_wire(code: str, message: str) -> Error:
    """The error that a peer's code and sentence stand for; an unknown code becomes :class:`InternalError`."""
    return WIRE_ERRORS.get(code, InternalError)(message)
