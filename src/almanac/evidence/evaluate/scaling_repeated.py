"""How often a text may be read: up to four times it is nearly as good as new, and thirty-two times it is not."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

import almanac.evaluate.scaling_repeated as technique
from almanac.core.technique import initialise
from almanac.evaluate.scaling import Law
from almanac.evaluate.scaling_descent import Array
from almanac.evaluate.scaling_law import Points, fit_law
from almanac.evaluate.scaling_repeated import MUENNIGHOFF, RepeatedLaw
from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.fitting import count, fit, flops, next_nll
from almanac.evidence.fixtures.planted_bugs import Bug, Bugs, planted
from almanac.evidence.fixtures.tiny import Tiny, held_out_nll, spec
from almanac.evidence.outcome import Outcome

WHOLE = "every arm reads the whole text"
EPOCHS = "equal epochs instead of equal tokens"
LINEAR = "a repeated token is worth a new one"

TIMES = {"once": 1, "4 times": 4, "a quarter once": 4, "8 times": 8, "32 times": 32}
CARD = Card(
    name="evaluate.scaling_repeated",
    title="Reading a text again: four times are nearly as good as new, thirty-two are not",
    claim=(
        "with constrained data for a fixed compute budget, training with up to 4 epochs of repeated data yields negligible "
        "changes to loss compared to having unique data; with more repetition, the value of adding compute eventually "
        "decays to zero"
    ),
    source="Muennighoff 2023, arXiv 2305.16264, abstract",
    toy_claim=(
        "a character model that reads a quarter of Python's docstrings four times is within 0.07 nats of one that reads all "
        "of them once, and far better than had it read the quarter once; one that reads a thirty-second of them thirty-two "
        "times is at least 0.2 nats worse"
    ),
    scope="where the line lies for large models, regularised ones, or text with copies in it; nor the constants of the law",
    tier="real",
    arms=(
        Arm(name="4 times", role=METHOD, what="a quarter of the text, read four times"),
        Arm(name="once", role=BASELINE, what="as many tokens, none of them seen before"),
        Arm(name="a quarter once", role=TWIN, what="the quarter, read once: all of the method but the repetition"),
        Arm(name="8 times", role=CONTROL, what="an eighth, eight times"),
        Arm(name="32 times", role=CONTROL, what="a thirty-second, thirty-two times"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm="4 times", over="once"),
            expected=0.045,
            fail=0.07,
            says="what four readings cost, nats a character",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm="a quarter once", over="4 times"),
            expected=0.5,
            fail=0.3,
            says="what the three further readings bring",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm="32 times", over="4 times"),
            expected=1.4,
            fail=0.2,
            says="what thirty-two cost beyond that",
        ),
    ),
    gates=(Gate(arm="once", metric="nll", at_most=2.1, why="the model learns the text"),),
    null="32 times",
    equal="tokens",
    budget_arms=("4 times", "once", "32 times"),
    mutants=(
        Mutant(name=WHOLE, what="the subset is not taken: nothing is repeated", arms=("32 times",)),
        Mutant(
            name=EPOCHS, what="an arm stops when it has read its text as often as the baseline did", arms=("4 times",)
        ),
        Mutant(name=LINEAR, what="the law's effective data are all of the data"),
    ),
    seeds=5,
    budget_minutes=25.0,
    plot=Plot(metric="nll", y="held-out nats a character"),
)
SIZES = {"quick": Tiny(hidden=64, layers=2, steps=200), "full": Tiny(), "gpu": Tiny(hidden=256, layers=6, steps=4000)}


def subset(share: float, seed: int) -> Tensor:
    """About ``share`` of the training text, int64 [characters]: whole stretches of 2,048 drawn without replacement."""
    whole = text.tokens("train")
    stretches = whole[: len(whole) // STRETCH * STRETCH].view(-1, STRETCH)
    order = torch.randperm(len(stretches), generator=torch.Generator().manual_seed(seed))
    return stretches[order[: max(1, math.floor(share * len(stretches)))]].flatten()


STRETCH = 2048


def order(chosen: Tensor, tiny: Tiny, seed: int) -> Tensor:
    """Rows for every step, int64 [steps, rows, time]: the text cut into rows, in another order each time it is read."""
    rows = chosen[: len(chosen) // tiny.time * tiny.time].view(-1, tiny.time)
    generator = torch.Generator().manual_seed(seed)
    needed, taken = tiny.steps * tiny.rows, 0
    parts: list[Tensor] = []
    while taken < needed:
        parts.append(torch.randperm(len(rows), generator=generator))
        taken += len(rows)
    return rows[torch.cat(parts)[:needed]].view(tiny.steps, tiny.rows, tiny.time)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One model on its share of the text; all read as many characters, which the whole text has."""
    tiny, times = SIZES[profile], TIMES[arm]
    wanted = tiny.steps * tiny.rows * tiny.time
    whole = len(text.tokens("train"))
    share = min(1.0, wanted / whole) / (1 if mutant == WHOLE else times)
    if mutant == EPOCHS or arm == "a quarter once":
        tiny = tiny.with_(steps=tiny.steps // times)
    chosen = subset(share, seed)
    batches = order(chosen, tiny, seed + 1)
    network = initialise(spec(tiny).build(), seed=seed)

    def loss(step: int) -> Tensor:
        return next_nll(network, batches[step])

    network.train()
    losses = fit(network.parameters(), loss, steps=tiny.steps, rate=tiny.rate)
    network.eval()
    metrics = {
        "nll": held_out_nll(network, rows=256),
        "training": sum(losses[-20:]) / 20,
        "read": batches.numel() / len(chosen),
        "worth": MUENNIGHOFF.effective_tokens(float(batches.numel()), float(len(chosen))) / batches.numel(),
    }
    budget = {"tokens": float(batches.numel()), "flops": tiny.steps * flops(lambda: loss(0).backward())}
    return Outcome(metrics, budget | {"parameters": float(count(network))}, data=text.digest())


def _linear(amount: float, unique: float, constant: float) -> float:
    return amount


def _linear_worth(amount: Array, unique: Array, log_constant: Array) -> tuple[Array, Array]:
    return amount * np.ones_like(log_constant), np.zeros_like(amount * log_constant)


BUGS: Bugs = {
    WHOLE: (),
    EPOCHS: (),  # these two: see `run`
    LINEAR: (Bug(technique, "_effective", _linear), Bug(technique, "_worth", _linear_worth)),
}


def check(mutant: str | None) -> None:
    """The law's published constants say what the paper says; planted constants are recovered from simulated runs."""
    with planted(mutant, BUGS):
        law = MUENNIGHOFF
        assert abs(law.base.parameters_for(1e9) / 1e9 - 0.051) < 5e-4, "U_N = 0.051 U_D"
        assert 3.6 < law.effective_tokens(4e9, 1e9) / 1e9 < 4, "four readings are worth nearly four new texts"
        assert law.loss(1e9, 4e10, 1e10) / law.loss(1e9, 4e10) < 1.01, "and the loss hardly tells"
        limit = law.effective_tokens(1e15, 1e9) / 1e9
        assert abs(limit - (1 + law.R_D)) < 1e-3, "no repetition makes more of a text than 1 + R_D of it"
        rng = np.random.default_rng(0)
        size, tokens = 10 ** rng.uniform(7, 10, 60), 10 ** rng.uniform(9, 11, 60)
        unique = tokens / 10 ** rng.uniform(0, 1.7, 60)
        planted_law = RepeatedLaw(base=Law(E=1.5, A=400.0, B=900.0, alpha=0.33, beta=0.31), R_D=6.0, R_N=12.0)
        losses = [planted_law.loss(*map(float, row)) for row in zip(size, tokens, unique, strict=True)]
        found = fit_law(planted_law.with_(R_D=15.0, R_N=5.0), Points(size, tokens, np.array(losses), unique))
        assert isinstance(found, RepeatedLaw)
        assert abs(found.R_D - 6) < 0.01 and abs(found.R_N - 12) < 0.01, found
