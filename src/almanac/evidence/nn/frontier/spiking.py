"""Spiking layers: what a language model of zeros and ones costs in loss, and what additions in place of products would save.

All arms but one are the same stack of RWKV's token and channel mixing over TXT, from the same weights; they differ in what
the neurons before each matrix send. The other is RWKV-4 itself, without neurons. Energy is counted by operations and
published picojoules, head included; none is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text, tiny
from almanac.evidence.fixtures.fitting import count
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.nn.frontier import energy, spiking
from almanac.nn.frontier.energy import recording
from almanac.nn.frontier.spiking import LeakyNeurons, spiking_channels, spiking_tokens
from almanac.nn.frontier.surrogate import Arctan, Surrogate
from almanac.nn.norm import LayerNorm
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.rwkv4 import rwkv4, rwkv4_channel
from almanac.nn.recurrent.scan import scan
from almanac.nn.stack import Decoder
from almanac.nn.two_mixer_block import TwoMixerBlock

THRESHOLD, LEAK = 0.5, 0.5
SIZES = {
    "quick": tiny.Tiny(hidden=48, layers=2, rows=8, steps=120, rate=2e-2, context=64),
    "full": tiny.Tiny(hidden=64, layers=2, rows=16, steps=400, rate=2e-2, context=64),
}
RATES: dict[str, float] = {}  # of arms whose best rate of the grid 3e-3, 1e-2, 2e-2 is not the size's
ANALOGUE, LASTING, CARRIED = "membrane leaks out", "no reset", "membrane carried over"
HEADLESS, FREE = "head not counted", "every map counted as spiking"

CARD = Card(
    name="nn.frontier.spiking",
    title="A spiking language model learns, and its matrices read few ones",
    claim=(
        "SpikeGPT, RWKV with leaky integrate-and-fire neurons trained through a surrogate gradient, stays competitive with "
        "non-spiking models while its sparse, event-driven activations need about 20 times fewer operations"
    ),
    source="Zhu 2023, arXiv 2302.13939, abstract and table 5; Neftci 2019, arXiv 1901.09948; Horowitz 2014, figure 1.1.9",
    toy_claim=(
        "a character model whose every matrix but the head reads spikes stays within half a nat of RWKV with real numbers, "
        "learns more than it does without the surrogate, and by published picojoules would take less than a fifth of RWKV's "
        "energy for products and additions; an equal loss is not claimed"
    ),
    scope=(
        "energy on any hardware: operations are counted and multiplied by figures for 45 nm, moving data is left out, and on "
        "this processor spikes save nothing; a loss as low as attention's; models of more than 0.2 M parameters"
    ),
    tier="real",
    arms=(
        Arm(name="spiking", role=METHOD, what="leaky integrate-and-fire neurons, learned through an arctan surrogate"),
        Arm(name="rwkv", role=BASELINE, what="RWKV-4 as it is, of the same widths: real numbers everywhere"),
        Arm(
            name="graded", role=CONTROL, what="the spiking stack with neurons that send max(membrane, 0), real numbers"
        ),
        Arm(name="no surrogate", role=TWIN, what="the spiking model whose spikes pass no gradient: only readers learn"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm="spiking", over="rwkv"),
            fail=0.5,
            expected=0.25,
            says="spikes cost less than half a nat against real numbers",
        ),
        AtMost(
            effect=Effect(metric="picojoules", arm="spiking", over="rwkv", ratio=True),
            fail=0.2,
            expected=0.11,
            says="maps and neurons would take less than a fifth of the energy",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm="no surrogate", over="spiking"),
            fail=0.05,
            expected=0.15,
            says="the surrogate's gradient is what the neurons learn from",
        ),
    ),
    gates=(
        Gate(arm="rwkv", metric="nll", at_most=2.6, why="the baseline has learned more than pairs of letters"),
        Gate(arm="spiking", metric="rate", at_least=0.01, why="a silent network would spend nothing and learn nothing"),
    ),
    null="rwkv",
    equal="tokens",
    budget_arms=("spiking", "rwkv", "graded", "no surrogate"),
    mutants=(
        Mutant(name=ANALOGUE, what="neurons that fire send their membrane instead of 1"),
        Mutant(name=LASTING, what="the membrane is not emptied by a spike"),
        Mutant(name=CARRIED, what="a packed text begins with the membrane of the one before it"),
        Mutant(name=HEADLESS, what="the energy of the head is left out"),
        Mutant(name=FREE, what="maps that read real numbers are counted as if they read spikes"),
    ),
    seeds=4,
    plot=Plot(metric="nll", y="nll (nats a character)"),
)


@dataclass(frozen=True, kw_only=True)
class Silent(Surrogate):
    """A spike without a gradient."""

    def slope(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def primitive(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


class Graded(Site):
    """Neurons of the same leak that send what they hold, where it is positive: x [b, t, c] -> the same, and the membrane."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        leak: float

        def build(self) -> Graded:
            return Graded(self)

    def __init__(self, spec: Graded.Spec) -> None:
        super().__init__()
        self.leak = spec.leak

    def compute(self, x: Tensor, membrane: Tensor, begins: Tensor | None) -> tuple[Tensor, Tensor]:
        inflow = self.leak * wide(x).transpose(0, 1)
        kept = torch.full_like(inflow, 1 - self.leak)
        kept = kept if begins is None else kept.masked_fill(begins.t().unsqueeze(-1), 0.0)
        held = scan(kept, inflow, membrane.to(inflow))
        return held.relu().transpose(0, 1).to(x.dtype), held[-1]


def neurons(arm: str) -> spec.Spec:
    """The neurons of an arm."""
    if arm == "graded":
        return Graded.Spec(leak=LEAK)
    surrogate = Silent() if arm == "no surrogate" else Arctan()
    return LeakyNeurons.Spec(leak=LEAK, threshold=THRESHOLD, surrogate=surrogate)


def model(arm: str, size: tiny.Tiny) -> Decoder.Spec:
    """TINY of RWKV's two mixers, as they are or with the arm's neurons."""
    norm = LayerNorm.Spec(hidden=size.hidden)
    if arm == "rwkv":
        plain = TwoMixerBlock.Spec(
            mixer_norm=norm,
            time=rwkv4(size.hidden),
            channel_norm=norm,
            channel=rwkv4_channel(size.hidden, 4 * size.hidden),
        )
        return tiny.spec(size).with_(layers=(plain,) * size.layers)
    block = TwoMixerBlock.Spec(
        mixer_norm=norm,
        time=spiking_tokens(size.hidden, neurons=neurons(arm)),
        channel_norm=norm,
        channel=spiking_channels(size.hidden, 4 * size.hidden, neurons=neurons(arm)),
    )
    return tiny.spec(size).with_(layers=(block,) * size.layers)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm, and counts what it does on the held-out text."""
    size = SIZES[profile if profile in SIZES else "full"]
    size = size.with_(rate=RATES.get(arm, size.rate))
    with planted(mutant, BUGS):
        network = initialise(model(arm, size).build(), seed=seed)
        assert isinstance(network, Decoder)
        losses = tiny.train(network, size, seed=seed)
        kind = Graded if arm == "graded" else LeakyNeurons
        with recording(network, neurons=kind) as record:
            nll = tiny.held_out_nll(network, rows=32)
    tokens = 32 * 64
    metrics = {
        "nll": nll,
        "rate": record.rate,
        "picojoules": 1e12 * record.joules / tokens,
        "picojoules_dense": 1e12 * record.dense_joules / tokens,
        "picojoules_zeros_skipped": skipped(network, record, tokens),
        "late_fall": 1 - sum(losses[-20:]) / sum(losses[-size.steps // 4 - 20 : -size.steps // 4]),
    }
    spent = float(size.steps * size.rows * size.time)
    budget = {"tokens": spent, "parameters": float(count(network)), "steps": float(size.steps)}
    return Outcome(metrics, budget, data=text.digest())


def skipped(network: Decoder, record: energy.SpikeRecord, tokens: int) -> float:
    """Picojoules per token if every map but the head did products for what is not zero alone, at the mean rate."""
    head = network.vocab_size * network.embed.shape[1]
    maps = record.dense_operations / tokens - head - record.neuron_steps / tokens
    cost = energy.ACCUMULATE_PICOJOULES if record.binary_maps else energy.MULTIPLY_ACCUMULATE_PICOJOULES
    return record.rate * maps * cost + energy.MULTIPLY_ACCUMULATE_PICOJOULES * (head + record.neuron_steps / tokens)


def check(mutant: str | None) -> None:
    """Neurons against their equations one at a time, packed and not, and the counts of one model against a hand count."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 12, 3, generator=generator, dtype=torch.float64)
    begins = torch.zeros(1, 12, dtype=torch.bool)
    begins[0, 5] = True
    size = tiny.Tiny(hidden=8, layers=1, context=16)
    with planted(mutant, BUGS), torch.no_grad():
        for given in (None, begins):
            spikes, _ = LeakyNeurons.Spec(leak=LEAK, threshold=0.3).build()(
                x, torch.zeros(1, 3, dtype=torch.float64), given
            )
            for cell in range(3):
                h, expected = 0.0, []
                for time in range(12):
                    h = 0.0 if given is not None and given[0, time] else h
                    u = h + LEAK * (float(x[0, time, cell]) - h)
                    expected.append(float(u >= 0.3))
                    h = 0.0 if u >= 0.3 else u
                assert spikes[0, :, cell].tolist() == expected, "neurons do not follow their equations"
        mixed = initialise(spiking_tokens(8).build(), seed=0)
        positions, segments = torch.arange(12).unsqueeze(0), torch.tensor([[0] * 5 + [1] * 7])
        wave = 3 * torch.randn(1, 12, 8, generator=generator)
        whole = mixed(wave, Context(positions=positions, segments=segments), None)[0]
        apart = mixed(wave[:, 5:], Context(positions=positions[:, :7]), None)[0]
        assert torch.allclose(whole[:, 5:], apart, atol=1e-5), "a packed text begins with another one's memory"
        network = initialise(model("spiking", size).build(), seed=0)
        assert isinstance(network, Decoder)
        with recording(network) as record:
            network(torch.arange(16).view(1, 16))
        assert record.dense_operations == 16 * (4 * 64 + 64 + 2 * 8 * 32 + 8 * network.vocab_size + 3 * 8 + 32)
        assert record.multiply_accumulates == 16 * (8 * network.vocab_size + 3 * 8 + 32), "real maps are not counted"


_fire, _map = spiking.fire, energy.SpikeRecord.map


def _analogue(x: Tensor, membrane: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    spikes, after = _fire(x, membrane, *rest)
    return spikes * (1 + x.abs()), after


def _lasting(x: Tensor, membrane: Tensor, kept: Tensor | None, leak: float, threshold: float, surrogate: Any) -> Any:
    decay = torch.full_like(x, 1 - leak) * (1 if kept is None else kept)
    held = scan(decay, leak * x, membrane)
    return surrogate.spike(held - threshold) + 0 * held, held[-1]


def _carried(x: Tensor, membrane: Tensor, kept: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fire(x, membrane, None, *rest)


def _headless(self: energy.SpikeRecord, read: Tensor, out_features: int) -> None:
    if out_features != text.VOCAB:
        _map(self, read, out_features)


def _free(self: energy.SpikeRecord, read: Tensor, out_features: int) -> None:
    _map(self, (read != 0).to(read), out_features)


BUGS = {
    ANALOGUE: Bug(spiking, "fire", _analogue),
    LASTING: Bug(spiking, "fire", _lasting),
    CARRIED: Bug(spiking, "fire", _carried),
    HEADLESS: Bug(energy.SpikeRecord, "map", _headless),
    FREE: Bug(energy.SpikeRecord, "map", _free),
}
