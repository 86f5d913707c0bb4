"""A scratchpad computes what an answer at once cannot: the parity of 16 bits, by a model of 0.1 M parameters.

The rivals see the same questions and as many tokens. One answers at once; one first writes as many dots as the method
writes steps; one first writes the steps of another question. What helps is then neither room, nor depth of text, nor its
form, but what the steps say. At the test every arm gets the bare question and writes all the rest itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect, Within
from almanac.evidence.fixtures import strings, tiny
from almanac.evidence.fixtures.fitting import count, fit, flops
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.language_model.model import LanguageModel
from almanac.nn.stack import Decoder
from almanac.reason.chain import Chain, Manner, Worked, ask_all, question, target
from almanac.tokenizers.tokenizer import Tokenizer

STEPS, FILLER, WRONG, DIRECT, EASY = "scratchpad", "filler", "wrong steps", "direct", "direct, easier"
LEAK, FORCED = "the last bit tells the answer", "the test gives the steps"
UNSCORED, SEEN = "the answer is not trained on", "test questions are trained on"

CARD = Card(
    name="reason.chain",
    title="A scratchpad computes what an answer at once cannot",
    claim=(
        "written intermediate steps let a model solve problems that it cannot answer at once, and what helps is not the "
        "computation that more tokens bring but what they say"
    ),
    source="Nye 2021, arXiv 2112.00114, section 3; Wei 2022, arXiv 2201.11903, section 3.3 (equal tokens as an ablation)",
    toy_claim=(
        "trained on as many tokens, a model that writes the running parity of 16 bits before its answer is right about "
        "unseen bits; one that answers at once, or after as many dots, or after the steps of another question, guesses"
    ),
    scope="chains of thought that nobody trained, in large models; natural language; other tasks; longer training",
    tier="planted",
    arms=(
        Arm(name=STEPS, role=METHOD, what="running parity after each bit, then the answer"),
        Arm(name=FILLER, role=TWIN, what="a dot for each bit, then the answer: as much room to compute, nothing said"),
        Arm(name=WRONG, role=TWIN, what="running parity of other bits, then the answer: steps of equal form, not its own"),
        Arm(name=DIRECT, role=BASELINE, what="the answer at once; more rows a step, so that tokens are equal"),
        Arm(name=EASY, role=CONTROL, what="the answer at once, but to an easier question: are the last two bits both 1"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="accuracy", arm=STEPS, over=FILLER),
            fail=0.3,
            expected=0.48,
            says="steps help more than equal room",
        ),
        AtLeast(
            effect=Effect(metric="accuracy", arm=STEPS, over=WRONG),
            fail=0.3,
            expected=0.48,
            says="and more than steps of equal form that are another question's",
        ),
        AtLeast(
            effect=Effect(metric="accuracy", arm=STEPS, over=DIRECT),
            fail=0.3,
            expected=0.48,
            says="and more than an answer at once",
        ),
        Within(
            effect=Effect(metric="accuracy", arm=FILLER), centre=0.5, margin=0.12, expected=0.5, says="filler guesses"
        ),
    ),
    gates=(
        Gate(arm=EASY, metric="accuracy", at_least=0.95, why="answering at once is learnt where it is easy"),
        Gate(arm=DIRECT, metric="answered", at_least=0.95, why="direct answers have the right form"),
        Gate(arm=FILLER, metric="answered", at_least=0.95, why="answers after dots have the right form"),
        Gate(arm=WRONG, metric="answered", at_least=0.95, why="answers after wrong steps have the right form"),
        *(
            Gate(arm=arm, metric="late_gain", at_most=0.02, why="it no longer improves in the last quarter of training")
            for arm in (DIRECT, FILLER, WRONG)
        ),
    ),
    null=FILLER,
    equal="tokens",
    budget_arms=(STEPS, FILLER, WRONG, DIRECT, EASY),
    mutants=(
        Mutant(name=LEAK, what="the last bit is set so that it is the answer", arms=(STEPS, FILLER, WRONG, DIRECT)),
        Mutant(name=FORCED, what="the right steps are part of the prompt at the test"),
        Mutant(name=UNSCORED, what="the scored tokens are off by one, so that the answer is never learnt"),
        Mutant(name=SEEN, what="the questions of the test are trained on as well"),
    ),
    plot=Plot(metric="accuracy"),
)  # fmt: skip

MANNER = Manner(question="", steps="=", answer=";", end="\n", between="")
ALPHABET = "01=;.\n"


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """What a profile trains."""

    bits: int = 16
    hidden: int = 64
    layers: int = 2
    steps: int = 400
    rows: int = 50  # of a step, for arms that write steps
    tests: int = 200
    rate: float = 3e-3


SIZES = {
    "quick": Size(bits=8, steps=280, rows=24, tests=48),
    "full": Size(),
    "gpu": Size(steps=4_000, rows=200, tests=1_000),
}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm and lets it answer questions it has not seen."""
    size = SIZES[profile]
    train, test = _items(size, seed, mutant)
    require_disjoint({item.question for item in train}, [item.question for item in test])
    digest = hashlib.sha256(repr(test).encode()).hexdigest()
    rng = random.Random(f"{arm}/{seed}")
    lm = _model(size, seed)
    rows = size.rows * (2 * size.bits + 4) // _width(arm, size)  # all arms train on equally many tokens a step
    texts = [_text(_example(item, arm, rng)) for item in train[: size.steps * rows]]
    tokens = torch.tensor([lm.tokenizer.encode(text) for text in texts])
    scored = _scored(tokens, size.bits, mutant)
    answers: list[float] = []  # nats, by step

    def loss(step: int) -> Tensor:
        part = slice(step * rows, (step + 1) * rows)
        found = F.cross_entropy(lm.network(tokens[part])[:, :-1].transpose(1, 2), tokens[part, 1:], reduction="none")
        answers.append(float(found[:, -2].detach().mean()))  # the answer is the last token but one
        return found[scored[part, 1:]].mean()

    spent = flops(lambda: loss(0).backward()) * size.steps
    answers.clear()
    lm.network.train()
    fit(lm.network.parameters(), loss, steps=size.steps, rate=size.rate)
    lm.network.eval()
    chains = _asked(lm, [_example(item, arm, rng) for item in test], size, mutant)
    truth = [_answer(item, arm) for item in test]
    eighth = size.steps // 8
    before, after = (sum(answers[i * eighth : (i + 1) * eighth]) for i in (5, 7))
    return Outcome(
        {
            "accuracy": sum(chain.answer == right for chain, right in zip(chains, truth, strict=True)) / len(test),
            "answered": sum(chain.answer in ("0", "1") for chain in chains) / len(test),
            "right_steps": sum(chain.steps == "".join(item.steps) for chain, item in zip(chains, test, strict=True))
            / len(test),
            "nll": _nll(lm, test, chains, truth),
            "late_gain": (before - after) / before,
        },
        {"tokens": float(tokens.numel()), "flops": spent, "parameters": count(lm.network)},
        {"answer_nll": [(step, value) for step, value in enumerate(answers)][:: max(1, size.steps // 100)]},
        data=digest,
    )


def _items(size: Size, seed: int, mutant: str | None) -> tuple[list[strings.Item], list[strings.Item]]:
    train, test = _drawn(size, seed, size.bits - (mutant == LEAK))
    if mutant == SEEN:
        train = [*test, *train[len(test) :]]
    if mutant == LEAK:
        train, test = (
            [strings.Item(item.question + item.answer, (*item.steps, item.answer), item.answer) for item in part]
            for part in (train, test)
        )
    return train, test


@functools.cache
def _drawn(size: Size, seed: int, bits: int) -> tuple[list[strings.Item], list[strings.Item]]:
    """Fresh questions for every step of every arm; arms of one seed train on the same ones in the same order.

    Half of the test has either answer, so that whoever says the same to everything is right about half.
    """
    train, drawn = strings.draw("parity", length=bits, train=2 * size.steps * size.rows, test=2 * size.tests, seed=seed)
    test = [item for answer in "01" for item in [item for item in drawn if item.answer == answer][: size.tests // 2]]
    assert len(test) == size.tests
    return train, test


def _width(arm: str, size: Size) -> int:
    """Tokens of a row: question, "=", steps, ";", answer, end."""
    return size.bits + (0 if arm in (DIRECT, EASY) else size.bits) + 4


def _answer(item: strings.Item, arm: str) -> str:
    return str(int(item.question.endswith("11"))) if arm == EASY else item.answer


def _example(item: strings.Item, arm: str, rng: random.Random) -> Worked:
    """The item as the arm is to work it out."""
    many = len(item.steps)
    steps = {
        STEPS: lambda: item.steps,
        FILLER: lambda: (".",) * many,
        WRONG: lambda: strings.parity(many, rng).steps,
    }.get(arm, tuple)()
    return Worked(item.question, tuple(steps), _answer(item, arm))


def _text(example: Worked) -> str:
    return question(example.question, MANNER) + target(example, MANNER)


def _scored(tokens: Tensor, bits: int, mutant: str | None) -> Tensor:
    """bool like tokens [n, t]: what the model is to say itself, all that comes after "="."""
    scored = (torch.arange(tokens.shape[1]) > bits).expand(tokens.shape)
    return torch.cat([scored[:, 2:], torch.zeros_like(scored[:, :2])], dim=1) if mutant == UNSCORED else scored


def _asked(lm: LanguageModel, examples: Sequence[Worked], size: Size, mutant: str | None) -> list[Chain]:
    """What the model writes of itself, given the bare questions."""
    shown = [example.question for example in examples]
    if mutant == FORCED:
        shown = [example.question + MANNER.steps + "".join(example.steps) for example in examples]
        bare = MANNER.with_(steps="")
        return ask_all(lm, shown, manner=bare, max_tokens=size.bits + 4)
    return ask_all(lm, shown, manner=MANNER, max_tokens=size.bits + 4)


@torch.no_grad()
def _nll(lm: LanguageModel, test: Sequence[strings.Item], chains: Sequence[Chain], truth: Sequence[str]) -> float:
    """Mean nats of the right answer after the steps that the model wrote, the finer reading of accuracy."""
    found = 0.0
    for item, chain, right in zip(test, chains, truth, strict=True):
        ids = lm.tokenizer.encode(
            question(item.question, MANNER) + chain.steps[: 2 * len(item.question)] + MANNER.answer
        )
        found -= float(lm.network(torch.tensor([ids]))[0, -1].log_softmax(-1)[ALPHABET.index(right)])
    return found / len(test)


def _model(size: Size, seed: int) -> LanguageModel:
    """A decoder of single characters with its tokenizer."""
    layout = tiny.Tiny(hidden=size.hidden, layers=size.layers, heads=4, context=3 * size.bits + 8)
    spec = tiny.spec(layout, vocab=len(ALPHABET))
    network = initialise(spec.build(), seed=seed)
    assert isinstance(network, Decoder)
    return LanguageModel(network, spec, _tokenizer())


@functools.cache
def _tokenizer() -> Tokenizer:
    """One id for each character of `ALPHABET`, and no merges."""
    vocab = {letter: number for number, letter in enumerate(ALPHABET)}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    return Tokenizer.from_json(json.dumps(definition))


def check(mutant: str | None) -> None:
    """The answer is trained on; what a model says at the test depends on the bare question alone."""
    size = Size(bits=6, hidden=16, layers=1)
    items = [strings.parity(6, random.Random(number)) for number in range(8)]
    examples = [_example(item, STEPS, random.Random(0)) for item in items]
    tokens = torch.tensor([_tokenizer().encode(_text(example)) for example in examples])
    said = [
        "".join(ALPHABET[i] for i in row[own].tolist())
        for row, own in zip(tokens, _scored(tokens, 6, mutant), strict=True)
    ]
    assert said == [target(example, MANNER) for example in examples], f"trained on {said[0]!r}"
    with patch.object(LanguageModel, "request", autospec=True, side_effect=LanguageModel.request) as asked:
        _asked(_model(size, 0), examples[:2], size, mutant)
    prompts = ["".join(ALPHABET[i] for i in call.args[1]) for call in asked.call_args_list]
    assert prompts == [f"{item.question}=" for item in items[:2]], f"the test begins with {prompts[0]!r}"
    if mutant == SEEN:  # a run of the smallest size stops at once
        run(STEPS, 0, "quick", mutant)
