"""The classifiers, decontamination, licences, personal data and languages, each on documents with something planted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from almanac.core.errors import FileFormatError, PreflightError, RequestError
from almanac.data.filters.classifier_quality import ClassifierQuality
from almanac.data.filters.decontaminate import Decontaminate
from almanac.data.filters.hashed_linear import features, fit
from almanac.data.filters.language_is import LanguageIs
from almanac.data.filters.licence import LicenceAllowed, spdx_of
from almanac.data.filters.personal_data import PersonalDataPolicy
from almanac.data.filters.step import Removed, Step
from almanac.data.filters.toxicity import Toxicity
from almanac.data.sources.document import Document

GOOD = "lamp river stone quiet harbour letter window garden".split()
BAD = "click buy cheap bonus casino winner offer deal".split()


def sentence(rng: random.Random, lexicon: list[str], *, noise: float = 0.5) -> str:
    common = "the of and in to a with that".split()
    return " ".join(rng.choice(common) if rng.random() < noise else rng.choice(lexicon) for _ in range(12)) + "."


def outcome_of(step: Step, text: str, folder: Path, **metadata: str) -> Document | Removed:
    return step.prepare(folder)(Document("x", text, "s", metadata))


def test_the_classifier_is_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn, the oracle, is not installed")
    rng = random.Random(0)
    texts = [sentence(rng, GOOD if n % 2 else BAD, noise=0.9) for n in range(200)]
    labels = [bool(n % 2) for n in range(200)]
    dense = np.zeros((200, 4096))
    for row, text in enumerate(texts):
        places, values = features(text, buckets=4096)
        dense[row, places] = values
        assert np.linalg.norm(values) == pytest.approx(1)
    mine = fit(texts, labels, buckets=4096, strength=3.0)
    theirs = linear_model.LogisticRegression(C=3.0, tol=1e-8, max_iter=2000).fit(dense, labels)
    assert mine.weights == pytest.approx(theirs.coef_[0], abs=2e-4) and mine.bias == pytest.approx(
        theirs.intercept_[0], abs=2e-4
    )
    expected = theirs.predict_proba(dense)[:, 1]
    assert [mine.probability(text) for text in texts] == pytest.approx(expected, abs=1e-4)
    again = fit(texts, labels, buckets=4096, strength=3.0)
    assert (mine.weights == again.weights).all() and mine.probability("") == pytest.approx(1 / (1 + np.exp(-mine.bias)))


def test_quality_by_classifier(tmp_path: Path) -> None:
    rng = random.Random(1)
    (tmp_path / "good.txt").write_text("\n".join(sentence(rng, GOOD) for _ in range(200)))
    (tmp_path / "bad.txt").write_text("\n".join(sentence(rng, BAD) for _ in range(200)))
    step = ClassifierQuality(positive=str(tmp_path / "good.txt"), negative=str(tmp_path / "bad.txt"))
    assert set(step.files()) == {str(tmp_path / "good.txt"), str(tmp_path / "bad.txt")}
    judge = step.prepare(tmp_path)
    good = [judge(Document("g", " ".join(sentence(rng, GOOD) for _ in range(5)))) for _ in range(50)]
    bad = [judge(Document("b", " ".join(sentence(rng, BAD) for _ in range(5)))) for _ in range(50)]
    assert all(isinstance(item, Document) for item in good) and all(isinstance(item, Removed) for item in bad)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(PreflightError, match="both classes"):
        ClassifierQuality(positive=str(tmp_path / "good.txt"), negative=str(tmp_path / "empty.txt")).prepare(tmp_path)


def test_toxic_documents_go_by_the_share_of_their_sentences(tmp_path: Path) -> None:
    rng = random.Random(2)
    records = [{"text": sentence(rng, BAD if n % 2 else GOOD), "label": n % 2} for n in range(400)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, records)))
    judge = Toxicity(labelled=str(tmp_path / "labels.jsonl"), share=0.2).prepare(tmp_path)

    def document(toxic: int, of: int) -> Document:
        return Document("x", " ".join(sentence(rng, BAD if n < toxic else GOOD, noise=0.3) for n in range(of)))

    assert isinstance(judge(document(0, 20)), Document) and isinstance(judge(document(2, 20)), Document)
    gone = judge(document(8, 20))
    assert isinstance(gone, Removed) and gone.reason == "toxic" and not gone.quotable
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(FileFormatError, match="'label'"):
        Toxicity(labelled=str(tmp_path / "bad.jsonl")).prepare(tmp_path)


def test_every_planted_example_is_found_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(3)

    def invented(count: int) -> str:
        return " ".join(f"w{rng.randrange(3000)}" for _ in range(count))

    examples = [{"question": invented(20), "choices": [invented(9), invented(3)]} for _ in range(40)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, examples)))
    judge = Decontaminate(evaluations=(str(tmp_path / "test.jsonl"),)).prepare(tmp_path)
    for example in examples:
        question = example["question"]
        assert isinstance(question, str)
        part = question.split()[4:17]  # thirteen words of the twenty, in other case and with other marks
        leaked = judge(Document("x", f"{invented(50)} {', '.join(part).upper()}. {invented(50)}"))
        assert isinstance(leaked, Removed) and leaked.reason == "overlaps test.jsonl"
        assert isinstance(judge(Document("x", f"{invented(50)} {' '.join(part[:12])} {invented(50)}")), Document)
        short = example["choices"][0]  # nine words count as they are
        assert isinstance(judge(Document("x", f"{invented(30)} {short} {invented(5)}")), Removed)
        assert isinstance(judge(Document("x", f"{invented(30)} {example['choices'][1]} {invented(5)}")), Document)
    assert all(isinstance(judge(Document("x", invented(200))), Document) for _ in range(50))
    (tmp_path / "short.jsonl").write_text('{"answer": "yes"}\n')
    with pytest.raises(PreflightError, match="8 words"):
        Decontaminate(evaluations=(str(tmp_path / "short.jsonl"),)).prepare(tmp_path)


def test_licences(tmp_path: Path) -> None:
    def outcome(told: str, **settings: bool) -> str:
        found = outcome_of(LicenceAllowed(**settings), "t", tmp_path, licence=told)
        return found.reason if isinstance(found, Removed) else found.metadata["licence"]

    assert outcome("MIT") == "MIT" and outcome("apache-2.0") == "apache-2.0"
    assert outcome("https://creativecommons.org/licenses/by-sa/4.0/deed.de") == "CC-BY-SA-4.0"
    assert outcome("http://creativecommons.org/publicdomain/zero/1.0/") == "CC0-1.0"
    assert outcome("GPL-3.0-only OR MIT") == "GPL-3.0-only OR MIT"
    assert outcome("CC-BY-NC-4.0") == outcome("MIT AND GPL-3.0-only") == "licence not on the list"
    assert outcome("") == "no licence told"
    assert isinstance(outcome_of(LicenceAllowed(unknown=True), "t", tmp_path), Document)
    assert spdx_of("https://creativecommons.org/publicdomain/mark/1.0") == "PDM-1.0"


def test_personal_data_is_kept_masked_or_a_reason_to_drop(tmp_path: Path) -> None:
    text = "Write to anna.berg@fernweh.net or call the office."
    masked = outcome_of(PersonalDataPolicy(), text, tmp_path)
    assert isinstance(masked, Document) and masked.text == "Write to [EMAIL] or call the office."
    kept = outcome_of(PersonalDataPolicy(policy="keep"), text, tmp_path)
    assert isinstance(kept, Document) and kept.text == text and kept.metadata["personal_data"] == "1 email"
    dropped = outcome_of(PersonalDataPolicy(policy="drop"), text, tmp_path)
    assert isinstance(dropped, Removed) and not dropped.quotable and "anna" not in dropped.detail
    many = outcome_of(PersonalDataPolicy(max_finds=2), text + " x@a-b.net y@c-d.net", tmp_path)
    assert isinstance(many, Removed)
    with pytest.raises(RequestError, match="'hide'"):
        PersonalDataPolicy(policy="hide")


def test_languages(tmp_path: Path) -> None:
    english = "This is the house that we have seen in the morning, and it was not there in the evening of that day."
    german = "Das ist das Haus, das wir am Morgen gesehen haben, und am Abend war es nicht mehr da, wie man uns sagte."
    kept = outcome_of(LanguageIs(codes=("en",)), english, tmp_path)
    assert isinstance(kept, Document) and kept.metadata["language"] == "en"
    gone = outcome_of(LanguageIs(codes=("en",)), german, tmp_path)
    assert isinstance(gone, Removed) and gone.detail == "de"
    assert isinstance(outcome_of(LanguageIs(codes=("en", "de")), german, tmp_path), Document)
    assert isinstance(outcome_of(LanguageIs(codes=("en",)), "zzz qqq", tmp_path), Removed)
