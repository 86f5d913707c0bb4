"""The n-gram model against a dictionary computation of its formula, and the step that judges by it."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from almanac.core.errors import NotFoundError, PreflightError
from almanac.data.filters.ngram import DISCOUNT, train, words
from almanac.data.filters.ngram_perplexity import NgramPerplexity
from almanac.data.filters.step import Removed
from almanac.data.sources.document import Document


def text_of(seed: int, lines: int, lexicon: int = 30) -> str:
    rng = random.Random(seed)
    made = []
    for _ in range(lines):
        word, line = rng.randrange(lexicon), []
        for _ in range(rng.randint(1, 9)):
            line.append(f"w{word}")
            word = (word * 3 + rng.randrange(3)) % lexicon
        made.append(" ".join(line))
    return "\n".join(made)


class Direct:
    """The formula of the docstring, on dictionaries of words."""

    def __init__(self, text: str, order: int) -> None:
        lines = [words(line) for line in text.split("\n") if words(line)]
        count = Counter(word for line in lines for word in line)
        self.order, self.known = order, {word for word, times in count.items() if times >= 2}
        self.counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order + 1)]
        for line in lines:
            padded = self.padded(line)
            for end in range(order - 1, len(padded)):
                self.counts[order][tuple(padded[end - order + 1 : end + 1])] += 1
        for size in range(order - 1, 0, -1):
            self.counts[size] = Counter(gram[1:] for gram in self.counts[size + 1])
        self.totals: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.followers: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for size in range(1, order + 1):
            for gram, times in self.counts[size].items():
                self.totals[(str(size), *gram[:-1])] += times
                self.followers[(str(size), *gram[:-1])] += 1

    def padded(self, line: list[str]) -> list[str]:
        return ["<s>"] * (self.order - 1) + [word if word in self.known else "<unk>" for word in line] + ["</s>"]

    def log_probabilities(self, text: str) -> list[float]:
        found = []
        for line in (words(line) for line in text.split("\n")):
            padded = self.padded(line)
            for end in range(self.order - 1, len(padded) if line else 0):
                p = 1 / (len(self.known) + 2)
                for size in range(1, self.order + 1):
                    gram = tuple(padded[end - size + 1 : end + 1])
                    total = self.totals[(str(size), *gram[:-1])]
                    if total:
                        held = DISCOUNT * self.followers[(str(size), *gram[:-1])] / total
                        p = max(self.counts[size][gram] - DISCOUNT, 0) / total + held * p
                found.append(math.log(p))
        return found


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_formula(order: int) -> None:
    text = text_of(0, 200)
    model, direct = train([text], order=order), Direct(text, order)
    probe = text_of(1, 20, lexicon=45) + "\n\nw1 never seen\n"
    assert model.log_probabilities(probe) == pytest.approx(direct.log_probabilities(probe), abs=1e-12)
    assert model.perplexity(probe) == pytest.approx(math.exp(-np.mean(direct.log_probabilities(probe))))
    assert model.perplexity(" \n") == math.inf


def test_probabilities_sum_to_one() -> None:
    model = train([text_of(0, 100, lexicon=6)], order=3)
    for before in ("w1", "w5 w2", "strange w0"):
        size = len(words(before))
        following = [*model.vocabulary, "neverseen"]
        whole = sum(math.exp(model.log_probabilities(f"{before} {word}")[size]) for word in following)
        assert whole + math.exp(model.log_probabilities(before)[size]) == pytest.approx(1)


def test_higher_orders_predict_better_on_text_with_structure() -> None:
    text, held_out = text_of(0, 2000), text_of(9, 100)
    found = [train([text], order=order).perplexity(held_out) for order in (1, 2, 3)]
    assert found[1] < 0.5 * found[0] and found[2] < 1.1 * found[1]


def test_what_is_unlike_the_reference_goes(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(text_of(0, 3000))
    judge = NgramPerplexity(reference=str(tmp_path / "good.txt"), keep=0.95).prepare(tmp_path)
    good = [judge(Document("g", text_of(seed, 60))) for seed in range(20, 40)]
    shuffled = []
    for seed in range(20, 40):
        mixed = text_of(seed, 60).split()
        random.Random(seed).shuffle(mixed)
        shuffled.append(judge(Document("s", " ".join(mixed))))
    assert sum(isinstance(item, Document) for item in good) >= 17
    assert all(isinstance(item, Removed) and item.reason == "unlike the reference" for item in shuffled)
    kept = next(item for item in good if isinstance(item, Document))
    assert float(kept.metadata["perplexity"]) > 1


def test_a_reference_that_is_too_short_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one line\n" * 30)
    with pytest.raises(PreflightError, match="too few"):
        NgramPerplexity(reference=str(tmp_path / "short.txt")).prepare(tmp_path)
    NgramPerplexity(reference=str(tmp_path / "short.txt"), max_perplexity=50).prepare(tmp_path)
    with pytest.raises(NotFoundError):
        NgramPerplexity(reference=str(tmp_path / "none.txt")).prepare(tmp_path)


def test_words_that_nobody_knows_are_not_what_is_expected(tmp_path: Path) -> None:
    rng = random.Random(0)
    rare = [f"rare{number}" for number in range(300)]
    lines = [
        line + (f" {rng.choice(rare)} {rng.choice(rare)}" if rng.random() < 0.3 else "")
        for line in text_of(0, 1000).split("\n")
    ]
    (tmp_path / "good.txt").write_text("\n".join(lines))
    model = train(lines)
    assert model.rare > 10
    unknown = " ".join(f"x{number}" for number in range(200))
    assert model.perplexity(unknown) > 3 * model.perplexity(text_of(30, 60))
    judge = NgramPerplexity(reference=str(tmp_path / "good.txt")).prepare(tmp_path)
    assert isinstance(judge(Document("u", unknown)), Removed)
    assert isinstance(judge(Document("g", text_of(31, 60))), Document)
