"""Rounding weights to int8 costs nothing with a scale for every row, and much with one scale where rows are unlike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from almanac.compress.quantize import int8
from almanac.core.site import Leaf, select
from almanac.core.weight import StoredWeight
from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.tiny import Tiny, held_out_nll, trained
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import Attention
from almanac.nn.stack import Decoder

ROWS, TENSOR, COARSE, FLOAT = "int8 by row", "int8 by tensor", "3 bits by row", "float"

CARD = Card(
    name="compress.quantize.int8",
    title="Int8 weights by row lose nothing; by tensor they do where rows differ",
    claim="Int8 with a constant for every row keeps the full precision's perplexity, where one constant for a whole "
    "tensor fails once outliers appear",
    source="Dettmers 2022, arXiv 2208.07339, sections 2 and 3 and table 1",
    toy_claim=(
        "a trained model's weights rounded to int8 by row change its nll by at most 0.005 nats, as trained and with "
        "planted rows of unlike size (query rows of one head ×128, its key rows ÷128, the function kept); one scale for "
        "a tensor costs the planted model at least 0.02"
    ),
    scope="rounding of activations and the mixed decomposition, which this technique leaves out; models with outliers "
    "of their own; speed",
    tier="planted",
    arms=(
        Arm(name=ROWS, role=METHOD, what="the technique: one scale for every output row"),
        Arm(name=TENSOR, role=BASELINE, what="one scale for a whole weight"),
        Arm(name=COARSE, role=TWIN, what="one scale for every row, but 7 levels"),
        Arm(name=FLOAT, role=CONTROL, what="not rounded"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="cost when planted", arm=ROWS),
            expected=0.0005,
            fail=0.005,
            says="nats that rounding by row costs the planted model",
        ),
        AtMost(
            effect=Effect(metric="cost", arm=ROWS),
            expected=0.0005,
            fail=0.005,
            says="nats that rounding by row costs the model as trained",
        ),
        AtLeast(
            effect=Effect(metric="cost when planted", arm=TENSOR, over=ROWS),
            expected=0.2,
            fail=0.02,
            says="nats that one scale for a tensor costs the planted model more",
        ),
    ),
    gates=(
        Gate(arm=FLOAT, metric="nll", at_most=2.6, why="the model has learned the text (unigram: 3.1 nats)"),
        Gate(arm=FLOAT, metric="planting", at_most=1e-3, why="planting leaves the function as it was"),
        Gate(arm=COARSE, metric="cost", at_least=0.02, why="rounding can hurt this model at all"),
    ),
    null=TENSOR,
    mutants=(
        Mutant(name="one scale called many", what="every row gets the largest row's scale"),
        Mutant(name="rounds towards zero", what="codes are cut, not rounded"),
        Mutant(name="128 levels wrap around", what="the largest weight becomes 128 and so -128"),
        Mutant(name="scale by column", what="the scale of input k is used for output k"),
    ),
    equal="tokens",
    budget_arms=(ROWS, TENSOR, COARSE),
    seeds=5,
    plot=Plot(metric="cost when planted"),
)

QUICK, FULL = Tiny(hidden=64, layers=2, steps=150), Tiny()
FACTOR = 128.0


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The nll of a trained model, plain and planted, after rounding as the arm says."""
    tiny = QUICK if profile == "quick" else FULL
    plain, planted = trained(tiny, seed=seed), plant_rows(trained(tiny, seed=seed))
    before, kept = _float_nll(seed, tiny), held_out_nll(planted)
    with _broken(mutant):
        for network in (plain, planted):
            ROUNDED[arm](network)
        metrics = {
            "nll": before,
            "planting": abs(kept - before),
            "cost": held_out_nll(plain) - before,
            "cost when planted": held_out_nll(planted) - kept,
            "bytes of a weight": bytes_of(plain),
        }
    spent = {"tokens": tiny.steps * tiny.rows * tiny.time}
    return Outcome(metrics, spent, data=text.digest())


@functools.cache
def _float_nll(seed: int, tiny: Tiny) -> float:
    return held_out_nll(trained(tiny, seed=seed))


@torch.no_grad()
def plant_rows(network: Decoder, *, factor: float = FACTOR) -> Decoder:
    """Multiplies the first head's query rows of every layer and divides its key rows: every score stays as it was."""
    for layer in network.layers:
        mixer = layer.get_submodule("mixer")
        assert isinstance(mixer, Attention)
        for site, by in ((mixer.q, factor), (mixer.k, 1 / factor)):
            site.dense_weight()[: mixer.head_dim] *= by
            if site.bias is not None:
                site.bias[: mixer.head_dim] *= by
    return network


def bytes_of(network: nn.Module) -> float:
    """Bytes that the leaves' weights hold, by weight."""
    leaves = [leaf for leaf in select(network, "**", of=Leaf).values() if len(leaf.shape) == 2]
    return sum(leaf.weight.nbytes for leaf in leaves) / sum(leaf.shape.numel() for leaf in leaves)


def _by_row(network: Decoder) -> None:
    int8.Int8().attach(network)


def rounded(weight: Tensor, *, levels: int, by_tensor: bool = False) -> Tensor:
    """``weight`` [out, in] to whole multiples of its (or its row's) largest magnitude over ``levels``."""
    largest = weight.abs().amax() if by_tensor else weight.abs().amax(dim=1, keepdim=True)
    scale = (largest / levels).clamp_min(1e-30)
    return (weight / scale).round() * scale


def each_leaf(network: Decoder, change: Callable[[Tensor], Tensor], *, targets: str = "**") -> None:
    """Replaces every selected matrix by what ``change`` makes of it."""
    for leaf in select(network, targets, of=Leaf).values():
        if len(leaf.shape) == 2:
            leaf.set_weight(nn.Parameter(change(leaf.dense_weight().detach()), requires_grad=False))


ROUNDED: dict[str, Callable[[Decoder], None]] = {
    ROWS: _by_row,
    TENSOR: lambda network: each_leaf(network, lambda weight: rounded(weight, levels=127, by_tensor=True)),
    COARSE: lambda network: each_leaf(network, lambda weight: rounded(weight, levels=3)),
    FLOAT: lambda network: None,
}


def check(mutant: str | None) -> None:
    """Half a step at most everywhere, the largest of a row exact, rows of zeros, and one byte a weight and four a row."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 13, generator=generator) * torch.logspace(-3, 3, 9)[:, None]
    weight[4] = 0
    with _broken(mutant):
        stored = int8.store(weight)
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        error = (stored.dense() - weight).abs()
        assert bool((error <= step * 0.5001).all()), "more than half a step"
        top = weight.abs().argmax(dim=1, keepdim=True)
        assert torch.allclose(stored.dense().gather(1, top), weight.gather(1, top), rtol=1e-6), "the largest is exact"
        x = torch.randn(5, 13, generator=generator)
        assert torch.allclose(stored.linear(x), x @ stored.dense().T, rtol=1e-4, atol=1e-4), "product against dense"
        assert isinstance(stored, StoredWeight) and stored.nbytes == 9 * (13 + 4), "bytes"


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The rounding with a planted bug, put right again afterwards."""
    if mutant is None:
        yield
        return
    healthy = int8.quantize
    int8.quantize = MUTANTS[mutant]
    try:
        yield
    finally:
        int8.quantize = healthy


def _codes(weight: Tensor, scale: Tensor, *, rounding: Callable[[Tensor], Tensor] = torch.round) -> Any:
    weight = weight.detach().float()
    codes = rounding(weight / torch.where(scale > 0, scale, 1.0).unsqueeze(1))
    return codes.to(torch.int32).to(torch.int8), scale


MUTANTS: dict[str, Callable[[Tensor], Any]] = {
    "one scale called many": lambda w: _codes(w, (w.abs().amax() / 127).expand(len(w)).clone()),
    "rounds towards zero": lambda w: _codes(w, w.abs().amax(dim=1) / 127, rounding=torch.trunc),
    "128 levels wrap around": lambda w: _codes(w, w.abs().amax(dim=1) / 128),
    "scale by column": lambda w: _codes(w, w.abs().amax(dim=0).repeat(len(w) // w.shape[1] + 1)[: len(w)] / 127),
}
