"""Training static word vectors by skip-gram with negative sampling.

Mikolov et al. 2013 (arXiv 1310.4546). A word is paired with the words up to r places away, r drawn anew from 1 to ``window``
for each word, so that near words count more. Of a frequent word w with share f(w) of the text only sqrt(t / f(w)) of the
occurrences are kept, before distances are counted. Noise words come in proportion to count(w) ** 0.75.

Deviation: updates are made for a batch of pairs at a time, with Adagrad by rows (one running sum of squares a vector)
instead of a rate that falls to zero; hundreds of pairs of one word in a batch would otherwise be one step of hundred times
the size.

Legend: v words, h width, n pairs, k noise words for each.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from almanac.core.errors import PreflightError, RequestError
from almanac.models.word_vectors import WordVectors
from almanac.objectives.skip_gram import skip_gram_gradients

NOISE_POWER = 0.75
_BLOCK = 100_000  # words whose pairs exist at once
_EPSILON = 1e-10


@dataclass(frozen=True, kw_only=True)
class SkipGram:
    """Settings.

    Args:
        width: numbers in a vector, h.
        window: how far a context word may stand from its word, at most.
        noise: words drawn at random for each pair, k.
        min_count: rarer words get no vector.
        subsample: t; the share of the text up to which a word is never left out. 1 keeps everything.
        epochs: passages through the text.
        rate: step size of Adagrad.
        batch_pairs: pairs of one update, n.
        seed: of everything drawn.
    """

    width: int = 100
    window: int = 5
    noise: int = 5
    min_count: int = 5
    subsample: float = 1e-3
    epochs: int = 5
    rate: float = 0.1
    batch_pairs: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.width, self.window, self.noise, self.min_count, self.epochs, self.batch_pairs)
        if min(counts) < 1 or not 0 < self.subsample <= 1 or not self.rate > 0:
            raise RequestError("A setting of the word vectors is out of range", remedy="Give counts and rates above 0.")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text as numbers.

    Args:
        words: the vocabulary, most frequent first.
        counts: int64 [v], occurrences.
        ids: int32, the text.
        sentences: int32, the number of the sentence that each word of it stands in.
    """

    words: tuple[str, ...]
    counts: np.ndarray
    ids: np.ndarray
    sentences: np.ndarray


def train_word_vectors(sentences: Iterable[Sequence[str]], settings: SkipGram = SkipGram()) -> WordVectors:
    """Vectors of the words of ``sentences``; the same text and settings give the same vectors on the same machine.

    Eight bytes of memory are taken for each word of the text.

    Raises:
        PreflightError: fewer than two different words occur ``min_count`` times, or no two of them stand together.
    """
    text = read(sentences, settings.min_count)
    generator = np.random.default_rng(settings.seed)
    tables = _Tables(len(text.words), settings)
    noise = np.cumsum(text.counts**NOISE_POWER)
    trained = 0
    for _ in range(settings.epochs):
        for words, contexts in batches(text, settings, generator):
            drawn = generator.random((len(words), settings.noise)) * noise[-1]
            tables.update(words, contexts, np.searchsorted(noise, drawn, side="right"))
            trained += len(words)
    if not trained:
        raise PreflightError("No two frequent words of the text stand together", remedy="Give longer sentences.")
    return WordVectors(text.words, tables.words)


def read(sentences: Iterable[Sequence[str]], min_count: int) -> Text:
    """The text as numbers, rare words left out. Raises PreflightError where fewer than two words are left."""
    numbers: dict[str, int] = {}
    ids, ends = array("i"), array("q")
    for sentence in sentences:
        ids.extend([numbers.setdefault(word, len(numbers)) for word in sentence])
        ends.append(len(ids))
    flat = np.frombuffer(ids, dtype=np.int32) if len(ids) else np.zeros(0, dtype=np.int32)
    counts = Counter(dict(enumerate(np.bincount(flat, minlength=len(numbers)).tolist())))
    names = list(numbers)
    kept = sorted((id for id, count in counts.items() if count >= min_count), key=lambda id: (-counts[id], names[id]))
    if len(kept) < 2:
        raise PreflightError(
            f"Of {len(names):,} words only {len(kept)} occur {min_count} times",
            remedy="Give more text, or a smaller min_count.",
        )
    new = np.full(len(names), -1, dtype=np.int32)
    new[kept] = np.arange(len(kept), dtype=np.int32)
    sentence = np.repeat(np.arange(len(ends), dtype=np.int32), np.diff(np.array([0, *ends])))
    inside = new[flat] >= 0
    return Text(
        words=tuple(names[id] for id in kept),
        counts=np.array([counts[id] for id in kept], dtype=np.int64),
        ids=new[flat][inside],
        sentences=sentence[inside],
    )


def batches(text: Text, settings: SkipGram, generator: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One passage through the text: (words, contexts), int32 [n] each, in an order drawn within blocks of text."""
    share = text.counts / text.counts.sum()
    keep = np.minimum(np.sqrt(settings.subsample / share), 1.0)
    for start in range(0, len(text.ids), _BLOCK):
        ids, sentences = text.ids[start : start + _BLOCK], text.sentences[start : start + _BLOCK]
        chosen = generator.random(len(ids)) < keep[ids]
        words, contexts = pairs(ids[chosen], sentences[chosen], settings.window, generator)
        order = generator.permutation(len(words))
        for first in range(0, len(order), settings.batch_pairs):
            batch = order[first : first + settings.batch_pairs]
            yield words[batch], contexts[batch]


def pairs(
    ids: np.ndarray, sentences: np.ndarray, window: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All (word, context) of a stretch of text: same sentence, at most r places apart, r drawn for each word."""
    reach = generator.integers(1, window + 1, size=len(ids))
    words, contexts = [ids[:0]], [ids[:0]]
    for distance in range(1, window + 1):
        together = sentences[distance:] == sentences[:-distance]
        before = together & (reach[distance:] >= distance)  # the word reaches back
        after = together & (reach[:-distance] >= distance)  # the word reaches forward
        words += [ids[distance:][before], ids[:-distance][after]]
        contexts += [ids[:-distance][before], ids[distance:][after]]
    return np.concatenate(words), np.concatenate(contexts)


class _Tables:
    """The two tables of vectors, [v, h] each, and what Adagrad knows of their rows."""

    def __init__(self, count: int, settings: SkipGram) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        self.words = (torch.rand(count, settings.width, generator=generator) - 0.5) / settings.width
        self._contexts = torch.zeros(count, settings.width)
        self._squares = torch.zeros(2, count)
        self._rate = settings.rate

    def update(self, words: np.ndarray, contexts: np.ndarray, noise: np.ndarray) -> None:
        """One step on a batch of pairs; ``noise`` is [n, k]."""
        word, context, drawn = (torch.from_numpy(item.astype(np.int64)) for item in (words, contexts, noise))
        found = skip_gram_gradients(self.words[word], self._contexts[context], self._contexts[drawn])
        by_context = torch.cat([found.contexts, found.noise.flatten(0, 1)])  # [n + n k, h]
        self._step(self.words, self._squares[0], word, found.words)
        self._step(self._contexts, self._squares[1], torch.cat([context, drawn.flatten()]), by_context)

    def _step(self, table: Tensor, squares: Tensor, rows: Tensor, gradients: Tensor) -> None:
        touched, place = rows.unique(return_inverse=True)
        total = gradients.new_zeros(len(touched), gradients.shape[1]).index_add_(0, place, gradients)
        squares[touched] += total.square().mean(1)
        table[touched] -= self._rate * total / (squares[touched] + _EPSILON).sqrt()[:, None]
