"""The examples behind the starter adapter: people's questions, and questions made from text, in front of passages.

Sources, all in the shared data folder, none of them a test set of ours:

- ``instruct/t0_multitask`` (AdversarialQA, CC BY-SA 4.0, and Quoref, CC BY 4.0): questions by people with short answers
- ``domain/tatqa_dataset_dev`` (TAT-QA, CC BY 4.0): questions by people about company reports, those that text answers
- ``domain/medquad_qa`` (CC BY 4.0): questions of the public with answers in sentences
- ``text/wikipedia_demo`` (CC BY-SA 3.0): questions made by rule (``data.grounded``)
- ``text/books`` (public domain): the same

A context that shares eight words in a row with a text of ``exclude`` is left out, so that a test on those texts is one.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from almanac.data.grounded import REFUSAL, GroundedExample, make_grounded
from almanac.data.questions import best_sentences, content_words
from almanac.data.sentences import usable_sentences
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.lexical import LexicalIndex
from almanac.retrieve.read.document import Document, Section

OVERLAP = 8  # words in a row that make two texts the same for the test's purpose
CHUNK_TOKENS = (60, 110, 160)
SHOWN = (1, 2, 3, 3, 4)
_PROMPTS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r'Given the following passage\s+"(?P<c>.+)",\s+answer the following question\..+?Question: (?P<q>.+)$',
        r"Extract the answer to the question from the following context\.\s+Question: (?P<q>.+?)\nContext: (?P<c>.+)$",
        r'Question: "(?P<q>.+?)"\s+Context: "(?P<c>.+)"\s+Answer:$',
        r'I know that the answer to the question "(?P<q>.+?)" is in "(?P<c>.+)"\. Can you tell me what it is\?$',
        r"A friend asked me to answer this question: (?P<q>.+?)(?:,|\?,) using the article: (?P<c>.+?), what would be",
        r"Given the following context:\s+(?P<c>.+)\s+answer the following question:\s+(?P<q>.+)$",
        r"I have a test where .+?, what is an answer for the question: (?P<q>.+?\?)\s+(?P<c>.+)$",
        r"This article: (?P<c>.+) contains an answer for the question: (?P<q>.+?), what is it \?$",
        r"The following article contains an answer for the question: (?P<q>.+?) , can you please find it\?\s+(?P<c>.+)$",
        r"Found the following article online, use it to answer the question: (?P<q>.+?\?)\s+(?P<c>.+)$",
        r"(?P<q>[^\n]+\?)\s+Answer the above question based on the context below:\s+(?P<c>.+)$",
        r"The answer to the question: (?P<q>.+?\?) is inside the article: (?P<c>.+), can you guess it \?$",
        r"Read the following paragraph and extract the answer for the question: (?P<q>.+?\?)\s+(?P<c>.+)$",
        r"What is the answer for the question: (?P<q>.+?\?) from the following article \?\s+(?P<c>.+)$",
    )
]

Count = Callable[[str], int]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question by a person about ``context``, with an answer that stands in it."""

    question: str
    answer: str
    context: str


def people(data: Path, exclude: Sequence[str]) -> list[Asked]:
    """The questions by people, each once, in the order of the file."""
    known = _shingles(exclude)
    found: dict[tuple[str, str], Asked] = {}
    for row in read_rows(data / "instruct" / "t0_multitask.jsonl.gz"):
        if row["dataset"] not in ("adversarial_qa", "quoref") or "Guess_Title" in row["template"]:
            continue
        match = next((match for prompt in _PROMPTS if (match := prompt.match(row["prompt"].strip()))), None)
        answer = row["completion"].strip()
        if match is None or answer not in match["c"] or len(answer.split()) > 20:
            continue
        context = " ".join(match["c"].split())
        if not known & _shingles([context]):
            question = match["q"].strip().rstrip(" ?") + "?"
            found.setdefault((question.lower(), context), Asked(question[:1].upper() + question[1:], answer, context))
    return list(found.values())


def finance(data: Path) -> list[Asked]:
    """Questions by people about the text of company reports, with an answer that stands in it."""
    found: list[Asked] = []
    for row in read_rows(data / "domain" / "tatqa_dataset_dev.jsonl.gz"):
        texts = [" ".join(paragraph["text"].split()) for paragraph in row["paragraphs"]]
        for item in row["questions"]:
            if item["answer_from"] != "text" or item["answer_type"] != "span":
                continue
            answer = " ".join(item["answer"][0].split()).rstrip(".")
            context = next((text for text in texts if answer and answer in text), None)
            if context is not None and len(answer.split()) <= 40:
                found.append(Asked(item["question"].strip(), answer, context))
    return found


def split(asked: Sequence[Asked], *, held_out: float, seed: int) -> tuple[list[Asked], list[Asked]]:
    """By context, so that no text is on both sides."""
    contexts = sorted({item.context for item in asked})
    held = set(random.Random(f"{seed}/contexts").sample(contexts, k=round(held_out * len(contexts))))
    return [a for a in asked if a.context not in held], [a for a in asked if a.context in held]


def asked_examples(
    asked: Sequence[Asked], *, count: Count, unanswerable: float, seed: int
) -> Iterator[GroundedExample]:
    """Each question with the chunk that answers it and others that look alike; a share without the one that answers."""
    for tokens in CHUNK_TOKENS:  # every size of passage for a third of the questions
        chunks = list(_chunks({a.context: _name(a.context) for a in asked}, count, tokens))
        index = LexicalIndex.build(chunks)
        for number, item in enumerate(asked):
            if CHUNK_TOKENS[number % len(CHUNK_TOKENS)] == tokens:
                yield from _examples(item, chunks, index, unanswerable, random.Random(f"{seed}/{item.question}"))


def _examples(
    item: Asked, chunks: Sequence[Chunk], index: LexicalIndex, unanswerable: float, rng: random.Random
) -> Iterator[GroundedExample]:
    mine = [c for c in chunks if c.document == _name(item.context) and item.answer in c.text]
    if not mine:
        return
    topic = content_words(item.question)
    gold = max(mine, key=lambda chunk: len(topic & content_words(chunk.text)))
    others = [hit.chunk for hit in index.search(item.question, 12)]
    others = [chunk for chunk in others if item.answer.lower() not in chunk.text.lower()]
    shown = rng.choice(SHOWN)
    order = rng.sample([gold, *others[: shown - 1]], k=1 + len(others[: shown - 1]))
    number = order.index(gold) + 1
    passages = tuple(chunk.as_passage() for chunk in order)
    yield GroundedExample(item.question, passages, f"{item.answer} [{number}]", (number,), gold.id, True, "short")
    elsewhere = [chunk for chunk in others if chunk.document != gold.document or rng.random() < 0.5]
    if elsewhere and rng.random() < unanswerable / (1 - unanswerable):
        passages = tuple(chunk.as_passage() for chunk in rng.sample(elsewhere[:shown], k=len(elsewhere[:shown])))
        yield GroundedExample(item.question, passages, REFUSAL, (), None, False, "unanswerable")


def medical(data: Path, *, count: Count, limit: int, unanswerable: float, seed: int) -> Iterator[GroundedExample]:
    """Questions of the public about illnesses, answered by the sentences that fit them best."""
    rows = [row for row in read_rows(data / "domain" / "medquad_qa.jsonl.gz") if 200 < len(row["answer"]) < 2500]
    rows = random.Random(f"{seed}/medical").sample(rows, k=min(len(rows), 3 * limit))
    chunks = list(_chunks({row["answer"]: row["focus"] for row in rows}, count, CHUNK_TOKENS[1]))
    index = LexicalIndex.build(chunks)
    made = 0
    for row in rows:
        rng = random.Random(f"{seed}/{row['question']}")
        mine = [c for c in chunks if c.document == row["focus"] and c.text in " ".join(row["answer"].split())]
        answers = [(chunk, best_sentences(usable_sentences(chunk.text), row["question"])) for chunk in mine[:1]]
        if made >= limit or not answers or not answers[0][1]:
            continue
        gold, answer = answers[0]
        others = [hit.chunk for hit in index.search(row["question"], 12) if hit.chunk.document != gold.document]
        shown = rng.choice(SHOWN)
        order = rng.sample([gold, *others[: shown - 1]], k=1 + len(others[: shown - 1]))
        number = order.index(gold) + 1
        passages = tuple(chunk.as_passage() for chunk in order)
        question = row["question"].strip()
        yield GroundedExample(question, passages, f"{answer} [{number}]", (number,), gold.id, True, "statement")
        made += 1
        if others and rng.random() < unanswerable / (1 - unanswerable):
            passages = tuple(chunk.as_passage() for chunk in others[:shown])
            yield GroundedExample(question, passages, REFUSAL, (), None, False, "unanswerable")


def made(data: Path, *, count: Count, limit: int, unanswerable: float, seed: int) -> list[GroundedExample]:
    """Questions made by rule from encyclopedia articles and books."""
    with gzip.open(data / "text" / "wikipedia_demo.txt.gz", "rt", encoding="utf-8") as lines:
        texts = {f"article {number}": _apart(line) for number, line in enumerate(lines)}
    for book in sorted((data / "text" / "books").glob("*.txt.gz")):
        with gzip.open(book, "rt", encoding="utf-8") as lines:
            text = lines.read()
        texts[book.name.split(".")[0]] = text[len(text) // 4 :][:60_000]
    found: list[GroundedExample] = []
    for number, tokens in enumerate(CHUNK_TOKENS):
        chunks = list(_chunks({text: name for name, text in texts.items()}, count, tokens))
        index = LexicalIndex.build(chunks)
        found += make_grounded(
            [chunk.as_passage() for chunk in chunks],
            seed=seed + number,
            per_passage=3,
            unanswerable=unanswerable,
            shown=SHOWN[number + 1],
            distractors=lambda question, k, index=index: [hit.chunk.as_passage() for hit in index.search(question, k)],
        )
    seen: set[str] = set()
    rng = random.Random(f"{seed}/made")
    kinds: dict[str, list[GroundedExample]] = {}
    for example in rng.sample(found, k=len(found)):
        if example.question not in seen:
            seen.add(example.question)
            kinds.setdefault(example.kind, []).append(example)
    share = {"short": 0.45, "unanswerable": unanswerable}
    rest = [example for kind, examples in kinds.items() if kind not in share for example in examples]
    chosen = [e for kind, part in share.items() for e in kinds.get(kind, [])[: round(part * limit)]]
    return [*chosen, *rest[: limit - len(chosen)]]


def _chunks(texts: dict[str, str], count: Count, max_tokens: int) -> Iterator[Chunk]:
    for text, name in texts.items():
        document = Document(
            name, name, (Section((), 0, text, 0, len(text)),), hashlib.sha256(text.encode()).hexdigest()
        )
        yield from chunk_document(document, count_tokens=count, max_tokens=max_tokens, overlap_tokens=0)


def _apart(line: str) -> str:
    """The articles come without paragraph breaks: a full stop set close to a capital ends a paragraph."""
    return re.sub(r"(?<=[a-z0-9)][.!?])(?=[A-Z][a-z]+ )", "\n\n", line)


def _name(context: str) -> str:
    return f"text {hashlib.sha256(context.encode()).hexdigest()[:8]}"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _shingles(texts: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        found |= {" ".join(words[at : at + OVERLAP]) for at in range(len(words) - OVERLAP + 1)}
    return found
