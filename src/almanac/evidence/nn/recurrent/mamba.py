"""Selective copying: whether a state-space layer that reads its step, B and C off the token can leave out what is noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.spec import Normal, Spec
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot, Published
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.nn.recurrent import answering
from almanac.evidence.nn.recurrent.answering import Task
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent import mamba as mamba_file
from almanac.nn.recurrent import s4d as s4d_file
from almanac.nn.recurrent.mamba import Invariant, Mamba, mamba
from almanac.nn.recurrent.s4d import S4D, s4d
from almanac.nn.stack import Decoder

NEGATIVE, SOFTPLUS, CARRIED = "A grows", "step not positive", "state carried over"
WRAPPED, EULER, PEEKING = "kernel wraps round", "Euler for zero-order hold", "twin reads its step"

CARD = Card(
    name="nn.recurrent.mamba",
    title="Selection lets a state-space model copy what matters",
    claim=(
        "on selective copying, two layers of an ungated S4 reach 18.3 % and of an ungated S6 97.0 %: making the step, B and "
        "C functions of the input solves what time-invariant models cannot"
    ),
    source="Gu and Dao 2023, arXiv 2312.00752, table 1",
    toy_claim=(
        "two layers without gates, of width 64: four of 16 symbols scattered over 64 places are given back in order far "
        "more often if step, B and C are read off the token than if they are learned constants, all else being equal"
    ),
    scope=(
        "language, long sequences, gated blocks (whose gate already selects a little), an advantage over attention, or what "
        "the twin would reach in the end: it still improves slowly"
    ),
    tier="planted",
    arms=(
        Arm(name="selective", role="method", what="Mamba's layer (S6) without gate"),
        Arm(name="invariant", role="twin", what="the same layer with step, B and C learned as constants"),
        Arm(name="s4d", role="baseline", what="S4D layers of the same width"),
        Arm(name="attention", role="ceiling", what="softmax attention with rotary positions and a channel"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="accuracy", arm="selective", over="invariant"),
            fail=0.3,
            expected=0.5,
            says="selection copies far more symbols than its time-invariant twin",
        ),
        AtLeast(
            effect=Effect(metric="accuracy", arm="selective", over="s4d"),
            fail=0.1,
            expected=0.4,
            says="and more than S4D",
        ),
    ),
    gates=(
        Gate(arm="attention", metric="accuracy", at_least=0.7, why="the task can be learned in this many steps"),
        Gate(arm="invariant", metric="accuracy", at_least=0.1, why="the twin does better than guessing one of 16"),
        Gate(arm="invariant", metric="late_gain", at_most=0.1, why="the twin is not about to close the gap"),
    ),
    null="invariant",
    equal="tokens",
    budget_arms=("selective", "invariant", "s4d", "attention"),
    mutants=(
        Mutant(name=NEGATIVE, what="A = exp(a): states grow instead of fading"),
        Mutant(name=SOFTPLUS, what="Δ is used without softplus"),
        Mutant(name=CARRIED, what="a packed sequence begins with the state of the one before it"),
        Mutant(name=WRAPPED, what="S4D's convolution is not padded with zeros", arms=("s4d",)),
        Mutant(name=EULER, what="S4D's B̄ is Δ where zero-order hold is claimed", arms=("s4d",)),
        Mutant(name=PEEKING, what="the twin's step still depends on the token", arms=("invariant",)),
    ),
    seeds=4,
    plot=Plot(
        metric="accuracy",
        lines=True,
        x="training steps",
        y="symbols given back",
        published=(Published(label="S4, no gate", value=0.183), Published(label="S6, no gate", value=0.97)),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The task and the training."""

    places: int = 64
    symbols: int = 4
    alphabet: int = 16
    hidden: int = 64
    expand: int = 2
    states: int = 16
    rows: int = 16
    steps: int = 800
    rate: float = 5e-3
    tests: int = 1024


SIZES = {
    "full": Size(),
    "quick": Size(places=24, expand=1, states=8, rows=32, steps=320, rate=1e-2, tests=512),
}
RATES = {"attention": 3e-3}  # the other arms learn at the rate of the size


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm and measures how many of the symbols it gives back."""
    size = SIZES[profile]
    with planted(mutant, BUGS):
        return train(arm, seed, size, RATES.get(arm, size.rate))


def train(arm: str, seed: int, size: Size, rate: float) -> Outcome:
    """`run` at a given learning rate."""
    network = initialise(spec(arm, size).build(), seed=seed)
    return answering.train(network, data(size, seed), rate=rate)


@functools.cache
def data(size: Size, seed: int) -> Task:
    """Rows of places + symbols tokens, of which the symbols are asked for.

    Symbols stand at random places in order; every other place holds the noise token, and what follows are as many
    markers as there are symbols, at which they are to be given back.
    """
    total = size.steps * size.rows + size.tests
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, size.alphabet, (total, size.symbols), generator=generator)
    places = torch.rand(total, size.places, generator=generator).argsort(1)[:, : size.symbols].sort(1).values
    inputs = torch.full((total, size.places + size.symbols), size.alphabet)
    inputs[:, size.places :] = size.alphabet + 1
    inputs.scatter_(1, places, targets)
    return Task.split(inputs, targets, tests=size.tests, rows=size.rows)


def spec(arm: str, size: Size) -> Decoder.Spec:
    """Two layers of the arm's mixer; only attention has a channel, for without one it could not compute anything."""
    norm = LayerNorm.Spec(hidden=size.hidden)
    block: Spec = Block.Spec(
        mixer_norm=norm,
        mixer=attention(size.hidden, num_heads=4, position=Rope.Spec(rotary_dim=size.hidden // 4)),
        channel_norm=norm,
        channel=dense(size.hidden, 2 * size.hidden),
    )
    if arm != "attention":
        block = MixerBlock.Spec(mixer_norm=norm, mixer=mixer(arm, size.hidden, expand=size.expand, states=size.states))
    found = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=size.alphabet + 2, hidden=size.hidden),
        layers=(block,) * 2,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=size.hidden, out_features=size.alphabet)),
        context_length=size.places + size.symbols,
    )
    if arm != "attention":
        return found
    maps = [path for path, item in found.walk() if isinstance(item, Linear.Spec)]  # as wide as the recurrent arms' maps
    return found.replace("{" + ",".join(maps) + "}", initialiser=Normal(std=size.hidden**-0.5)).replace(
        "embed", initialiser=Normal(std=0.3)
    )


def mixer(arm: str, hidden: int, *, expand: int, states: int) -> Spec:
    """The recurrent mixers; S4D's ``states`` are pairs."""
    if arm == "s4d":
        return s4d(hidden, num_states=states)
    return mamba(hidden, expand=expand, num_states=states, gated=False, selective=arm == "selective")


def check(mutant: str | None) -> None:
    """Both layers against their equations, one token after the other in float64, on two packed sequences."""
    segments = torch.tensor([[0] * 5 + [1] * 6])
    with planted(mutant, BUGS), torch.no_grad():
        for arm in ("selective", "s4d"):
            layer = initialise(mixer(arm, 8, expand=1, states=3).build(), seed=0).double()
            for number, parameter in enumerate(layer.parameters()):
                torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
            x = torch.randn(1, 11, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
            slow = _slow_mamba if isinstance(layer, Mamba) else _slow_s4d
            context = Context(positions=torch.arange(11).unsqueeze(0))
            for given, parts in ((None, [x[0]]), (segments, [x[0, :5], x[0, 5:]])):
                context.segments = given
                found = layer(x, context, None)[0][0]
                expected = torch.cat([slow(layer, part) for part in parts])  # type: ignore[arg-type]
                assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8), arm
        twin = initialise(mixer("invariant", 8, expand=1, states=3).build(), seed=0)
        assert isinstance(twin, Mamba)
        seen = [item[0, 0] for u in torch.randn(2, 1, 1, 8) for item in twin.selection(u)]
        assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True)), "the twin reads its input"


def _slow_mamba(layer: Mamba, x: Tensor) -> Tensor:
    """Algorithm 2 with every discretised matrix written out; x [t, h]."""
    weight = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    inner, width = x @ weight["inward.weight"].T, layer.past + 1
    a = -weight["log_decay.weight"][0].exp()
    h, outputs = torch.zeros_like(a), []
    for t in range(len(x)):
        taps = [
            inner[t - width + 1 + k] * weight["conv.weight"][:, 0, k] for k in range(width) if t - width + 1 + k >= 0
        ]
        u = F.silu(torch.stack(taps).sum(0) + weight["conv.bias"])
        rank, b, c = (weight["selection.project.weight"] @ u).split([x.shape[1] // 16 + 1, *[layer.num_states] * 2])
        step = torch.log1p(torch.exp(weight["selection.step.weight"] @ rank + weight["step_bias.weight"]))
        h = torch.exp(step[:, None] * a) * h + (step * u)[:, None] * b
        outputs.append(h @ c + weight["skip.weight"] * u)
    return torch.stack(outputs) @ weight["out.weight"].T


def _slow_s4d(layer: S4D, x: Tensor) -> Tensor:
    """Zero-order hold and the recurrence; x [t, h]."""
    step, c = torch.exp(layer.log_step)[:, None], torch.complex(*layer.c().unbind(-1))
    a = torch.complex(-torch.exp(layer.log_damping), layer.frequency)
    h, outputs = torch.zeros_like(a), []
    for u in x:
        h = torch.exp(step * a) * h + (torch.exp(step * a) - 1) / a * u[:, None]
        outputs.append(2 * (c * h).sum(1).real + layer.skip * u)
    return layer.out(F.gelu(torch.stack(outputs)))


def _wrapping(u: Tensor, response: Tensor) -> Tensor:
    time = u.shape[1]
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=time) * torch.fft.rfft(response, n=time)
    return torch.fft.irfft(spectrum, n=time).transpose(1, 2)


def _euler(step: Tensor, log_damping: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    scaled = step.unsqueeze(-1) * torch.complex(-torch.exp(log_damping), frequency)
    return scaled, step.unsqueeze(-1).expand_as(scaled).to(scaled.dtype)


def _peeking(self: Invariant, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return u, self.b().expand(*u.shape[:2], -1), self.c().expand(*u.shape[:2], -1)


BUGS = {
    NEGATIVE: Bug(mamba_file, "negative", torch.exp),
    SOFTPLUS: Bug(mamba_file, "softplus", lambda x: x),
    CARRIED: Bug(mamba_file, "starts", lambda segments: None),
    WRAPPED: Bug(s4d_file, "long_convolution", _wrapping),
    EULER: Bug(s4d_file, "discretise", _euler),
    PEEKING: Bug(Invariant, "compute", _peeking),
}
