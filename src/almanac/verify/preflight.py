"""Preflight: what must hold for a training run to be able to learn, checked before its first step.

Runs that cannot learn look healthy: the loss falls for want of padding in it, the adapters are attached and frozen, the
answer's end is masked and the model never stops. Each check below finds one of these and says so in a sentence;
:func:`preflight` runs all of them on a few of the run's own examples and refuses the run if one fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.errors import PreflightError
from almanac.core.site import AROUND
from almanac.data.collate import Row, padded_batches
from almanac.data.pack import pack_rows
from almanac.nn.linear_maps import LinearMap
from almanac.train.criterion import Criterion, NextToken
from almanac.train.settings import TrainSettings

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of a mean loss, in nats, between two ways of batching; rounding is a hundredth of it."""
LOW_PRECISION_TOLERANCE = 5e-2
VIRTUAL_STEP = 0.05  # largest change of a weight in the step that is tried and taken back


@dataclass(frozen=True)
class Finding:
    """What one check found: ``detail`` is a sentence, with the way out where ``ok`` is False."""

    check: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All findings, those that passed too: they say what the run will do."""

    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What speaks against the run."""
        return tuple(finding for finding in self.findings if not finding.ok)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-ready, by check."""
        return {finding.check: {"ok": finding.ok, "detail": finding.detail} for finding in self.findings}

    def __str__(self) -> str:
        return "\n".join(f"[{'ok' if item.ok else 'FAULT'}] {item.check}: {item.detail}" for item in self.findings)


def preflight(
    network: nn.Module,
    rows: Sequence[Row],
    *,
    settings: TrainSettings,
    criterion: Criterion | None = None,
    stop_tokens: Set[int] = frozenset(),
    pad_token: int | None = None,
    findings: Sequence[Finding] = (),
) -> Report:
    """Checks a run over ``rows``; changes neither network nor random state.

    Args:
        network: with its adapters attached; offers ``vocab_size``, ``context_length``, ``hidden`` and ``logits``.
        stop_tokens: ids of which one must end every answer; empty if no generation is meant to stop.
        pad_token: the tokenizer's padding id, if it has one.
        findings: of checks that the caller has made; they count like those made here.

    Raises:
        PreflightError: with every failure.
    """
    found = [
        *findings,
        settings_are_usable(settings),
        examples_have_targets(rows),
        examples_fit(rows, vocab_size=network.vocab_size, context_length=network.context_length, settings=settings),
        answers_end(rows, stop_tokens),
        targets_are_not_padding(rows, pad_token),
        adapters_reach(network),
    ]
    if all(item.ok for item in found):  # otherwise the network would fail on what is already known
        sample = smallest_uneven(rows)
        found += [
            padded_equals_alone(network, sample),
            packed_equals_separate(network, sample),
            gradients_arrive(network, padded_batches(sample, 1 << 20)[0], criterion=criterion or NextToken()),
        ]
    return _judged(found)


def preflight_batch(network: nn.Module, batch: Any, *, settings: TrainSettings, criterion: Criterion) -> Report:
    """Checks a run whose batches are a criterion's own, on one of them; changes neither network nor random state.

    Raises PreflightError with every failure.
    """
    weight = criterion.weight(batch)
    targets = f"{weight:g} of {criterion.tokens(batch)} tokens of a micro-batch are targets"
    found = [settings_are_usable(settings), Finding("targets", weight > 0, targets), adapters_reach(network)]
    if all(item.ok for item in found):
        found.append(gradients_arrive(network, batch, criterion=criterion))
    return _judged(found)


def settings_are_usable(settings: TrainSettings) -> Finding:
    """Rates and sizes that can move a weight."""
    faults = [
        (not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0), "learning_rate must be above 0"),
        (settings.steps is None and settings.epochs < 1, "epochs must be at least 1"),
        (settings.steps is not None and settings.steps < 1, "steps must be at least 1"),
        (not 0 <= settings.warmup <= 1, "warmup is a share of the steps, from 0 to 1"),
        (settings.clip_norm is not None and not settings.clip_norm > 0, "clip_norm must be above 0, or None"),
        (min(settings.step_tokens, settings.micro_tokens, settings.save_every, settings.max_bad_steps) < 1,
         "step_tokens, micro_tokens, save_every and max_bad_steps must be at least 1"),
    ]  # fmt: skip
    wrong = [text for is_wrong, text in faults if is_wrong]
    return Finding("settings", not wrong, "; ".join(wrong) or f"the learning rate peaks at {settings.learning_rate:g}")


def examples_have_targets(rows: Sequence[Row]) -> Finding:
    """Every example teaches something, and how many lost their end is told."""
    empty = [index for index, row in enumerate(rows) if not any(row.mask[1:])]
    if empty or not rows:
        return Finding(
            "targets",
            False,
            f"{len(empty)} of {len(rows)} examples have no target (first: {empty[:1]}); give them an answer, or raise "
            "max_tokens if it was cut off",
        )
    targets, tokens = sum(sum(row.mask[1:]) for row in rows), sum(len(row) for row in rows)
    cut = sum(row.truncated for row in rows)
    return Finding(
        "targets",
        True,
        f"{targets} of {tokens} tokens in {len(rows)} examples are targets; {cut} examples ({cut / len(rows):.1%}) "
        "lost their end",
    )


def examples_fit(rows: Sequence[Row], *, vocab_size: int, context_length: int, settings: TrainSettings) -> Finding:
    """Every id is in the vocabulary and every example within context and micro-batch."""
    outside = [at for at, row in enumerate(rows) if min(row.tokens) < 0 or max(row.tokens) >= vocab_size]
    if outside:
        return Finding(
            "ids",
            False,
            f"{len(outside)} examples (first: {outside[0]}) hold ids outside the vocabulary of {vocab_size}; encode "
            "with this model's own tokenizer",
        )
    limit = min(context_length, settings.micro_tokens)
    longest = max((len(row) for row in rows), default=0)
    if longest > limit:
        return Finding(
            "ids",
            False,
            f"an example of {longest} tokens exceeds the context of {context_length} or micro_tokens of "
            f"{settings.micro_tokens}; set max_tokens",
        )
    return Finding("ids", True, f"all ids are within the vocabulary, the longest example has {longest} tokens")


def answers_end(rows: Sequence[Row], stop_tokens: Set[int]) -> Finding:
    """Every stretch of targets ends with a stop token: else the mask is off by one, or the model never learns to stop.

    A stretch that reaches the end of a truncated example is excused.
    """
    if not stop_tokens:
        return Finding("stop", True, "no stop tokens were given, so none is looked for")
    faults = [(index, id) for index, row in enumerate(rows) if (id := _endless(row, stop_tokens)) is not None]
    if faults:
        index, id = faults[0]
        return Finding(
            "stop",
            False,
            f"in {len(faults)} of {len(rows)} examples a stretch of targets does not end with one of the stop tokens "
            f"{sorted(stop_tokens)} (example {index}: id {id}); the mask is shifted, or the end of the turn is left out",
        )
    return Finding("stop", True, "every answer ends with a stop token that is learned")


def _endless(row: Row, stop_tokens: Set[int]) -> int | None:
    """The id that ends the first stretch of targets that does not stop."""
    for at, (token, is_target) in enumerate(zip(row.tokens, row.mask, strict=True)):
        is_last = at + 1 == len(row)
        ends = is_target and (is_last or not row.mask[at + 1])
        if ends and token not in stop_tokens and not (is_last and row.truncated):
            return token
    return None


def targets_are_not_padding(rows: Sequence[Row], pad_token: int | None) -> Finding:
    """No example teaches nothing but padding (one pad that doubles as end of turn is an answer's end, and fine)."""
    if pad_token is None:
        return Finding("padding", True, "the tokenizer has no padding token")
    faults = [
        index
        for index, row in enumerate(rows)
        if {token for token, is_target in zip(row.tokens, row.mask, strict=True) if is_target} == {pad_token}
    ]
    if faults:
        return Finding(
            "padding",
            False,
            f"{len(faults)} of {len(rows)} examples have no target but padding (id {pad_token}; first: {faults[0]}); "
            "leave out examples with empty answers",
        )
    return Finding("padding", True, "every example has a target other than padding")


def adapters_reach(network: nn.Module) -> Finding:
    """What is learned: how many numbers, at how many sites, beside which share of the linear weights."""
    trainable = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    if not trainable:
        attached = sum(AROUND in name.split(".") for name, _ in network.named_parameters())
        why = f"{attached} tensors of adapters are attached but frozen" if attached else "no adapter is attached"
        return Finding("adapters", False, f"no weight is trainable ({why}); attach a technique that trains")
    linear = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, LinearMap) and AROUND not in path.split(".")
    }
    reached = {path for path, module in linear.items() if any(p.requires_grad for p in module.parameters())}
    share = sum(linear[path].shape.numel() for path in reached) / max(1, sum(m.shape.numel() for m in linear.values()))
    base = sum(count for name, count in trainable.items() if AROUND not in name.split("."))
    return Finding(
        "adapters",
        True,
        f"{sum(trainable.values()):,} numbers are learned ({base:,} of them in the base model) at {len(reached)} of "
        f"{len(linear)} linear maps, which hold {share:.0%} of the linear weights",
    )


def padded_equals_alone(network: nn.Module, rows: Sequence[Row]) -> Finding:
    """Padding changes no example's loss."""
    return _agree("padded", network, rows, padded_batches(rows, 1 << 20))


def packed_equals_separate(network: nn.Module, rows: Sequence[Row]) -> Finding:
    """Neighbours in a row change no example's loss."""
    width = sum(len(row) for row in rows)
    if width > network.context_length:
        return Finding("packed", True, "no two examples fit into the context, so none is ever packed")
    batch = pack_rows([row.tokens for row in rows], [row.mask for row in rows], width=width, pad_id=0)
    return _agree("packed", network, rows, [batch])


def _agree(check: str, network: nn.Module, rows: Sequence[Row], batches: Sequence[Tokens]) -> Finding:
    criterion, targets = NextToken(), sum(sum(row.mask[1:]) for row in rows)
    with _undisturbed(network, training=False), torch.no_grad():
        alone = sum(
            criterion.loss(network, batch, normaliser=targets)[0].item()
            for row in rows
            for batch in padded_batches([row], 1 << 20)
        )
        together = sum(criterion.loss(network, batch, normaliser=targets)[0].item() for batch in batches)
    tolerance = TOLERANCE.get(_dtype(network), LOW_PRECISION_TOLERANCE)
    difference = abs(together - alone)
    if not math.isfinite(difference):
        return Finding(check, False, f"the first loss is {together:g}; check the base model's weights")
    if difference > tolerance:
        return Finding(
            check,
            False,
            f"the loss of examples {check} together is {together:.6g}, alone {alone:.6g} nats; the network lets tokens "
            "see what they must not, and no setting can repair that",
        )
    return Finding(check, True, f"{check} and alone agree to {difference:.1e} nats, at a first loss of {alone:.3f}")


def gradients_arrive(network: nn.Module, batch: Any, *, criterion: Criterion) -> Finding:
    """Every trainable weight gets a gradient, at once or after one step of those that do.

    LoRA's A has none while B is zero, so a step is tried on the weights that have one, and taken back bit for bit.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with _undisturbed(network, training=True), torch.enable_grad():
        first = _gradients(network, parameters, batch, criterion)
        wrong = [name for name, gradient in first.items() if not bool(torch.isfinite(gradient).all())]
        live = {name: gradient for name, gradient in first.items() if bool(gradient.any())}
        silent = set(parameters) - set(live)
        if live and silent and not wrong:
            with _virtual_step(parameters, live):
                second = _gradients(network, parameters, batch, criterion)
            silent -= {name for name, gradient in second.items() if bool(gradient.any())}
    if wrong:
        return Finding(
            "gradients",
            False,
            f"{len(wrong)} gradients are not finite, first {wrong[0]}; check the base model's weights",
        )
    if silent:
        return Finding(
            "gradients",
            False,
            f"{len(silent)} of {len(parameters)} trainable weights get no gradient, first {min(silent)}; they are not "
            "part of what is computed, or both factors of an adapter are zero",
        )
    late = len(parameters) - len(live)
    return Finding(
        "gradients", True, f"all {len(parameters)} trainable weights get a gradient, {late} of them from step 2 on"
    )


def _judged(found: Sequence[Finding]) -> Report:
    report = Report(tuple(found))
    if report.failures:
        raise PreflightError(
            "This run could not learn: " + "; ".join(f"{item.check}: {item.detail}" for item in report.failures),
            remedy="Nothing was trained.",
        )
    return report


def smallest_uneven(rows: Sequence[Row]) -> list[Row]:
    """The shortest example and, if there is one, the shortest that is at least half as long again."""
    ordered = sorted(rows, key=len)
    longer = next((row for row in ordered if len(row) >= 1.5 * len(ordered[0])), ordered[-1])
    return [ordered[0], longer] if len(ordered) > 1 else ordered


def _gradients(
    network: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Any, criterion: Criterion
) -> dict[str, Tensor]:
    loss, _ = criterion.loss(network, batch, normaliser=criterion.weight(batch))
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


@contextmanager
def _virtual_step(parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]) -> Iterator[None]:
    before = {name: parameters[name].detach().clone() for name in gradients}
    try:
        with torch.no_grad():
            for name, gradient in gradients.items():
                parameters[name] -= gradient * (VIRTUAL_STEP / gradient.abs().max())
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


@contextmanager
def _undisturbed(network: nn.Module, *, training: bool) -> Iterator[None]:
    """The network in the given mode; mode and dice as before afterwards."""
    before = network.training
    with torch.random.fork_rng(devices=[]):
        network.train(training)
        try:
            yield
        finally:
            network.train(before)


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
