"""Supervised fine-tuning: a model learns to give the answers of examples, and only the answers.

Ouyang 2022, arXiv 2203.02155, section 3.5. The loss counts what the assistant wrote, including the token that ends its
turn (without it the model would never stop), and nothing else: neither the prompt nor what the template writes around.
By default the change is a LoRA beside frozen weights, stored ones too; an empty plan trains what is trainable already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.adapt.lora import Lora
from almanac.core.errors import RequestError, TrainingError, UnsupportedError
from almanac.core.technique import Attachment, Technique
from almanac.data.collate import Row, padded_batches
from almanac.language_model.model import LanguageModel
from almanac.tokenizers.chat_encoding import encode_chat_for_training
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.train.events.event import Event, Started
from almanac.train.loop import Outcome, train
from almanac.train.settings import TrainSettings
from almanac.verify.forecast import Forecaster, forecast_memory
from almanac.verify.preflight import Finding, Report, preflight, smallest_uneven

Message = Mapping[str, Any]
Example = Sequence[Message] | tuple[str, str]
"""A conversation of ``{"role", "content"}`` messages, or (prompt, answer)."""


def finetune(
    lm: LanguageModel,
    examples: Sequence[Example],
    *,
    plan: Sequence[Technique] = (Lora(rank=8),),
    settings: TrainSettings | None = None,
    on_event: Callable[[Event], object] | None = None,
    run_folder: str | Path | None = None,
    stop: threading.Event | None = None,
) -> LanguageModel:
    """Fine-tunes ``lm`` in place and returns it, with ``plan`` added to its plan.

    Args:
        examples: conversations, or (prompt, answer) pairs; in pairs a model without a chat template learns to continue
            the prompt.
        on_event: called with every event of the run (``train.events``); ``Progress`` makes readings of them.
        run_folder: where the run is logged and saved; the same call on it continues a run that was interrupted.
        stop: set it to have the run save and stop.

    Raises:
        PreflightError: the run could not learn anything, with every reason.
        TrainingError: it was stopped, or cannot go on.
        RequestError, TemplateError: an example that cannot be rendered or encoded.

    Whatever is raised, adapters attached here are detached again.
    """
    settings = settings or TrainSettings()
    tokenised = tokenise(lm, examples, max_tokens=limit_of(lm, settings))
    attached: list[Technique] = []
    try:
        for technique in plan:
            lm.attach(technique)
            attached.append(technique)
        outcome = _train(lm, tokenised, settings, on_event=on_event, run_folder=run_folder, stop=stop)
    except BaseException:
        _detach(lm, attached)
        raise
    lm.record(
        "align.supervised",
        {"settings": settings.to_dict(), "examples": len(examples), "steps": outcome.steps, "loss": outcome.loss},
    )
    return lm


@dataclass(frozen=True)
class Tokenised:
    """Rows to train on, and what was found on the way."""

    rows: list[Row]
    finding: Finding


def tokenise(lm: LanguageModel, examples: Sequence[Example], *, max_tokens: int) -> Tokenised:
    """Every example as a row with its answers marked; those whose answer lies beyond ``max_tokens`` are left out.

    Raises:
        RequestError, TemplateError: an example that cannot be rendered or encoded, by its index.
    """
    if not examples:
        raise RequestError("There are no examples", remedy="Give at least one.")
    rows = [_cut(_row(lm, index, example), max_tokens) for index, example in enumerate(examples)]
    kept = [row for row in rows if any(row.mask) or not row.truncated]
    lost = len(rows) - len(kept)
    if lost == len(rows):
        detail = f"every answer lies beyond the first {max_tokens} tokens of its example; raise max_tokens"
    elif lost:
        detail = f"{lost} of {len(rows)} examples were left out: their answer lies beyond {max_tokens} tokens"
    else:
        detail = f"all {len(rows)} examples are used"
    return Tokenised(kept, Finding("examples", lost < len(rows), detail))


def limit_of(lm: LanguageModel, settings: TrainSettings) -> int:
    """The longest example in tokens: what the settings say, or what context and micro-batch hold."""
    limit = min(lm.network.context_length, settings.micro_tokens)
    return limit if settings.max_tokens is None else min(settings.max_tokens, limit)


def encode_pair(tokenizer: Tokenizer, prompt: str, *, answer: str) -> Row:
    """Prompt and answer as one text, for a model without a chat template; the answer and the end token are targets.

    Where a token of the whole would lie across the seam, the two are encoded apart: a model is asked with the prompt
    alone, whose last token is then whole.

    Raises UnsupportedError if the tokenizer has no end token.
    """
    end = tokenizer.special.eos
    if end is None:
        raise UnsupportedError(
            "This tokenizer has no end token, so the model could not learn to stop",
            remedy="Use a model with a chat template, or a tokenizer with an eos token.",
        )
    begin = [tokenizer.special.bos] if tokenizer.add_bos and tokenizer.special.bos is not None else []
    ids, offsets = tokenizer.encode_with_offsets(prompt + answer, add_special_tokens=False, allow_special=False)
    seam = len(prompt)
    if any(start < seam < stop for start, stop in offsets):
        before = tokenizer.encode(prompt, add_special_tokens=False, allow_special=False)
        after = tokenizer.encode(answer, add_special_tokens=False, allow_special=False)
    else:
        count = sum(start < seam for start, _ in offsets)
        before, after = ids[:count], ids[count:]
    tokens = (*begin, *before, *after, end)
    return Row(tokens, (False,) * (len(begin) + len(before)) + (True,) * (len(after) + 1))


def _row(lm: LanguageModel, index: int, example: Example) -> Row:
    try:
        if isinstance(example, tuple):
            prompt, answer = example
            if lm.template is None:
                return encode_pair(lm.tokenizer, prompt, answer=answer)
            messages: Sequence[Message] = (
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            )
        else:
            messages = example
        return encode_messages(lm.tokenizer, messages, template=lm.template)
    except RequestError as error:
        raise RequestError(f"Example {index}: {error.cause}", remedy=error.remedy) from error


def encode_messages(tokenizer: Tokenizer, messages: Sequence[Message], *, template: ChatTemplate | None) -> Row:
    """A conversation as a row. Raises UnsupportedError without a template, else as ``encode_chat_for_training``."""
    if template is None:
        raise UnsupportedError(
            "This model has no chat template, so it cannot learn from conversations",
            remedy="Give (prompt, answer) pairs, or use an instruct model.",
        )
    encoded = encode_chat_for_training(tokenizer, template, messages)
    return Row(tuple(encoded.ids), tuple(encoded.is_answer))


def _cut(row: Row, max_tokens: int) -> Row:
    if len(row) <= max_tokens:
        return row
    return Row(row.tokens[:max_tokens], row.mask[:max_tokens], truncated=True)


def _train(
    lm: LanguageModel,
    tokenised: Tokenised,
    settings: TrainSettings,
    *,
    on_event: Callable[[Event], object] | None,
    run_folder: str | Path | None,
    stop: threading.Event | None,
) -> Outcome:
    special, rows = lm.tokenizer.special, tokenised.rows
    report = preflight(
        lm.network,
        rows,
        settings=settings,
        stop_tokens=special.stop,
        pad_token=special.pad,
        findings=(tokenised.finding,),
    )
    memory = forecast_memory(lm.network, padded_batches(smallest_uneven(rows), 1 << 20)[0], settings=settings)
    hear = on_event or (lambda event: None)
    listeners = [Forecaster(memory, hear), _recorder(report), hear]
    batches = settings.batches(rows)
    outcome = train(lm.network, batches, settings=settings, listeners=listeners, run_folder=run_folder, stop=stop)
    if not outcome.finished:
        kept = "nothing was kept" if run_folder is None else f"its state is in {run_folder}"
        raise TrainingError(
            f"The run was stopped after step {outcome.step} of {outcome.steps}; {kept}",
            remedy="Start it again with the same run folder: it goes on from there.",
        )
    return outcome


def _recorder(report: Report) -> Callable[[Event], None]:
    """A listener that writes the findings into run.json."""

    def listener(event: Event) -> None:
        if isinstance(event, Started):
            event.record("preflight", report.to_dict())

    return listener


def _detach(lm: LanguageModel, attached: Sequence[Technique]) -> None:
    """Takes back the adapters; a weight format that was chosen stays, for it cannot be undone."""
    for technique in reversed(attached):
        if isinstance(technique, Attachment) and type(technique).trains:
            lm.detach(technique)
