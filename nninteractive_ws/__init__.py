"""nnInteractive over one WebSocket: segment anything in a 3D medical image by pointing at it.

::

    import nninteractive_ws as nni

    with nni.connect("ws://127.0.0.1:1528") as session:
        session.set_image(volume)
        liver = session.segment("liver")
        liver.add_point((60, 50, 12))
        liver.mask
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nninteractive_ws.errors import Error

if TYPE_CHECKING:
    from nninteractive_ws.client.aio import AsyncSegment, AsyncSession, aconnect
    from nninteractive_ws.client.blocking import Segment, Session, connect
    from nninteractive_ws.client.events import Result
    from nninteractive_ws.client.journal import Journal, load
    from nninteractive_ws.client.polled import PolledSession
    from nninteractive_ws.geometry import Box
    from nninteractive_ws.jobs.batch import batch

__all__ = [
    "AsyncSegment",
    "AsyncSession",
    "Box",
    "Error",
    "Journal",
    "PolledSession",
    "Result",
    "Segment",
    "Session",
    "aconnect",
    "batch",
    "connect",
    "load",
]

# Imported when they are asked for: what they need takes most of a second, and --help needs none of it.
_PLACES = {
    "AsyncSegment": "client.aio",
    "AsyncSession": "client.aio",
    "Box": "geometry",
    "Journal": "client.journal",
    "PolledSession": "client.polled",
    "Result": "client.events",
    "Segment": "client.blocking",
    "Session": "client.blocking",
    "aconnect": "client.aio",
    "batch": "jobs.batch",
    "connect": "client.blocking",
    "load": "client.journal",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
