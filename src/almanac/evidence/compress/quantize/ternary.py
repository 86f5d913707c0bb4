"""Ternary weights that a model was trained with cost little; the same weights put in afterwards cost nearly all."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import torch
from torch import Tensor

from almanac.compress.quantize import ternary, ternary_training
from almanac.compress.quantize.ternary import Ternary
from almanac.compress.quantize.ternary_training import TernaryTraining
from almanac.core.site import select
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CEILING, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.fitting import count, flops, next_nll
from almanac.evidence.fixtures.tiny import Tiny, held_out_nll, spec, train
from almanac.evidence.outcome import Outcome
from almanac.nn.linear import Linear
from almanac.nn.stack import Decoder
from almanac.nn.stored.ternary import TernaryWeight

STUCK, LARGEST, UNCLIPPED, UNFOLDED = (
    "no gradient through the rounding",
    "scale of the largest weight",
    "digits not clipped",
    "float weights left when folded",
)
CARD = Card(
    name="compress.quantize.ternary",
    title="Weights of -s, 0 and s, if the model was trained with them",
    claim=(
        "BitNet b1.58, whose every weight is ternary {-1, 0, 1}, trained from scratch, matches the full-precision "
        "transformer of equal size and training tokens in perplexity from 3B parameters on"
    ),
    source="Ma 2024, arXiv 2402.17764, abstract and table 1",
    toy_claim=(
        "a character model of 0.35 M parameters trained from scratch with ternary weights in its blocks loses at most 0.3 "
        "nats a character to the same model in full precision; ternarising the latter afterwards loses at least 0.2 more, "
        "and rounding in training without a gradient through it at least 0.1 more"
    ),
    scope=(
        "that the gap closes with size, speed, energy, or ternary activations, embeddings and head: those stay in float, as "
        "do activations, which the paper rounds to 8 bits"
    ),
    tier="real",
    arms=(
        Arm(name="full precision", role=CEILING, what="trained in float"),
        Arm(name="ternary training", role=METHOD, what="every forward pass rounded; folded and stored at the end"),
        Arm(name="ternary afterwards", role=BASELINE, what="the full-precision model, stored in ternary"),
        Arm(name="no straight-through", role=TWIN, what="rounded in training, and the rounding passes no gradient"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm="ternary training", over="full precision"),
            fail=0.3,
            expected=0.12,
            says="nats a character that ternary training costs",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm="ternary afterwards", over="ternary training"),
            fail=0.2,
            expected=0.65,
            says="nats a character that ternarising afterwards costs more",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm="no straight-through", over="ternary training"),
            fail=0.1,
            expected=0.5,
            says="nats a character that the straight-through gradient gains",
        ),
    ),
    gates=(
        Gate(
            arm="full precision",
            metric="nll",
            at_most=2.6,
            why="the float model must beat counts of letter pairs, 2.64",
        ),
        Gate(arm="ternary training", metric="ternary_share", at_least=1.0, why="every weight of the blocks is ternary"),
        Gate(
            arm="ternary afterwards", metric="ternary_share", at_least=1.0, why="every weight of the blocks is ternary"
        ),
    ),
    null="ternary afterwards",
    mutants=(
        Mutant(name=STUCK, what="only embeddings, norms and head learn"),
        Mutant(name=LARGEST, what="the scale is the largest magnitude, so that most digits become 0"),
        Mutant(name=UNCLIPPED, what="large weights keep digits beyond 1"),
        Mutant(name=UNFOLDED, what="what is exported is not what was trained"),
    ),
    equal="flops",
    budget_arms=("full precision", "ternary training", "ternary afterwards"),
    seeds=5,
    plot=Plot(metric="nll", y="nats per character, held out"),
)
SIZES = {"quick": Tiny(hidden=64, layers=2, steps=300, rows=16), "full": Tiny(steps=300), "gpu": Tiny(steps=6000)}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains a model, or ternarises the one trained in float."""
    tiny = SIZES[profile]
    if arm in ("full precision", "ternary afterwards"):
        network, losses = _built(tiny, seed), _in_float(tiny, seed)[1]
        network.load_state_dict(_in_float(tiny, seed)[0])
        if arm == "ternary afterwards":
            with broken(mutant):
                Ternary().attach(network)
    else:
        network = _built(tiny, seed)
        with broken(STUCK if arm == "no straight-through" else mutant):
            TernaryTraining().attach(network)
            network.requires_grad_(True)  # from scratch: everything learns
            losses = train(network, tiny, seed=seed)
            TernaryTraining().fold(network)
            Ternary().attach(network)
    quarter = len(losses) // 4
    late, before = (sum(part) / quarter for part in (losses[-quarter:], losses[-2 * quarter : -quarter]))
    return Outcome(
        metrics={
            "nll": held_out_nll(network),
            "ternary_share": _ternary_share(network),
            "bytes": sum(parameter.nbytes for parameter in network.parameters()),
            "late_gain": (before - late) / before,
        },
        budget={
            "flops": tiny.steps * _step_flops(tiny),
            "tokens": tiny.steps * tiny.rows * tiny.time,
            "parameters": count(_built(tiny, seed)),
        },
        data=text.digest(),
    )


def _built(tiny: Tiny, seed: int) -> Decoder:
    network = initialise(spec(tiny).build(), seed=seed)
    assert isinstance(network, Decoder)
    return network


@functools.cache
def _in_float(tiny: Tiny, seed: int) -> tuple[dict[str, Tensor], list[float]]:
    """The model trained in full precision, for two arms, and its losses."""
    network = _built(tiny, seed)
    losses = train(network, tiny, seed=seed)
    return {name: parameter.detach() for name, parameter in network.named_parameters()}, losses


@functools.cache
def _step_flops(tiny: Tiny) -> float:
    network, rows = _built(tiny, 0), text.windows("train", rows=tiny.rows, time=tiny.time, seed=0)
    return flops(lambda: next_nll(network, rows).backward())


def _ternary_share(network: Decoder) -> float:
    """The share of the blocks' maps whose weights are stored in three values and read so."""
    sites = select(network, "layers.**", of=Linear).values()
    stored = [site for site in sites if isinstance(site.weight, TernaryWeight)]
    return sum(len(site.dense_weight().abs().unique()) <= 2 for site in stored) / len(sites)


def check(mutant: str | None) -> None:
    """Ternary with the scale of the definition, the identity's gradient, and folded and stored weights equal to training."""
    weight = torch.randn(9, 13, generator=torch.Generator().manual_seed(0)).requires_grad_()
    up = torch.randn(9, 13, generator=torch.Generator().manual_seed(1))
    network, tokens = _built(Tiny(hidden=16, layers=1, heads=2), 0), torch.arange(24).view(2, 12)
    with broken(mutant):
        rounded = ternary_training.straight_through(weight)
        scale = weight.detach().abs().mean()
        wanted = scale * torch.sign(weight) * (weight.abs() > scale / 2)
        assert torch.allclose(rounded, wanted, atol=1e-7), "another rounding"
        assert rounded.requires_grad, "no gradient"
        (gradient,) = torch.autograd.grad(rounded, weight, up)
        assert torch.equal(gradient, up), "another gradient"
        TernaryTraining().attach(network)
        trained = network(tokens)
        TernaryTraining().fold(network)
        assert torch.equal(network(tokens), trained), "folding changed the model"
        folded = [site.dense_weight() for site in select(network, "layers.**", of=Linear).values()]
        assert all(len(item.abs().unique()) <= 2 for item in folded), "folded weights are not ternary"
        Ternary().attach(network)
        stored = [site.dense_weight() for site in select(network, "layers.**", of=Linear).values()]
    assert all(torch.equal(a, b) for a, b in zip(folded, stored, strict=True)), "storing changed the weights"


def broken(mutant: str | None) -> AbstractContextManager[object]:
    """The code under test with one planted bug, put right again afterwards."""
    if mutant == STUCK:
        healthy = ternary_training.straight_through
        return mock.patch.object(ternary_training, "straight_through", lambda weight: healthy(weight).detach())
    if mutant == LARGEST:
        return mock.patch.object(ternary, "scale_of", lambda weight: weight.detach().abs().amax())
    if mutant == UNCLIPPED:
        return mock.patch.object(ternary, "quantize", _unclipped)
    if mutant == UNFOLDED:
        return mock.patch.object(TernaryTraining, "fold", TernaryTraining.detach)
    return nullcontext()


def _unclipped(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = ternary.scale_of(weight)
    return (weight.detach() / scale).round(), scale
