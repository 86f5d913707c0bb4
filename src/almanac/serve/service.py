"""What all routes share: the assistant, the engine's thread, a few threads for other work, and the count of who does what."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from almanac.generate.engine import Request
from almanac.serve.auth import PRINCIPAL
from almanac.serve.engine_thread import EngineThread, Run
from almanac.serve.errors import RefusedError
from almanac.serve.limits import Limits
from almanac.serve.logprobs import TokenTexts
from almanac.serve.presence import VISIT
from almanac.serve.settings import ServeSettings
from almanac.serve.tickets import Tickets

if TYPE_CHECKING:
    from almanac.assistant.ask import Assistant

T = TypeVar("T")
WORKERS = 4  # one for the writer of documents, the others for questions


@dataclass
class Slots:
    """How many requests of each principal compute now; principals without any are not kept."""

    most: int
    held: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def hold(self, principal: str, retry_after: int) -> Iterator[None]:
        """One slot. Raises RefusedError (429) when all are taken."""
        if self.held[principal] >= self.most:
            raise RefusedError(
                f"{self.most} requests of this token are under way",
                remedy="Wait until one has ended.",
                status=429,
                code="busy",
                retry_after=retry_after,
            )
        self.held[principal] += 1
        try:
            yield
        finally:
            self.held[principal] -= 1
            self.held += Counter()  # drops principals at zero


@dataclass
class Service:
    """One assistant, served."""

    assistant: Assistant
    settings: ServeSettings
    engine: EngineThread
    tickets: Tickets
    created: int  # seconds since 1970 at which serving began
    slots: Slots = field(init=False)
    uploads: Slots = field(init=False)
    texts: TokenTexts = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    finishing: set[asyncio.Task[Any]] = field(default_factory=set)  # writes that outlive their request

    def __post_init__(self) -> None:
        self.slots = Slots(self.limits.concurrency)
        self.uploads = Slots(self.limits.uploads)
        self.texts = TokenTexts(self.assistant.lm.tokenizer)
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="almanac-serve")

    @property
    def limits(self) -> Limits:
        """What this server allows."""
        return self.settings.limits

    def begin(self, request: Any) -> ExitStack:
        """Takes a slot for a request that computes, and gives the stack in which it keeps what it takes.

        Raises RefusedError (429).
        """
        stack: ExitStack = request.scope[VISIT].stack
        stack.enter_context(self.slots.hold(request.scope[PRINCIPAL], self.limits.retry_after_seconds))
        return stack

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` in a thread; one that has not begun when the caller is cancelled never does."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *args)

    async def generate(self, requests: Sequence[Request], stack: ExitStack) -> Run:
        """A run whose first token is there, so that whatever is wrong with it is known before an answer begins.

        Raises RequestError, or RefusedError (503) when the queue is full or the first token late.
        """
        run = self.engine.submit(requests, stack)
        await self.first_token(run)
        return run

    async def first_token(self, run: Run) -> None:
        """Waits for the first token of a run. Raises RefusedError (503) when it is late."""
        await run.started(self.limits.first_byte_seconds, retry_after=self.limits.retry_after_seconds)

    async def close(self) -> None:
        """Lets the writes under way end, then the threads."""
        await asyncio.gather(*self.finishing, return_exceptions=True)
        await asyncio.to_thread(self.engine.stop)
        self.pool.shutdown(wait=False, cancel_futures=True)


def service_of(request: Any) -> Service:
    """The service behind a request."""
    found = request.app.state.service
    assert isinstance(found, Service)
    return found
