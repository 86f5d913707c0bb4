"""Tickets: one use, short-lived, for the one page that a browser opens by address and so without a header."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from almanac.serve.errors import RefusedError
from almanac.serve.limits import Limits


class Tickets:
    """Outstanding tickets; only their digests are kept, each with its owner."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self._open: dict[bytes, tuple[str, float]] = {}

    def make(self, owner: str) -> str:
        """A new ticket. Raises RefusedError when the owner has too many."""
        self._drop_old()
        if sum(holder == owner for holder, _ in self._open.values()) >= self.limits.tickets:
            raise RefusedError(
                f"{self.limits.tickets} tickets are unused",
                remedy="Use one, or wait until they end.",
                status=429,
                retry_after=max(1, round(self.limits.ticket_seconds)),
            )
        ticket = secrets.token_urlsafe(32)
        self._open[_digest(ticket)] = (owner, self.clock() + self.limits.ticket_seconds)
        return ticket

    def redeem(self, ticket: str) -> str | None:
        """The owner of a ticket, which is void from now on; None for one that is wrong, used or old."""
        self._drop_old()
        owner, _ = self._open.pop(_digest(ticket), (None, 0.0))
        return owner

    def __len__(self) -> int:
        self._drop_old()
        return len(self._open)

    def _drop_old(self) -> None:
        now = self.clock()
        self._open = {key: item for key, item in self._open.items() if item[1] > now}


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).digest()
