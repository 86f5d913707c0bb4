"""The rules of Gopher on a pool of which half is junk: how much of the oracle's gain a model has of what they leave.

Four of the five kinds of junk break a rule by the way they are made; words of good text in another order break none,
and are in the pool for that reason. Which rules do it is shown by each half of them alone. Lines are those of the
design.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from almanac.data.filters import gopher_repetition
from almanac.data.filters.gopher import GopherQuality
from almanac.data.filters.gopher_repetition import GopherRepetition
from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document
from almanac.evidence.card import CONTROL, METHOD, TWIN, Arm, Card, Mutant
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures import polluted
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome

RULES, QUALITY, REPETITION, DEALT = "all rules", "quality rules", "repetition rules", "as many at random"
INVERTED, ONCE, IGNORED = "quality rules inverted", "shares of what stands once", "verdicts are not acted on"

CARD = Card(
    name="data.filters.gopher",
    title="Rules that know nothing of a text's meaning take most of the junk away, and its harm with it",
    claim="each stage of a filter of simple rules on quality and repetition makes the language model better",
    source="Rae 2021, arXiv 2112.11446, appendix A (said in our words)",
    toy_claim=(
        "half of a pool of Python's documentation is junk of five kinds: a model trained on what the rules keep has, "
        "on clean held-out text and after equally many tokens, at least 30 % of the gain of an oracle that knows what "
        "is junk, and so it has over as many documents taken away at random"
    ),
    scope=(
        "the web's own junk: four kinds of ours break a rule by construction, and one none; models and corpora of the "
        "paper's size, downstream tasks; languages without these stop words; rules tuned on another register than "
        "ours"
    ),
    tier="planted",
    arms=(
        Arm(name=RULES, role=METHOD, what="what the rules on quality and on repetition both keep"),
        Arm(name=QUALITY, role=CONTROL, what="what the rules on quality keep"),
        Arm(name=REPETITION, role=CONTROL, what="what the rules on repetition keep"),
        Arm(name=DEALT, role=TWIN, what="as many documents as the rules keep, their verdicts dealt out at random"),
        *polluted.ENDS,
    ),
    claims=(
        AtLeast(
            effect=Effect(metric=polluted.SHARE, arm=RULES),
            expected=0.6,
            fail=0.3,
            says="the rules have this much of what the oracle gains",
        ),
        AtLeast(
            effect=Effect(metric=polluted.SHARE, arm=RULES, over=DEALT),
            expected=0.6,
            fail=0.3,
            says="it is which documents go, not how many",
        ),
    ),
    gates=polluted.GATES,
    null=DEALT,
    equal="tokens",
    budget_arms=(RULES, QUALITY, REPETITION, DEALT, polluted.RANDOM, polluted.ORACLE),
    mutants=(
        Mutant(name=INVERTED, what="what breaks a rule on quality stays, and the rest goes"),
        Mutant(name=ONCE, what="the share of repeated characters is that of characters which are not repeated"),
        Mutant(name=IGNORED, what="a document that breaks a rule is told of, and kept"),
    ),
    seeds=5,
    budget_minutes=4,
    plot=polluted.PLOT,
    bench=polluted.BENCH,
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """What a model is worth that was trained on what stays."""
    if arm in (polluted.RANDOM, polluted.ORACLE):
        return polluted.end(arm, seed, profile)
    with planted(mutant, BUGS):
        stays = kept(arm, polluted.pool(seed).documents, seed)
    return polluted.outcome(stays, seed, profile)


def kept(arm: str, documents: Sequence[Document], seed: int) -> list[bool]:
    """Whether each document stays."""
    stays = [True] * len(documents)
    for name, rule in ((QUALITY, GopherQuality()), (REPETITION, GopherRepetition())):
        if arm in (name, RULES, DEALT):
            judged = polluted.decisions(rule.judge, documents)
            stays = [before and now for before, now in zip(stays, judged, strict=True)]
    if arm == DEALT:
        random.Random(f"{seed}/dealt").shuffle(stays)
    return stays


def check(mutant: str | None) -> None:
    """Prose stays, four kinds of junk made of its words go, and the fifth stays, as it must by rules of this kind."""
    rng, good = random.Random(0), [polluted.PROSE]
    with planted(mutant, BUGS):
        for kind in (polluted.COMMON, *polluted.JUNK):
            made = polluted.PROSE if kind == polluted.COMMON else polluted.MAKERS[kind](good, 1500, rng)
            (stays,) = kept(RULES, [Document(kind, made, kind)], 0)
            assert stays == (kind in (polluted.COMMON, polluted.SHUFFLED)), f"{kind}: {'kept' if stays else 'removed'}"


_judge, _shares = GopherQuality.judge, gopher_repetition.ngram_shares


def _inverted(self: GopherQuality, document: Document) -> Document | Removed:
    return document if isinstance(_judge(self, document), Removed) else Removed("it breaks no rule")


def _ignored(self: Rule, document: Document) -> Document:
    return document


def _once(text: str, *, top: int = 3, duplicate: int = 6) -> tuple[list[float], list[float]]:
    most, again = _shares(text, top=top, duplicate=duplicate)
    return [1 - share for share in most], [1 - share for share in again]


BUGS = {
    INVERTED: Bug(GopherQuality, "judge", _inverted),
    ONCE: Bug(gopher_repetition, "ngram_shares", _once),
    IGNORED: (Bug(GopherQuality, "judge", _ignored), Bug(GopherRepetition, "judge", _ignored)),
}
