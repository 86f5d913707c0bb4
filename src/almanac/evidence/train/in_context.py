"""A transformer trained on fresh linear functions learns to fit a line in context; trained on sixteen, it does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.spec import Normal
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.evidence.card import CEILING, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures.fitting import count, fit, flops
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm

LEAK = "the label stands at the question already"
FAMILIAR = "tested on the tasks of training"
LAST = "only the last question is ever trained, and all are tested"

CARD = Card(
    name="train.in_context",
    title="In-context linear regression: as good as least squares, if tasks were many",
    claim=(
        "standard Transformers can be trained from scratch to in-context learn linear functions on unseen functions, "
        "with performance comparable to the optimal least squares estimator"
    ),
    source="Garg 2022, arXiv 2208.01066, abstract and figure 2; task diversity: Raventós 2023, arXiv 2306.15063",
    toy_claim=(
        "a small decoder trained on random linear functions of 4 variables, a new one in every row, predicts new "
        "functions from n < 4 examples nearly as well as minimum-norm least squares; the same decoder trained on 16 "
        "functions does not, though it is good at those 16"
    ),
    scope="in-context learning of language, of more variables, or with noise; how the network does it",
    tier="planted",
    arms=(
        Arm(name="fresh", role=METHOD, what="a new function in every training row"),
        Arm(name="sixteen", role=TWIN, what="the same, but every row uses one of sixteen functions"),
        Arm(name="least squares", role=CEILING, what="minimum-norm least squares on the examples so far"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="few", arm="fresh", over="least squares"),
            expected=0.06,
            fail=0.15,
            says="error beyond least squares with 1 to 3 examples (a guess of 0 has 0.5)",
        ),
        AtMost(
            effect=Effect(metric="many", arm="fresh", over="least squares"),
            expected=0.04,
            fail=0.15,
            says="error beyond least squares with 8 to 11 examples",
        ),
        AtLeast(
            effect=Effect(metric="few", arm="sixteen", over="fresh"),
            expected=0.25,
            fail=0.1,
            says="what the diversity of tasks is worth with 1 to 3 examples",
        ),
        AtLeast(
            effect=Effect(metric="few", arm="sixteen", over="least squares"),
            expected=0.3,
            fail=0.2,
            says="sixteen tasks do not teach regression",
        ),
    ),
    gates=(
        Gate(arm="fresh", metric="none", at_least=0.9, why="without an example nothing can be known"),
        Gate(arm="sixteen", metric="none", at_least=0.9, why="without an example nothing can be known"),
        Gate(arm="sixteen", metric="familiar", at_most=0.25, why="the twin is good at its own tasks"),
        Gate(arm="sixteen", metric="late gain", at_most=0.03, why="more steps would not help the twin"),
        Gate(arm="least squares", metric="many", at_most=1e-6, why="enough examples determine the function"),
    ),
    null="sixteen",
    equal="flops",
    budget_arms=("fresh", "sixteen"),
    mutants=(
        Mutant(name=LEAK, what="the token of the question holds its label"),
        Mutant(name=FAMILIAR, what="the twin is tested on its sixteen functions", arms=("sixteen",)),
        Mutant(name=LAST, what="the loss sees only the question after all examples"),
    ),
    seeds=4,
    plot=Plot(metric="error", lines=True, x="examples in context", y="squared error / 4 on new functions"),
)
DIMENSION, EXAMPLES = 4, 12  # questions at 0 ... 11 examples
TASKS = 16
TESTED = 2048
SEGMENTS = 4  # parts of the run after which the error is looked at


@dataclass(frozen=True)
class Size:
    """Width, layers, heads, rows of a step, steps, highest learning rate."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    rows: int = 64
    steps: int = 1500
    rate: float = 4e-3


SIZES = {"quick": Size(hidden=48, steps=300), "full": Size(), "gpu": Size(hidden=128, layers=6, steps=20_000)}


class Regressor(nn.Module):
    """(x, y) pairs -> a prediction for every x from the pairs before it.

    Each example is two tokens: the question (x, 0, 1) and the answer (x, y, 0), as in von Oswald 2022 (arXiv 2212.07677),
    so that no positions are needed. x [b, n, 4], y [b, n] -> [b, n].
    """

    def __init__(self, size: Size, *, leak: bool = False) -> None:
        super().__init__()
        wide = Normal(std=0.1)
        norm = LayerNorm.Spec(hidden=size.hidden)
        mixer = attention(size.hidden, num_heads=size.heads).replace("{q,k,v,o}", initialiser=wide)
        channel = dense(size.hidden, 4 * size.hidden).replace("{up,down}", initialiser=wide)
        block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
        self.leak = leak
        self.inward = Linear.Spec(
            in_features=DIMENSION + 2, out_features=size.hidden, bias=True, initialiser=Normal(std=0.4)
        ).build()
        self.layers = nn.ModuleList([block.build() for _ in range(size.layers)])
        self.norm = norm.build()
        self.outward = Linear.Spec(in_features=size.hidden, out_features=1, bias=True).build()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shown = y if self.leak else torch.zeros_like(y)
        questions = torch.cat([x, shown[..., None], torch.ones_like(y)[..., None]], dim=-1)
        answers = torch.cat([x, y[..., None], torch.zeros_like(y)[..., None]], dim=-1)
        tokens = torch.stack([questions, answers], dim=2).flatten(1, 2)  # [b, 2n, 6]
        hidden = self.inward(tokens)
        context = Context(positions=torch.arange(hidden.shape[1]).expand(len(hidden), -1))
        for layer in self.layers:
            hidden, _ = layer(hidden, context)
        return self.outward(self.norm(hidden))[:, ::2, 0]


def examples(generator: torch.Generator, rows: int, tasks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [rows, n, 4] and y = w·x [rows, n], each row with its own w ~ N(0, 1), or one of ``tasks`` [k, 4]."""
    x = torch.randn(rows, EXAMPLES, DIMENSION, generator=generator)
    if tasks is None:
        w = torch.randn(rows, DIMENSION, generator=generator)
    else:
        w = tasks[torch.randint(len(tasks), (rows,), generator=generator)]
    return x, torch.einsum("bnd,bd->bn", x, w)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """Minimum-norm least squares: the prediction of every y from the pairs before it, [b, n]."""
    x, y = x.double(), y.double()
    found = [torch.zeros(len(x), dtype=torch.float64)]
    for n in range(1, x.shape[1]):
        w = torch.linalg.pinv(x[:, :n]) @ y[:, :n, None]
        found.append((x[:, n : n + 1] @ w)[:, 0, 0])
    return torch.stack(found, dim=1).to(torch.float32)


def _tasks(seed: int) -> Tensor:
    return torch.randn(TASKS, DIMENSION, generator=torch.Generator().manual_seed(seed * 7919 + 1))


def errors(predict: Callable[[Tensor, Tensor], Tensor], seed: int, tasks: Tensor | None = None) -> list[float]:
    """Mean squared error over 4 after 0, 1, ... examples, on new functions (or ``tasks``); 1 is a guess of 0."""
    x, y = examples(torch.Generator().manual_seed(seed * 7919 + 2), TESTED, tasks)
    with torch.no_grad():
        return ((predict(x, y) - y).square().mean(dim=0) / DIMENSION).tolist()


def _few(found: list[float]) -> float:
    return sum(found[1:DIMENSION]) / (DIMENSION - 1)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One trained network (or least squares), tested on new functions."""
    if arm == "least squares":
        return _scored(errors(least_squares, seed), {})
    size = SIZES[profile]
    network = Regressor(size, leak=mutant == LEAK)
    initialise(network, seed=seed)
    tasks = _tasks(seed) if arm == "sixteen" else None
    generator = torch.Generator().manual_seed(seed * 7919 + 3)
    halfway: list[float] = []

    def loss(step: int) -> Tensor:
        if step == size.steps * (SEGMENTS - 1) // SEGMENTS:
            halfway.append(_few(errors(network, seed)))
        x, y = examples(generator, size.rows, tasks)
        error = (network(x, y) - y).square()
        return error[:, -1].mean() if mutant == LAST else error.mean()

    fit(network.parameters(), loss, steps=size.steps, rate=size.rate, final=0.02)
    found = errors(network, seed, tasks if mutant == FAMILIAR else None)
    familiar = errors(network, seed, tasks) if tasks is not None else found
    step = flops(lambda: network(*examples(torch.Generator().manual_seed(0), size.rows)).sum().backward())
    extra = {"familiar": sum(familiar[4:]) / len(familiar[4:]), "late gain": halfway[0] - _few(found)}
    budget = {"flops": step * size.steps, "parameters": count(network), "steps": size.steps}
    outcome = _scored(found, budget)
    return Outcome({**outcome.metrics, **extra}, budget, outcome.curves)


def _scored(found: list[float], budget: dict[str, float]) -> Outcome:
    late = found[2 * DIMENSION :]
    metrics = {"none": found[0], "few": _few(found), "many": sum(late) / len(late)}
    return Outcome(metrics, budget, {"error": list(enumerate(found))})


@functools.cache
def _small() -> Regressor:
    network = Regressor(Size(hidden=16, layers=1, heads=2))
    initialise(network, seed=0)
    return network


def check(mutant: str | None) -> None:
    """A prediction hangs on the examples before it alone; least squares has its known error 1 - n/4 on average."""
    network = Regressor(Size(hidden=16, layers=1, heads=2), leak=mutant == LEAK)
    network.load_state_dict(_small().state_dict())
    x, y = examples(torch.Generator().manual_seed(0), 4)
    changed = y.clone()
    changed[:, 5:] += 1
    with torch.no_grad():
        same = torch.equal(network(x, y)[:, :6], network(x, changed)[:, :6])
    assert same, "a label is seen before it is asked for"
    found = errors(least_squares, 0)
    assert all(abs(found[n] - max(0.0, 1 - n / DIMENSION)) < 0.08 for n in range(EXAMPLES)), found
