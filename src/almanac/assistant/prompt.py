"""How a question meets its passages: the one prompt that training, measuring and serving share."""

from __future__ import annotations

from collections.abc import Sequence

from almanac.data.grounded import REFUSAL, Passage

SYSTEM = (
    "Answer the question from the numbered passages only, in their own words, and cite the passage like [1]. "
    f"If the passages do not answer it, write exactly: {REFUSAL}"
)
MAX_QUESTION_CHARACTERS = 2000


def messages(question: str, passages: Sequence[Passage]) -> list[dict[str, str]]:
    """The conversation that asks ``question`` about ``passages``, numbered from 1."""
    blocks = [f"[{number}] {_title(passage)}\n{passage.text}" for number, passage in enumerate(passages, start=1)]
    content = "\n\n".join([*blocks, f"Question: {question.strip()[:MAX_QUESTION_CHARACTERS]}"])
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def _title(passage: Passage) -> str:
    names = dict.fromkeys((passage.title, *passage.heading))
    return " > ".join(name for name in names if name)
