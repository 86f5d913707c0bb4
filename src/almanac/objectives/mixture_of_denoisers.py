"""Mixture of denoisers: one model learns to fill short gaps, to continue, and to fill gaps that are long or many.

UL2 (Tay 2022, arXiv 2205.05131, section 3.1, table 1): R, regular span corruption; S, sequential, where the one span is the
end of the text (prefix language modelling); X, extreme, with long spans or half of the text gone. Each text is given to
one denoiser, drawn by weight, and begins with that denoiser's mode token, by which the mode is asked for
later. Inputs and targets have the form of `span_corruption` in every mode, so that one inverse undoes them all.
Deviation: S cuts off exactly ``share`` of the text, where the paper says that this is the mean.

Legend: n tokens of a text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.objectives.span_corruption import SpanCorruption, corrupt_spans, noise_mask, restore_spans

MODES = ("R", "S", "X")


@dataclass(frozen=True, kw_only=True)
class Denoiser(Value):
    """One way to hide parts of a text; ``mode`` names its token, ``weight`` is how often it is drawn among others."""

    mode: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES or not 0 < self.weight < float("inf"):
            raise RequestError(
                f"A denoiser of mode {self.mode!r} and weight {self.weight:g}",
                remedy=f"Modes are {', '.join(MODES)}; weights are above 0.",
            )

    @abstractmethod
    def noise(self, length: int, dice: torch.Generator) -> Tensor:
        """bool [length]: which tokens are hidden."""


@dataclass(frozen=True, kw_only=True)
class Spans(Denoiser):
    """R and X: spans anywhere."""

    spans: SpanCorruption = SpanCorruption()

    def noise(self, length: int, dice: torch.Generator) -> Tensor:
        return noise_mask(length, self.spans, dice)


@dataclass(frozen=True, kw_only=True)
class Suffix(Denoiser):
    """S: the last ``share`` of the text."""

    mode: str = "S"
    share: float = 0.25

    def noise(self, length: int, dice: torch.Generator) -> Tensor:
        hidden, _ = SpanCorruption(share=self.share).counts(length)
        return torch.arange(length) >= length - hidden


def _spans(mode: str, mean_span: float, share: float) -> Spans:
    return Spans(mode=mode, spans=SpanCorruption(share=share, mean_span=mean_span))


UL2: tuple[Denoiser, ...] = (
    _spans("R", 3, 0.15),
    _spans("R", 8, 0.15),
    Suffix(),
    _spans("X", 3, 0.5),
    _spans("X", 8, 0.5),
    _spans("X", 64, 0.15),
    _spans("X", 64, 0.5),
)
"""The seven of table 1, each as likely."""


def drawn(denoisers: Sequence[Denoiser], dice: torch.Generator) -> Denoiser:
    """One of them, by weight. Raises RequestError if there is none."""
    if not denoisers:
        raise RequestError("A mixture of no denoisers", remedy="Give one at least; see `UL2`.")
    weights = torch.tensor([denoiser.weight for denoiser in denoisers], dtype=torch.float64)
    return denoisers[int(torch.multinomial(weights, 1, generator=dice))]


def denoise_example(
    tokens: Tensor,
    denoisers: Sequence[Denoiser],
    dice: torch.Generator,
    *,
    marks: Sequence[int],
    mode_ids: Mapping[str, int],
) -> tuple[Tensor, Tensor]:
    """(input, target) of tokens int64 [n] under one of the ``denoisers``; the input begins with its mode token.

    Args:
        marks: ids that stand for missing spans, in order. ``mode_ids``: the id of each mode's token.

    Raises RequestError as `span_corruption`, or for a mode without an id.
    """
    denoiser = drawn(denoisers, dice)
    if denoiser.mode not in mode_ids:
        raise RequestError(f"Mode {denoiser.mode} has no token", remedy=f"Give ids for {', '.join(MODES)}.")
    given, wanted = corrupt_spans(tokens, denoiser.noise(len(tokens), dice), marks=marks)
    return torch.cat([given.new_tensor([mode_ids[denoiser.mode]]), given]), wanted


def restore_example(given: Tensor, wanted: Tensor, *, marks: Sequence[int]) -> Tensor:
    """The text from input, mode token included, and target."""
    return restore_spans(given[1:], wanted, marks=marks)
