"""Sentence-order prediction: two consecutive stretches of one text, perhaps swapped; the model says whether they are.

ALBERT (Lan 2019, arXiv 1909.11942, section 3.1): both parts are always of one topic, so that coherence is all there is to go
by; next-sentence prediction cannot do this task, while this one does that. Windows, cuts and labels are those of
`next_sentence`; label 1 means swapped.
"""

from __future__ import annotations

from almanac.objectives.example_dice import chance, draw, example_dice
from almanac.objectives.next_sentence import SentencePair, SentencePairs, Sentences, fitted, joined, windows


def sentence_order_pairs(
    sentences: Sentences, spec: SentencePairs, *, seed: int, number: int, epoch: int = 0
) -> list[SentencePair]:
    """The pairs of document ``number``. Both parts are cut to fit before they are swapped, so that length says nothing."""
    dice = example_dice(seed, number, epoch=epoch)
    pairs = []
    for start, end in windows(sentences, spec.max_tokens):
        cut = start + 1 + draw(end - start - 1, dice)
        first, second = fitted(joined(sentences[start:cut]), joined(sentences[cut:end]), spec.max_tokens)
        swapped = chance(spec.changed, dice)
        pairs.append(SentencePair(second, first, 1) if swapped else SentencePair(first, second, 0))
    return pairs
