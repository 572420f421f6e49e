"""The process that a session belongs to."""

import os

from nninteractive_ws.errors import ConnectionFailed


class Owner:
    """The process that opened a session. A forked child has a copy of the session, but not of its thread, and both
    processes would read from the same socket."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_this_process(self) -> bool:
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise ConnectionFailed in any other process."""
        if not self.is_this_process:
            raise ConnectionFailed(
                "This session belongs to the process that opened it, and cannot be used in a forked child. Open "
                "another session in the child."
            )
