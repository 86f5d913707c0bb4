"""A grounded answer on its way: passages found, a draft written by the engine, the draft held against the passages."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from almanac.serve.service import Service

if TYPE_CHECKING:
    from almanac.assistant.ask import Answer
    from almanac.data.grounded import Passage
    from almanac.generate.engine import Event
    from almanac.serve.engine_thread import Run


@dataclass
class Grounding:
    """One question. ``run`` is None where no passage matches: then there is nothing to write."""

    service: Service
    question: str
    passages: tuple[Passage, ...]
    run: Run | None
    events: list[Event] = field(default_factory=list)
    is_written: bool = False

    @classmethod
    async def begin(
        cls, service: Service, stack: ExitStack, question: str, *, max_tokens: int | None = None
    ) -> Grounding:
        """Finds the passages and queues the draft, of at most ``max_tokens`` and of what the assistant allows.

        Raises RequestError for an empty question or one too long for the model, RefusedError (503) for a full queue.
        """
        assistant = service.assistant
        passages = await service.compute(assistant.passages, question)
        if not passages:
            return cls(service, question, (), None)
        request = await service.compute(assistant.request, question, passages)
        if max_tokens is not None:
            request = dataclasses.replace(request, max_tokens=min(max_tokens, request.max_tokens))
        return cls(service, question, passages, service.engine.submit([request], stack))

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the model read."""
        return len(self.run.requests[0].tokens) if self.run is not None else 0

    @property
    def completion_tokens(self) -> int:
        """Tokens that the model wrote, the one that ends its turn included."""
        return sum(event.token is not None for event in self.events)

    async def pieces(self) -> AsyncIterator[str]:
        """The draft as it is written, unchecked. Raises RefusedError (503) when its first token is late."""
        self.is_written = True
        if self.run is None:
            return
        await self.service.first_token(self.run)
        async for _, event in self.run.events():
            self.events.append(event)
            if event.text:
                yield event.text

    async def answer(self) -> Answer:
        """The checked answer; writes the draft first if nobody asked for its pieces."""
        if not self.is_written:
            async for _ in self.pieces():
                pass
        return await self.service.compute(self.service.assistant.conclude, self.question, self.passages, self.events)
