"""Masked-token prediction: some tokens of a text are hidden, and the model says what they were, given both sides.

Devlin 2018, arXiv 1810.04805, section 3.1: of the 15 % chosen, 80 % become the mask, 10 % a random token and 10 % stay, so
that no token can be trusted; the loss is over the chosen ones alone. BERT made a few masks of a text once and came back to
them (static masking); a mask drawn anew whenever the text is seen is dynamic (Liu 2019, arXiv 1907.11692, section 4.1). With
whole words the pieces of a word are chosen together, so that none is guessed from the others (the authors' release of May
2019; Cui 2019, arXiv 1906.08101). We deviate in choosing every token, or word, by itself, where BERT counts out 15 %.

    loss = sum over chosen places of -log p(tokens[b, t] | corrupted[b])  /  normaliser

Legend: b rows, t tokens of a row, v vocab.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.value import Value
from almanac.objectives.example_dice import example_dice

Metrics = dict[str, Tensor]
"""Sums over the scored places, without gradient: ``nll`` in nats, ``correct`` (the arg-max was the token)."""


@dataclass(frozen=True, kw_only=True)
class Masking(Value):
    """How texts are hidden: ``share`` of the tokens is chosen; of these, shares are ``kept`` or replaced at ``random``.

    ``copies``: how many masks a text has in all; epoch e shows mask e mod ``copies`` (BERT: 10). None: a new one each time.
    """

    share: float = 0.15
    kept: float = 0.1
    random: float = 0.1
    copies: int | None = None

    def __post_init__(self) -> None:
        _require_shares(self.kept, self.random)
        if not 0 <= self.share <= 1 or (self.copies is not None and self.copies < 1):
            raise ShapeError(
                f"A share of {self.share:g} and {self.copies} copies",
                remedy="Give a share from 0 to 1, and 1 copy or more.",
            )


def mask_example(
    tokens: Tensor,
    own: Tensor,
    masking: Masking,
    *,
    mask_id: int,
    vocab_size: int,
    place: tuple[int, int, int],
    words: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(corrupted, chosen) of one text: a pure function of the text and its ``place`` (seed, number, epoch).

    Args:
        tokens: int64 [t]; ``own`` bool [t], what may be chosen (not special tokens).
        words: int64 [t], the word of each token (see `words_of`), to choose whole words; None: each token by itself.
    """
    seed, number, epoch = place
    dice = example_dice(seed, number, epoch=epoch if masking.copies is None else epoch % masking.copies)
    chosen = (
        choose(own[None], share=masking.share, generator=dice)
        if words is None
        else choose_words(words[None], own[None], share=masking.share, generator=dice)
    )
    out = corrupt(
        tokens[None],
        chosen,
        mask_id=mask_id,
        vocab_size=vocab_size,
        kept=masking.kept,
        random=masking.random,
        generator=dice,
    )
    return out[0], chosen[0]


def words_of(continues: Tensor) -> Tensor:
    """int64 [b, t]: the number of each token's word in its row; ``continues`` bool [b, t]: the token is no beginning."""
    begins = ~continues
    begins[:, 0] = True
    return begins.cumsum(dim=1) - 1


def choose_words(
    words: Tensor, own: Tensor, *, share: float = 0.15, generator: torch.Generator | None = None
) -> Tensor:
    """bool [b, t]: as `choose`, but all of a word or nothing; words int64 [b, t] from 0, at most t of a row.

    Each word is chosen with probability ``share``, so that this share of the tokens is too, whatever the lengths; a word
    that holds a token that is not ``own`` is left alone.
    """
    spoilt = torch.zeros_like(own).scatter_reduce(1, words, ~own, reduce="amax")  # by word
    present = torch.zeros_like(own).scatter(1, words, torch.ones_like(own))
    return choose(present & ~spoilt, share=share, generator=generator).gather(1, words)


def choose(own: Tensor, *, share: float = 0.15, generator: torch.Generator | None = None) -> Tensor:
    """bool [b, t]: places to be predicted, each of ``own`` (bool [b, t], what may be chosen) with probability ``share``.

    At least one place of every row that has any is chosen, so that no row is wasted.
    """
    draws = torch.rand(own.shape, generator=generator).masked_fill(~own, 2.0)
    return (draws < share) | ((draws == draws.amin(dim=1, keepdim=True)) & own)


def corrupt(
    tokens: Tensor,
    chosen: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    kept: float = 0.1,
    random: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """tokens int64 [b, t] with most of the ``chosen`` masked, a share ``random`` replaced, a share ``kept`` as it is.

    Raises ShapeError for shares that are none.
    """
    _require_shares(kept, random)
    draws = torch.rand(tokens.shape, generator=generator)
    others = torch.randint(0, vocab_size, tokens.shape, generator=generator)
    out = torch.where(chosen & (draws >= kept + random), mask_id, tokens)
    return torch.where(chosen & (draws >= kept) & (draws < kept + random), others, out)


def masked(
    logits: Tensor, tokens: Tensor, chosen: Tensor, *, normaliser: float | None = None
) -> tuple[Tensor, Metrics]:
    """The loss and the sums to report.

    Args:
        logits: [b, t, v], of the corrupted text.
        tokens: int64 [b, t], the text itself.
        chosen: bool [b, t], the places that are scored.
        normaliser: places of the whole optimizer step; None for those of this batch.

    Raises ShapeError where shapes do not fit, or nothing is scored and no normaliser given.
    """
    if logits.shape[:2] != tokens.shape or chosen.shape != tokens.shape:
        raise ShapeError(
            f"Logits of shape {tuple(logits.shape)} and marks of shape {tuple(chosen.shape)} for tokens of shape "
            f"{tuple(tokens.shape)}",
            remedy="Give one row of logits and one mark per token.",
        )
    places = float(chosen.sum()) if normaliser is None else normaliser
    if not places > 0:
        raise ShapeError("No token to predict", remedy="Choose one at least; see `choose`.")
    scored, targets = logits[chosen], tokens[chosen]
    wide = scored if scored.dtype == torch.float64 else scored.float()
    nll = F.cross_entropy(wide, targets, reduction="sum")
    with torch.no_grad():
        correct = (wide.argmax(-1) == targets).sum()
    return nll / places, {"nll": nll.detach(), "correct": correct}


def _require_shares(kept: float, random: float) -> None:
    if not 0 <= kept <= 1 or not 0 <= random <= 1 - kept:
        raise ShapeError(
            f"Of the chosen tokens {kept:g} kept and {random:g} replaced", remedy="Give shares that add to 1 at most."
        )
