"""Training with several tokens ahead: what `nn.future_heads` says, judged by `objectives.multi_token`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.objectives.multi_token import multi_token
from almanac.objectives.next_token import Metrics
from almanac.train.criterion import Criterion, NextToken, context_of


@dataclass(frozen=True, kw_only=True)
class MultiToken(Criterion):
    """On :class:`Tokens`; the network is a `ForesightDecoder`."""

    next_token: NextToken = NextToken()

    def weight(self, batch: Tokens) -> float:
        return self.next_token.weight(batch)

    def tokens(self, batch: Tokens) -> int:
        return self.next_token.tokens(batch)

    def loss(self, network: nn.Module, batch: Tokens, *, normaliser: float) -> tuple[Tensor, Metrics]:
        return multi_token(
            network.hiddens(batch.tokens, context_of(batch)),
            batch,
            logits=network.logits,
            normaliser=normaliser,
            chunk_targets=self.next_token.chunk_targets,
            form=self.next_token.form,
        )
