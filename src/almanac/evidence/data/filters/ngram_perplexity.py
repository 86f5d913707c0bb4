"""Perplexity under a 5-gram of clean text, on a pool of which half is junk: what the most probable third teaches.

The third is CCNet's; the bound that held-out lines of the reference set is this library's own way, and is held to the
same line. What no line judges, and every arm reports, is how much good text goes: of the common kind, which the
reference is of, and of the rare kind, which it is not. One kind of junk, a stretch of good text repeated, is as
probable as good text is. Lines are those of the design.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from almanac.data.filters.ngram import NgramModel
from almanac.data.filters.ngram_perplexity import NgramPerplexity
from almanac.data.filters.step import Judge
from almanac.data.sources.document import Document
from almanac.evidence.card import CONTROL, METHOD, TWIN, Arm, Card, Mutant
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures import pcfg, polluted
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome, require_disjoint

HEAD, BOUND, MIDDLE, TAIL = "most probable third", "bound of the reference", "middle third", "least probable third"
THIRDS = (HEAD, MIDDLE, TAIL)
SIGN, ORDERLESS, LEAKED = "sign of the logarithm lost", "words in any order", "reference is the pool"
ORDER = 5
ANY = 1e300  # a bound that nothing is over

CARD = Card(
    name="data.filters.ngram_perplexity",
    title="The text that an n-gram model of clean text finds most probable teaches more than the rest of the pool",
    claim=(
        "models of language trained on the head of a crawl, the third of the lowest perplexity under a 5-gram of "
        "Wikipedia, do better on downstream tasks than those trained on its middle or tail"
    ),
    source="Wenzek 2019, arXiv 1911.00359 (said in our words)",
    toy_claim=(
        "half of a pool of Python's documentation is junk of five kinds: a model trained on the third that a 5-gram "
        "of other modules finds most probable has, on clean held-out text and after equally many tokens, at least 20 "
        "% of the gain of an oracle that knows what is junk; so has one trained on what stays under the bound that "
        "the reference sets; and the least probable third is worse than the most probable by at least as much"
    ),
    scope=(
        "that what goes is bad: how much good text goes, common and rare, is told and not judged; other languages, the "
        "web's own junk, downstream tasks; where the cut should be"
    ),
    tier="planted",
    version=2,
    arms=(
        Arm(name=HEAD, role=METHOD, what="the third of the documents of the lowest perplexity"),
        Arm(
            name=BOUND, role=METHOD, what="what is more probable than 95 % of pages of held-out lines of the reference"
        ),
        Arm(name=MIDDLE, role=CONTROL, what="the third between"),
        Arm(name=TAIL, role=TWIN, what="the third of the highest perplexity: the same model, as much text"),
        *polluted.ENDS,
    ),
    claims=(
        AtLeast(
            effect=Effect(metric=polluted.SHARE, arm=HEAD),
            expected=0.5,
            fail=0.2,
            says="the most probable third has this much of what the oracle gains",
        ),
        AtLeast(
            effect=Effect(metric=polluted.SHARE, arm=BOUND),
            expected=0.5,
            fail=0.2,
            says="so has what stays under the bound of the reference",
        ),
        AtLeast(
            effect=Effect(metric=polluted.SHARE, arm=HEAD, over=TAIL),
            expected=1.0,
            fail=0.2,
            says="it is what is kept, not how much",
        ),
    ),
    gates=polluted.GATES,
    null=polluted.RANDOM,
    equal="tokens",
    budget_arms=(HEAD, BOUND, MIDDLE, TAIL, polluted.RANDOM, polluted.ORACLE),
    mutants=(
        Mutant(name=SIGN, what="the perplexity is that of the probabilities' inverses, so low is high"),
        Mutant(name=ORDERLESS, what="every word is predicted without those before it"),
        Mutant(name=LEAKED, what="the model of good text is trained on the pool, junk and all"),
    ),
    seeds=5,
    budget_minutes=4,
    plot=polluted.PLOT,
    bench=polluted.BENCH,
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """What a model is worth that was trained on what stays. Raises GateError for a reference out of the pool."""
    if arm in (polluted.RANDOM, polluted.ORACLE):
        return polluted.end(arm, seed, profile)
    pool = polluted.pool(seed)
    with planted(mutant, BUGS):
        stays = kept(arm, pool.documents, learned_from(pool.reference, pool.documents, mutant))
    return polluted.outcome(stays, seed, profile)


def learned_from(
    reference: Sequence[Document], documents: Sequence[Document], mutant: str | None = None
) -> Sequence[Document]:
    """What the model is trained on. Raises GateError if that is what it will judge."""
    found = documents if mutant == LEAKED else reference
    require_disjoint(polluted.texts(found), polluted.texts(documents))
    return found


def kept(arm: str, documents: Sequence[Document], reference: Sequence[Document]) -> list[bool]:
    """Whether each document stays."""
    if arm == BOUND:
        return polluted.decisions(_judge(reference), documents)
    found = perplexities(documents, reference)
    places = np.searchsorted(np.quantile(found, (1 / 3, 2 / 3)), found)  # 0 up to the first bound, and so on
    return [place == THIRDS.index(arm) for place in places.tolist()]


def perplexities(documents: Sequence[Document], reference: Sequence[Document]) -> list[float]:
    """What the filter says of each document."""
    judge = _judge(reference, max_perplexity=ANY)
    judged = [judge(document) for document in documents]
    return [float(item.metadata["perplexity"]) if isinstance(item, Document) else ANY for item in judged]


def _judge(reference: Sequence[Document], *, max_perplexity: float = 0.0) -> Judge:
    with tempfile.TemporaryDirectory() as folder:
        file = polluted.written(reference, Path(folder) / "reference.jsonl")
        step = NgramPerplexity(reference=str(file), order=ORDER, max_perplexity=max_perplexity)
        return step.prepare(Path(folder))


def check(mutant: str | None) -> None:
    """Sentences of a grammar stay, the same words in another order go; the reference is none of what is judged."""
    rng, made = random.Random(0), pcfg.grammar()

    def page(lines: int) -> str:
        return "\n".join(" ".join(made.sample(rng)) for _ in range(lines))

    def broken(whole: str) -> str:
        lines, words = whole.split("\n"), whole.split()
        rng.shuffle(words)
        return "\n".join(" ".join(words.pop() for _ in line.split()) for line in lines)  # as many to a line as before

    reference = [Document("reference", page(2000), polluted.COMMON)]
    good = [Document(f"good/{place}", page(60), polluted.COMMON) for place in range(10)]
    bad = [Document(f"bad/{item.id}", broken(item.text), polluted.SHUFFLED) for item in good]
    with planted(mutant, BUGS):
        given = learned_from(reference, [*good, *bad], mutant)
        assert sum(kept(BOUND, good, given)) >= 7, "sentences are thrown away"
        assert not any(kept(BOUND, bad, given)), "words in any order are kept"
        found = perplexities([*good, *bad], given)
        assert max(found[: len(good)]) < min(found[len(good) :]), "sentences are not the more probable"
        assert kept(HEAD, [*good, *bad], given)[len(good) :] == [False] * len(bad), "the head is the tail"


_log_probabilities = NgramModel.log_probabilities


def _signless(self: NgramModel, text: str) -> float:
    return float(np.exp(_log_probabilities(self, text).mean()))


def _orderless(self: NgramModel, text: str) -> np.ndarray:
    return _log_probabilities(NgramModel(self.vocabulary, self.levels[:1]), text)


BUGS = {
    SIGN: Bug(NgramModel, "perplexity", _signless),
    ORDERLESS: Bug(NgramModel, "log_probabilities", _orderless),
    LEAKED: (),
}
