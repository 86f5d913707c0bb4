"""A network whose every token is known beforehand, and a text stream to go with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.state import StackState
from almanac.nn.attention.kv import KeyValueState

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Chain:
    """After token ``i`` comes ``table[i]``; ``log`` records the tokens computed in each call, [rows][time]."""

    table: list[int]
    context_length: int = 64
    log: list[list[list[int]]] = field(default_factory=list)

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    def hidden(self, tokens: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState | None]:
        assert state is not None
        assert len(state.lengths) == tokens.shape[0]
        self.log.append(tokens.tolist())
        return F.one_hot(tokens, self.vocab_size).float(), state

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ F.one_hot(torch.tensor(self.table), self.vocab_size).float() * 10

    def init_state(self, rows: int, capacity: int) -> StackState:
        return StackState([KeyValueState.empty(rows, capacity)])


def alphabet(size: int = 26) -> Chain:
    """Each letter is followed by the next, the last by the first."""
    return Chain([(index + 1) % size for index in range(size)])


@dataclass
class Letters:
    """Token ``i`` is the i-th letter; ``rest`` stands for the character that was still incomplete at the end."""

    rest: str = ""

    def feed(self, token: int) -> str:
        return LETTERS[token]

    def finish(self) -> str:
        return self.rest
