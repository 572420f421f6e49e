"""All leases of nnInteractive's HTTP API: claim, lookup, release, and expiry."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
import hmac
import logging
import secrets
import time

from nninteractive_ws.background_tasks import BackgroundTasks
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import dial
from nninteractive_ws.client.events import Failed
from nninteractive_ws.errors import AtCapacity, ConnectionFailed, ServerError, Unauthorized
from nninteractive_ws.official_api.lease import ANSWER_TIMEOUT_S, Lease
from nninteractive_ws.official_api.memory import MemoryBudget

_log = logging.getLogger(__name__)

#: Seconds without an action of the user, and without any request, after which a lease expires. These are the defaults
#: of nnInteractive's server. Clients take the end of a lease badly (napari's plug-in removes the mask), so a lease
#: without actions is ended only if another one needs its place or its memory.
IDLE_TIMEOUT_S, LIVENESS_TIMEOUT_S = 600.0, 60.0
_SWEEP_EVERY_S = 5.0
#: The message for a missing or wrong token.
WRONG_TOKEN = "The token is missing or wrong. Enter the token from the server's administrator as the API key."


async def connect_to_gateway(address: str, *, token: str | None) -> AsyncSession:
    """Connect as ``aconnect`` does, but send bricks unpacked: on one machine, packing them would take longer."""
    dialer = partial(dial, parse_address(address), token=token, ssl_context=None)
    session = AsyncSession(dialer, Core(brick_encoding="raw"))
    try:
        await session.wait_open()
    except BaseException:
        await session.close()
        raise
    return session


class LeaseGone(Exception):
    """The lease is unknown or has expired. ``str()`` is a sentence for the user."""


@dataclass(frozen=True)
class Limits:
    """Limits of leases: of all users, and of one. ``max_bytes``: memory for the images and masks of all of them."""

    max_leases: int
    max_leases_per_user: int
    max_bytes: int


class Leases:
    """The leases of one server. ``gateway``: its address, to which each lease has a session."""

    def __init__(self, gateway: str, limits: Limits) -> None:
        self._gateway, self.limits = gateway, limits
        self.budget = MemoryBudget(limits.max_bytes, self._end_idle_lease)
        self._leases: dict[str, Lease] = {}
        self._ending = BackgroundTasks()
        self._claiming: Counter[str] = Counter()  # by token

    def __len__(self) -> int:
        return len(self._leases)

    async def claim(self, token: str) -> str:
        """Open a session, and return the name of its lease.

        Raises AtCapacity, Unauthorized, or ServerError if the server is not ready in time.
        """
        self._check_limits(token)
        self._claiming[token] += 1
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                session = await self._open_session(token)
        except TimeoutError as e:
            raise ServerError("The server is still loading its model. Try again in a moment.") from e
        except Unauthorized as e:
            raise Unauthorized(WRONG_TOKEN) from e
        except ConnectionFailed as e:
            raise ServerError("The server is shutting down. Try again later.") from e
        finally:
            self._claiming[token] -= 1
            if not self._claiming[token]:
                del self._claiming[token]
        name = secrets.token_hex(16)
        session.on("error", lambda event: self._on_error(name, event))
        self._leases[name] = Lease(session, token, self.budget)
        return name

    async def _open_session(self, token: str) -> AsyncSession:
        session = await connect_to_gateway(self._gateway, token=token or None)
        try:
            # No client of this API can show previews, and each of them would take time.
            await session.set_options(previews=False)
        except BaseException:
            await session.close()
            raise
        return session

    def find(self, name: str, token: str, *, mark_seen: bool = True) -> Lease:
        """Return the lease of a name. Raises LeaseGone, and Unauthorized if it belongs to another user."""
        lease = self._leases.get(name)
        if lease is None:
            raise LeaseGone(
                "This session has ended. Start another one, set the image again, and continue from the mask."
            )
        if not hmac.compare_digest(lease.token.encode(), token.encode()):
            raise Unauthorized("The token is not that of the lease. Send the token with which the lease was claimed.")
        if mark_seen:
            lease.last_seen = time.monotonic()
        return lease

    @staticmethod
    def remaining_seconds(lease: Lease) -> float:
        """Return the seconds after which a lease may end without another action of the user."""
        return max(0.0, IDLE_TIMEOUT_S - (time.monotonic() - lease.last_active))

    async def release(self, name: str) -> None:
        """End a lease and its session, after its current request."""
        lease = self._leases.pop(name, None)
        if lease is not None:
            await _end(lease)

    async def expire(self) -> None:
        """End the leases of clients that are gone, forever."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            now = time.monotonic()
            for name, lease in list(self._leases.items()):
                if not lease.lock.locked() and now - lease.last_seen > LIVENESS_TIMEOUT_S:
                    _log.info("ended a lease: there was no sign of its client")
                    await self.release(name)

    async def close(self) -> None:
        """End all leases."""
        await asyncio.gather(self._ending.wait(), *(self.release(name) for name in list(self._leases)))

    def _check_limits(self, token: str) -> None:
        own = sum(lease.token == token for lease in self._leases.values()) + self._claiming[token]
        if own >= self.limits.max_leases_per_user and not self._end_idle_lease(token):
            raise AtCapacity(f"All {own} sessions that a user may have are in use. Close one of them.")
        if len(self._leases) + self._claiming.total() >= self.limits.max_leases and not self._end_idle_lease():
            raise AtCapacity(f"All {self.limits.max_leases} sessions of the server are in use. Try again later.")

    def _end_idle_lease(self, token: str | None = None) -> bool:
        """End the lease that was without actions for the longest time, if it has expired; with ``token``, of this user.

        Return whether there was one.
        """
        oldest = time.monotonic() - IDLE_TIMEOUT_S
        idle = {
            name: lease.last_active
            for name, lease in self._leases.items()
            if lease.last_active < oldest and not lease.lock.locked() and token in (None, lease.token)
        }
        if not idle:
            return False
        _log.info("ended a lease without actions in favor of another")
        lease = self._leases.pop(min(idle, key=idle.__getitem__))
        lease.forget_image()
        self._ending.spawn(lease.close())
        return True

    def _on_error(self, name: str, event: Failed) -> None:
        """Forget a lease whose session has failed, so that its client claims another."""
        if event.request is None and (lease := self._leases.pop(name, None)) is not None:
            _log.warning("a session ended: %s", event.error)
            self._ending.spawn(_end(lease))


async def _end(lease: Lease) -> None:
    """End a lease's session after its current request, which may be the one that sets the image."""
    async with lease.lock:
        await lease.close()
