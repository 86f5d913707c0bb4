"""MinHash and its bands against their formulas, on pairs of texts whose resemblance is planted exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest.mock import patch

import numpy as np

from almanac.data.dedup import near
from almanac.data.dedup.near import NearDuplicates, NearIndex, band_shape, jaccard, minhash, shingles
from almanac.evidence.card import BASELINE, METHOD, TWIN, Arm, Card, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect, Within
from almanac.evidence.outcome import Outcome

MINHASH, IDENTICAL, ONE = "MinHash in bands", "identical texts", "one hash function"
UNION = 200  # words of a pair
PAIRS = {"quick": 60, "full": 300}
GRID = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SETTINGS = NearDuplicates(threshold=0.8, shingle_words=1)

CARD = Card(
    name="data.dedup.near",
    title="Two texts fall into one bucket as often as the S-curve says",
    claim="the probability that the minima of two sets under a random hash agree is their Jaccard similarity",
    source="Broder 1997, On the resemblance and containment of documents, section 3; bands: Leskovec, Rajaraman and Ullman, "
    "Mining of Massive Datasets, section 3.4",
    toy_claim=(
        "of pairs of texts with a planted Jaccard similarity from 0.3 to 0.95, the share of signature places that agree is "
        "the similarity, and the share of pairs with a band in common is 1 - (1 - J^r)^b"
    ),
    scope="that shingles of words measure what a reader calls a copy; speed",
    tier="planted",
    arms=(
        Arm(name=MINHASH, role=METHOD, what="signatures of 128 minima, in the bands chosen for a threshold of 0.8"),
        Arm(name=IDENTICAL, role=BASELINE, what="texts are copies if they have the same digest"),
        Arm(name=ONE, role=TWIN, what="the same, but all minima are under one hash function"),
    ),
    claims=(
        Within(
            effect=Effect(metric="s-curve", arm=MINHASH),
            expected=0.0,
            margin=0.03,
            says="pairs found beyond the formula's share, mean over similarities",
        ),
        Within(
            effect=Effect(metric="estimate", arm=MINHASH),
            expected=0.0,
            margin=0.01,
            says="agreement of signatures beyond the similarity",
        ),
        AtLeast(
            effect=Effect(metric="found at 0.9", arm=MINHASH, over=IDENTICAL),
            expected=0.99,
            fail=0.9,
            says="near copies that a digest does not find",
        ),
        AtLeast(
            effect=Effect(metric="found at 0.9", arm=MINHASH, over=ONE),
            expected=0.09,
            fail=0.03,
            says="near copies that one hash function does not find",
        ),
    ),
    null=IDENTICAL,
    mutants=(
        Mutant(name="hashes of its own for every text", what="Python's salted hash, another in every process"),
        Mutant(name="even multipliers", what="multiply-shift with multipliers that lose bits"),
        Mutant(name="the largest", what="maxima kept for one of the two texts", arms=(MINHASH,)),
        Mutant(name="any row of a band", what="a pair is found where one row of a band agrees", arms=(MINHASH,)),
    ),
    plot=Plot(metric="found", lines=True, x="Jaccard similarity", y="share of pairs with a band in common"),
)


def pair(seed: int, number: int, similarity: float) -> tuple[str, str]:
    """Two texts of different words whose sets have exactly this Jaccard similarity (in parts of `UNION`)."""
    common = round(similarity * UNION)
    left = common + (UNION - common) // 2
    words = [f"w{seed}x{number}x{round(similarity * 100)}x{place}" for place in range(UNION)]
    return " ".join(words[:left]), " ".join(words[:common] + words[left:])


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Agreement and buckets of pairs at each similarity."""
    bands, rows = band_shape(SETTINGS.threshold)
    pairs = PAIRS["quick" if profile == "quick" else "full"]
    curve, estimates, gaps = [], [], []
    with _broken("one" if arm == ONE else mutant):
        for similarity in GRID:
            agree, hits = [], 0
            for number in range(pairs):
                left, right = (near.minhash(shingles(text, size=1)) for text in pair(seed, number, similarity))
                same = left == right if arm != IDENTICAL else np.zeros(len(left), bool)
                agree.append(float(same.mean()))
                whole = same.reshape(bands, rows)
                hits += bool((whole.any(1) if mutant == "any row of a band" else whole.all(1)).any())
            formula = 1 - (1 - similarity**rows) ** bands
            curve.append((similarity, hits / pairs))
            estimates.append(float(np.mean(agree)) - similarity)
            gaps.append(hits / pairs - formula)
    metrics = {
        "s-curve": float(np.mean(gaps)),
        "s-curve at worst": float(np.abs(gaps).max()),
        "estimate": float(np.mean(estimates)),
        "found at 0.9": dict(curve)[0.9],
    }
    return Outcome(metrics, {"hashes": float(bands * rows)}, {"found": curve})


def check(mutant: str | None) -> None:
    """Similarity as planted; signatures do not depend on the process; the index finds what the bands say."""
    with _broken(mutant):
        texts = pair(0, 0, 0.9)
        sets = [shingles(text, size=1) for text in texts]
        assert abs(jaccard(*sets) - 0.9) < 1e-12, "the planted similarity"
        first, second = near.minhash(sets[0]), near.minhash(sets[0])
        assert np.array_equal(first, second), "a text's signature is always the same"
        merged = near.minhash(np.union1d(*sets))
        assert np.array_equal(merged, np.minimum(first, near.minhash(sets[1]))), (
            "the minimum of a union is the lower one"
        )
        low = [int(near.minhash(shingles(f"word{place}", size=1))[0]) for place in range(64)]
        assert len({value & 0xFFFF for value in low}) > 32, "hashes use all their bits"
        index: NearIndex[str] = NearIndex(SETTINGS)
        index.add("kept", texts[0])
        assert [key for key, _ in index.matches(texts[1])] == ["kept"], "a near copy is found"


MINIMA: Callable[..., np.ndarray] = minhash


@contextlib.contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    calls = iter(range(10**9))

    def salted(found: np.ndarray, *, length: int = 128) -> np.ndarray:
        return MINIMA(found ^ np.uint64(0x9E3779B97F4A7C15 * (next(calls) + 1) % 2**64), length=length)

    def even(found: np.ndarray, *, length: int = 128) -> np.ndarray:
        return MINIMA(found << np.uint64(48), length=length)

    def largest(found: np.ndarray, *, length: int = 128) -> np.ndarray:
        flipped = next(calls) % 2
        return MINIMA(~found if flipped else found, length=length)

    def single(found: np.ndarray, *, length: int = 128) -> np.ndarray:
        return np.repeat(MINIMA(found, length=1), length)

    planted = {
        "hashes of its own for every text": salted,
        "even multipliers": even,
        "the largest": largest,
        "one": single,
    }
    with patch.object(near, "minhash", planted[mutant]) if mutant in planted else contextlib.nullcontext():
        yield
