"""How good is it? Held-out questions asked before and after, scored against references, with intervals.

``model`` figures judge the text as the model wrote it; ``assistant`` figures judge what the user is shown after the check
against the passages. Speed and memory are measured in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from almanac.assistant.ask import Assistant
from almanac.assistant.grounding import ground, normal
from almanac.data.grounded import REFUSAL, GroundedExample
from almanac.evaluate.interval import estimate
from almanac.retrieve.metrics import answer_f1, citation_scores, exact_match, ndcg_at_k, recall_at_k

Figures = dict[str, Any]
RETRIEVAL_DEPTH = 10


def measure_reading(
    assistant: Assistant, examples: Sequence[GroundedExample], tell: Callable[[int, int], None]
) -> Figures:
    """Answers every example from its own shown passages; returns the figures."""
    engine = assistant.lm.engine()
    start = time.monotonic()
    prompts = [assistant.prompt_tokens(example.question, example.passages) for example in examples]
    limit = assistant.settings.answer_tokens
    handles = [engine.submit(assistant.lm.request(prompt, max_tokens=limit)) for prompt in prompts]
    while engine.step():
        tell(sum(handle.finish is not None for handle in handles), len(handles))
    seconds = time.monotonic() - start
    texts = ["".join(event.text for event in handle.events) for handle in handles]
    checked = [ground(text, example.question, example.passages) for text, example in zip(texts, examples, strict=True)]
    new_tokens = sum(len(handle.new_tokens) for handle in handles)
    return {
        "model": _scores(texts, examples),
        "assistant": _scores([answer.text for answer in checked], examples),
        "questions": len(examples),
        "seconds": seconds,
        "prompt_tokens": sum(len(prompt) for prompt in prompts),
        "new_tokens": new_tokens,
        "tokens_per_second": (new_tokens + sum(len(prompt) for prompt in prompts)) / max(seconds, 1e-9),
        "model_bytes": assistant.lm.nbytes,
        "answers": [
            {"question": example.question, "reference": example.answer, "model": text, "shown": answer.text}
            for example, text, answer in zip(examples, texts, checked, strict=True)
        ],
    }


def measure_retrieval(assistant: Assistant, examples: Sequence[GroundedExample]) -> Figures:
    """Is the passage a question was made from found? Only answerable questions count."""
    ranks = []
    for example in examples:
        if example.gold is not None:
            found = [hit.chunk.id for hit in assistant.index.search(example.question, RETRIEVAL_DEPTH)]
            ranks.append((found, example.gold))
    shown = assistant.settings.shown
    return {
        f"recall@{shown}": _as_dict([recall_at_k(found, {gold}, shown) for found, gold in ranks]),
        f"recall@{RETRIEVAL_DEPTH}": _as_dict([recall_at_k(found, {gold}, RETRIEVAL_DEPTH) for found, gold in ranks]),
        f"ndcg@{RETRIEVAL_DEPTH}": _as_dict([ndcg_at_k(found, {gold: 1.0}, RETRIEVAL_DEPTH) for found, gold in ranks]),
    }


def _scores(texts: Sequence[str], examples: Sequence[GroundedExample]) -> Figures:
    pairs = list(zip(texts, examples, strict=True))
    answerable = [(text, example) for text, example in pairs if example.answerable]
    refused = [normal(REFUSAL) in normal(text) for text, _ in pairs]
    citations = [citation_scores(text, example.citations) for text, example in answerable]
    return {
        "answer_f1": _as_dict([answer_f1(text, example.answer) for text, example in answerable]),
        "exact_match": _as_dict([exact_match(text, example.answer) for text, example in answerable]),
        "citation_precision": _as_dict([score.precision for score in citations]),
        "citation_recall": _as_dict([score.recall for score in citations]),
        "abstention_accuracy": _as_dict(
            [float(said == (not example.answerable)) for said, (_, example) in zip(refused, pairs, strict=True)]
        ),
        "declines_unanswerable": _as_dict(
            [float(said) for said, (_, example) in zip(refused, pairs, strict=True) if not example.answerable]
        ),
    }


def _as_dict(values: Sequence[float]) -> dict[str, float | int] | None:
    found = estimate(values)
    return found.to_dict() if found is not None else None
