"""How good is it? Held-out questions asked before and after, scored against references, with intervals.

``model`` figures judge the text as the model wrote it; ``assistant`` figures judge what the user is shown after the check
against the passages. Speed, memory and energy are measured in the same run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from almanac.assistant.ask import Assistant
from almanac.assistant.confidence import draft_of
from almanac.assistant.grounding import normal
from almanac.assistant.prompt import messages
from almanac.data.grounded import REFUSAL, GroundedExample
from almanac.evaluate.interval import estimate
from almanac.language_model.model import LanguageModel
from almanac.retrieve.metrics import answer_f1, citation_scores, cited, exact_match, ndcg_at_k, recall_at_k
from almanac.tokenizers.chat_encoding import encode_chat_for_training
from almanac.verify.energy import EnergyMeter
from almanac.verify.forecast import peak_bytes

Figures = dict[str, Any]
RETRIEVAL_DEPTH = 10
PERPLEXITY_EXAMPLES = 6


def measure_reading(
    assistant: Assistant, examples: Sequence[GroundedExample], tell: Callable[[int, int], None]
) -> Figures:
    """Answers every example from its own shown passages; returns the figures."""
    engine, meter, start = assistant.lm.engine(), EnergyMeter(), time.monotonic()
    requests = [assistant.request(example.question, example.passages) for example in examples]
    handles = [engine.submit(request) for request in requests]
    while engine.step():
        tell(sum(handle.finish is not None for handle in handles), len(handles))
    for handle in handles:
        handle.require()
    seconds, energy = time.monotonic() - start, meter.read()
    drafts = [draft_of(handle.events, assistant.lm.tokenizer) for handle in handles]
    texts = [draft.text for draft in drafts]
    shown = [
        assistant.judge(example.question, example.passages, draft)
        for example, draft in zip(examples, drafts, strict=True)
    ]
    prompts, new_tokens = (
        sum(len(request.tokens) for request in requests),
        sum(len(handle.new_tokens) for handle in handles),
    )
    return {
        "model": scores(texts, examples),
        "assistant": scores([answer.text for answer in shown], examples),
        "questions": len(examples),
        "reference_perplexity": reference_perplexity(assistant.lm, examples[:PERPLEXITY_EXAMPLES]),
        "seconds": seconds,
        "prompt_tokens": prompts,
        "new_tokens": new_tokens,
        "tokens_per_second": (new_tokens + prompts) / max(seconds, 1e-9),
        "energy": energy.to_dict(),
        "peak_bytes": peak_bytes(),
        "model_bytes": assistant.lm.nbytes,
        "answers": [
            {
                "question": example.question, "reference": example.answer, "model": text, "shown": answer.text,
                "confidence": answer.confidence, "answerable": example.answerable, "kind": example.kind,
                "documents": sorted({passage.document for passage in example.passages}),
            }
            for example, text, answer in zip(examples, texts, shown, strict=True)
        ],
    }  # fmt: skip


def measure_retrieval(assistant: Assistant, examples: Sequence[GroundedExample]) -> Figures:
    """Is the passage a question was made from found? Only answerable questions count."""
    ranks = []
    for example in examples:
        if example.gold is not None:
            found = [hit.chunk.id for hit in assistant.index.search(example.question, RETRIEVAL_DEPTH)]
            ranks.append((found, example.gold))
    shown = assistant.settings.shown
    return {
        f"recall@{shown}": as_dict([recall_at_k(found, {gold}, shown) for found, gold in ranks]),
        "recall@5": as_dict([recall_at_k(found, {gold}, 5) for found, gold in ranks]),
        f"recall@{RETRIEVAL_DEPTH}": as_dict([recall_at_k(found, {gold}, RETRIEVAL_DEPTH) for found, gold in ranks]),
        f"ndcg@{RETRIEVAL_DEPTH}": as_dict([ndcg_at_k(found, {gold: 1.0}, RETRIEVAL_DEPTH) for found, gold in ranks]),
    }


@torch.inference_mode()
def reference_perplexity(lm: LanguageModel, examples: Sequence[GroundedExample]) -> float | None:
    """exp of the mean negative log-likelihood, nats per token, of the reference answers after their prompts."""
    if lm.template is None or not examples:
        return None
    total, count = 0.0, 0
    for example in examples:
        dialogue = [*messages(example.question, example.passages), {"role": "assistant", "content": example.answer}]
        encoded = encode_chat_for_training(lm.tokenizer, lm.template, dialogue)
        ids = torch.tensor([encoded.ids[: lm.network.context_length]])
        marked = torch.tensor(encoded.is_answer[: ids.shape[1]])
        places = marked.nonzero()[:, 0]
        places = places[places > 0]
        hidden, _ = lm.network.hidden(ids)
        logprobs = lm.network.logits(hidden[0, places - 1]).float().log_softmax(-1)
        total -= float(logprobs[torch.arange(len(places)), ids[0, places]].sum())
        count += len(places)
    return math.exp(total / count) if count else None


def scores(texts: Sequence[str], examples: Sequence[GroundedExample]) -> Figures:
    """Every figure of answers against references, each with its interval or None where nothing bears on it."""
    pairs = list(zip(texts, examples, strict=True))
    answerable = [(text, example) for text, example in pairs if example.answerable]
    refused = [normal(REFUSAL) in normal(text) for text, _ in pairs]
    citations = [citation_scores(text, example.citations) for text, example in answerable]
    given = [(number in example.citations) for text, example in pairs for number in cited(text)]
    return {
        "answer_f1": as_dict([answer_f1(text, example.answer) for text, example in answerable]),
        "exact_match": as_dict([exact_match(text, example.answer) for text, example in answerable]),
        "citation_precision": as_dict([float(right) for right in given]),
        "citation_recall": as_dict([score.recall for score in citations]),
        "declines_unanswerable": as_dict(
            [float(said) for said, (_, example) in zip(refused, pairs, strict=True) if not example.answerable]
        ),
        "declines_answerable": as_dict(
            [float(said) for said, (_, example) in zip(refused, pairs, strict=True) if example.answerable]
        ),
    }


def as_dict(values: Sequence[float]) -> dict[str, float | int] | None:
    """A mean with its 95 % interval, or None where there is nothing to average."""
    found = estimate(values)
    return found.to_dict() if found is not None else None
