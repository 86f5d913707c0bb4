"""The engine: the one place tokens come from.

Many sequences at once; a sequence joins and leaves between two steps (continuous batching, Yu 2022, Orca). A step first
feeds one chunk of one waiting prompt, then decodes one token of every running sequence together. States hold rows that
need not be equally long, so joining and leaving move nothing and nothing is padded.

The engine is single-threaded: whoever owns it calls ``step`` (or iterates a handle, which steps for it).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.state import Context, StackState
from almanac.generate.sampling import Chooser, Sampling
from almanac.generate.stopping import StopText

MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20


class Network(Protocol):
    """What the engine needs of a model."""

    context_length: int
    vocab_size: int

    def hidden(
        self, tokens: Tensor, state: StackState | None = ..., context: Context | None = ...
    ) -> tuple[Tensor, StackState | None]: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def init_state(self, rows: int, capacity: int) -> StackState: ...


class Opening(Protocol):
    """How a request becomes a sequence that the network goes on from; see `Continued` and ``encoded_prompt``."""

    def check(self, request: Request) -> None:
        """Raises RequestError for what the network cannot serve, before anything is allocated."""
        ...

    def tokens(self, request: Request) -> list[int]:
        """What the network reads before it chooses the first token."""
        ...

    def state(self, request: Request) -> StackState:
        """A state of one row that has read none of them, with room for all that may come."""
        ...

    def context(self, request: Request) -> Context | None:
        """What the prompt's tokens are told of each other; the prompt is then read in one call. None: nothing."""
        ...


class TextStream(Protocol):
    """Turns ids into text as they come; see ``tokenizers``."""

    def feed(self, token: int) -> str: ...
    def finish(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to be continued.

    - ``tokens``: prompt ids, at least one
    - ``max_tokens``: new tokens at most; prompt and these must fit the context
    - ``stop_tokens``: ids that end the sequence and are not part of the text
    - ``stop``: strings that end the sequence; neither they nor a part of one ever appears in the text
    - ``logprobs``: None, or how many alternatives to report beside each chosen token (0 to 20)
    """

    tokens: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_tokens: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Event:
    """What one token brought: ``text`` may be empty while a character or a possible stop is held back.

    ``logprob`` is the natural logarithm of the token's probability under the model itself, before any processor.
    ``finish`` is None, or why the sequence ended: ``stop``, ``length``, ``cancelled`` or ``error`` (see `Handle.error`).
    """

    token: int | None
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None


@dataclass
class Handle:
    """A submitted request. Iterate it for events; ``cancel`` ends it within one token."""

    request: Request
    engine: Engine
    chooser: Chooser
    text: StopText | None
    tokens: list[int]
    fed: int = 0
    finish: str | None = None
    cancelled: bool = False
    state: StackState | None = None
    events: deque[Event] = field(default_factory=deque)
    error: RequestError | None = None  # why no token could be chosen; the other sequences go on
    opened: int = 0  # tokens before the first that was chosen

    def __iter__(self) -> Iterator[Event]:
        while True:
            while self.events:
                yield self.events.popleft()
            if self.finish is not None:
                self.require()
                return
            self.engine.step()

    def require(self) -> None:
        """Raises the RequestError that ended the sequence, if one did."""
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Ends the sequence; no further token is computed for it."""
        self.cancelled = True

    @property
    def new_tokens(self) -> list[int]:
        """Ids generated so far, a final stop token included."""
        return self.tokens[self.opened :]


class Engine:
    """Serves one network.

    Args:
        network: any model that obeys :class:`Network`.
        text_stream: makes a fresh :class:`TextStream` for a sequence, or None to work on ids alone.
        max_rows: sequences decoded together; further ones wait.
        prefill_chunk: prompt tokens fed per step, so that a long prompt does not stall the others.
        opening: what is done with a prompt; by default it is continued.
    """

    def __init__(
        self,
        network: Network,
        *,
        text_stream: TextStreamMaker | None = None,
        max_rows: int = 16,
        prefill_chunk: int = 512,
        opening: Opening | None = None,
    ) -> None:
        self.network = network
        self.text_stream = text_stream
        self.max_rows = max_rows
        self.prefill_chunk = prefill_chunk
        self.opening = opening or Continued(network)
        self.waiting: deque[Handle] = deque()
        self.running: list[Handle] = []
        self.state: StackState | None = None  # one row per running sequence, in order

    def submit(self, request: Request) -> Handle:
        """Queues a request.

        Raises:
            RequestError: empty prompt, ids outside the vocabulary, over the context, or options out of range.
        """
        self.opening.check(request)
        if request.stop and self.text_stream is None:
            raise RequestError("Stop strings need text", remedy="Give the engine a tokenizer's text stream.")
        text = StopText(self.text_stream(), request.stop) if self.text_stream else None
        tokens = self.opening.tokens(request)
        handle = Handle(request, self, Chooser(request.sampling), text, tokens, opened=len(tokens))
        self.waiting.append(handle)
        return handle

    @torch.inference_mode()
    def step(self) -> bool:
        """Feeds one prompt chunk if any waits and there is room, then decodes one token of each running sequence.

        Returns whether anything is left to do.
        """
        self._drop_cancelled()
        if self.waiting and len(self.running) < self.max_rows:
            self._prefill(self.waiting[0])
        if self.running:
            self._decode()
        return bool(self.waiting or self.running)

    def run(self) -> None:
        """Steps until nothing is left."""
        while self.step():
            pass

    def _prefill(self, handle: Handle) -> None:
        if handle.state is None:
            handle.state = self.opening.state(handle.request)
        context = self.opening.context(handle.request)
        size = self.prefill_chunk if context is None else len(handle.tokens)
        chunk = handle.tokens[handle.fed : handle.fed + size]
        told = () if context is None else (context,)
        hidden, handle.state = self.network.hidden(torch.tensor([chunk]), handle.state, *told)
        handle.fed += len(chunk)
        if handle.fed == len(handle.tokens):
            assert handle.state is not None
            self.waiting.popleft()
            self.running.append(handle)
            self.state = handle.state if self.state is None else self.state.join([handle.state])
            handle.state = None
            self._accept(handle, self.network.logits(hidden[:, -1])[0])
            self._retire()

    def _decode(self) -> None:
        tokens = torch.tensor([[handle.tokens[-1]] for handle in self.running])
        hidden, self.state = self.network.hidden(tokens, self.state)
        logits = self.network.logits(hidden[:, -1])
        for index, handle in enumerate(self.running):
            self._accept(handle, logits[index])
        self._retire()

    def _accept(self, handle: Handle, logits: Tensor) -> None:
        """Chooses the next token of one sequence and says what came of it."""
        request = handle.request
        logits = logits.float()
        logprobs = logits.log_softmax(0) if request.logprobs is not None else None
        try:
            token = handle.chooser.choose(logits.clone(), handle.tokens)
        except RequestError as error:
            handle.error, handle.finish = error, "error"
            handle.events.append(Event(None, "", finish="error"))
            return
        handle.tokens.append(token)
        text, finish = "", None
        if token in request.stop_tokens:
            finish = "stop"
        elif handle.text is not None:
            text, stopped = handle.text.feed(token)
            finish = "stop" if stopped else None
        if finish is None and len(handle.new_tokens) >= request.max_tokens:
            finish = "length"
        if finish is not None and handle.text is not None:
            text += handle.text.finish()
        logprob, top = (
            (float(logprobs[token]), _top(logprobs, request.logprobs)) if logprobs is not None else (None, ())
        )
        handle.events.append(Event(token, text, logprob, top, finish))
        handle.finish = finish

    def _retire(self) -> None:
        if any(handle.finish for handle in self.running):
            self._keep([index for index, handle in enumerate(self.running) if handle.finish is None])

    def _drop_cancelled(self) -> None:
        for handle in [*self.waiting, *self.running]:
            if handle.cancelled and handle.finish is None:
                rest = handle.text.finish() if handle.text is not None else ""
                handle.events.append(Event(None, rest, finish="cancelled"))
                handle.finish, handle.state = "cancelled", None
        self.waiting = deque(handle for handle in self.waiting if handle.finish is None)
        self._retire()

    def _keep(self, rows: list[int]) -> None:
        """Lets the other rows go, with their states."""
        self.running = [self.running[index] for index in rows]
        self.state = self.state.select(rows) if self.state is not None and rows else None


@dataclass(frozen=True)
class Continued:
    """The prompt is the beginning of the sequence."""

    network: Network

    def check(self, request: Request) -> None:
        check(request, self.network)

    def tokens(self, request: Request) -> list[int]:
        return list(request.tokens)

    def state(self, request: Request) -> StackState:
        return self.network.init_state(1, len(request.tokens) + request.max_tokens)

    def context(self, request: Request) -> Context | None:
        return None


class TextStreamMaker(Protocol):
    """Makes a fresh text stream."""

    def __call__(self) -> TextStream: ...


def check(request: Request, network: Network) -> None:
    """Raises RequestError for what the network cannot serve, before anything is allocated."""
    check_options(request, network.vocab_size)
    if len(request.tokens) + request.max_tokens > network.context_length:
        raise RequestError(
            f"A prompt of {len(request.tokens)} tokens and {request.max_tokens} new ones exceed the context of "
            f"{network.context_length}",
            remedy="Shorten the prompt or lower max_tokens.",
        )


def check_options(request: Request, vocab_size: int) -> None:
    """Raises RequestError for a request that no network of that vocabulary can serve."""
    tokens = request.tokens
    if not tokens:
        raise RequestError("The prompt is empty", remedy="Give at least one token; a beginning-of-text token will do.")
    wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise RequestError(
            f"Token id {wrong} is outside the vocabulary of {vocab_size}",
            remedy="Encode the text with this model's own tokenizer.",
        )
    if request.max_tokens < 1:
        raise RequestError(f"max_tokens is {request.max_tokens}", remedy="Ask for at least one token.")
    if len(request.stop) > MAX_STOPS or any(not stop for stop in request.stop):
        raise RequestError("Stop strings must not be empty, and 16 at most", remedy="Leave out the empty ones.")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError(f"logprobs is {request.logprobs}", remedy=f"Give 0 to {MAX_TOP_LOGPROBS}, or None.")


def _top(logprobs: Tensor, count: int | None) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    found = logprobs.topk(min(count, logprobs.shape[0]))
    return tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def run_all(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """The new tokens of every request, decoded together."""
    handles = [engine.submit(request) for request in requests]
    engine.run()
    for handle in handles:
        handle.require()
    return [handle.new_tokens for handle in handles]
