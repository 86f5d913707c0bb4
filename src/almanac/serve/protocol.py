"""uvicorn's HTTP/1.1 protocol with the two clocks it lacks: for a request's headers, and for a client that does not read.

``h11`` bounds the size of the headers; nothing bounds how slowly they come, and a paused write waits for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from almanac.serve.limits import Limits


def protocol_for(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class that a server with these limits speaks."""

    class Bounded(H11Protocol):
        """Ends a connection that is too slow, whichever way."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.clocks: dict[str, asyncio.TimerHandle] = {}

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._abort_after(limits.header_seconds, "headers")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:  # a part of the next request's headers, if anything
                self._abort_after(limits.header_seconds, "headers")
            else:
                self._stop("headers")

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                self._abort_after(limits.header_seconds, "headers")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop("headers")
            self._stop("writing")
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._abort_after(limits.idle_write_seconds, "writing")

        def resume_writing(self) -> None:
            self._stop("writing")
            super().resume_writing()

        def _abort_after(self, seconds: float, clock: str) -> None:
            if clock not in self.clocks:
                self.clocks[clock] = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self, clock: str) -> None:
            if clock in self.clocks:
                self.clocks.pop(clock).cancel()

    return Bounded
