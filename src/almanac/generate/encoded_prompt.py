"""A prompt that an encoder reads whole, while the decoder begins a text of its own: the opening of encoder-decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.state import Context, StackState
from almanac.generate.engine import Request, check_options


class ReadingNetwork(Protocol):
    """What the opening needs of a model, beside what the engine does."""

    start_id: int
    source_length: int
    context_length: int
    vocab_size: int

    def begin(self, source: Tensor, capacity: int) -> StackState: ...


@dataclass(frozen=True)
class EncodedPrompt:
    """The encoder reads the prompt, once; the sequence begins with the network's start token."""

    network: ReadingNetwork

    def check(self, request: Request) -> None:
        check_options(request, self.network.vocab_size)
        if len(request.tokens) > self.network.source_length:
            raise RequestError(
                f"A prompt of {len(request.tokens)} tokens for an encoder of {self.network.source_length}",
                remedy="Shorten the prompt.",
            )
        if request.max_tokens >= self.network.context_length:
            raise RequestError(
                f"{request.max_tokens} new tokens after the first exceed the decoder's {self.network.context_length}",
                remedy="Lower max_tokens.",
            )

    def tokens(self, request: Request) -> list[int]:
        return [self.network.start_id]

    def state(self, request: Request) -> StackState:
        return self.network.begin(torch.tensor([request.tokens]), 1 + request.max_tokens)

    def context(self, request: Request) -> Context | None:
        return None
