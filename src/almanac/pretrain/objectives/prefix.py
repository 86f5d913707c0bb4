"""Prefix language modelling (`objectives.prefix`): a decoder that reads a beginning both ways and goes on from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from almanac.core.errors import RequestError
from almanac.core.spec import Spec
from almanac.generate.prefix_prompt import reads_prefixes
from almanac.generate.sampling import sampling
from almanac.language_model.model import LanguageModel
from almanac.nn.attention.masks import PrefixLM
from almanac.nn.stack import Decoder
from almanac.objectives.prefix import PrefixSplit
from almanac.pretrain.objectives.marks import shown_ids
from almanac.pretrain.objectives.next_token import TEMPERATURE, NextToken
from almanac.pretrain.objectives.objective import Shown
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.train.criteria.corrupted import Corruption
from almanac.train.criteria.prefix import Prefix as PrefixCriterion
from almanac.train.criteria.prefix import PrefixWindows
from almanac.train.criterion import Criterion


@dataclass(frozen=True, kw_only=True)
class Prefix(NextToken):
    """Each window is divided where ``split`` says; prompts are read both ways in use as in training.

    No other library knows the mask, so the model is saved in almanac's own layout and cannot be exported.
    """

    split: PrefixSplit = PrefixSplit()

    @property
    def covers_text(self) -> bool:
        return False  # the prefix is not scored

    def spec(self, tokenizer: Tokenizer, *, time: int) -> Decoder.Spec:
        return super().spec(tokenizer, time=time).replace("layers.*.mixer", mask=PrefixLM())

    def shaped(self, given: Spec) -> Spec:
        found = super().shaped(given)
        if not reads_prefixes(found):
            raise RequestError(
                "A decoder without the mask of prefixes, which would read them one way",
                remedy="Give its attention the mask nn.attention.masks.PrefixLM, or leave out the spec.",
            )
        return found

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption:
        return PrefixWindows(split=self.split)

    @property
    def criterion(self) -> Criterion:
        return PrefixCriterion()

    def sample(self, model: LanguageModel | nn.Module, tokenizer: Tokenizer, shown: Shown) -> str:
        """A beginning of held-out text, an arrow, and what the model writes after it."""
        assert isinstance(model, LanguageModel)
        begin = shown.rows.tokens[0, : max(1, shown.rows.tokens.shape[1] // 2)].tolist()
        most = max(1, min(shown.max_tokens, model.network.context_length - len(begin)))
        text = model.generate(begin, max_tokens=most, sampling=sampling(temperature=TEMPERATURE, seed=shown.seed))
        return f"{shown_ids(tokenizer, begin)} → {text}"
