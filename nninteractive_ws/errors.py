"""All errors of this project in one tree, each with its code on the wire.

::

    Error
    ├── ProtocolError            one side broke the protocol
    │   ├── BadMessage               bad_message
    │   └── UnsupportedVersion       unsupported_version
    ├── Refused                  the server refuses this client
    │   ├── Unauthorized             unauthorized
    │   ├── ForbiddenOrigin          forbidden_origin
    │   └── AtCapacity               at_capacity
    ├── InvalidRequest           the request is understood but cannot be done
    │   ├── TooLarge                 too_large
    │   ├── BadImage                 bad_image
    │   ├── BadMask                  bad_mask (client only)
    │   ├── NoImage                  no_image
    │   ├── OutOfBounds              out_of_bounds
    │   ├── UnsupportedPrompt        unsupported_prompt
    │   ├── UnknownSegment           unknown_segment
    │   └── NothingToUndo            nothing_to_undo
    ├── Cancelled                    cancelled
    ├── ServerError              a fault of the server
    │   ├── OutOfMemory              out_of_memory
    │   ├── WorkerLost               worker_lost
    │   ├── ShuttingDown             shutting_down
    │   └── InternalError            internal
    ├── BadJournal                   bad_journal (client only)
    ├── InvalidTable                 bad_jobs (client only)
    ├── BadOutput                    bad_output (client only)
    └── ConnectionFailed             connection_failed (client only, never on the wire)
        ├── BadAddress               bad_address (client only)
        └── Untrusted                untrusted (client only)

An error that answers a request concerns that request alone. The session continues, and the segment is as before.
After an error that names no request, the connection is closed.
"""

from typing import ClassVar


class Error(Exception):
    """Base of all errors. ``str(error)`` is a sentence for the user, ``code`` a stable name for programs."""

    code: ClassVar[str] = "internal"


class ProtocolError(Error):
    """One side broke the protocol."""


class BadMessage(ProtocolError):
    """Bytes that are not a message, or a message whose fields are wrong."""

    code = "bad_message"


class UnsupportedVersion(ProtocolError):
    """Client and server speak different versions of the protocol."""

    code = "unsupported_version"


class Refused(Error):
    """The server refuses this client."""


class Unauthorized(Refused):
    """No token, or a wrong one."""

    code = "unauthorized"


class ForbiddenOrigin(Refused):
    """A web page that is not allowed to use this server."""

    code = "forbidden_origin"


class AtCapacity(Refused):
    """The server has no free session, or a limit of the session is reached."""

    code = "at_capacity"


class InvalidRequest(Error):
    """The request is understood but cannot be done."""


class TooLarge(InvalidRequest):
    """A message, an image or a mask over a limit."""

    code = "too_large"


class BadImage(InvalidRequest):
    """An image that cannot be segmented: wrong dimensions, not finite, constant, of an unknown type."""

    code = "bad_image"


class BadMask(InvalidRequest):
    """A mask that does not define which voxels are set, such as probabilities, NaN or text."""

    code = "bad_mask"


class NoImage(InvalidRequest):
    """A prompt before the first image."""

    code = "no_image"


class OutOfBounds(InvalidRequest):
    """A point or box that is not inside the volume."""

    code = "out_of_bounds"


class UnsupportedPrompt(InvalidRequest):
    """A prompt that the model was not trained for, or an empty one."""

    code = "unsupported_prompt"


class UnknownSegment(InvalidRequest):
    """A segment that the session does not have."""

    code = "unknown_segment"


class NothingToUndo(InvalidRequest):
    """No prompt to undo, or nothing undone to redo."""

    code = "nothing_to_undo"


class Cancelled(Error):
    """The request was cancelled. The segment is as before."""

    code = "cancelled"


class ServerError(Error):
    """A fault of the server."""


class OutOfMemory(ServerError):
    """The server has not enough memory for the request."""

    code = "out_of_memory"


class WorkerLost(ServerError):
    """The worker process of the session ended."""

    code = "worker_lost"


class ShuttingDown(ServerError):
    """The server is stopping."""

    code = "shutting_down"


class InternalError(ServerError):
    """An unexpected error on the server. Its log has the details."""

    code = "internal"


class BadJournal(Error):
    """A file that is no journal, or is damaged."""

    code = "bad_journal"


class InvalidTable(Error):
    """A table of jobs or cases, one of its rows, or a file of prompts cannot be used."""

    code = "bad_jobs"


class BadOutput(Error):
    """An output file or folder that cannot be used: it would replace an input, or another batch uses it."""

    code = "bad_output"


class ConnectionFailed(Error):
    """The server cannot be reached, or the connection was lost."""

    code = "connection_failed"


class BadAddress(ConnectionFailed):
    """A text that is no server address."""

    code = "bad_address"


class Untrusted(ConnectionFailed):
    """The server's certificate does not prove its identity."""

    code = "untrusted"


def _leaves(kind: type[Error]) -> list[type[Error]]:
    below = [leaf for child in kind.__subclasses__() for leaf in _leaves(child)]
    return [kind, *below] if "code" in vars(kind) and kind is not Error else below


_CLIENT_ONLY = ConnectionFailed | BadJournal | BadMask | BadOutput | InvalidTable
#: Errors on the wire, by code.
WIRE_ERRORS: dict[str, type[Error]] = {kind.code: kind for kind in _leaves(Error) if not issubclass(kind, _CLIENT_ONLY)}


def error_from_wire(code: str, message: str) -> Error:
    """Return the error for a code and a sentence of the peer. An unknown code becomes ``InternalError``."""
    return WIRE_ERRORS.get(code, InternalError)(message)
