"""The engine in a thread of its own: one worker computes, the event loop submits and receives.

Nothing is shared but an inbox and cancel marks. A run that is cancelled is dropped before the next token; its rows are
counted as taken until the worker has really let them go. If a step fails, the runs in it are told, the engine is made
anew, and the next request is served.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from typing import Literal

from almanac.generate.engine import Engine, Event, Handle, Request
from almanac.serve.errors import RefusedError
from almanac.serve.limits import Limits

log = logging.getLogger("almanac.serve")

Failed = Literal["failed"]
Item = tuple[int, Event] | Failed


class EngineFailedError(Exception):
    """A step failed while this run was in it; told to clients without detail."""


class Run:
    """The sequences of one request. Use :meth:`events` from the event loop; ``cancel`` may be called from anywhere."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.open = len(self.requests)  # sequences whose end the client has not seen
        self.is_cancelled = False
        self._items: asyncio.Queue[Item] = asyncio.Queue()  # holds at most what the sequences may write
        self._first: Item | None = None

    def cancel(self) -> None:
        """No further token is computed."""
        self.is_cancelled = True

    def deliver(self, items: Sequence[Item]) -> None:
        """Called in the event loop with what the worker computed."""
        for item in items:
            self._items.put_nowait(item)

    async def started(self, seconds: float, *, retry_after: int) -> None:
        """Waits for the first token. Raises RefusedError (503) when it does not come in time."""
        try:
            async with asyncio.timeout(seconds):
                self._first = await self._items.get()
        except TimeoutError as error:
            self.cancel()
            raise _busy("The first token did not come in time", retry_after, status=503) from error
        if self._first == "failed" or self._first[1].finish == "error":
            raise EngineFailedError

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Which sequence, and what its next token brought, until all have ended."""
        while self.open:
            item = self._first or await self._items.get()
            self._first = None
            if item == "failed":
                raise EngineFailedError
            self.open -= item[1].finish is not None
            if item[1].finish == "error":  # of this request alone; the others in the batch go on
                raise EngineFailedError
            yield item


class EngineThread:
    """Owns the engine that ``make`` gives, in a daemon thread, between :meth:`start` and :meth:`stop`.

    ``taken``: sequences that the worker has not let go; at rest it is 0.
    """

    def __init__(self, make: Callable[[], Engine], *, limits: Limits) -> None:
        self.make = make
        self.limits = limits
        self.opening = make().opening
        self.taken = 0
        self._inbox: list[Run] = []
        self._wake = threading.Condition()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to work for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="almanac-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread within one token."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, requests: Sequence[Request], stack: ExitStack) -> Run:
        """Queues the sequences of one request, all or none; they are cancelled when ``stack`` closes.

        Raises:
            RequestError: what the model cannot serve. RefusedError: 503, the queue is full.
        """
        for request in requests:
            self.opening.check(request)
        if self.taken + len(requests) > self.limits.rows + self.limits.queue:
            raise _busy("The queue is full", self.limits.retry_after_seconds, status=503)
        run = Run(requests)
        stack.callback(run.cancel)
        self.taken += len(requests)
        with self._wake:
            self._inbox.append(run)
            self._wake.notify()
        return run

    def _work(self) -> None:
        engine, live = self.make(), dict[Run, list[Handle]]()
        while True:
            with self._wake:
                while not (self._inbox or live or self._is_stopping):
                    self._wake.wait()
                arrived, self._inbox = self._inbox, []
                if self._is_stopping:
                    self._post([(run, ["failed"], len(run.requests)) for run in (*arrived, *live)])
                    return
            try:
                _advance(engine, live, arrived)
            except Exception as error:
                log.error("a step of the engine failed (%s); it is made anew", type(error).__name__)
                failed = dict.fromkeys((*live, *arrived))
                self._post([(run, ["failed"], _unfinished(run, live.get(run))) for run in failed])
                engine, live = self.make(), {}
                continue
            self._post([_news(run, handles) for run, handles in live.items()])
            live = {run: handles for run, handles in live.items() if any(h.finish is None for h in handles)}

    def _post(self, news: list[tuple[Run, list[Item], int]]) -> None:
        """Hands results to the event loop; one that is closed already wants none."""
        news = [item for item in news if item[1]]
        if news and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._receive, news)

    def _receive(self, news: list[tuple[Run, list[Item], int]]) -> None:
        for run, items, released in news:
            self.taken -= released
            run.deliver(items)


def _advance(engine: Engine, live: dict[Run, list[Handle]], arrived: Sequence[Run]) -> None:
    for run in arrived:
        live[run] = [engine.submit(request) for request in run.requests]
    for run, handles in live.items():
        if run.is_cancelled:
            for handle in handles:
                handle.cancel()
    engine.step()


def _news(run: Run, handles: Sequence[Handle]) -> tuple[Run, list[Item], int]:
    """Events since the last step, and how many sequences ended with them."""
    items: list[Item] = []
    for index, handle in enumerate(handles):
        while handle.events:
            items.append((index, handle.events.popleft()))
    return run, items, sum(item[1].finish is not None for item in items if item != "failed")


def _unfinished(run: Run, handles: Sequence[Handle] | None) -> int:
    """Sequences that the failed step leaves counted as taken.

    A sequence whose end has been computed but not told counts too, as only a told end is a released one.
    """
    return len(run.requests) if handles is None else sum(h.finish is None or bool(h.events) for h in handles)


def _busy(cause: str, retry_after: int, *, status: int) -> RefusedError:
    return RefusedError(
        cause, remedy="Send the request again a little later.", status=status, code="busy", retry_after=retry_after
    )
