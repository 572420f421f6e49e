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
    from nninteractive_ws import errors
    from nninteractive_ws.client import events
    from nninteractive_ws.client.aio import AsyncSegment, AsyncSession, aconnect
    from nninteractive_ws.client.blocking import Segment, Session, connect
    from nninteractive_ws.client.events import Result
    from nninteractive_ws.client.journal import Journal, load
    from nninteractive_ws.client.polled import PolledSegment, PolledSession
    from nninteractive_ws.geometry import Box
    from nninteractive_ws.jobs.batch import batch

__all__ = [
    "AsyncSegment",
    "AsyncSession",
    "Box",
    "Error",
    "Journal",
    "PolledSegment",
    "PolledSession",
    "Result",
    "Segment",
    "Session",
    "aconnect",
    "batch",
    "connect",
    "errors",
    "events",
    "load",
]

# Imported on first use, because their dependencies take most of a second to import, and --help needs none of them.
_MODULES = {
    "AsyncSegment": "client.aio",
    "AsyncSession": "client.aio",
    "Box": "geometry",
    "Journal": "client.journal",
    "PolledSegment": "client.polled",
    "PolledSession": "client.polled",
    "Result": "client.events",
    "Segment": "client.blocking",
    "Session": "client.blocking",
    "aconnect": "client.aio",
    "batch": "jobs.batch",
    "connect": "client.blocking",
    "load": "client.journal",
}


_SUBMODULES = {"events": "client.events"}


def __getattr__(name: str) -> object:
    place = _SUBMODULES.get(name) or _MODULES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{place}")
    found: object = module if name in _SUBMODULES else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
