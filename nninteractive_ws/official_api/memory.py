"""Memory that clients of the HTTP API make this process keep: counted, and limited for all of them together."""

from collections.abc import Callable
from types import TracebackType

from nninteractive_ws.errors import OutOfMemory, TooLarge
from nninteractive_ws.units import format_bytes


class MemoryBudget:
    """A number of bytes for all clients together, for the event loop's thread only.

    ``free()`` ends an unused lease, or returns False.
    """

    def __init__(self, limit: int, free: Callable[[], bool] = lambda: False) -> None:
        self.limit, self.used, self._free = limit, 0, free

    def reserve(self, nbytes: int) -> "Reservation":
        """Reserve memory. Raises TooLarge if it exceeds the whole budget, and OutOfMemory if it does at present."""
        self.check(nbytes)
        while self.used + nbytes > self.limit:
            if self._free():
                continue
            raise OutOfMemory(
                "The memory of this server for clients of the HTTP API is in use. Try again when others have finished."
            )
        self.used += nbytes
        return Reservation(self, nbytes)

    def check(self, nbytes: int) -> None:
        """Raise TooLarge for more than the whole budget."""
        if nbytes > self.limit:
            raise TooLarge(
                f"The request needs {format_bytes(nbytes)}, and this server has {format_bytes(self.limit)} for clients "
                "of the HTTP API. Use a smaller image, or a client that speaks WebSocket."
            )


class Reservation:
    """A part of a budget, to be released once. As a context manager, it is released at the end."""

    def __init__(self, budget: MemoryBudget, nbytes: int) -> None:
        self._budget, self.nbytes = budget, nbytes

    def grow(self, nbytes: int) -> None:
        """Reserve more memory. Raises TooLarge or OutOfMemory, as :meth:`MemoryBudget.reserve` does."""
        self.nbytes += self._budget.reserve(nbytes).nbytes

    def release(self) -> None:
        """Return the memory to the budget."""
        self._budget.used -= self.nbytes
        self.nbytes = 0

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
