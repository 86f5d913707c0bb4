"""How the next token is chosen: greedy, or drawn from the processed distribution with the request's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.generate.processors.min_p import MinP
from almanac.generate.processors.processor import Processor, require
from almanac.generate.processors.repetition import Repetition
from almanac.generate.processors.temperature import Temperature
from almanac.generate.processors.top_k import TopK
from almanac.generate.processors.top_p import TopP


@dataclass(frozen=True, kw_only=True)
class Sampling(Value):
    """Processors in the order they are applied; ``greedy`` takes the most probable token that remains."""

    processors: tuple[Processor, ...] = ()
    greedy: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require(-(2**63) <= self.seed < 2**63, "seed", self.seed, "a whole number that fits 64 bits")


def sampling(
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
) -> Sampling:
    """The usual options as a value; temperature 0 is greedy.

    Order: repetition penalty, temperature, then top-k, top-p, min-p. Raises RequestError for values out of range.
    """
    require(temperature >= 0, "temperature", temperature, "0 for greedy, or a number up to 100")
    steps: list[Processor] = []
    if repetition_penalty is not None:
        steps.append(Repetition(penalty=repetition_penalty))
    if temperature > 0:
        steps.append(Temperature(temperature=temperature))
    if top_k is not None:
        steps.append(TopK(k=top_k))
    if top_p is not None:
        steps.append(TopP(p=top_p))
    if min_p is not None:
        steps.append(MinP(p=min_p))
    return Sampling(processors=tuple(steps), greedy=temperature == 0, seed=seed)


class Chooser:
    """Chooses the tokens of one sequence; owns its random stream, so that company never changes a draw."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self.generator = torch.Generator().manual_seed(settings.seed)

    def choose(self, logits: Tensor, tokens: Sequence[int]) -> int:
        """The next id; logits float32 [vocab] are consumed. Raises RequestError if no token is left to choose from."""
        for processor in self.settings.processors:
            logits = processor(logits, tokens)
        if not bool(logits.max().isfinite()):
            raise RequestError(
                "The processors left no token to choose from", remedy="Choose less extreme sampling options."
            )
        if self.settings.greedy:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(0), 1, generator=self.generator))
