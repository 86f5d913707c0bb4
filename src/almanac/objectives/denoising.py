"""Denoising: an encoder reads a spoilt text and a decoder writes the whole text again; five ways to spoil it.

BART (Lewis 2019, arXiv 1910.13461, section 2.2). The loss is that of next-token prediction over the text, unspoilt.

    masking      a share of the tokens becomes the mask
    deletion     a share of the tokens goes, so that the model must find where
    infilling    spans with Poisson(3) lengths become one mask each; a span of length 0 is a mask put in
    permutation  sentences in random order
    rotation     the text begins at a random token

Noises are values that follow one another: BART itself is permutation, then infilling of 30 %. Deviations: masking and
deletion draw each token by itself; infilling covers exactly round(share · n) tokens (its last span is cut) and its spans lie
uniformly among all places, not at beginnings of words.

Legend: n tokens of a text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Noise(Value):
    """A way to spoil a text."""

    @abstractmethod
    def spoil(self, tokens: Tensor, dice: torch.Generator) -> Tensor:
        """int64 [n] -> int64 [any length], a pure function of the text and the dice."""


@dataclass(frozen=True, kw_only=True)
class TokenMasking(Noise):
    """Tokens become ``mask_id``."""

    mask_id: int
    share: float = 0.15

    def __post_init__(self) -> None:
        _require_share(self.share)

    def spoil(self, tokens: Tensor, dice: torch.Generator) -> Tensor:
        return tokens.masked_fill(torch.rand(tokens.shape, generator=dice) < self.share, self.mask_id)


@dataclass(frozen=True, kw_only=True)
class TokenDeletion(Noise):
    """Tokens go; one of them stays whatever the dice say, since nothing can be read from an empty text."""

    share: float = 0.15

    def __post_init__(self) -> None:
        _require_share(self.share)

    def spoil(self, tokens: Tensor, dice: torch.Generator) -> Tensor:
        draws = torch.rand(tokens.shape, generator=dice)
        kept = draws >= self.share
        return tokens[kept | (draws == draws.max())] if not kept.any() and len(tokens) else tokens[kept]


@dataclass(frozen=True, kw_only=True)
class TextInfilling(Noise):
    """Spans become one ``mask_id`` each; together they cover ``share`` of the tokens."""

    mask_id: int
    share: float = 0.3
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        _require_share(self.share)
        if not self.mean_span > 0:
            raise RequestError(f"Spans of {self.mean_span:g} tokens on average", remedy="Give more than 0; BART: 3.")

    def spoil(self, tokens: Tensor, dice: torch.Generator) -> Tensor:
        lengths = span_lengths(round(self.share * len(tokens)), self.mean_span, dice)
        items = len(tokens) - sum(lengths) + len(lengths)  # kept tokens and spans, in a row
        at = set(torch.randperm(items, generator=dice)[: len(lengths)].tolist())
        out, source, spans, left = list[int](), tokens.tolist(), iter(lengths), 0
        for item in range(items):
            out.append(self.mask_id if item in at else source[left])
            left += next(spans) if item in at else 1
        return torch.tensor(out, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class SentencePermutation(Noise):
    """Sentences, each up to and with one of ``ends`` (full stops), in random order; a last one may lack its end."""

    ends: tuple[int, ...]

    def spoil(self, tokens: Tensor, dice: torch.Generator) -> Tensor:
        sentences = sentences_of(tokens, self.ends)
        order = torch.randperm(len(sentences), generator=dice).tolist()
        return torch.cat([sentences[index] for index in order]) if sentences else tokens


@dataclass(frozen=True, kw_only=True)
class DocumentRotation(Noise):
    """What stands before a token, drawn uniformly, moves to the end."""

    def spoil(self, tokens: Tensor, dice: torch.Generator) -> Tensor:
        return tokens.roll(-int(torch.randint(len(tokens), (), generator=dice))) if len(tokens) else tokens


def spoilt(tokens: Tensor, noises: Sequence[Noise], dice: torch.Generator) -> Tensor:
    """tokens int64 [n] after each of the ``noises`` in turn."""
    for noise in noises:
        tokens = noise.spoil(tokens, dice)
    return tokens


def bart_noises(*, mask_id: int, ends: tuple[int, ...]) -> tuple[Noise, ...]:
    """What BART-large was trained with: sentences permuted, then 30 % of the tokens infilled."""
    return SentencePermutation(ends=ends), TextInfilling(mask_id=mask_id)


def span_lengths(total: int, mean: float, dice: torch.Generator) -> list[int]:
    """Poisson lengths, 0 among them, until they sum to ``total``; what is over is cut from the last."""
    lengths, left = list[int](), total
    while left > 0:
        length = min(int(torch.poisson(torch.tensor(mean), generator=dice)), left)
        lengths.append(length)
        left -= length
    return lengths


def sentences_of(tokens: Tensor, ends: Sequence[int]) -> list[Tensor]:
    """The text cut after each of ``ends``; nothing is lost."""
    places = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype)).nonzero().squeeze(1) + 1
    return [piece for piece in tokens.tensor_split(places) if len(piece)]


def _require_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise RequestError(f"A share of {share:g} of the tokens", remedy="Give a number from 0 to 1.")
