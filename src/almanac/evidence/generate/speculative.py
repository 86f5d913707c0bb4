"""Speculative decoding draws from the target's law: every path of chance through the code itself, summed exactly."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, AtLeast, Effect, Within
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.tiny import Tiny, spec, train
from almanac.evidence.outcome import Outcome
from almanac.generate import speculative
from almanac.generate.engine import Request
from almanac.generate.sampling import Sampling, sampling
from almanac.generate.speculative import Dice, Reader, Speculated, law, speculate
from almanac.nn.stack import Decoder

SPECULATIVE, DRAFT, TARGET = "speculative", "draft alone", "target alone"
CARD = Card(
    name="generate.speculative",
    title="Speculative decoding: the target's own law in fewer passes",
    claim="decoding from the target is made 2-3 times faster by a draft model, without any change to its outputs",
    source="Leviathan 2022, arXiv 2211.17192, theorem of appendix A.1 and equation 1; Chen 2023, arXiv 2302.01318",
    toy_claim=(
        "over random decoders with a state, the law of 3-token continuations, summed over every path of chance that the "
        "code can take, is the target's own, at every temperature, top-k and top-p tried; greedy tokens of a trained "
        "character model are the target's; where tokens do not depend on what came before, a pass gives "
        "(1 - alpha^(gamma+1)) / (1 - alpha) tokens"
    ),
    scope="time, memory, or several sequences at once; how well a real draft matches a real target",
    tier="exact",
    arms=(
        Arm(name=SPECULATIVE, role=METHOD, what="draft, verify, and replace the first token that is refused"),
        Arm(name=DRAFT, role=BASELINE, what="the draft's tokens as they are"),
        Arm(name=TARGET, role=CONTROL, what="the target, token by token"),
    ),
    claims=(
        Always(
            effect=Effect(metric="tv", arm=SPECULATIVE),
            expected=1e-7,
            says="total variation to the target's exact law, the largest over the sampling options",
            most=1e-5,
        ),
        Always(
            effect=Effect(metric="greedy_equal", arm=SPECULATIVE),
            expected=1.0,
            says="greedy tokens of the trained model that equal the target's",
            least=1.0,
        ),
        Within(
            effect=Effect(metric="length_ratio", arm=SPECULATIVE),
            expected=1.0,
            says="tokens a pass, over the paper's formula, where tokens are independent",
            centre=1.0,
            margin=0.02,
        ),
        AtLeast(
            effect=Effect(metric="tokens_per_pass", arm=SPECULATIVE, over=TARGET, ratio=True),
            expected=2.0,
            says="tokens a pass of the trained target, over one at a time",
            fail=1.3,
        ),
    ),
    gates=(
        Gate(arm=TARGET, metric="tv", why="the meter reads no distance where there is none", at_most=1e-5),
        Gate(arm=DRAFT, metric="tv", why="draft and target differ enough for a wrong law to be seen", at_least=0.1),
    ),
    null=DRAFT,
    mutants=(
        Mutant(
            name="kept if the target would choose it", what="a draft's token is kept if it is p's most probable one"
        ),
        Mutant(name="residual not renormalised", what="the mass that max(0, p - q) lacks falls on the last token"),
        Mutant(name="replaced from p", what="a refused token is replaced by a draw from p, not from the residual"),
        Mutant(name="no bonus token", what="the token that the pass gives when all are kept is thrown away"),
        Mutant(name="other temperature", what="the draft's probabilities are taken at half its temperature"),
        Mutant(name="state not taken back", what="refused tokens stay in both states"),
    ),
    plot=Plot(metric="tv"),
    budget_minutes=10,
)
VOCAB, NEW, GAMMA = 4, 3, 3
OPTIONS = (
    Sampling(greedy=False),
    sampling(temperature=0.6),
    sampling(temperature=1.4, top_k=3),
    sampling(temperature=0.9, top_p=0.8, repetition_penalty=1.3),
)
SMALL = Tiny(hidden=16, layers=1, heads=2, context=2048)
"""Of the enumerated models; the trained ones follow."""
SIZES = {
    "full": (Tiny(hidden=64, layers=2, heads=4, steps=400), Tiny(hidden=32, layers=1, heads=2, steps=400)),
    "quick": (Tiny(hidden=48, layers=2, heads=4, steps=80), Tiny(hidden=24, layers=1, heads=2, steps=80)),
}
ROUNDS = {"quick": 1_000, "full": 6_000}
PROMPT, WRITTEN, PROMPTS = 16, 40, 12


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """All four figures of one arm."""
    with broken(mutant):
        options = OPTIONS if profile == "full" else OPTIONS[1:3]
        tv = max(distance(arm, seed, item) for item in options)
        ratio = length_ratio(arm, seed, ROUNDS[profile])
        equal, per_pass, formula = written(arm, seed, profile)
    metrics = {"tv": tv, "length_ratio": ratio, "greedy_equal": equal, "tokens_per_pass": per_pass}
    return Outcome(metrics | {"tokens_per_pass_over_formula": formula}, data=text.digest())


def check(mutant: str | None) -> None:
    """A round with laws given by hand: what comes out has the law p, and is kept as often as 1 - TV(p, q); then the whole."""
    exactly = torch.float64
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=exactly)
    q = torch.tensor([[0.2, 0.7, 0.1]], dtype=exactly)
    with broken(mutant):

        def round_(dice: Dice) -> tuple[int, ...]:
            return tuple(speculative.verify(list(p), list(q), [dice.pick(q[0])], dice=dice))

        found = exact_law(round_)
        first = [sum(mass for new, mass in found.items() if new[0] == token) for token in range(3)]
        assert all(abs(a - b) < 1e-12 for a, b in zip(first, p[0].tolist(), strict=True)), "the first token's law"
        kept = sum(mass for new, mass in found.items() if len(new) == 2)
        assert abs(kept - (1 - float((p[0] - q[0]).abs().sum()) / 2)) < 1e-12, "kept with probability 1 - TV"
        assert distance(SPECULATIVE, 0, OPTIONS[1]) < 1e-5, "the law of continuations, with states"


class Path(Dice):
    """Chance that goes along a given path and then takes the first turn at each fork; the other turns are noted."""

    def __init__(self, turns: tuple[int, ...]) -> None:
        self.turns, self.taken, self.mass = turns, list[int](), 1.0
        self.others: list[tuple[int, ...]] = []

    def pick(self, probabilities: Tensor) -> int:
        mass = {index: value for index, value in enumerate(probabilities.tolist()) if value > 0}
        at = len(self.taken)
        turn = self.turns[at] if at < len(self.turns) else min(mass)
        if at >= len(self.turns):
            self.others += [(*self.taken, other) for other in mass if other != turn]
        self.taken.append(turn)
        self.mass *= mass[turn]
        return turn

    def happens(self, probability: float) -> bool:
        return bool(self.pick(torch.tensor([1 - probability, probability], dtype=torch.float64)))


def exact_law(call: Callable[[Dice], tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """The probability of everything that ``call`` can give, over every path of chance through it."""
    found: dict[tuple[int, ...], float] = {}
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        path = Path(waiting.pop())
        outcome = call(path)
        found[outcome] = found.get(outcome, 0.0) + path.mass
        waiting += path.others
    return found


def distance(arm: str, seed: int, options: Sampling) -> float:
    """Total variation between the arm's law of `NEW` tokens and the target's."""
    target, draft = random_model(seed), random_model(seed + 50_000)
    prompt = torch.randint(0, VOCAB, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    exact = exact_law(lambda dice: alone(target, prompt, options, dice))
    if arm == TARGET:
        found = {row: sequence_probability(target, prompt, row, options) for row in words(NEW)}
    elif arm == DRAFT:
        found = exact_law(lambda dice: alone(draft, prompt, options, dice))
    else:
        request = Request(tokens=tuple(prompt), max_tokens=NEW, sampling=options)
        found = exact_law(lambda dice: tuple(speculate(target, draft, request, gamma=GAMMA, dice=dice).tokens))
    return sum(abs(exact.get(row, 0.0) - found.get(row, 0.0)) for row in {*exact, *found}) / 2


def words(length: int) -> Iterator[tuple[int, ...]]:
    """Every row of that many tokens."""
    return itertools.product(range(VOCAB), repeat=length)


def alone(network: Decoder, prompt: list[int], options: Sampling, dice: Dice) -> tuple[int, ...]:
    """`NEW` tokens one by one, everything computed anew for each."""
    row = list(prompt)
    for _ in range(NEW):
        row.append(dice.pick(law(next_logits(network, tuple(row)), row, options)))
    return tuple(row[len(prompt) :])


@functools.lru_cache(maxsize=4096)
@torch.no_grad()
def next_logits(network: nn.Module, row: tuple[int, ...]) -> Tensor:
    """Logits [v] after a row, without a state."""
    return network(torch.tensor([row]))[0, -1]


def sequence_probability(network: Decoder, prompt: list[int], row: tuple[int, ...], options: Sampling) -> float:
    """The product of the tokens' probabilities, from one pass over the whole row."""
    whole = [*prompt, *row]
    with torch.no_grad():
        logits = network(torch.tensor([whole]))[0]
    laws = [law(logits[at - 1], whole[:at], options) for at in range(len(prompt), len(whole))]
    return math.prod(float(item[token]) for item, token in zip(laws, row, strict=True))


@functools.cache
def random_model(seed: int, *, plain: bool = False) -> Decoder:
    """A decoder over `VOCAB` tokens with wide random weights; a ``plain`` one gives the same law after any row."""
    network = initialise(spec(SMALL, vocab=VOCAB).build(), seed=seed)
    assert isinstance(network, Decoder)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            Normal(std=0.4).fill(parameter, generator)
    if plain:
        norm = network.norm
        with torch.no_grad():
            for name, parameter in norm.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) if "bias" in name else 0 * parameter)
    return network.eval()


def length_ratio(arm: str, seed: int, rounds: int) -> float:
    """Tokens a pass over the formula's, of models whose tokens are independent."""
    target, draft = random_model(seed + 1, plain=True), random_model(seed + 60_000, plain=True)
    options = Sampling(greedy=False, seed=seed)
    p, q = (law(next_logits(network, (0,)), [0], options) for network in (target, draft))
    alpha = 1 - float((p - q).abs().sum()) / 2
    if arm == TARGET:
        return 1 / expected_length(alpha)
    if arm == DRAFT:
        return (GAMMA + 1) / expected_length(alpha)
    dice, tokens, passes = Dice(seed), 0, 0
    while passes < rounds:
        request = Request(tokens=(0,), max_tokens=min(rounds, SMALL.context - 1), sampling=options)
        found = speculate(target, draft, request, gamma=GAMMA, dice=dice)
        tokens, passes = tokens + len(found.tokens), passes + found.passes
    return tokens / passes / expected_length(alpha)


def expected_length(alpha: float) -> float:
    """Tokens of a round of `GAMMA` when each is kept with probability ``alpha``: the paper's equation 1."""
    return (1 - alpha ** (GAMMA + 1)) / (1 - alpha)


def written(arm: str, seed: int, profile: str) -> tuple[float, float, float]:
    """On text: share of greedy tokens that are the target's, sampled tokens a pass, and these over the formula's."""
    target, draft = (trained(tiny, seed) for tiny in SIZES[profile])
    prompts = text.held_out(rows=PROMPTS, time=PROMPT).tolist()
    greedy = [_tokens_of(arm, target, draft, prompt, Sampling()).tokens for prompt in prompts]
    wanted = [_tokens_of(TARGET, target, draft, prompt, Sampling()).tokens for prompt in prompts]
    pairs = [(a, b) for left, right in zip(greedy, wanted, strict=True) for a, b in zip(left, right, strict=True)]
    drawn = [
        _tokens_of(arm, target, draft, prompt, Sampling(greedy=False, seed=seed + at))
        for at, prompt in enumerate(prompts)
    ]
    per_pass = sum(len(item.tokens) for item in drawn) / sum(item.passes for item in drawn)
    rows = torch.tensor([[*prompt, *item.tokens] for prompt, item in zip(prompts, drawn, strict=True)])
    with torch.no_grad():
        p, q = (network(rows)[:, PROMPT - 1 : -1].softmax(-1) for network in (target, draft))
    alpha = float(1 - (p - q).abs().sum(-1).mean() / 2)
    return sum(a == b for a, b in pairs) / len(pairs), per_pass, per_pass / expected_length(alpha)


def _tokens_of(arm: str, target: Decoder, draft: Decoder, prompt: list[int], options: Sampling) -> Speculated:
    """`WRITTEN` tokens of an arm; the two arms with one model are said to take one pass a token, or one a round."""
    request = Request(tokens=tuple(prompt), max_tokens=WRITTEN, sampling=options)
    if arm == SPECULATIVE:
        return speculate(target, draft, request, gamma=GAMMA)
    row, dice, network = list(prompt), Dice(options.seed), target if arm == TARGET else draft
    for _ in range(WRITTEN):
        row.append(dice.pick(law(next_logits(network, tuple(row)), row, options)))
    passes = WRITTEN if arm == TARGET else WRITTEN // (GAMMA + 1)
    return Speculated(row[len(prompt) :], "length", passes, 0, 0)


@functools.cache
def trained(tiny: Tiny, seed: int) -> Decoder:
    """A character model of that size."""
    network = initialise(spec(tiny).build(), seed=seed)
    assert isinstance(network, Decoder)
    train(network, tiny, seed=seed)
    return network


@contextmanager
def broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug, put right again afterwards."""
    if mutant is None:
        yield
        return
    owner, name, planted = MUTANTS[mutant]
    with patch.object(owner, name, planted):
        yield


def _by_argmax(p: Tensor, q: Tensor, token: int) -> float:
    return float(int(p.argmax()) == token)


def _short(p: Tensor, q: Tensor) -> Tensor:
    more = (p - q).clamp_min(0)
    more[-1] += 1 - more.sum()
    return more


def _without_bonus(p: list[Tensor], q: list[Tensor], proposed: list[int], *, dice: Dice) -> list[int]:
    new = HEALTHY(p, q, proposed, dice=dice)
    return new[:-1] if len(new) > len(proposed) > 0 else new


def _colder(p: list[Tensor], q: list[Tensor], proposed: list[int], *, dice: Dice) -> list[int]:
    return HEALTHY(p, [item**2 / (item**2).sum() for item in q], proposed, dice=dice)


def _kept_on(self: Reader, length: int) -> None:
    self.tokens = self.tokens[:length]


HEALTHY = speculative.verify
MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "kept if the target would choose it": (speculative, "keeping", _by_argmax),
    "residual not renormalised": (speculative, "residual", _short),
    "replaced from p": (speculative, "residual", lambda p, q: p),
    "no bonus token": (speculative, "verify", _without_bonus),
    "other temperature": (speculative, "verify", _colder),
    "state not taken back": (Reader, "keep", _kept_on),
}
