"""The cards of filters: their pool is what it says, oracles see their mutants, and so does the experiment by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from almanac.core.errors import AlmanacError
from almanac.data.sources.document import Document
from almanac.evidence.claim import Verdict
from almanac.evidence.data.filters import classifier_quality, gopher, ngram_perplexity
from almanac.evidence.fixtures import polluted, text
from almanac.evidence.fixtures.polluted import COMMON, GOOD, JUNK, ORACLE, RANDOM, RARE
from almanac.evidence.judge import By, judge, judge_null
from almanac.evidence.outcome import GateError, Outcome
from almanac.evidence.train.text_runs import Size

CARDS = (gopher, ngram_perplexity, classifier_quality)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(("module", "mutant"), [(m, mutant.name) for m in CARDS for mutant in m.CARD.mutants])
def test_an_oracle_sees_its_mutants_and_leaves_the_code_as_it_was(module: ModuleType, mutant: str) -> None:
    with pytest.raises((AssertionError, AlmanacError)):
        module.check(mutant)
    module.check(None)


def characters(documents: Sequence[Document], *kinds: str) -> int:
    return sum(len(document.text) for document in documents if document.source in kinds)


def test_half_of_the_pool_is_junk_and_no_part_holds_what_another_holds() -> None:
    pool = polluted.pool(0)
    for part in (pool.documents, pool.ordinary):
        good = characters(part, *GOOD)
        assert characters(part, *JUNK) == pytest.approx(good, rel=0.02)
        assert characters(part, RARE) == pytest.approx(polluted.RARE_SHARE * good, rel=0.1)
        shares = [characters(part, kind) / characters(part, *JUNK) for kind in JUNK]
        assert max(shares) < 0.25 and min(shares) > 0.15
    held = text.decode(text.tokens("test"))
    assert sum(len(item) + 2 for name, item in text.modules().items() if polluted.is_test(name)) - 2 == len(held)
    known = {document.text for document in pool.documents if document.source in GOOD}
    assert not any(item in held for item in known)
    assert not known & set(polluted.texts((*pool.reference, *pool.ordinary)))
    assert {document.source for document in pool.reference} == {COMMON}


def test_junk_is_as_long_as_what_it_stands_beside_and_of_its_words() -> None:
    rng = random.Random(1)
    known = set(polluted.PROSE.split())
    for kind, make in polluted.MAKERS.items():
        made = make([polluted.PROSE], 1500, rng)
        assert kind == polluted.SHUFFLED or 1500 <= len(made) < 1800, kind
        if kind in (polluted.SHUFFLED, polluted.REPEATED):
            assert set(made.split()) <= known, kind
    assert sorted(polluted.shuffled([polluted.PROSE], 0, rng).split()) == sorted(polluted.PROSE.split())


def test_a_stream_is_cut_where_it_is_long_enough() -> None:
    documents = [Document(str(place), letters, COMMON) for place, letters in enumerate(("abc", "de", "fghi"))]
    stream = polluted.Stream(documents, 6)
    assert text.decode(stream.read(0, 9)) == "abcdef" and stream.num_tokens == 6
    assert stream.ends.tolist() == [3, 5, 6]


def test_a_run_reads_held_out_text_of_both_kinds_and_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(steps=40, hidden=8, layers=1, heads=2, time=16, rows=4, tests=8)
    monkeypatch.setattr(polluted, "SIZES", {"quick": size})
    first = polluted.end(RANDOM, 0, "quick")
    assert first.metrics["gain"] == 0 and first.metrics["epochs"] == 1
    assert first.metrics["nll"] > 2 and first.metrics["nll of rare text"] > 2
    stays = [document.source in GOOD for document in polluted.pool(0).documents]
    oracle = polluted.outcome(stays, 0, "quick")
    assert oracle.metrics == polluted.end(ORACLE, 0, "quick").metrics
    assert oracle.metrics["share of the oracle's gain"] == 1 and oracle.metrics["junk in what is kept"] == 0
    only = [place == stays.index(True) for place in range(len(stays))]
    length = len(polluted.pool(0).documents[stays.index(True)].text)
    assert polluted.outcome(only, 0, "quick").metrics["epochs"] == pytest.approx((40 * 4 * 15 + 1) / length)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is as good as what it is trained on is clean."""

    def clean(documents: Sequence[Document], size: Size, seed: int) -> Tensor:
        good = characters(documents, *GOOD) / max(1, characters(documents, *GOOD, *JUNK))
        return torch.tensor([3.0 - good, 3.0], dtype=torch.float64)

    monkeypatch.setattr(polluted, "trained", clean)


@pytest.mark.parametrize("module", [gopher, classifier_quality])
def test_the_experiment_alone_sees_every_mutant(module: ModuleType, no_training: None) -> None:
    card = module.CARD

    def run(arm: str, mutant: str | None) -> Outcome:
        return module.run(arm, 0, "quick", mutant)

    healthy = {arm.name: [run(arm.name, None)] for arm in card.arms if arm.role != "control"}
    healthy |= {arm.name: healthy[RANDOM] for arm in card.arms if arm.role == "control"}
    assert judge(card, healthy, By.LINE).verdict == Verdict.REPRODUCED
    assert judge_null(card, healthy, By.LINE).verdict == Verdict.NOT_REPRODUCED
    for mutant in card.mutants:
        try:
            broken = {arm: [run(arm, mutant.name)] for arm in card.mutated(mutant)}
        except GateError:
            continue
        assert judge(card, {**healthy, **broken}, By.LINE).verdict == Verdict.NOT_REPRODUCED, mutant.name


def test_a_third_is_a_third_and_the_head_is_the_more_probable() -> None:
    rng = random.Random(2)
    lines = [polluted.shuffled([polluted.PROSE], 0, rng) for _ in range(60)]
    reference = [Document("reference", "\n".join([polluted.PROSE] * 60), COMMON)]
    documents = [Document(f"{place}", line, COMMON) for place, line in enumerate(lines)]
    kept = {arm: ngram_perplexity.kept(arm, documents, reference) for arm in ngram_perplexity.THIRDS}
    assert [sum(stays) for stays in kept.values()] == [20, 20, 20]
    assert all(sum(stays) == 1 for stays in zip(*kept.values(), strict=True))
    found = ngram_perplexity.perplexities(documents, reference)
    highest = max(item for item, stay in zip(found, kept[ngram_perplexity.HEAD], strict=True) if stay)
    assert highest < min(item for item, stay in zip(found, kept[ngram_perplexity.TAIL], strict=True) if stay)
