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
from almanac.evidence.card import BASELINE, CONTROL, ITEM, METHOD, Arm, Card, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.outcome import Outcome
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.retrieve.metrics import answer_f1, exact_match

DATA = Path("../shared/data/retrieval/xquad/en.jsonl.gz")
LEFT_OUT = 0.2  # share of the paragraphs
QUESTIONS = {"quick": (40, 20), "full": (160, 80)}  # answerable, unanswerable; a mutant is asked half of them
RETRIEVED = 5
ASSISTANT, BASE, HELD = "assistant", "base model", "base model held to the passages"
F1, RECALL, PRECISION = "token F1", "recall@5", "citation precision"
UNANSWERABLE, ANSWERABLE = "unanswerable declined", "answerable declined"


def _own(metric: str) -> Effect:
    return Effect(metric=metric, arm=ASSISTANT)


CARD = Card(
    name="assistant.build",
    title="An assistant built on documents answers people's questions about them",
    claim="A small model adapted to answer from retrieved passages answers, cites and declines as asked",
    source="aims of the project for its main job; test questions: XQuAD, Artetxe et al. 2020, arXiv:1910.11856",
    toy_claim="on XQuAD's English paragraphs: recall@5 >= 0.95, token F1 at least 0.20 above the base model's on the same "
    "prompts, citation precision >= 0.90, >= 80 % of unanswerable questions declined and <= 10 % of answerable ones",
    scope="other languages, long documents, questions that need more than one passage",
    tier="real",
    arms=(
        Arm(name=ASSISTANT, role=METHOD, what="what `almanac build` makes of the paragraphs, asked as its owner would"),
        Arm(name=BASE, role=BASELINE, what="the base model on the same prompts, free to write what it likes"),
        Arm(name=HELD, role=CONTROL, what="the base model that may only write what the passages say"),
    ),
    claims=(
        AtLeast(effect=Effect(metric=F1, arm=ASSISTANT, over=BASE), expected=0.3, says="answers better", fail=0.2),
        AtLeast(effect=_own(RECALL), expected=0.98, says="finds the paragraph", fail=0.95),
        AtLeast(effect=_own(PRECISION), expected=0.92, says="cites the paragraph that answers", fail=0.9),
        AtLeast(effect=_own(UNANSWERABLE), expected=0.9, says="declines what nothing answers", fail=0.8),
        AtMost(effect=_own(ANSWERABLE), expected=0.08, says="does not decline what can be answered", fail=0.1),
    ),
    null=BASE,
    mutants=(
        Mutant(
            name="random passages", what="the passages shown are drawn at random, not found", arms=(ASSISTANT, BASE)
        ),
        Mutant(name="no check", what="answers are given however unsure the assistant is", arms=(ASSISTANT, BASE)),
    ),
    seeds=1,
    quick_seeds=1,
    unit=ITEM,
    parallel=False,
    budget_minutes=60,
    plot=Plot(metric=F1, y="token F1 against the reference answers"),
    version=2,
)


@dataclass(frozen=True)
class Asked:
    """A question by a person; ``paragraph`` is the document that answers it."""

    question: str
    answers: tuple[str, ...]
    paragraph: str


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Builds the assistant (once a seed for all arms and mutants) and asks."""
    assistant, kept, left = _built(seed)
    count = QUESTIONS["quick" if profile == "quick" else "full"]
    if mutant is not None:
        count = (count[0] // 2, count[1] // 2)
    rng = random.Random(f"{seed}/questions")
    answerable, unanswerable = rng.sample(kept, k=count[0]), rng.sample(left, k=count[1])
    asked = [*answerable, *unanswerable]
    shown = [_shown(assistant, item, mutant, seed) for item in asked]
    lm = assistant.lm if arm == ASSISTANT else _base(assistant.settings.model)
    drafts = _drafts(assistant, lm, asked, shown, extractive=arm != BASE)
    checked = arm == ASSISTANT and mutant != "no check"
    judging = assistant if checked else dataclasses.replace(assistant, confidence=None)
    answers = [judging.judge(i.question, p, d) for i, p, d in zip(asked, shown, drafts, strict=True)]
    items = {RECALL: _recall(assistant, kept, mutant, seed)} | _reading(answers, answerable)
    if arm != ASSISTANT:  # what it wrote, not what our check leaves of it
        items[F1] = [_f1(draft.text, item) for draft, item in zip(drafts, answerable, strict=False)]
    metrics = {name: sum(values) / len(values) for name, values in items.items() if values}
    return Outcome(metrics, items={name: values for name, values in items.items() if values})


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
    if mutant == "random passages":
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


def _recall(assistant: Assistant, kept: Sequence[Asked], mutant: str | None, seed: int) -> list[float]:
    """Is the paragraph among the first five passages? Asked of every question about the index."""
    found = []
    for item in kept:
        if mutant == "random passages":
            documents = {passage.document for passage in _shown(assistant, item, mutant, seed)}
        else:
            documents = {hit.chunk.document for hit in assistant.index.search(item.question, RETRIEVED)}
        found.append(float(item.paragraph in documents))
    return found


def _reading(answers: Sequence[Answer], answerable: Sequence[Asked]) -> dict[str, list[float]]:
    known, unknown = answers[: len(answerable)], answers[len(answerable) :]
    pairs = list(zip(known, answerable, strict=True))
    bearing = [
        (c.document == i.paragraph and any(a in c.quote for a in i.answers)) for x, i in pairs for c in x.citations
    ]
    return {
        F1: [_f1(answer.text, item) for answer, item in pairs],
        "exact match": [_best(exact_match, answer.text, item) for answer, item in pairs],
        PRECISION: [float(c.document == item.paragraph) for answer, item in pairs for c in answer.citations] or [0.0],
        "quotation holds the reference": [float(right) for right in bearing],
        "citation recall": [float(any(c.document == i.paragraph for c in a.citations)) for a, i in pairs],
        UNANSWERABLE: [float(answer.declined) for answer in unknown],
        ANSWERABLE: [float(answer.declined) for answer in known],
    }


def _f1(text: str, item: Asked) -> float:
    return _best(answer_f1, text, item)


def _best(score: Any, text: str, item: Asked) -> float:
    return max(score(text, answer) for answer in item.answers)
