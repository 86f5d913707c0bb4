"""Does the main job hold on questions that people wrote? XQuAD's English paragraphs, its questions never seen in training.

The paragraphs become documents, a share of them is left out, an assistant is built on the rest, and people's questions
are asked: those about paragraphs in the index should be answered with the right citation, those about the paragraphs left
out declined. The base model gets the same prompts. XQuAD: Artetxe et al. 2020, arXiv:1910.11856.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.assistant.ask import Answer, Assistant, open_assistant
from almanac.assistant.build import build
from almanac.assistant.confidence import Draft, draft_of
from almanac.assistant.settings import BuildSettings
from almanac.core.errors import NotFoundError
from almanac.data.grounded import Passage
from almanac.evaluate.interval import Estimate, estimate
from almanac.evidence.card import Card
from almanac.evidence.runner import Measurement
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.retrieve.metrics import answer_f1, exact_match

DATA = Path("../shared/data/retrieval/xquad/en.jsonl.gz")
LEFT_OUT = 0.2  # share of the paragraphs
QUESTIONS = {"quick": (40, 20), "full": (120, 60)}  # answerable, unanswerable
RETRIEVED = 5
AIMS = {  # figure -> (aim, whether more is better)
    "recall@5": (0.95, True),
    "f1 gained": (0.20, True),
    "citation precision": (0.90, True),
    "unanswerable declined": (0.80, True),
    "answerable declined": (0.10, False),
}

CARD = Card(
    name="assistant.build",
    title="An assistant built on documents answers people's questions about them",
    claim="A small model adapted to answer from retrieved passages answers, cites and declines as asked",
    source="aims of the project for its main job; test questions: XQuAD, Artetxe et al. 2020, arXiv:1910.11856",
    toy_claim="on XQuAD's English paragraphs: recall@5 >= 0.95, token F1 at least 0.20 above the base model's on the same "
    "prompts, citation precision >= 0.90, >= 80 % of unanswerable questions declined and <= 10 % of answerable ones",
    scope="other languages, long documents, questions that need more than one passage",
    metric="1 + largest shortfall from an aim",
    threshold=1.0,
    expected="at most 1: no shortfall",
    budget_seconds=3600,
    mutants=("random_passages", "no_check"),
)


@dataclass(frozen=True)
class Asked:
    """A question by a person; ``paragraph`` is the document that answers it."""

    question: str
    answers: tuple[str, ...]
    paragraph: str


def measure(profile: str, seed: int, mutant: str | None) -> Measurement:
    """Builds the assistant (once for all mutants) and asks."""
    assistant, kept, left = _built(seed)
    count = QUESTIONS[profile]
    if mutant is not None:
        count = (count[0] // 2, count[1] // 2)
    rng = random.Random(f"{seed}/questions")
    answerable, unanswerable = rng.sample(kept, k=count[0]), rng.sample(left, k=count[1])
    asked = [*answerable, *unanswerable]
    shown = [_shown(assistant, item, mutant, seed) for item in asked]
    drafts = _drafts(assistant, assistant.lm, asked, shown)
    judging = dataclasses.replace(assistant, confidence=None) if mutant == "no_check" else assistant
    answers = [judging.judge(i.question, p, d) for i, p, d in zip(asked, shown, drafts, strict=True)]
    figures: dict[str, Estimate | None] = {"recall@5": _recall(assistant, kept, mutant, seed)}
    figures |= _reading(answers, answerable)
    if mutant is None:
        base = _drafts(assistant, _base(assistant.settings.model), answerable, shown, extractive=False)
        held = _drafts(assistant, _base(assistant.settings.model), answerable, shown)
        figures["f1 of the base model held to the passages"] = estimate(
            [_f1(d.text, a) for d, a in zip(held, answerable, strict=False)]
        )
        figures["f1 of the base model"] = estimate([_f1(d.text, a) for d, a in zip(base, answerable, strict=False)])
        figures["exact match of the base model"] = estimate(
            [_best(exact_match, d.text, a) for d, a in zip(base, answerable, strict=False)]
        )
        pairs = zip(answers, base, answerable, strict=False)
        figures["f1 gained"] = estimate([_f1(a.text, i) - _f1(d.text, i) for a, d, i in pairs])
    worst = 1 + max(_shortfall(name, figures[name]) for name in AIMS if name in figures)
    details: dict[str, Any] = {name: str(found) for name, found in figures.items()}
    details |= {"answerable": count[0], "unanswerable": count[1], "paragraphs": len({a.paragraph for a in kept})}
    return Measurement(worst, worst <= CARD.threshold, details)


def _shortfall(name: str, found: Estimate | None) -> float:
    aim, more = AIMS[name]
    mean = found.mean if found else 0.0
    return aim - mean if more else mean - aim


@functools.cache
def _built(seed: int) -> tuple[Assistant, list[Asked], list[Asked]]:
    """An assistant on the paragraphs that were kept; the questions about those, and about the ones left out."""
    if not DATA.is_file():
        raise NotFoundError(f"{DATA} does not exist", remedy="Run it where the shared data lie beside the project.")
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    left_out = {
        row["paragraph"] for row in random.Random(f"{seed}/left out").sample(rows, k=round(LEFT_OUT * len(rows)))
    }
    work = Path(tempfile.mkdtemp(prefix="almanac-xquad-"))
    (work / "docs").mkdir()
    kept, left = list[Asked](), list[Asked]()
    for row in rows:
        name = f"paragraph-{row['paragraph']}.txt"
        for item in row["qas"]:
            answers = tuple(answer["text"] for answer in item["answers"])
            (left if row["paragraph"] in left_out else kept).append(Asked(item["question"], answers, name))
        if row["paragraph"] not in left_out:
            (work / "docs" / name).write_text(row["context"])
    out = build(work / "docs", work / "assistant", settings=BuildSettings(seed=seed))
    return open_assistant(out), kept, left


@functools.cache
def _base(name: str) -> LanguageModel:
    return load(name)


def _shown(assistant: Assistant, item: Asked, mutant: str | None, seed: int) -> tuple[Passage, ...]:
    if mutant == "random_passages":
        rng = random.Random(f"{seed}/{item.question}")
        return tuple(c.as_passage() for c in rng.sample(assistant.index.chunks, k=assistant.settings.shown))
    return assistant.passages(item.question)


def _drafts(
    assistant: Assistant,
    lm: LanguageModel,
    asked: Sequence[Asked],
    shown: Sequence[tuple[Passage, ...]],
    *,
    extractive: bool = True,
) -> list[Draft]:
    engine = lm.engine()
    pairs = zip(asked, shown, strict=False)
    asking = dataclasses.replace(assistant, extractive=extractive)
    handles = [engine.submit(asking.request(item.question, passages)) for item, passages in pairs]
    engine.run()
    for handle in handles:
        handle.require()
    return [draft_of(handle.events, lm.tokenizer) for handle in handles]


def _recall(assistant: Assistant, kept: Sequence[Asked], mutant: str | None, seed: int) -> Estimate | None:
    """Is the paragraph among the first five passages? Asked of every question about the index."""
    found = []
    for item in kept:
        if mutant == "random_passages":
            documents = {passage.document for passage in _shown(assistant, item, mutant, seed)}
        else:
            documents = {hit.chunk.document for hit in assistant.index.search(item.question, RETRIEVED)}
        found.append(float(item.paragraph in documents))
    return estimate(found)


def _reading(answers: Sequence[Answer], answerable: Sequence[Asked]) -> dict[str, Estimate | None]:
    known, unknown = answers[: len(answerable)], answers[len(answerable) :]
    pairs = list(zip(known, answerable, strict=True))
    cited = [(c.document == item.paragraph) for answer, item in pairs for c in answer.citations]
    bearing = [
        (c.document == i.paragraph and any(a in c.quote for a in i.answers)) for x, i in pairs for c in x.citations
    ]
    return {
        "f1": estimate([_f1(answer.text, item) for answer, item in pairs]),
        "exact match": estimate([_best(exact_match, answer.text, item) for answer, item in pairs]),
        "citation precision": estimate([float(right) for right in cited]),
        "quotation holds the reference": estimate([float(right) for right in bearing]),
        "citation recall": estimate([float(any(c.document == i.paragraph for c in a.citations)) for a, i in pairs]),
        "unanswerable declined": estimate([float(answer.declined) for answer in unknown]),
        "answerable declined": estimate([float(answer.declined) for answer in known]),
    }


def _f1(text: str, item: Asked) -> float:
    return _best(answer_f1, text, item)


def _best(score: Any, text: str, item: Asked) -> float:
    return max(score(text, answer) for answer in item.answers)
