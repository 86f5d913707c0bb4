"""The outermost layer: whatever a request holds is let go when it ends, however it ends.

Every request gets a ``Visit``. What a handler takes (a slot, sequences in the engine, a temporary file) it takes into the
visit's stack, which is closed here: after the answer, when the client went away (for a stream and for a plain answer
alike: frameworks do not cancel handlers by themselves), when the time is over, and when anything failed. There is no
moment between taking and registering at which a cancellation could lose it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from almanac.serve.auth import PRINCIPAL
from almanac.serve.errors import ClientGoneError, Problem, problem_of, send_problem
from almanac.serve.limits import Limits

VISIT = "almanac.visit"
log = logging.getLogger("almanac.serve")

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Of every response that does not set its own."""


@dataclass
class Visit:
    """One request: what it holds, and how far its answer has come."""

    stack: ExitStack = field(default_factory=ExitStack)
    status: int = 0
    is_complete: bool = False
    is_gone: bool = False
    note: str = ""


class Presence:
    """ASGI middleware around everything else."""

    def __init__(self, app: Any, *, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = scope[VISIT] = Visit()
        began = time.monotonic()
        watched = _Watched(receive, visit)
        try:
            with visit.stack:
                await self._answer(scope, watched, _Sending(send, visit))
        finally:
            watched.stop()
            _tell(scope, visit, time.monotonic() - began)

    async def _answer(self, scope: Any, watched: _Watched, send: _Sending) -> None:
        visit = send.visit
        try:
            async with asyncio.timeout(self.limits.total_seconds):
                await self.app(scope, watched, send)
        except ClientGoneError:
            visit.is_gone = True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not visit.is_gone or task is None or task.uncancel() > 0:
                raise
        except TimeoutError:
            visit.note = "over time"
            if not visit.status:
                await send_problem(send, Problem(503, "The request took too long. Ask for less.", retry_after=1))
        except Exception as error:
            visit.note = _place(error)
            if not visit.status:
                await send_problem(send, problem_of(error))


class _Watched:
    """``receive``; once the body was read, somebody keeps listening for the end of the connection."""

    def __init__(self, receive: Any, visit: Visit) -> None:
        self.receive = receive
        self.visit = visit
        self.watcher: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()

    async def __call__(self) -> Any:
        if self.watcher is not None:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.watcher = asyncio.create_task(self._watch(asyncio.current_task()))
        return message

    async def _watch(self, task: asyncio.Task[Any] | None) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        if not self.visit.is_complete and task is not None:
            self.visit.is_gone = True
            task.cancel()

    def stop(self) -> None:
        """Listens no more."""
        if self.watcher is not None:
            self.watcher.cancel()


class _Sending:
    """``send``, with the headers that every response carries."""

    def __init__(self, send: Any, visit: Visit) -> None:
        self.send = send
        self.visit = visit

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.visit.status = message["status"]
            own = {name.lower() for name, _ in message["headers"]}
            more = [item for item in _HEADERS.items() if item[0] not in own]
            message = {**message, "headers": [*message["headers"], *more]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.visit.is_complete = True
        await self.send(message)


def _tell(scope: Any, visit: Visit, seconds: float) -> None:
    """One line per request: no address, no header, no body; the route's template stands for the path."""
    route = scope.get("route")
    path = route.path if route is not None else "-"
    end = "" if visit.is_complete else " gone" if visit.is_gone else " cut"
    note = f" {visit.note}" if visit.note else ""
    who = scope.get(PRINCIPAL, "-")
    level = logging.ERROR if visit.note else logging.INFO
    log.log(level, "%s %s %d %.3fs %s%s%s", scope["method"], path, visit.status, seconds, who, end, note)


def _place(error: BaseException) -> str:
    """The kind of a failure and the line it came from. Not its message, which may hold somebody's text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    return f"failed: {type(error).__name__} at {where}"
