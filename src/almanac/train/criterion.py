"""What a step does with a batch: run the network and hand its tensors to an objective.

The loop knows batches and losses only through this contract; an objective knows neither loop nor network. Preference
tuning, distillation or rollouts are other criteria beside :class:`NextToken`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.state import Context
from almanac.core.value import Value
from almanac.data.pack import is_packed
from almanac.objectives.cross_entropy import CrossEntropy
from almanac.objectives.next_token import CHUNK_TARGETS, Metrics, next_token_from_hidden


@dataclass(frozen=True, kw_only=True)
class Criterion(Value):
    """From batch to loss. ``network`` is whatever is being trained, a batch whatever the run's batches hold."""

    @property
    def alters_network(self) -> bool:
        """Whether ``loss`` changes anything in the network, so that it must not be computed twice for one update."""
        return False

    @abstractmethod
    def weight(self, batch: Any) -> float:
        """What the batch adds to the normaliser of its optimizer step."""

    @abstractmethod
    def tokens(self, batch: Any) -> int:
        """How many tokens go through the network for it, padding included."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any, *, normaliser: float) -> tuple[Tensor, Metrics]:
        """The batch's share of the step's loss, and sums that the step divides by the normaliser."""


@dataclass(frozen=True, kw_only=True)
class NextToken(Criterion):
    """Next-token prediction on :class:`Tokens`; the network offers ``hidden`` and ``logits``."""

    chunk_targets: int = CHUNK_TARGETS
    form: CrossEntropy = CrossEntropy()

    def weight(self, batch: Tokens) -> float:
        return batch.num_targets

    def tokens(self, batch: Tokens) -> int:
        return batch.tokens.numel()

    def loss(self, network: nn.Module, batch: Tokens, *, normaliser: float) -> tuple[Tensor, Metrics]:
        hidden, _ = network.hidden(batch.tokens, None, context_of(batch))
        return next_token_from_hidden(
            hidden,
            batch,
            logits=network.logits,
            normaliser=normaliser,
            chunk_targets=self.chunk_targets,
            form=self.form,
        )


def context_of(batch: Tokens) -> Context | None:
    """What the network must be told; None for unpacked rows, where causal attention never sees the padding."""
    return Context(batch.positions, batch.segments) if is_packed(batch) else None
