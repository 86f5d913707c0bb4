"""Grounded question-answer examples made from passages without a model.

An example is a question, a few numbered passages, and an answer that is copied word for word from one of them and cites
it (``... [2]``), or the fixed refusal where none of them holds the answer. Questions come from headings ("Create a
user" gives "How do you create a user?"), from sentences whose shape tells which question they answer ("To log in,
run ..." gives "How do you log in?"), and from the names, dates and numbers in sentences, asked for shortly.

Sources: SQuAD 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822) for extracts and for unanswerable questions beside related
text; ALCE (Gao et al. 2023, arXiv:2305.14627) for citing by number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from almanac.core.errors import AlmanacError
from almanac.data.questions import (
    ABOUT,
    best_sentences,
    content_words,
    heading_question,
    sentence_question,
    small_words,
)
from almanac.data.sentences import CODE, WEAK_START, usable_sentences
from almanac.data.short_answers import short_questions

REFUSAL = "The documents do not tell."
COVERED = 0.6  # a passage with this share of an answer's content words may give that answer


@dataclasses.dataclass(frozen=True)
class Passage:
    """A piece of a document. ``document`` is its path, ``heading`` the path of headings above the text.

    ``page`` counts from 1 where the format has pages; ``start`` is where ``text`` begins in the document's text.
    """

    id: str
    document: str
    title: str
    heading: tuple[str, ...]
    text: str
    page: int | None = None
    start: int = 0


@dataclasses.dataclass(frozen=True)
class GroundedExample:
    """``citations`` are 1-based numbers of the shown ``passages``; ``gold`` is the id of the one that answers.

    ``kind`` is ``heading``, ``definition``, ``statement``, ``short`` or ``unanswerable``.
    """

    question: str
    passages: tuple[Passage, ...]
    answer: str
    citations: tuple[int, ...]
    gold: str | None
    answerable: bool
    kind: str


Distractors = Callable[[str, int], Sequence[Passage]]


def _candidates(passage: Passage, opens_section: bool, small: frozenset[str]) -> Iterator[GroundedExample]:
    """What ``passage`` answers, as examples that show it alone; ``small`` are the words written with a small letter."""
    runs = usable_sentences(passage.text)
    found = [(sentence_question(sentence, small), sentence, "statement") for run in runs for sentence in run]
    for sentence in (sentence for run in runs for sentence in run if not WEAK_START.match(sentence)):
        found += ((question, answer, "short") for question, answer in short_questions(sentence))
    if opens_section and passage.heading:
        question = heading_question(passage.heading, passage.text, small)
        found.append((question, best_sentences(runs, question), "heading"))
    for question, answer, kind in found:
        if question and answer:
            kind = "definition" if kind != "short" and re.match(r"What (?:is|are|does .* mean)\b", question) else kind
            yield GroundedExample(question, (passage,), answer, (1,), passage.id, True, kind)


def make_grounded(
    passages: Sequence[Passage],
    *,
    seed: int,
    per_passage: int = 2,
    unanswerable: float = 0.25,
    shown: int = 3,
    distractors: Distractors | None = None,
) -> tuple[GroundedExample, ...]:
    """Examples from ``passages``, the same for the same arguments.

    Args:
        passages: what may be asked about and shown; split them by document first (`split_by_document`).
        seed: of every choice.
        per_passage: questions from one passage at most.
        unanswerable: share of the examples whose passages, none from the question's document, do not hold the answer.
        shown: passages shown with a question, the answering one included; fewer where too few fit.
        distractors: (question, how many) -> passages that look relevant, best first; the rest is drawn at random.

    Raises:
        AlmanacError: a share outside [0, 1), or fewer than one passage shown or question per passage.
    """
    if not 0 <= unanswerable < 1 or shown < 1 or per_passage < 1:
        cause = f"Cannot make examples with {unanswerable=}, {shown=}, {per_passage=}"
        raise AlmanacError(cause, remedy="Give a share from 0 to below 1, and at least one passage and one question.")
    drafts = _drafts(passages, seed, per_passage)
    wanted = round(len(drafts) * unanswerable / (1 - unanswerable))
    examples, refused = list[GroundedExample](), list[GroundedExample]()
    for draft in _rng(seed, "all").sample(drafts, k=len(drafts)):
        rng = _rng(seed, draft.question)
        pool = [*distractors(draft.question, 16 * shown)] if distractors else []
        pool += rng.sample(list(passages), k=min(len(passages), 16 * shown))
        others = _unfit(draft, pool, absent=False)[: shown - 1]
        order = rng.sample([*draft.passages, *others], k=1 + len(others))
        number = order.index(draft.passages[0]) + 1
        answer = f"{draft.answer} [{number}]"
        examples.append(dataclasses.replace(draft, passages=tuple(order), answer=answer, citations=(number,)))
        if len(refused) < wanted and (others := _unfit(draft, pool, absent=True)[:shown]):
            order = rng.sample(others, k=len(others))
            refused.append(GroundedExample(draft.question, tuple(order), REFUSAL, (), None, False, "unanswerable"))
    return tuple(_rng(seed, "order").sample([*examples, *refused], k=len(examples) + len(refused)))


def split_by_document(
    passages: Sequence[Passage], *, held_out: float = 0.2, seed: int
) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """``passages`` for training and the held-out ones. No document is in both; each side has at least one.

    Raises:
        AlmanacError: fewer than two documents, or a share outside (0, 1).
    """
    documents = sorted({passage.document for passage in passages})
    if len(documents) < 2 or not 0 < held_out < 1:
        cause = f"Cannot hold out a share of {held_out} from {len(documents)} documents"
        raise AlmanacError(cause, remedy="Give two or more documents and a share between 0 and 1.")
    count = min(len(documents) - 1, max(1, round(held_out * len(documents))))
    held = frozenset(_rng(seed, "split").sample(documents, k=count))
    train, test = (tuple(p for p in passages if (p.document in held) == side) for side in (False, True))
    assert not {passage.document for passage in train} & {passage.document for passage in test}
    return train, test


def _drafts(passages: Sequence[Passage], seed: int, per_passage: int) -> list[GroundedExample]:
    """The questions to ask. One that passages answer differently is left out; repeats of overlapping ones go too."""
    small = small_words([passage.text for passage in passages])
    openers: dict[tuple[str, tuple[str, ...]], str] = {}
    by_question: dict[str, list[GroundedExample]] = defaultdict(list)
    for passage in passages:
        opens_section = openers.setdefault((passage.document, passage.heading), passage.id) == passage.id
        for draft in _candidates(passage, opens_section, small):
            by_question[draft.question.lower()].append(draft)
    per: dict[str | None, list[GroundedExample]] = defaultdict(list)
    for same in by_question.values():
        longest = max(same, key=lambda draft: len(draft.answer))
        one_passage = len({draft.gold for draft in same}) == 1  # there an answer may go on where another ends
        if all(longest.answer == d.answer or (one_passage and longest.answer.startswith(d.answer)) for d in same):
            per[longest.gold].append(longest)
    chosen: list[GroundedExample] = []
    for passage in passages:
        rng = _rng(seed, "choice", passage.id)
        mine = rng.sample(per[passage.id], k=len(per[passage.id]))
        mine.sort(key=lambda draft: draft.question.startswith((ABOUT, "Can you")))  # the plainest forms come last
        for draft in mine[:per_passage]:
            question = draft.question.replace(ABOUT, rng.choice((ABOUT, ABOUT, "What should I know about")))
            if rng.random() < 1 / 3 and re.match(
                r"(?:(?:How|What) (?:do|can)|Can|Do) you\b(?!.*\byou(?!r\b))", question
            ):
                question = re.sub(r"\byour\b", "my", question.replace(" you ", " I ", 1))
            chosen.append(dataclasses.replace(draft, question=question))
    return chosen


def _unfit(draft: GroundedExample, pool: Sequence[Passage], *, absent: bool) -> list[Passage]:
    """Those of ``pool`` that do not answer the draft's question, as far as their words tell."""
    question, answer, gold = content_words(draft.question), content_words(draft.answer), draft.passages[0]
    names = [name.strip("`") for name in CODE.findall(draft.question)]
    share = 0.3 if draft.kind == "heading" else COVERED  # a broad question is easily touched upon
    found: dict[str, Passage] = {}
    for passage in pool:
        there = content_words("\n".join((passage.title, *passage.heading, passage.text)))
        same = passage.document == gold.document and (absent or passage.heading == gold.heading)
        asked = len(question & there) >= share * len(question) or any(name in passage.text for name in names)
        if not (same or (absent and asked) or len(answer & there) >= COVERED * len(answer)):
            found.setdefault(passage.id, passage)
    return list(found.values())


def _rng(*key: object) -> random.Random:
    """A generator that depends on ``key`` alone (``hash`` is salted per process)."""
    return random.Random(hashlib.sha256(repr(key).encode()).digest())
