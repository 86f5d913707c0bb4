"""Learning from every token: whether telling replaced tokens teaches a model more for its compute than filling masks."""

from __future__ import annotations

import functools
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.spec import Normal
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot, Published
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures import pcfg
from almanac.evidence.fixtures.fitting import count, fit, flops
from almanac.evidence.fixtures.planted_bugs import Bug, Bugs, planted
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.nn.activation import Gelu
from almanac.nn.attention.bidirectional import bidirectional
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.task_heads import MaskedHead, ReplacedHead, SequenceHead, Transform
from almanac.nn.task_model import TaskModel
from almanac.objectives import replaced_token as objective
from almanac.objectives.masked import choose, corrupt, masked
from almanac.objectives.replaced_token import WEIGHT, fill, replaced_token

DRAWN, LIKELIEST, PADDED = "drawn is replaced", "the likeliest is put in", "padding is scored"

CARD = Card(
    name="objectives.replaced_token",
    title="Telling replaced tokens teaches more per computation than filling masks",
    claim=(
        "at equal compute ELECTRA scores 85.0 on GLUE where BERT scores 82.2; scored on the 15 % that were masked alone it "
        "falls to 82.4"
    ),
    source="Clark 2020, arXiv 2003.10555, table 5",
    toy_claim=(
        "an encoder of width 48 that has learned to tell replaced words in sentences of a grammar, and is then shown 500 "
        "labelled sentences, judges the agreement of verbs more often right than one that learned to fill masks with as many "
        "operations, the generator's included, and than one that was scored on the masked places alone"
    ),
    scope=(
        "large vocabularies (here 25 words, of which a mask is easily filled), language, downstream tasks of other kinds, "
        "larger models, or what the objectives reach with unbounded compute"
    ),
    tier="planted",
    arms=(
        Arm(name="electra", role="method", what="replaced-token detection, scored on all tokens"),
        Arm(name="fifteen", role="twin", what="replaced-token detection, scored on the masked places alone"),
        Arm(name="mlm", role="baseline", what="masked-token prediction, 80/10/10"),
        Arm(name="scratch", role="control", what="no pre-training"),
        Arm(name="grammar", role="ceiling", what="the exact likelihood of the grammar"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="accuracy", arm="electra", over="mlm"),
            fail=0.005,
            expected=0.02,
            says="it judges more sentences right than masked-token prediction at equal compute",
        ),
        AtLeast(
            effect=Effect(metric="accuracy", arm="electra", over="fifteen"),
            fail=0.005,
            expected=0.02,
            says="and than its own loss on 15 % of the tokens",
        ),
    ),
    gates=(
        Gate(arm="grammar", metric="accuracy", at_least=0.999, why="the question has an answer"),
        Gate(arm="mlm", metric="accuracy", at_least=0.6, why="the baseline has learned something"),
    ),
    null="fifteen",
    equal="flops",
    budget_arms=("electra", "fifteen", "mlm"),
    mutants=(
        Mutant(name=DRAWN, what="a masked place counts as replaced though the generator drew the text's own token"),
        Mutant(name=LIKELIEST, what="the generator's likeliest token is put in, not a draw"),
        Mutant(name=PADDED, what="padding is scored with the tokens"),
    ),
    seeds=5,
    plot=Plot(
        metric="accuracy",
        y="sentences judged right",
        published=(Published(label="GLUE, ELECTRA − BERT, points / 100", value=0.028),),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """Networks, pre-training (in steps of masked-token prediction) and the questions."""

    hidden: int = 48
    layers: int = 2
    heads: int = 4
    small: int = 16  # width of the generator
    steps: int = 260
    rows: int = 32
    rate: float = 2e-3  # at 5e-3 masked-token prediction answers all by step 150, and nothing is left to see
    labels: int = 500
    tests: int = 800
    tuning: int = 80
    tuning_rate: float = 1e-3
    time: int = 16


SIZES = {"full": Size(), "quick": Size(tests=400)}
SHARE = 0.15
WORDS = pcfg.grammar().vocabulary
FIRST, MASK, PAD = len(WORDS), len(WORDS) + 1, len(WORDS) + 2
VOCAB = len(WORDS) + 3


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Pre-trains and tunes one arm, and counts the questions that it answers right."""
    with planted(mutant, BUGS):
        return train(arm, seed, SIZES[profile])


def train(arm: str, seed: int, size: Size) -> Outcome:
    """`run` with given sizes."""
    learned, tests = questions(size, seed)
    if arm == "grammar":
        made = pcfg.grammar()
        right = [(made.log_likelihood(list(item.words)) > -math.inf) == item.is_right for item in tests]
        return Outcome(metrics={"accuracy": sum(right) / len(right)})
    body = encoder(size, size.hidden)
    network = initialise(
        TaskModel.Spec(
            encoder=body, head=SequenceHead.Spec(output=linear(size.hidden, 2), transform=step(size.hidden))
        ).build(),
        seed=seed,
    )
    assert isinstance(network, TaskModel)
    budget = {"flops": 0.0, "steps": 0.0, "parameters": float(count(network))}
    if arm != "scratch":
        budget |= pretrain(arm, network.encoder, size, seed)
    tune(network, learned, size, seed)
    metrics = {"accuracy": accuracy(network, tests)}
    metrics["attracted"] = accuracy(network, [item for item in tests if item.attracted])
    return Outcome(metrics=metrics, budget=budget)


# --- networks


def encoder(size: Size, width: int) -> Encoder.Spec:
    """A pre-norm encoder of ``width`` over a token table of the larger one's."""
    norm, wide = LayerNorm.Spec(hidden=width), LayerNorm.Spec(hidden=size.hidden)
    block = Block.Spec(
        mixer_norm=norm,
        mixer=bidirectional(width, num_heads=size.heads),
        channel_norm=norm,
        channel=dense(width, 4 * width),
    )
    made = Encoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=size.hidden, initialiser=Normal(std=size.hidden**-0.5)),
        positions=LearnedPositions.Spec(length=size.time, hidden=size.hidden),
        norm=wide,
        projection=None if width == size.hidden else linear(size.hidden, width),
        layers=(block,) * size.layers,
        final_norm=norm,
    )
    maps = [path for path, item in made.walk() if isinstance(item, Linear.Spec)]
    return made.replace("{" + ",".join(maps) + "}", initialiser=Normal(std=width**-0.5))


def linear(width: int, out: int) -> Linear.Spec:
    """A map with a bias."""
    return Linear.Spec(in_features=width, out_features=out, bias=True, initialiser=Normal(std=width**-0.5))


def step(width: int, *, out: int | None = None, norm: bool = False) -> Transform.Spec:
    """dense and GELU, perhaps normalised."""
    out = out or width
    return Transform.Spec(
        dense=linear(width, out), activation=Gelu(), norm=LayerNorm.Spec(hidden=out) if norm else None
    )


# --- pre-training


def pretrain(arm: str, body: Encoder, size: Size, seed: int) -> dict[str, float]:
    """Trains ``body`` in place by the arm's objective, for as many operations as the baseline's steps take."""
    loss = {"mlm": _masked, "electra": _replaced, "fifteen": _replaced}[arm]
    networks = heads(arm, body, size, seed)
    chance = torch.Generator().manual_seed(seed)
    calls = functools.partial(loss, networks, chance=chance, masked_only=arm == "fifteen")
    spent = operations(calls, batches(size, seed)(0))
    steps = round(size.steps * baseline_operations(size) / spent)
    given = batches(size, seed)
    parameters = {id(item): item for network in networks for item in network.parameters()}
    fit(parameters.values(), lambda at: calls(given(at)), steps=steps, rate=size.rate)
    return {"flops": steps * spent, "steps": float(steps)}


def heads(arm: str, body: Encoder, size: Size, seed: int) -> list[TaskModel]:
    """The networks of an objective, the one that is kept first; a generator shares its table of tokens and of positions."""
    spec = encoder(size, size.hidden)
    guess = MaskedHead.Spec(transform=step(size.hidden, norm=True))
    judge = ReplacedHead.Spec(transform=step(size.hidden), output=linear(size.hidden, 1))
    made = initialise(TaskModel.Spec(encoder=spec, head=guess if arm == "mlm" else judge).build(), seed=seed + 1)
    assert isinstance(made, TaskModel)
    made.encoder = body
    if arm == "mlm":
        return [made]
    small = MaskedHead.Spec(transform=step(size.small, out=size.hidden, norm=True))
    generator = initialise(TaskModel.Spec(encoder=encoder(size, size.small), head=small).build(), seed=seed + 2)
    assert isinstance(generator, TaskModel)
    generator.encoder.embed, generator.encoder.positions = body.embed, body.positions
    return [made, generator]


def _masked(networks: list[TaskModel], tokens: Tensor, *, chance: torch.Generator, masked_only: bool) -> Tensor:
    chosen = choose(words(tokens), share=SHARE, generator=chance)
    hidden = corrupt(tokens, chosen, mask_id=MASK, vocab_size=len(WORDS), generator=chance)
    return masked(networks[0](hidden, context(tokens)), tokens, chosen)[0]


def _replaced(networks: list[TaskModel], tokens: Tensor, *, chance: torch.Generator, masked_only: bool) -> Tensor:
    judge, generator = networks
    chosen = choose(words(tokens), share=SHARE, generator=chance)
    hidden = corrupt(tokens, chosen, mask_id=MASK, vocab_size=len(WORDS), kept=0.0, random=0.0)
    guesses = generator(hidden, context(tokens))
    filled = objective.fill(tokens, chosen, guesses, generator=chance)
    logits = judge(filled, context(tokens))
    scored = chosen if masked_only else scored_places(tokens)
    found, _ = replaced_token(logits, tokens, filled, scored=scored)
    return masked(guesses, tokens, chosen)[0] + WEIGHT * found


def scored_places(tokens: Tensor) -> Tensor:
    """bool [b, t]: what the discriminator is asked about."""
    return words(tokens)


def words(tokens: Tensor) -> Tensor:
    """bool [b, t]: a word of the sentence."""
    return tokens < FIRST


def context(tokens: Tensor) -> Context:
    """Padding is a segment of its own."""
    return Context(positions=torch.arange(tokens.shape[1]).expand_as(tokens), segments=(tokens != PAD).long() - 1)


def operations(loss: Callable[[Tensor], Tensor], tokens: Tensor) -> float:
    """Of one step, forward and backward."""
    return flops(lambda: loss(tokens).backward())


@functools.cache
def baseline_operations(size: Size) -> float:
    """Of one step of masked-token prediction."""
    body = initialise(encoder(size, size.hidden).build(), seed=0)
    assert isinstance(body, Encoder)
    networks, chance = heads("mlm", body, size, 0), torch.Generator().manual_seed(0)
    return operations(lambda given: _masked(networks, given, chance=chance, masked_only=False), batches(size, 0)(0))


def batches(size: Size, seed: int) -> Callable[[int], Tensor]:
    """step -> int64 [rows, time] of fresh sentences, the same for every arm."""
    made = pcfg.grammar()

    def batch(at: int) -> Tensor:
        rng = random.Random(f"{seed}/sentences/{at}")
        return rows_of([made.sample(rng) for _ in range(size.rows)], size.time)

    return batch


def rows_of(sentences: list[list[str]], time: int) -> Tensor:
    """int64 [n, time]: each sentence after the first token, cut or padded."""
    ids = {word: index for index, word in enumerate(WORDS)}
    rows = [[FIRST, *(ids[word] for word in sentence)][:time] for sentence in sentences]
    return torch.tensor([row + [PAD] * (time - len(row)) for row in rows])


# --- the questions


@dataclass(frozen=True)
class Question:
    """A sentence up to its verb, and whether that agrees."""

    words: tuple[str, ...]
    is_right: bool
    attracted: bool


@functools.cache
def questions(size: Size, seed: int) -> tuple[list[Question], list[Question]]:
    """Sentences to learn from and to be asked about, no two alike, half of either with an attractor."""
    rng, found, seen = random.Random(f"{seed}/questions"), [], set[tuple[str, ...]]()
    for item in pcfg.agreements(seed, count=4 * (size.labels + size.tests)):
        if item.beginning in seen or len(item.beginning) + 2 > size.time:
            continue
        seen.add(item.beginning)
        is_right = rng.random() < 0.5
        found.append(Question((*item.beginning, item.right if is_right else item.wrong), is_right, item.attracted))
    misled, plain = ([item for item in found if item.attracted is side] for side in (True, False))
    pairs = [item for pair in zip(misled, plain, strict=False) for item in pair][: size.labels + size.tests]
    learned, tests = pairs[: size.labels], pairs[size.labels :]
    require_disjoint([item.words[:-1] for item in learned], [item.words[:-1] for item in tests])
    return learned, tests


def tune(network: TaskModel, items: list[Question], size: Size, seed: int) -> None:
    """Trains all of the network on labelled sentences."""
    rows = rows_of([list(item.words) for item in items], size.time)
    labels = torch.tensor([int(item.is_right) for item in items])
    order = torch.Generator().manual_seed(seed)

    def loss(at: int) -> Tensor:
        chosen = torch.randint(0, len(items), (size.rows,), generator=order)
        return F.cross_entropy(network(rows[chosen], context(rows[chosen])), labels[chosen])

    fit(network.parameters(), loss, steps=size.tuning, rate=size.tuning_rate)


@torch.no_grad()
def accuracy(network: TaskModel, items: list[Question]) -> float:
    """The share answered right."""
    rows = rows_of([list(item.words) for item in items], network.encoder.context_length)
    labels = torch.tensor([int(item.is_right) for item in items])
    return float((network(rows, context(rows)).argmax(-1) == labels).float().mean())


# --- the oracle


def check(mutant: str | None) -> None:
    """The parts of the loss against their definitions: labels, the law of what is put in, and what is scored."""
    with planted(mutant, BUGS), torch.no_grad():
        tokens = rows_of([["the", "dog", "sleeps"]] * 4000, 6)
        chosen = (tokens == WORDS.index("dog")) & words(tokens)
        law = torch.full((VOCAB,), -math.inf)
        law[[WORDS.index("dog"), WORDS.index("ship")]] = torch.tensor([0.6, 0.4]).log()
        filled = objective.fill(
            tokens, chosen, law.expand(*tokens.shape, VOCAB), generator=torch.Generator().manual_seed(0)
        )
        share = float((filled[chosen] == WORDS.index("dog")).float().mean())
        assert abs(share - 0.6) < 0.04, "what is put in does not follow the generator's law"
        scored = scored_places(tokens)
        loss, metrics = replaced_token(torch.zeros(tokens.shape), tokens, filled, scored=scored)
        assert int(metrics["replaced"]) == int((tokens != filled).sum()), (
            "a token that is the text's own counts as put in"
        )
        assert abs(float(loss) - math.log(2)) < 1e-6
        assert int(scored.sum()) == 3 * 4000, "places that are no words are scored"


_chosen_last: list[Tensor] = []


def _filling(tokens: Tensor, chosen: Tensor, logits: Tensor, **given: Any) -> Tensor:
    _chosen_last[:] = [chosen]
    return fill(tokens, chosen, logits, **given)


def _likeliest(tokens: Tensor, chosen: Tensor, logits: Tensor, **_: Any) -> Tensor:
    return torch.where(chosen, logits.argmax(-1), tokens)


def _everywhere(tokens: Tensor) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool)


BUGS: Bugs = {
    DRAWN: (
        Bug(objective, "fill", _filling),
        Bug(objective, "is_replaced", lambda tokens, filled: _chosen_last[0]),
    ),
    LIKELIEST: Bug(objective, "fill", _likeliest),
    PADDED: Bug(sys.modules[__name__], "scored_places", _everywhere),
}
