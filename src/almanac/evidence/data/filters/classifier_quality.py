"""A classifier of good against ordinary text, on a pool of which half is junk: what the text that it keeps teaches.

Its positives are modules kept apart as a reference, its negatives a second draw of the same kind as the pool, good
text and junk unmarked, as GPT-3 told curated text from an unfiltered crawl. It learns from neither the pool nor held-
out text. The rare kind of good text is in the negatives and not in the reference; how much of it goes is told and not
judged. Lines are those of the design.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from almanac.data.filters import classifier_quality, hashed_linear
from almanac.data.filters.classifier_quality import ClassifierQuality
from almanac.data.filters.hashed_linear import HashedLinear, features, fit
from almanac.data.sources.document import Document
from almanac.evidence.card import CONTROL, METHOD, TWIN, Arm, Card, Mutant
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures import pcfg, polluted
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.fixtures.polluted import Pool
from almanac.evidence.outcome import Outcome, require_disjoint

CLASSIFIER, UNSEEN, DEALT = "classifier", "two kinds of junk unseen", "as many at random"
FLIPPED, SALTED, LEAKED = "labels flipped", "words hashed with a salt", "negatives are the pool"
HIDDEN = (polluted.GIBBERISH, polluted.REPEATED)  # the kinds that one arm's negatives lack

CARD = Card(
    name="data.filters.classifier_quality",
    title="A classifier of good against ordinary text finds the junk, and a model trained without it is the better one",
    claim=(
        "data selected by a classifier trained on a curated corpus against a crawl trains better models, and of all "
        "ways to filter by a model a linear classifier of n-grams is the best, given well chosen positives"
    ),
    source="Brown 2020, arXiv 2005.14165, appendix A; Li 2024, arXiv 2406.11794, section 4.4 (both said in our words)",
    toy_claim=(
        "half of a pool of Python's documentation is junk of five kinds: a model trained on what the classifier keeps "
        "has, on clean held-out text and after equally many tokens, at least 30 % of the gain of an oracle that knows "
        "what is junk, and so it has over as many documents taken at random"
    ),
    scope=(
        "the web's own junk; that quality of a subtler kind than junk is seen; downstream tasks; that a classifier is "
        "better than other filters; what becomes of good text unlike the positives, which goes: how much is told"
    ),
    tier="planted",
    arms=(
        Arm(name=CLASSIFIER, role=METHOD, what="what is at least as likely a reference text as an ordinary one"),
        Arm(
            name=UNSEEN,
            role=CONTROL,
            what=f"the same, but the junk in the negatives is of three kinds: {' and '.join(HIDDEN)} are not",
        ),
        Arm(name=DEALT, role=TWIN, what="as many documents as the classifier keeps, its verdicts dealt out at random"),
        *polluted.ENDS,
    ),
    claims=(
        AtLeast(
            effect=Effect(metric=polluted.SHARE, arm=CLASSIFIER),
            expected=0.6,
            fail=0.3,
            says="the classifier has this much of what the oracle gains",
        ),
        AtLeast(
            effect=Effect(metric=polluted.SHARE, arm=CLASSIFIER, over=DEALT),
            expected=0.6,
            fail=0.3,
            says="it is which documents go, not how many",
        ),
    ),
    gates=polluted.GATES,
    null=DEALT,
    equal="tokens",
    budget_arms=(CLASSIFIER, UNSEEN, DEALT, polluted.RANDOM, polluted.ORACLE),
    mutants=(
        Mutant(name=FLIPPED, what="positive texts are labelled as ordinary ones and the other way round"),
        Mutant(name=SALTED, what="the hash of a word is another in every call, as Python's is in every process"),
        Mutant(name=LEAKED, what="the classifier is trained on the documents that it judges"),
    ),
    seeds=5,
    budget_minutes=4,
    plot=polluted.PLOT,
    bench=polluted.BENCH,
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """What a model is worth that was trained on what stays. Raises GateError for a classifier trained on the pool."""
    if arm in (polluted.RANDOM, polluted.ORACLE):
        return polluted.end(arm, seed, profile)
    pool = polluted.pool(seed)
    with planted(mutant, BUGS):
        stays = kept(arm, pool, seed, mutant)
    return polluted.outcome(stays, seed, profile)


def kept(arm: str, pool: Pool, seed: int, mutant: str | None = None) -> list[bool]:
    """Whether each document of the pool stays. Raises GateError if the classifier learns from what it is to judge."""
    reference, ordinary = list(pool.reference), pool.documents if mutant == LEAKED else pool.ordinary
    if arm == UNSEEN:
        ordinary = tuple(document for document in ordinary if document.source not in HIDDEN)
    negative = list(ordinary[: len(reference)])  # two classes of one size: the bound of one half favours neither
    require_disjoint(polluted.texts([*reference, *negative]), polluted.texts(pool.documents))
    stays = decisions(pool.documents, reference, negative)
    if arm == DEALT:
        random.Random(f"{seed}/dealt").shuffle(stays)
    return stays


def decisions(documents: Sequence[Document], positive: Sequence[Document], negative: Sequence[Document]) -> list[bool]:
    """What the filter says of each document."""
    with tempfile.TemporaryDirectory() as folder:
        step = ClassifierQuality(
            positive=str(polluted.written(positive, Path(folder) / "positive.jsonl")),
            negative=str(polluted.written(negative, Path(folder) / "negative.jsonl")),
        )
        return polluted.decisions(step.prepare(Path(folder)), documents)


def check(mutant: str | None) -> None:
    """Sentences of a grammar stay and the same words in another order go, of texts that it was not trained on."""
    rng, made = random.Random(0), pcfg.grammar()
    number = iter(range(10**6))

    def page() -> Document:
        return Document(f"{next(number)}", "\n".join(" ".join(made.sample(rng)) for _ in range(40)), polluted.COMMON)

    def broken() -> Document:
        return Document(f"{next(number)}", polluted.shuffled([page().text], 0, rng), polluted.SHUFFLED)

    reference, ordinary = [page() for _ in range(40)], [page() for _ in range(15)] + [broken() for _ in range(25)]
    good, bad = [page() for _ in range(10)], [broken() for _ in range(10)]
    pool = Pool((*good, *bad), tuple(reference), tuple(ordinary))
    with planted(mutant, BUGS):
        stays = kept(CLASSIFIER, pool, 0, mutant)
        assert sum(stays[:10]) >= 8, "sentences are thrown away"
        assert sum(stays[10:]) <= 2, "words in any order are kept"
        assert kept(CLASSIFIER, pool, 0, mutant) == stays, "not the same again"


_calls = iter(range(10**12))


def _flipped(texts: Sequence[str], labels: Sequence[bool], *, buckets: int, strength: float) -> HashedLinear:
    return fit(texts, [not label for label in labels], buckets=buckets, strength=strength)


def _salted(text: str, *, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    places, values = features(text, buckets=buckets)
    found = (places * 40_503 + next(_calls) * 9_973) % buckets  # an odd factor: no two places become one
    order = np.argsort(found)
    return found[order], values[order]


BUGS = {
    FLIPPED: Bug(classifier_quality, "fit", _flipped),
    SALTED: Bug(hashed_linear, "features", _salted),
    LEAKED: (),
}
