"""Multi-token prediction (`objectives.multi_token`): a decoder that learns with heads for tokens further ahead, which are
thrown away (Gloeckle 2024, arXiv 2404.19737)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from almanac.core.spec import Spec
from almanac.nn.future_heads import ForesightDecoder, with_future
from almanac.nn.stack import Decoder
from almanac.pretrain.objectives.next_token import NextToken
from almanac.pretrain.objectives.objective import Judged
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.train.criterion import Criterion
from almanac.train.criterion import NextToken as NextTokenCriterion
from almanac.train.multi_token import MultiToken as MultiTokenCriterion


@dataclass(frozen=True, kw_only=True)
class MultiToken(NextToken):
    """``ahead``: tokens that are told at once. Measured on the next token alone."""

    ahead: int = 4

    def trained(self, spec: Spec, tokenizer: Tokenizer) -> Spec:
        assert isinstance(spec, Decoder.Spec)
        return with_future(spec, self.ahead)

    def kept(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, ForesightDecoder)
        return network.decoder

    @property
    def criterion(self) -> Criterion:
        return MultiTokenCriterion()

    def judged(self, tokenizer: Tokenizer, *, time: int) -> Judged:
        return Judged(NextTokenCriterion(), None)
