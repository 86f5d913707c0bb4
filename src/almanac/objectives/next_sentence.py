"""Next-sentence prediction: does the second stretch of text follow the first, or does it come from elsewhere?

Devlin 2018, arXiv 1810.04805, section 3.1: half of the pairs are real, half have a second part out of another document. The
label is 0 for real and 1 for foreign. RoBERTa found that it does not help (Liu 2019, arXiv 1907.11692, section 4.2): topic
alone gives the answer away, which `sentence_order` mends.

A document is cut into windows of whole sentences of at most ``max_tokens``; a random place between two sentences divides a
window. What a foreign part displaces opens the next window, as in BERT's code. Deviations: a foreign part is as long as what
it displaces, where its document allows, so that length says little; a last single sentence is left out; BERT also
makes a tenth of its windows shorter at random, which is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.core.value import Value
from almanac.objectives.example_dice import chance, draw, example_dice

Sentences = Sequence[Sequence[int]]
"""A document: its sentences, each as token ids, none empty."""

Metrics = dict[str, Tensor]
"""Sums over pairs, without gradient: ``nll`` in nats, ``correct``."""


@dataclass(frozen=True)
class SentencePair:
    """``first`` and ``second`` as token ids, and ``label``: 0 as in the text, 1 changed."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    label: int


@dataclass(frozen=True, kw_only=True)
class SentencePairs(Value):
    """``max_tokens`` of both parts together; ``changed``: share of pairs that are not as in the text."""

    max_tokens: int = 509  # 512 less [CLS] and two [SEP]
    changed: float = 0.5

    def __post_init__(self) -> None:
        if self.max_tokens < 2 or not 0 <= self.changed <= 1:
            raise RequestError(
                f"Pairs of {self.max_tokens} tokens, {self.changed:g} of them changed",
                remedy="Give room for 2 tokens at least, and a share from 0 to 1.",
            )


def next_sentence_pairs(
    documents: Sequence[Sentences], number: int, spec: SentencePairs, *, seed: int, epoch: int = 0
) -> list[SentencePair]:
    """The pairs of one document among ``documents``, the same in whatever order documents are taken.

    Raises RequestError if there is no other document to take a foreign part from.
    """
    others = [index for index, sentences in enumerate(documents) if index != number and sentences]
    if not others:
        raise RequestError("Next-sentence pairs out of one document", remedy="Give two documents at least.")
    dice = example_dice(seed, number, epoch=epoch)
    sentences, start, pairs = documents[number], 0, list[SentencePair]()
    while len(sentences) - start >= 2:
        end = window_end(sentences, start, spec.max_tokens)
        cut = start + 1 + draw(end - start - 1, dice)
        first, second = joined(sentences[start:cut]), joined(sentences[cut:end])
        foreign = chance(spec.changed, dice)
        if foreign:
            other = documents[others[draw(len(others), dice)]]
            second = joined(other[draw(len(other), dice) :])[: len(second)]
        pairs.append(SentencePair(*fitted(first, second, spec.max_tokens), int(foreign)))
        start = cut if foreign else end
    return pairs


def window_end(sentences: Sentences, start: int, max_tokens: int) -> int:
    """Where a window that begins at ``start`` ends: as many sentences as fit, two at least."""
    end, size = start, 0
    while end < len(sentences) and (end - start < 2 or size + len(sentences[end]) <= max_tokens):
        size += len(sentences[end])
        end += 1
    return end


def windows(sentences: Sentences, max_tokens: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the windows of a document, without gaps; a last single sentence is left out."""
    start = 0
    while len(sentences) - start >= 2:
        end = window_end(sentences, start, max_tokens)
        yield start, end
        start = end


def joined(sentences: Sentences) -> tuple[int, ...]:
    """The tokens of some sentences in a row."""
    return tuple(token for sentence in sentences for token in sentence)


def fitted(first: tuple[int, ...], second: tuple[int, ...], max_tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two parts, the longer cut at its outer end until both are equal, then both, to ``max_tokens`` together."""
    kept = min(len(first), max(max_tokens - len(second), max_tokens // 2))
    return first[len(first) - kept :], second[: max_tokens - kept]


def with_marks(pair: SentencePair, *, cls_id: int, sep_id: int) -> tuple[list[int], list[int]]:
    """(tokens, part of each token 0 or 1): [CLS] first [SEP] second [SEP], as BERT reads pairs."""
    tokens = [cls_id, *pair.first, sep_id, *pair.second, sep_id]
    return tokens, [0] * (len(pair.first) + 2) + [1] * (len(pair.second) + 1)


def pair_loss(logits: Tensor, labels: Tensor, *, normaliser: float | None = None) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the two classes: logits [b, 2] of the pair, labels int64 [b].

    ``normaliser``: pairs of the whole optimizer step; None for those given. Raises ShapeError where shapes do not fit.
    """
    if logits.dim() != 2 or logits.shape[1] != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"Logits of shape {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}",
            remedy="Give two logits and one label per pair.",
        )
    count = float(len(labels)) if normaliser is None else normaliser
    if not count > 0:
        raise ShapeError("A loss over no pair", remedy="Give one at least.")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nll = F.cross_entropy(wide, labels, reduction="sum")
    return nll / count, {"nll": nll.detach(), "correct": (wide.argmax(-1) == labels).sum()}
