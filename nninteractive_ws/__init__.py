"""nnInteractive over one WebSocket: segment anything in a 3D medical image by pointing at it.

::

    import nninteractive_ws as nni

    with nni.connect("ws://127.0.0.1:1528") as session:
        session.set_image(volume)
        liver = session.segment("liver")
        liver.add_point((60, 50, 12))
        liver.mask
"""

from nninteractive_ws.client.aio import AsyncSegment, AsyncSession, aconnect
from nninteractive_ws.client.blocking import Segment, Session, connect
from nninteractive_ws.client.events import Result
from nninteractive_ws.client.journal import Journal, load
from nninteractive_ws.client.polled import PolledSession
from nninteractive_ws.errors import Error
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
