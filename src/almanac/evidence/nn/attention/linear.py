"""Recall: what linear attention loses, at a plateau, for a memory that does not grow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.spec import Normal
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, AtMost, Effect
from almanac.evidence.nn.recurrent import answering
from almanac.evidence.nn.recurrent.answering import Task
from almanac.evidence.outcome import Outcome
from almanac.nn.attention import linear as linear_file
from almanac.nn.attention.full import attention
from almanac.nn.attention.linear import Memory, feature, linear_attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.stack import Decoder

LEAKING, FORGOTTEN, SIGNED, CARRIED = "future seen", "normaliser forgotten", "features negative", "sums carried over"
SHORT, LONG = 64, 1024  # tokens, between which a state's bytes are compared

CARD = Card(
    name="nn.attention.linear",
    title="Linear attention trades recall for a memory of fixed size",
    claim=(
        "with features in place of the softmax, attention is a recurrence whose memory does not depend on the length; what "
        "such a memory costs is associative recall"
    ),
    source="Katharopoulos 2020, arXiv 2006.16236, section 3.4; Arora 2023, arXiv 2312.04927",
    toy_claim=(
        "after eight key-value pairs, two layers of eight heads of 8 with softmax attention name the value of every key "
        "asked for, and the same layers with linear attention stay far below after as many steps; its state has as many "
        "bytes after 1024 tokens as after 64"
    ),
    scope=(
        "speed; language; states that are large for what is to be recalled: with one head of 64 linear attention, too, comes "
        "to recall all; models with convolutions or other feature maps"
    ),
    tier="planted",
    arms=(
        Arm(
            name="linear",
            role="method",
            what="linear attention with elu + 1, eight heads of 8: a state of 8 · 8 · 9 numbers a layer",
        ),
        Arm(name="softmax", role="baseline", what="softmax attention, all else equal"),
        Arm(name="one head", role="control", what="linear attention with one head of 64: a state seven times as large"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="accuracy", arm="linear", over="softmax"),
            fail=-0.2,
            expected=-0.7,
            says="linear attention recalls less",
        ),
        Always(
            effect=Effect(metric="state_growth", arm="linear"),
            least=1.0,
            most=1.0,
            expected=1.0,
            says="its state does not grow with the text",
        ),
    ),
    gates=(
        Gate(
            arm="softmax", metric="accuracy", at_least=0.9, why="softmax attention learns the task in this many steps"
        ),
        Gate(arm="linear", metric="accuracy", at_least=0.1, why="linear attention does better than guessing one of 16"),
        Gate(arm="linear", metric="late_gain", at_most=0.02, why="linear attention has stopped improving"),
    ),
    null="softmax",
    equal="tokens",
    budget_arms=("linear", "softmax", "one head"),
    mutants=(
        Mutant(name=LEAKING, what="the sums run over the whole text, so that tokens see what follows"),
        Mutant(name=FORGOTTEN, what="the sum of the weights is not divided by"),
        Mutant(name=SIGNED, what="elu without the one: weights may be negative"),
        Mutant(name=CARRIED, what="a packed sequence begins with the sums of the one before it"),
    ),
    plot=Plot(metric="accuracy", lines=True, x="training steps", y="values named"),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The task and the training."""

    pairs: int = 8
    keys: int = 16
    values: int = 16
    hidden: int = 64
    heads: int = 8
    rows: int = 32
    steps: int = 2000
    rate: float = 3e-3
    tests: int = 1024


SIZES = {"full": Size(), "quick": Size(pairs=4, heads=4, steps=400, tests=512)}
RATES: dict[str, float] = {}  # of arms whose best rate of the grid 1e-3, 3e-3, 1e-2 is not 3e-3


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm and measures how many of the values it names."""
    size = SIZES[profile]
    with _broken(mutant):
        return train(arm, seed, size, RATES.get(arm, size.rate))


def train(arm: str, seed: int, size: Size, rate: float) -> Outcome:
    """`run` at a given learning rate."""
    outcome = answering.train(initialise(model(arm, size).build(), seed=seed), data(size, seed), rate=rate)
    growth = state_bytes(arm, size, LONG) / state_bytes(arm, size, SHORT)
    return replace(outcome, metrics={**outcome.metrics, "state_growth": growth})


@torch.inference_mode()
def state_bytes(arm: str, size: Size, time: int) -> int:
    """Bytes of the state after ``time`` tokens, in a model of the same layers with room for them."""
    network = initialise(model(arm, size, length=LONG).build(), seed=0)
    assert isinstance(network, Decoder)
    _, state = network.hidden(torch.zeros(1, time, dtype=torch.int64), network.init_state(1, time))
    assert state is not None
    return state.nbytes


@functools.cache
def data(size: Size, seed: int) -> Task:
    """Rows of 3 pairs tokens, of which the last third is asked.

    A row is key, value, key, value, ..., all keys different, and then the keys again in another order; at each of those
    its value is asked for. Values may repeat.
    """
    total = size.steps * size.rows + size.tests
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(total, size.keys, generator=generator).argsort(1)[:, : size.pairs]
    values = torch.randint(0, size.values, (total, size.pairs), generator=generator)
    order = torch.rand(total, size.pairs, generator=generator).argsort(1)
    shown = torch.stack([keys, values + size.keys], dim=2).flatten(1)
    inputs, targets = torch.cat([shown, keys.gather(1, order)], dim=1), values.gather(1, order)
    return Task.split(inputs, targets, tests=size.tests, rows=size.rows)


class PlacedEmbedding(nn.Module):
    """ids int64 [b, t], from the first place of a text on -> the token's and the place's vectors added, [b, t, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        tokens: Embedding.Spec
        places: LearnedPositions.Spec

        @property
        def vocab_size(self) -> int:
            return self.tokens.vocab_size

        def build(self) -> PlacedEmbedding:
            return PlacedEmbedding(self)

    def __init__(self, spec: PlacedEmbedding.Spec) -> None:
        super().__init__()
        self.tokens, self.places = spec.tokens.build(), spec.places.build()

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.places(torch.arange(ids.shape[1]).expand_as(ids))


def model(arm: str, size: Size, *, length: int | None = None) -> Decoder.Spec:
    """Two layers with channels, learned positions; arms differ in the rule between q, k, v and o alone."""
    norm, hidden, wide = LayerNorm.Spec(hidden=size.hidden), size.hidden, size.keys + size.values
    rule, heads = attention if arm == "softmax" else linear_attention, 1 if arm == "one head" else size.heads
    length = length or 3 * size.pairs
    block = Block.Spec(
        mixer_norm=norm,
        mixer=rule(hidden, num_heads=heads),
        channel_norm=norm,
        channel=dense(hidden, 2 * hidden),
    )
    embed = PlacedEmbedding.Spec(
        tokens=Embedding.Spec(vocab_size=wide, hidden=hidden),
        places=LearnedPositions.Spec(length=length, hidden=hidden),
    )
    found = Decoder.Spec(
        embed=cast("Embedding.Spec", embed),
        layers=(block,) * 2,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=hidden, out_features=size.values)),
        context_length=length,
    )
    return _widened(found, hidden)


def _widened(found: Decoder.Spec, hidden: int) -> Decoder.Spec:
    """The spec with weights of 1/sqrt(hidden) and vectors of 0.3: from the usual 0.02, so small a model stays where it is."""
    maps = [path for path, item in found.walk() if isinstance(item, Linear.Spec)]
    found = found.replace("{" + ",".join(maps) + "}", initialiser=Normal(std=hidden**-0.5))
    return found.replace("{embed.tokens,embed.places}", initialiser=Normal(std=0.3))


def check(mutant: str | None) -> None:
    """The layer against the explicit matrix of its kernel in float64, on two packed sequences."""
    layer = initialise(linear_attention(12, num_heads=3).build(), seed=0).double()
    for number, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
    x = torch.randn(1, 100, 12, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    segments = torch.tensor([[0] * 70 + [1] * 30])
    with _broken(mutant), torch.no_grad():
        for given in (None, segments):
            found = layer(x, Context(positions=torch.arange(100).unsqueeze(0), segments=given), None)[0]
            q, k, v = (leaf(x).view(1, 100, 3, 4).transpose(1, 2) for leaf in (layer.q, layer.k, layer.v))
            kernel = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)).tril()
            if given is not None:
                kernel = kernel * (given[:, None, :, None] == given[:, None, None, :])
            expected = layer.o(((kernel / kernel.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2))
            assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8)


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug."""
    if mutant is None:
        yield
        return
    name, planted = MUTANTS[mutant]
    with patch.object(linear_file, name, planted):
        yield


def _leaking(
    q: Tensor, k: Tensor, v: Tensor, memory: Memory, *, segments: Tensor | None = None
) -> tuple[Tensor, Memory]:
    sums, total = k.transpose(-1, -2) @ v, k.sum(2)
    return (q @ sums) / (q @ total.unsqueeze(-1)), (sums, total)


def _forgotten(
    q: Tensor, k: Tensor, v: Tensor, memory: Memory, *, segments: Tensor | None = None
) -> tuple[Tensor, Memory]:
    return (q @ k.transpose(-1, -2)).tril() @ v, (k.transpose(-1, -2) @ v, k.sum(2))


def _signed(x: Tensor) -> Tensor:
    return feature(x) - 1


_healthy = linear_file.attend


def _carried(
    q: Tensor, k: Tensor, v: Tensor, memory: Memory, *, segments: Tensor | None = None
) -> tuple[Tensor, Memory]:
    return _healthy(q, k, v, memory)


MUTANTS: dict[str, tuple[str, Any]] = {
    LEAKING: ("attend", _leaking),
    FORGOTTEN: ("attend", _forgotten),
    SIGNED: ("feature", _signed),
    CARRIED: ("attend", _carried),
}
