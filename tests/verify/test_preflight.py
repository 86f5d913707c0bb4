"""Preflight passes what can learn and catches each planted fault by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from train import small_run

from almanac.adapt.lora import Lora, LowRank
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import PreflightError
from almanac.core.state import Context
from almanac.data.collate import Row
from almanac.nn.stack import Decoder
from almanac.train.settings import TrainSettings
from almanac.verify.preflight import Finding, Report, preflight, smallest_uneven

STOP = frozenset({small_run.END})
CHECKS = {"settings", "targets", "ids", "stop", "padding", "adapters", "padded", "packed", "gradients"}


def check(network: nn.Module | None = None, rows: Sequence[Row] | None = None, **changes: Any) -> Report:
    given = {"settings": small_run.settings(), "stop_tokens": STOP, "pad_token": small_run.END, **changes}
    rows = small_run.doubling_rows() if rows is None else rows
    return preflight(small_run.adapted() if network is None else network, rows, **given)


def remasked(change: Callable[[Row], tuple[bool, ...]]) -> list[Row]:
    return [Row(row.tokens, change(row)) for row in small_run.doubling_rows()]


@pytest.mark.parametrize("base", [(), (Int8(),)], ids=["dense", "int8"])
def test_a_sound_run_passes_and_is_left_alone(base: tuple[Int8, ...]) -> None:
    network = small_run.adapted(*base, dropout=0.1)
    before, dice = toys.tensors_of(network), torch.get_rng_state()
    report = check(network)
    assert {finding.check for finding in report.findings} == CHECKS and not report.failures
    assert all(torch.equal(tensor, before[name]) for name, tensor in toys.tensors_of(network).items())
    assert torch.equal(torch.get_rng_state(), dice) and not network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_report_says_what_will_be_done() -> None:
    network = toys.toy("llama")
    Lora(rank=4, targets="layers.*.mixer.{q,v}").attach(network)
    details = {finding.check: finding.detail for finding in check(network).findings}
    rank, sites = 4, 2 * toys.LAYERS
    numbers = toys.LAYERS * rank * (toys.HIDDEN * 2 + toys.HIDDEN + toys.HIDDEN // 2)
    assert f"{numbers:,} numbers are learned (0 of them in the base model) at {sites} of 21" in details["adapters"]
    assert f"all {2 * sites} trainable weights get a gradient, {sites} of them from step 2 on" in details["gradients"]
    rows = small_run.doubling_rows()
    assert f"{sum(sum(row.mask) for row in rows)} of {sum(map(len, rows))} tokens in {len(rows)}" in details["targets"]


def test_every_finding_is_told_at_once() -> None:
    rows = remasked(lambda row: (False,) * len(row))
    with pytest.raises(PreflightError) as caught:
        check(toys.toy("llama").requires_grad_(False), rows, settings=TrainSettings(learning_rate=0.0))
    for word in ("settings: ", "targets: ", "adapters: "):
        assert word in str(caught.value)


PLANTED: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "all masked": ("targets: 48 of 48", lambda: {"rows": remasked(lambda row: (False,) * len(row))}),
    "one masked": (
        r"targets: 1 of 49 examples have no target \(first: \[48\]\)",
        lambda: {"rows": [*small_run.doubling_rows(), Row((1, 2, 3), (False,) * 3)]},
    ),
    "only the first token": (
        "targets: 48 of 48",
        lambda: {"rows": remasked(lambda row: (True,) + (False,) * (len(row) - 1))},
    ),
    "mask a token early": ("stop: in 48", lambda: {"rows": remasked(lambda row: (*row.mask[1:], False))}),
    "mask a token late": (
        "stop: in 48",
        lambda: {"rows": [Row((*r.tokens, 7), (False, *r.mask)) for r in small_run.doubling_rows()]},
    ),
    "end of turn masked": ("stop: in 48", lambda: {"rows": remasked(lambda row: (*row.mask[:-1], False))}),
    "wrong stop token": ("stop: in 48", lambda: {"stop_tokens": frozenset({3})}),
    "only padding": (
        "padding: 1 of 49",
        lambda: {"rows": [*small_run.doubling_rows(), Row((1, small_run.END), (False, True))]},
    ),
    "foreign tokenizer": (
        "ids: 1 examples",
        lambda: {"rows": [*small_run.doubling_rows(), Row((1, toys.VOCAB, small_run.END), (False, True, True))]},
    ),
    "too long": ("ids: an example of 70", lambda: {"rows": [Row((1,) * 69 + (95,), (True,) * 70)]}),
    "rate of zero": ("settings: learning_rate", lambda: {"settings": small_run.settings(learning_rate=0.0)}),
    "rate not a number": ("settings: learning_rate", lambda: {"settings": small_run.settings(learning_rate=math.nan)}),
    "no epoch": ("settings: epochs", lambda: {"settings": small_run.settings(steps=None, epochs=0)}),
    "warm-up in steps": ("settings: warmup", lambda: {"settings": small_run.settings(warmup=100)}),
    "clip to zero": ("settings: clip_norm", lambda: {"settings": small_run.settings(clip_norm=0.0)}),
    "frozen adapters": (
        "adapters: no weight is trainable .* attached but frozen",
        lambda: {"network": small_run.adapted().requires_grad_(False)},
    ),
    "no adapters": (
        "adapters: no weight is trainable .*no adapter is attached",
        lambda: {"network": toys.toy("llama").requires_grad_(False)},
    ),
    "caller's finding": ("mine: bad", lambda: {"findings": (Finding("mine", False, "bad"),)}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_of_data_and_settings(name: str) -> None:
    words, make = PLANTED[name]
    with pytest.raises(PreflightError, match=words):
        check(**make())


def test_a_truncated_answer_may_lack_its_end() -> None:
    rows = small_run.doubling_rows()
    rows[0] = Row(rows[0].tokens[:-1], rows[0].mask[:-1], truncated=True)
    assert "1 examples (2.1%) lost their end" in str(check(rows=rows))


class SeesPadding(Decoder):
    """A network in which the last column of a row, padding or not, leaks into all others."""

    def hidden(self, tokens: Tensor, state: Any = None, context: Context | None = None) -> Any:
        hidden, state = super().hidden(tokens, state, context)
        return hidden + self.embed(tokens[:, -1:]), state


class ForgetsSegments(Decoder):
    """A network that ignores which packed example a token belongs to."""

    def hidden(self, tokens: Tensor, state: Any = None, context: Context | None = None) -> Any:
        return super().hidden(tokens, state, None)


@pytest.mark.parametrize(("kind", "words"), [(SeesPadding, "padded: "), (ForgetsSegments, "packed: ")])
def test_a_network_that_mixes_examples_is_found(kind: type[Decoder], words: str) -> None:
    network = small_run.adapted()
    network.__class__ = kind
    with pytest.raises(PreflightError, match=words):
        check(network)


def low_rank(network: nn.Module) -> list[LowRank]:
    return [module for module in network.modules() if isinstance(module, LowRank)]


def test_both_factors_zero_never_learn() -> None:
    network = small_run.adapted()
    for adapter in low_rank(network):
        nn.init.zeros_(adapter.a)
    with pytest.raises(PreflightError, match="gradients: 42 of 42 trainable weights get no gradient"):
        check(network)


def test_one_dead_adapter_is_named() -> None:
    network = small_run.adapted()
    adapter = low_rank(network)[3]
    nn.init.zeros_(adapter.a)
    with pytest.raises(PreflightError, match=r"gradients: 2 of 42 trainable weights.* layers\.0\.mixer\.o\.around"):
        check(network)


def test_an_adapter_outside_the_computation_is_found() -> None:
    network = small_run.adapted()
    network.spare = nn.Parameter(torch.ones(3))
    with pytest.raises(PreflightError, match="gradients: 1 of 43 trainable weights get no gradient, first spare"):
        check(network)


def test_a_base_that_is_not_finite_is_found() -> None:
    network = small_run.adapted()
    with torch.no_grad():
        network.layers[1].mixer.q.weight[0, 0] = math.nan
    with pytest.raises(
        PreflightError, match=r"packed: the first loss is nan; .*gradients: 20 gradients are not finite"
    ):
        check(network)


def test_the_sample_is_short_and_uneven() -> None:
    rows = small_run.doubling_rows()
    short, longer = smallest_uneven(rows)
    assert len(short) == min(map(len, rows)) and len(longer) >= 1.5 * len(short)
    assert smallest_uneven(rows[:1]) == rows[:1]
    alike = [dataclasses.replace(rows[0]) for _ in range(3)]
    assert len(smallest_uneven(alike)) == 2
    check(rows=alike)
