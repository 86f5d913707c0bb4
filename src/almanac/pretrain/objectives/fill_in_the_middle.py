"""Fill in the middle (`objectives.fill_in_the_middle`): a decoder that goes on from a text, or fills a gap in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from almanac.generate.sampling import sampling
from almanac.language_model.model import LanguageModel
from almanac.objectives.fill_in_the_middle import FillInTheMiddle as Filling
from almanac.pretrain.objectives.marks import control_ids, shown_ids
from almanac.pretrain.objectives.next_token import TEMPERATURE, NextToken
from almanac.pretrain.objectives.objective import Judged, Shown
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import PLAIN, Controls
from almanac.train.criteria.corrupted import Corruption
from almanac.train.criteria.fill_in_the_middle import ADDED, FilledWindows
from almanac.train.criterion import NextToken as NextTokenCriterion

PREFIX, MIDDLE, SUFFIX, END = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_end|>"
GAP = 8  # tokens that a sample lets the model fill


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(NextToken):
    """``share`` of the windows have their middle moved to the end. Measured on text as it is: filling shall cost nothing."""

    share: float = 0.5

    @property
    def added(self) -> int:
        return ADDED

    @property
    def controls(self) -> Controls:
        return replace(PLAIN, extra=(PREFIX, MIDDLE, SUFFIX, END))

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption:
        prefix, middle, suffix, end = control_ids(tokenizer, self.controls.extra)
        fill = Filling(prefix_id=prefix, middle_id=middle, suffix_id=suffix, end_id=end, share=self.share)
        pad = tokenizer.special.pad
        return FilledWindows(fill=fill, pad_id=end if pad is None else pad)

    def judged(self, tokenizer: Tokenizer, *, time: int) -> Judged:
        return Judged(NextTokenCriterion(), None)

    def sample(self, model: LanguageModel | nn.Module, tokenizer: Tokenizer, shown: Shown) -> str:
        """A piece of held-out text, and what the model puts into a gap of it, between brackets."""
        assert isinstance(model, LanguageModel)
        text = shown.rows.tokens[0, : shown.max_tokens].tolist()
        low = max(1, len(text) // 2 - GAP // 2)
        before, after = text[:low], text[low + GAP :]
        prefix, middle, suffix, end = control_ids(tokenizer, self.controls.extra)
        prompt = [prefix, *before, suffix, *after, middle]
        options = sampling(temperature=TEMPERATURE, seed=shown.seed)
        room = max(1, min(2 * GAP, model.network.context_length - len(prompt)))
        written = []
        for event in model.stream(prompt, max_tokens=room, sampling=options):
            if event.token is None or event.token == end:
                break
            written.append(event.token)
        return f"{shown_ids(tokenizer, before)}[{shown_ids(tokenizer, written)}]{shown_ids(tokenizer, after)}"
