"""The mixture of denoisers (`objectives.mixture_of_denoisers`): span corruption of seven kinds, UL2's objective."""

from __future__ import annotations

from dataclasses import dataclass

from almanac.objectives.mixture_of_denoisers import UL2, Denoiser, Spans
from almanac.pretrain.objectives.marks import control_ids
from almanac.pretrain.objectives.text_to_text import TextToText, pad_of, require_marks, sentinels, with_marks
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import Controls
from almanac.train.criteria.corrupted import Corruption
from almanac.train.criteria.mixture_of_denoisers import DenoiserWindows

MODES = ("[R]", "[S]", "[X]")


@dataclass(frozen=True, kw_only=True)
class MixtureOfDenoisers(TextToText):
    """A window begins with the token of the mode that its denoiser is of."""

    denoisers: tuple[Denoiser, ...] = UL2

    @property
    def controls(self) -> Controls:
        return with_marks(*MODES)

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption:
        counts = [item.spans.counts(time)[1] for item in self.denoisers if isinstance(item, Spans)]
        require_marks(max(counts, default=1) + 1, time)
        regular, sequential, extreme = control_ids(tokenizer, MODES)
        pad = pad_of(tokenizer)
        return DenoiserWindows(
            marks=sentinels(tokenizer),
            mode_ids=(regular, sequential, extreme),
            start_id=pad,
            pad_id=pad,
            denoisers=self.denoisers,
        )
