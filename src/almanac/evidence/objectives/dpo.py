"""DPO on preferences that follow a reward ends where reinforcement learning with a KL penalty would: at the closed form."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import preferences
from almanac.evidence.fixtures.fitting import fit
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.evidence.outcome import Outcome
from almanac.nn.stack import Decoder
from almanac.objectives import dpo

TABLE, SEQUENCES, CHOSEN, REFERENCE = "table", "sequences", "chosen only", "reference"
CARD = Card(
    name="objectives.dpo",
    title="DPO reaches the closed-form optimum of reward under a KL penalty",
    claim="the optimal policy of the KL-constrained reward objective is found by a classification loss on preferences",
    source="Rafailov 2023, arXiv 2305.18290, equations 4 and 7, theorem 1",
    toy_claim=(
        "with Bradley-Terry preferences over every pair of answers, a table of logits and a small decoder over answers of "
        "one to three tokens trained by DPO both reach π_ref · exp(r / beta), known by enumeration; training on the "
        "preferred answers alone does not"
    ),
    scope="preferences that are few, noisy beyond Bradley-Terry or drawn far from the policy; answers of more tokens",
    tier="planted",
    arms=(
        Arm(name=TABLE, role=METHOD, what="a logit for every answer of every prompt, trained by DPO"),
        Arm(name=SEQUENCES, role=METHOD, what="a decoder that writes answers token by token, trained by DPO"),
        Arm(name=CHOSEN, role=BASELINE, what="the same decoder, trained on the preferred answer of every pair"),
        Arm(name=REFERENCE, role=CONTROL, what="the decoder as it began"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="tv", arm=TABLE),
            expected=1e-6,
            says="total variation of the table to the optimum, the largest over prompts",
            fail=1e-2,
        ),
        AtMost(
            effect=Effect(metric="tv", arm=SEQUENCES),
            expected=2e-3,
            says="total variation of the decoder to the optimum, the largest over prompts",
            fail=1e-2,
        ),
        AtMost(
            effect=Effect(metric="short_of_optimum", arm=SEQUENCES),
            expected=1e-3,
            says="share of what there was to gain in reward less beta KL that the decoder missed",
            fail=0.05,
        ),
        AtLeast(
            effect=Effect(metric="tv", arm=CHOSEN, over=SEQUENCES),
            expected=0.3,
            says="how much further from the optimum training on preferred answers ends",
            fail=0.1,
        ),
    ),
    gates=(
        Gate(arm=REFERENCE, metric="tv", why="there is a way to go from the reference", at_least=0.2),
        Gate(arm=CHOSEN, metric="own_tv", why="the baseline reaches its own optimum", at_most=0.02),
    ),
    null=CHOSEN,
    equal="tokens",
    budget_arms=(SEQUENCES, CHOSEN),
    mutants=(
        Mutant(
            name="reference is the policy", what="the reference's log-probabilities are the policy's of that moment"
        ),
        Mutant(name="means", what="log-probabilities are averaged over an answer's tokens"),
        Mutant(name="swapped", what="the rejected answer is taken for the preferred one"),
        Mutant(
            name="prompt counted",
            what="the prompt's tokens are summed too: cancels in the loss of pairs with one prompt, so for the oracle",
        ),
    ),
    plot=Plot(metric="tv"),
    budget_minutes=8,
)
BETA, ANSWERS = 1.0, 12
PROMPTS = [
    (1, 2),
    (2, 1),
    (3, 4),
]  # no letter twice: rotary attention cannot tell how many equal tokens a row begins with
SIZE = Tiny(hidden=48, layers=2, heads=4, context=16)
STEPS = {"quick": {TABLE: 1500, SEQUENCES: 250}, "full": {TABLE: 3000, SEQUENCES: 800}}
RATE = {TABLE: 0.05, SEQUENCES: 3e-3}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One policy, trained on every pair of every prompt at each step."""
    with broken(mutant):
        if arm == TABLE:
            return _table(seed, STEPS[profile][TABLE])
        return _sequences(arm, seed, 0 if arm == REFERENCE else STEPS[profile][SEQUENCES])


def check(mutant: str | None) -> None:
    """The log-probability of an answer by hand, and the gradient at the reference: half of beta, up and down."""
    with broken(mutant):
        rows = preferences.answer_rows(PROMPTS)
        logits = torch.randn(*rows.tokens.shape, preferences.VOCAB, generator=torch.Generator().manual_seed(0))
        found = dpo.answer_logprobs(logits, rows)
        for row, (tokens, mask) in enumerate(zip(rows.tokens.tolist(), rows.loss_mask.tolist(), strict=True)):
            scored = [at for at in range(1, len(tokens)) if mask[at]]
            byhand = sum(float(logits[row, at - 1].log_softmax(0)[tokens[at]]) for at in scored)
            assert abs(byhand - float(found[row])) < 1e-4, "the sum over the answer's tokens"
        policy = torch.tensor([[-3.0, -1.0], [-2.0, -4.0]], requires_grad=True)
        loss, _ = dpo.dpo((policy[0], policy[1]), (policy[0].detach(), policy[1].detach()), beta=0.3)
        loss.backward()
        assert abs(loss.item() - math.log(2)) < 1e-6, "log 2 at the reference"
        assert policy.grad is not None and torch.allclose(policy.grad, torch.tensor([[-0.075] * 2, [0.075] * 2]))
        moved, _ = dpo.dpo((policy[0] + 1, policy[1]), (policy[0].detach(), policy[1].detach()), beta=0.3)
        assert abs(moved.item() - math.log1p(math.exp(-0.3))) < 1e-6, "a nat more for the chosen answer"


def _table(seed: int, steps: int) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64
    reference = torch.randn(len(PROMPTS), ANSWERS, generator=generator, dtype=exact).log_softmax(-1)
    reward = torch.randn(len(PROMPTS), ANSWERS, generator=generator, dtype=exact)
    logits = nn.Parameter(reference.clone())

    def loss(step: int) -> Tensor:
        return preference_loss(logits.log_softmax(-1), reference, reward)

    fit([logits], loss, steps=steps, rate=RATE[TABLE], weight_decay=0.0, final=0.0)
    return _outcome(logits.detach().log_softmax(-1), reference, reward, tokens=0)


def _sequences(arm: str, seed: int, steps: int) -> Outcome:
    rows = preferences.answer_rows(PROMPTS)
    network = random_decoder(seed)
    with torch.no_grad():
        reference = _laws(network, rows)
    reward = rewards(seed)

    def loss(step: int) -> Tensor:
        policy = _laws(network, rows)
        if arm == CHOSEN:
            counts = preferences.preferred(reward)
            return -(counts * policy[..., :, None]).sum() / counts.sum()
        return preference_loss(policy, reference, reward)

    fit(network.parameters(), loss, steps=steps, rate=RATE[SEQUENCES], weight_decay=0.0, final=0.0)
    with torch.no_grad():
        policy, start = (_laws(item, rows, measured=True) for item in (network, random_decoder(seed)))
    return _outcome(policy, start, reward, tokens=steps * rows.tokens.numel())


def _outcome(policy: Tensor, reference: Tensor, reward: Tensor, *, tokens: int) -> Outcome:
    """How far a policy is from the best, and from what training on preferred answers alone would end at."""
    policy, reference = policy.double(), reference.double()
    best = preferences.optimum(reference, reward.double(), beta=BETA)
    reached, start, top = (
        preferences.objective(item, reference, reward.double(), beta=BETA).mean() for item in (policy, reference, best)
    )
    chosen = preferences.preferred(reward.double()).sum(-1).log()
    metrics = {
        "tv": float(preferences.total_variation(policy, best).max()),
        "own_tv": float(preferences.total_variation(policy, chosen.log_softmax(-1)).max()),
        "short_of_optimum": float((top - reached) / (top - start)),
        "mass": float(policy.exp().sum(-1).mean()),
    }
    return Outcome(metrics, {"tokens": tokens})


def preference_loss(policy: Tensor, reference: Tensor, reward: Tensor) -> Tensor:
    """DPO over every ordered pair of answers of a prompt, each as often as it comes out that way round."""
    counts = preferences.preferred(reward)  # [prompts, answers, answers]
    width = policy.shape[-1]

    def sides(values: Tensor) -> tuple[Tensor, Tensor]:
        first = values[..., :, None].expand(-1, width, width)
        return first.flatten(), first.transpose(1, 2).flatten()

    return dpo.dpo(sides(policy), sides(reference), beta=BETA, counts=counts.flatten())[0]


def _laws(network: Decoder, rows: Tokens, *, measured: bool = False) -> Tensor:
    """Log-probabilities [prompts, answers], ``measured`` as they are whatever bug is planted."""
    of = HEALTHY if measured else dpo.answer_logprobs
    return of(network(rows.tokens), rows).view(len(PROMPTS), -1)


@functools.cache
def rewards(seed: int) -> Tensor:
    """A planted reward for every answer to every prompt, [prompts, answers]."""
    generator = torch.Generator().manual_seed(seed + 10_000)
    return torch.randn(len(PROMPTS), len(preferences.answers()), generator=generator)


def random_decoder(seed: int) -> Decoder:
    """The reference: random weights, wide enough that its answers are far from equally probable."""
    network = initialise(spec(SIZE, vocab=preferences.VOCAB).build(), seed=seed)
    assert isinstance(network, Decoder)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            Normal(std=0.15).fill(parameter, generator)
    return network


@contextmanager
def broken(mutant: str | None) -> Iterator[None]:
    """The objective with one planted bug, put right again afterwards."""
    if mutant is None:
        yield
        return
    name, planted = MUTANTS[mutant]
    with patch.object(dpo, name, planted):
        yield


def _self_reference(policy: Pair, reference: Pair, *, beta: float) -> Pair:
    return beta * (policy[0] - policy[0].detach()), beta * (policy[1] - policy[1].detach())


def _swapped(policy: Pair, reference: Pair, *, beta: float) -> Pair:
    return beta * (policy[1] - reference[1]), beta * (policy[0] - reference[0])


def _means(logits: Tensor, batch: Tokens) -> Tensor:
    return HEALTHY(logits, batch) / batch.loss_mask.sum(1)


def _with_prompt(logits: Tensor, batch: Tokens) -> Tensor:
    scored = batch.loss_mask | (batch.loss_mask.int().cumsum(1) == 0)
    scored[:, 0] = False
    return HEALTHY(logits, dataclasses.replace(batch, loss_mask=scored))


Pair = tuple[Tensor, Tensor]
HEALTHY = dpo.answer_logprobs
MUTANTS: dict[str, tuple[str, Any]] = {
    "reference is the policy": ("implicit_rewards", _self_reference),
    "means": ("answer_logprobs", _means),
    "swapped": ("implicit_rewards", _swapped),
    "prompt counted": ("answer_logprobs", _with_prompt),
}
