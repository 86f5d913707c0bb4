"""Preference tuning: a model learns from pairs of answers to prefer the better one, by DPO.

Rafailov 2023, arXiv 2305.18290; the loss is ``objectives.dpo``. The reference is the model as it is given: its
log-probabilities of all answers are taken once, before anything is attached, so that no second copy is held and no pass is
spent on it in training. By default the change is a LoRA beside frozen weights, stored ones too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from almanac.adapt.lora import Lora
from almanac.align.supervised import limit_of, tokenise
from almanac.core.batch import Preference, pad_rows
from almanac.core.errors import RequestError, TrainingError
from almanac.core.technique import Attachment
from almanac.data.collate import Row
from almanac.language_model.model import LanguageModel
from almanac.objectives.dpo import answer_logprobs_from_hidden, dpo
from almanac.objectives.next_token import Metrics
from almanac.train.criterion import Criterion
from almanac.train.events.event import Event, Started
from almanac.train.loop import train
from almanac.train.settings import TrainSettings
from almanac.verify.preflight import Finding, Report, gradients_arrive, preflight

START_WITHIN = 1e-3  # nats that the first loss may be off log 2


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, text or a conversation of ``{"role", "content"}`` that the answer would go on."""

    prompt: str | Sequence[Mapping[str, Any]]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class PairRows:
    """A pair as rows whose targets are its last answer, with the reference's log-probability of each (nats)."""

    chosen: Row
    rejected: Row
    reference: tuple[float, float] = (0.0, 0.0)

    def __len__(self) -> int:
        """Tokens that the pair takes of a batch, padding included."""
        return 2 * max(len(self.chosen), len(self.rejected))


def prefer(
    lm: LanguageModel,
    pairs: Sequence[Pair],
    *,
    beta: float = 0.1,
    plan: Sequence[Attachment] = (Lora(rank=8),),
    settings: TrainSettings | None = None,
    on_event: Callable[[Event], object] | None = None,
    run_folder: str | Path | None = None,
) -> LanguageModel:
    """Tunes ``lm`` to preferences in place and returns it, with ``plan`` added to its plan.

    Args:
        pairs: what was preferred to what; a model without a chat template learns from prompts that are text.
        beta: how dear distance from the model as it was is; smaller goes further.
        plan: adapters; the reference is the model without them.
        on_event, run_folder: as in ``align.supervised.finetune``; both sides of a pair must fit one micro-batch.

    Raises:
        PreflightError: the run could not learn anything, with every reason; among them a loss that does not begin at log 2.
        TrainingError: it was stopped, or cannot go on.
        RequestError, TemplateError: a pair that cannot be rendered or encoded, or of two equal answers; beta not above 0.

    Whatever is raised, adapters attached here are detached again.
    """
    settings, criterion = settings or TrainSettings(), Dpo(beta=beta)
    rows, found = pair_rows(lm, pairs, max_tokens=min(limit_of(lm, settings), settings.micro_tokens // 2))
    rows = with_reference(lm.network, rows, micro_tokens=settings.micro_tokens)
    attached: list[Attachment] = []
    try:
        for technique in plan:
            lm.attach(technique)
            attached.append(technique)
        report = _preflight(lm, rows, settings=settings, criterion=criterion, finding=found)
        batches = PairBatches(rows, settings)
        listeners = [_recorder(report), on_event or (lambda event: None)]
        outcome = train(
            lm.network, batches, settings=settings, criterion=criterion, listeners=listeners, run_folder=run_folder
        )
        if not outcome.finished:
            raise TrainingError(
                f"The run was stopped after step {outcome.step} of {outcome.steps}",
                remedy="Start it again with the same run folder: it goes on from there.",
            )
    except BaseException:
        for technique in reversed(attached):
            lm.detach(technique)
        raise
    details = {"settings": settings.to_dict(), "beta": beta, "pairs": len(rows), "steps": outcome.steps}
    lm.record("align.preference", {**details, "loss": outcome.loss})
    return lm


@dataclass(frozen=True, kw_only=True)
class Dpo(Criterion):
    """Direct preference optimisation on :class:`Preference` batches; the normaliser counts pairs."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise RequestError(f"beta is {self.beta}", remedy="Give a number above 0, such as 0.1.")

    def weight(self, batch: Preference) -> float:
        return batch.num_pairs

    def tokens(self, batch: Preference) -> int:
        return batch.rows.tokens.numel()

    def loss(self, network: nn.Module, batch: Preference, *, normaliser: float) -> tuple[Tensor, Metrics]:
        found = logprobs(network, batch)
        policy, reference = found.chunk(2), batch.reference.to(found).chunk(2)
        return dpo((policy[0], policy[1]), (reference[0], reference[1]), beta=self.beta, normaliser=normaliser)


class PairBatches:
    """The micro-batches of each optimizer step, in the order that ``StepBatches`` would take such examples."""

    def __init__(self, pairs: Sequence[PairRows], settings: TrainSettings) -> None:
        self.pairs, self.micro_tokens = pairs, settings.micro_tokens
        joined = [
            Row(pair.chosen.tokens + pair.rejected.tokens, pair.chosen.mask + pair.rejected.mask) for pair in pairs
        ]
        self.steps = replace(settings, packed=False).batches(joined)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> PairBatches:
        return self

    def __next__(self) -> list[Preference]:
        indices = self.steps.upcoming()
        if not indices:
            raise StopIteration
        self.steps.position += 1
        return preference_batches([self.pairs[index] for index in indices], micro_tokens=self.micro_tokens)

    def state(self) -> dict[str, int]:
        """Where the run stands, JSON-ready."""
        return self.steps.state()

    def load(self, state: dict[str, int]) -> None:
        """Goes to where ``state`` was taken. Raises FileFormatError if it belongs to another order."""
        self.steps.load(state)

    def digest(self) -> str:
        """SHA-256 (hex) of the pairs and of all that decides their order."""
        return self.steps.digest()


def pair_rows(lm: LanguageModel, pairs: Sequence[Pair], *, max_tokens: int) -> tuple[list[PairRows], Finding]:
    """Every pair as rows; one whose answer would lose its end at ``max_tokens`` is left out.

    Raises:
        RequestError, TemplateError: a pair that cannot be rendered or encoded, by its index, or of two equal answers.
    """
    if not pairs:
        raise RequestError("There are no pairs", remedy="Give at least one.")
    found: list[PairRows] = []
    for index, pair in enumerate(pairs):
        if pair.chosen == pair.rejected:
            raise RequestError(f"Pair {index} has two equal answers", remedy="Leave it out: it teaches nothing.")
        try:
            rows = tokenise(lm, [_example(pair.prompt, answer) for answer in (pair.chosen, pair.rejected)],
                            max_tokens=max_tokens).rows  # fmt: skip
        except RequestError as error:
            raise RequestError(f"Pair {index}: {error.cause}", remedy=error.remedy) from error
        if len(rows) == 2 and not any(row.truncated for row in rows):
            found.append(PairRows(_last_answer(rows[0]), _last_answer(rows[1])))
    lost = len(pairs) - len(found)
    detail = f"{lost} of {len(pairs)} pairs were left out: an answer does not end within {max_tokens} tokens"
    if not found:
        raise RequestError(detail, remedy="Raise micro_tokens or max_tokens, or shorten the prompts.")
    return found, Finding("pairs", True, detail if lost else f"all {len(pairs)} pairs are used")


def with_reference(network: nn.Module, pairs: Sequence[PairRows], *, micro_tokens: int) -> list[PairRows]:
    """The pairs with the log-probabilities that ``network``, as it is now, gives their answers."""
    was, found = network.training, list[PairRows]()
    network.eval()
    try:
        with torch.no_grad():
            for pair in pairs:
                (batch,) = preference_batches([pair], micro_tokens=max(micro_tokens, len(pair)))
                chosen, rejected = logprobs(network, batch).tolist()
                found.append(replace(pair, reference=(chosen, rejected)))
    finally:
        network.train(was)
    return found


def preference_batches(pairs: Sequence[PairRows], *, micro_tokens: int) -> list[Preference]:
    """Pairs as batches of at most ``micro_tokens``, the longest first, and at least one pair in each."""
    pairs = sorted(pairs, key=len, reverse=True)
    batches: list[Preference] = []
    start = 0
    while start < len(pairs):
        group = pairs[start : start + max(1, micro_tokens // len(pairs[start]))]
        rows = [pair.chosen for pair in group] + [pair.rejected for pair in group]
        tokens = pad_rows([list(row.tokens) for row in rows], [list(row.mask) for row in rows], pad_id=0)
        reference = [pair.reference[0] for pair in group] + [pair.reference[1] for pair in group]
        batches.append(Preference(tokens, torch.tensor(reference)))
        start += len(group)
    return batches


def logprobs(network: nn.Module, batch: Preference) -> Tensor:
    """Float [2n]: log-probability of every answer under ``network``."""
    hidden, _ = network.hidden(batch.rows.tokens, None, None)
    return answer_logprobs_from_hidden(hidden, batch.rows, logits=network.logits)


def starts_at_reference(network: nn.Module, batch: Preference, *, criterion: Dpo) -> Finding:
    """The first loss is log 2: policy and reference are one model, and see the same tokens."""
    was = network.training
    network.eval()
    with torch.no_grad():
        loss, _ = criterion.loss(network, batch, normaliser=batch.num_pairs)
    network.train(was)
    off = abs(loss.item() - math.log(2))
    said = f"the first loss is {loss.item():.6f}, log 2 is {math.log(2):.6f}"
    if off <= START_WITHIN:
        return Finding("reference", True, said)
    return Finding(
        "reference", False, f"{said}: what was attached changes the model at its start; use adapters that begin at none"
    )


def _preflight(
    lm: LanguageModel, rows: Sequence[PairRows], *, settings: TrainSettings, criterion: Dpo, finding: Finding
) -> Report:
    special = lm.tokenizer.special
    shortest = min(rows, key=len)
    (batch,) = preference_batches([shortest], micro_tokens=len(shortest))
    findings = [finding, starts_at_reference(lm.network, batch, criterion=criterion)]
    if any(parameter.requires_grad for parameter in lm.network.parameters()):
        findings.append(replace(gradients_arrive(lm.network, batch, criterion=criterion), check="preference gradients"))
    return preflight(
        lm.network,
        [row for pair in rows for row in (pair.chosen, pair.rejected)],
        settings=settings,
        stop_tokens=special.stop,
        pad_token=special.pad,
        findings=findings,
    )


def _example(prompt: str | Sequence[Mapping[str, Any]], answer: str) -> Any:
    return (prompt, answer) if isinstance(prompt, str) else [*prompt, {"role": "assistant", "content": answer}]


def _last_answer(row: Row) -> Row:
    """The row with its last stretch of targets alone: what the assistant had said before belongs to the prompt."""
    end = max((at for at, is_target in enumerate(row.mask) if is_target), default=-1) + 1
    start = end
    while start > 0 and row.mask[start - 1]:
        start -= 1
    return replace(row, mask=tuple(start <= at < end for at in range(len(row))))


def _recorder(report: Report) -> Callable[[Event], None]:
    """A listener that writes the findings into run.json."""

    def listener(event: Event) -> None:
        if isinstance(event, Started):
            event.record("preflight", report.to_dict())

    return listener
