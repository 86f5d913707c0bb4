"""Next-token training of a mixture of experts: the losses of `nn.channel.moe.balance` beside that of the tokens.

    loss = next token + balance · E Σ f P + z · mean (log Σ exp l)²

averaged over routers. The share of a batch in a step is that of its targets, so that how a step is cut into batches changes
the weights of the auxiliary losses no more than that of any token. ``rate`` moves the corrections of routers that have one
against the load they caused (Wang 2024, arXiv 2408.15664), once per batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.errors import UnsupportedError
from almanac.core.site import select
from almanac.nn.channel.moe.balance import correct, load, load_balance, mean_over, record, router_z
from almanac.nn.channel.moe.routing import Router
from almanac.objectives.next_token import Metrics
from almanac.train.criterion import Criterion, NextToken


@dataclass(frozen=True, kw_only=True)
class Balanced(Criterion):
    """Next-token prediction with experts in even use. Padding is counted by none of the losses."""

    next_token: NextToken = NextToken()
    balance: float = 0.01
    z: float = 0.001
    rate: float = 0.0

    def __post_init__(self) -> None:
        if min(self.balance, self.z, self.rate) < 0:
            raise UnsupportedError("A balance loss of negative weight", remedy="Give 0 or more.")

    @property
    def alters_network(self) -> bool:
        return self.rate > 0

    def weight(self, batch: Tokens) -> float:
        return self.next_token.weight(batch)

    def tokens(self, batch: Tokens) -> int:
        return self.next_token.tokens(batch)

    def loss(self, network: nn.Module, batch: Tokens, *, normaliser: float) -> tuple[Tensor, Metrics]:
        with record(network) as records:
            loss, metrics = self.next_token.loss(network, batch, normaliser=normaliser)
        real, share = batch.segments >= 0, self.weight(batch)
        even, size = mean_over(records, load_balance, real), mean_over(records, router_z, real)
        if self.rate:
            for path, router in select(network, "**", of=Router).items():
                for routing in records[path]:
                    correct(router, load(routing, real), rate=self.rate)
        total = loss + (self.balance * even + self.z * size) * (share / normaliser)
        return total, metrics | {"balance": even.detach() * share, "router_z": size.detach() * share}
