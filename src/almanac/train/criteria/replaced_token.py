"""Training an encoder to tell which tokens a small generator has put in (`objectives.replaced_token`; ELECTRA).

Both learn in one step, and the generator is thrown away afterwards. They share the tables of tokens and of positions where
these are of one size, as in the paper (Clark 2020, arXiv 2003.10555, section 3.2). What the generator puts in is drawn from
dice that come with the batch, since it depends on weights and cannot be drawn before.

The step has one normaliser, the tokens that are judged. The generator's loss is a mean over the masked places, which are
``share`` of these on average: it is divided by share · normaliser, so that micro-batches and ranks add up (deviation: the
paper divides by the masked places of the batch).

Legend: b rows, t tokens of a row, v vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.batch import Tokens
from almanac.core.state import Context
from almanac.nn.task_model import TaskModel
from almanac.objectives.masked import Masking, Metrics, masked
from almanac.objectives.replaced_token import WEIGHT, fill, replaced_token
from almanac.train.criteria.corrupted import Corruption, Place, ordinary
from almanac.train.criteria.masked import MaskedRows, MaskedWindows
from almanac.train.criterion import Criterion

ALL_MASKED = Masking(kept=0.0, random=0.0)
"""Every chosen token becomes the mask, since another always comes in its place."""


class GeneratorAndJudge(nn.Module):
    """``judge`` has a replaced head, ``generator`` a masked one over the judge's tables where the sizes are one."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        judge: TaskModel.Spec
        generator: TaskModel.Spec

        def build(self) -> GeneratorAndJudge:
            return GeneratorAndJudge(self)

    def __init__(self, spec: GeneratorAndJudge.Spec) -> None:
        super().__init__()
        self.judge, self.generator = spec.judge.build(), spec.generator.build()
        own, theirs = spec.generator.encoder, spec.judge.encoder
        if own.embed == theirs.embed:
            self.generator.encoder.embed = self.judge.encoder.embed
        if own.positions == theirs.positions:
            self.generator.encoder.positions = self.judge.encoder.positions


@dataclass(frozen=True)
class JudgedRows:
    """``given``: the masked rows; ``scored`` bool [b, t]: which tokens are judged; ``seeds``: of each row's filling."""

    given: MaskedRows
    scored: Tensor
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class JudgedWindows(Corruption):
    """As `MaskedWindows`, every chosen token being masked; all tokens but ``special`` ones are judged."""

    mask_id: int
    vocab_size: int
    masking: Masking = ALL_MASKED
    special: tuple[int, ...] = ()

    def batch(self, rows: Tokens, places: Sequence[Place]) -> JudgedRows:
        masks = MaskedWindows(
            mask_id=self.mask_id, vocab_size=self.vocab_size, masking=self.masking, special=self.special
        )
        scored = ordinary(rows.tokens, (*self.special, self.mask_id)) & (rows.segments >= 0)
        seeds = tuple(place._replace(seed=place.seed + 1).dice().initial_seed() for place in places)
        return JudgedRows(masks.batch(rows, places), scored, seeds)


@dataclass(frozen=True, kw_only=True)
class ReplacedToken(Criterion):
    """On `JudgedRows`; the network is a `GeneratorAndJudge`. Weighted by the tokens that are judged.

    ``share``: of the masking, see the head of this file; ``judging``: the weight of the judge's loss.
    """

    share: float = 0.15
    judging: float = WEIGHT

    def weight(self, batch: JudgedRows) -> float:
        return float(batch.scored.sum())

    def tokens(self, batch: JudgedRows) -> int:
        return 2 * batch.scored.numel()

    def loss(self, network: nn.Module, batch: JudgedRows, *, normaliser: float) -> tuple[Tensor, Metrics]:
        """``nll`` and ``correct`` are the judge's; ``generator_nll`` is the generator's, over the same normaliser."""
        rows, chosen = batch.given.rows, batch.given.chosen
        guesses = network.generator(batch.given.corrupted, Context(rows.positions, rows.segments))
        guessed, found = masked(guesses, rows.tokens, chosen, normaliser=self.share * normaliser)
        filled = self.filled(batch, guesses)
        logits = network.judge(filled, Context(rows.positions, rows.segments))
        judged, metrics = replaced_token(logits, rows.tokens, filled, scored=batch.scored, normaliser=normaliser)
        return guessed + self.judging * judged, metrics | {"generator_nll": found["nll"]}

    def filled(self, batch: JudgedRows, guesses: Tensor) -> Tensor:
        """int64 [b, t]: the text with the masked places drawn from ``guesses`` [b, t, v], each row by its own dice."""
        made = []
        for index, seed in enumerate(batch.seeds):
            row = slice(index, index + 1)
            dice = torch.Generator().manual_seed(seed)
            chosen = batch.given.chosen[row]
            tokens = batch.given.rows.tokens[row]
            made.append(fill(tokens, chosen, guesses[row], generator=dice) if bool(chosen.any()) else tokens)
        return torch.cat(made)
