"""Speculative decoding has the target's law, summed over every path of chance; the states come back whatever they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from almanac.core.errors import RequestError, ShapeError, UnsupportedError
from almanac.core.state import StackState, State
from almanac.generate.engine import Request
from almanac.generate.sampling import Chooser, Sampling, sampling
from almanac.generate.speculative import Dice, Reader, keeping, law, residual, speculate, verify

VOCAB = 3


class Remembered(State):
    """A recurrent state, [rows, hidden]: it keeps no past, so nothing can be taken back."""

    def __init__(self, hidden: Tensor, lengths: list[int]) -> None:
        self.hidden, self.seen = hidden, lengths

    @property
    def lengths(self) -> list[int]:
        return self.seen

    def fork(self) -> Remembered:
        return Remembered(self.hidden.clone(), list(self.seen))

    def trim(self, lengths: Sequence[int]) -> None:
        if list(lengths) != self.seen:
            raise UnsupportedError("A recurrent state keeps no past", remedy="Fork it before.")

    def select(self, rows: Sequence[int]) -> Remembered:
        return Remembered(self.hidden[list(rows)], [self.seen[row] for row in rows])

    def join(self, others: Sequence[Remembered]) -> Remembered:
        return Remembered(torch.cat([self.hidden, *(other.hidden for other in others)]), [*self.seen])

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes


class Recurrent(nn.Module):
    """A network of one recurrent cell that changes its state in place, as a fast one would."""

    context_length, vocab_size = 64, VOCAB

    def __init__(self, seed: int, vocab: int = VOCAB) -> None:
        super().__init__()
        self.vocab_size, self.fed = vocab, 0
        generator = torch.Generator().manual_seed(seed)
        self.into, self.across, self.out = (
            torch.randn(shape, generator=generator) for shape in ((vocab, 4), (4, 4), (4, vocab))
        )

    def hidden(self, tokens: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState | None]:
        assert state is not None
        memory = state.layers[0]
        assert isinstance(memory, Remembered)
        found = []
        for column in tokens.T:
            memory.hidden.copy_(torch.tanh(self.into[column] + memory.hidden @ self.across))
            found.append(memory.hidden.clone())
        memory.seen = [length + tokens.shape[1] for length in memory.seen]
        self.fed += tokens.shape[1]
        return torch.stack(found, dim=1), state

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.out

    def init_state(self, rows: int, capacity: int) -> StackState:
        return StackState([Remembered(torch.zeros(rows, 4), [0] * rows)])


class Turns(Dice):
    """Chance along a given path, then the first turn at each fork; ``others`` are the paths not taken."""

    def __init__(self, path: tuple[int, ...]) -> None:
        self.path, self.taken, self.mass, self.others = path, (), 1.0, []

    def pick(self, probabilities: Tensor) -> int:
        open_ = [index for index in range(len(probabilities)) if probabilities[index] > 0]
        if len(self.taken) < len(self.path):
            turn = self.path[len(self.taken)]
        else:
            turn, *rest = open_
            self.others += [(*self.taken, other) for other in rest]
        self.taken, self.mass = (*self.taken, turn), self.mass * float(probabilities[turn])
        return turn

    def happens(self, probability: float) -> bool:
        return self.pick(torch.tensor([1 - probability, probability], dtype=torch.float64)) == 1


def law_of(call: Callable[[Dice], Sequence[int]]) -> dict[tuple[int, ...], float]:
    """The exact law of what ``call`` gives."""
    found: dict[tuple[int, ...], float] = {}
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        dice = Turns(waiting.pop())
        outcome = tuple(call(dice))
        found[outcome] = found.get(outcome, 0.0) + dice.mass
        waiting += dice.others
    assert math.fsum(found.values()) == pytest.approx(1)
    return found


def directly(network: Recurrent, prompt: Sequence[int], options: Sampling, count: int) -> dict[tuple[int, ...], float]:
    """The law of ``count`` tokens from the definition, every row computed from its beginning."""
    found = {}
    for row in itertools.product(range(VOCAB), repeat=count):
        mass = 1.0
        for at in range(count):
            before = [*prompt, *row[:at]]
            hidden, _ = network.hidden(torch.tensor([before]), network.init_state(1, 1))
            mass *= float(law(network.logits(hidden)[0, -1], before, options)[row[at]])
        if mass:
            found[row] = mass
    return found


def distance(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    return sum(abs(one.get(row, 0.0) - other.get(row, 0.0)) for row in {*one, *other}) / 2


@pytest.mark.parametrize("gamma", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [Sampling(greedy=False), sampling(temperature=0.5, top_k=2), sampling(temperature=1.5, top_p=0.7),
     sampling(temperature=1.0, repetition_penalty=2.0), sampling()],
    ids=["plain", "cold top-k", "hot top-p", "repetition", "greedy"],
)  # fmt: skip
def test_the_law_is_the_targets(gamma: int, options: Sampling) -> None:
    target, draft = Recurrent(1), Recurrent(2)
    request = Request(tokens=(0, 2), max_tokens=3, sampling=options)
    found = law_of(lambda dice: speculate(target, draft, request, gamma=gamma, dice=dice).tokens)
    wanted = directly(target, (0, 2), options, 3)
    assert distance(found, wanted) < 1e-6
    if not options.greedy:
        assert distance(directly(draft, (0, 2), options, 3), wanted) > 0.1


def test_stop_tokens_end_the_law_where_they_fall() -> None:
    target, draft = Recurrent(3), Recurrent(4)
    request = Request(tokens=(1,), max_tokens=3, sampling=Sampling(greedy=False), stop_tokens=frozenset({2}))
    found = law_of(lambda dice: speculate(target, draft, request, gamma=2, dice=dice).tokens)
    wanted: dict[tuple[int, ...], float] = {}
    for row, mass in directly(target, (1,), request.sampling, 3).items():
        cut = row[: row.index(2) + 1] if 2 in row else row
        wanted[cut] = wanted.get(cut, 0.0) + mass
    assert distance(found, wanted) < 1e-6
    ended = speculate(target, draft, request, gamma=2)
    assert (ended.finish == "stop") == (ended.tokens[-1] == 2)


@pytest.mark.parametrize("name", sorted(toys.varied()))
def test_greedy_tokens_are_the_targets(name: str) -> None:
    """Every family, with a draft that is often wrong, one that is always right, and one from another family."""
    target = toys.toy(name)
    prompt = toys.tokens(1, 9, seed=4)[0].tolist()
    wanted = toys.greedy(target, prompt, 24)
    request = Request(tokens=tuple(prompt), max_tokens=24)
    for draft in (toys.toy(name, seed=9), target, toys.toy("plain", seed=5)):
        for gamma in (1, 4):
            found = speculate(target, draft, request, gamma=gamma)
            assert found.tokens == wanted and found.finish == "length"
            assert len(wanted) == found.kept + found.passes
    same = speculate(target, target, request, gamma=5)
    assert same.passes == 4 and same.drafted == same.kept == 20


def test_a_trimmed_state_reads_nothing_twice() -> None:
    target, draft = toys.toy("plain"), toys.toy("plain", seed=1)
    read = []
    hidden = target.hidden

    def counted(tokens: Tensor, *rest: Any) -> Any:
        read.append(tokens.shape[1])
        return hidden(tokens, *rest)

    target.hidden = counted  # type: ignore[method-assign]
    found = speculate(target, draft, Request(tokens=(1, 2, 3), max_tokens=20), gamma=3)
    assert read[0] == 3 + 3 and max(read[1:]) <= 4 and len(read) == found.passes


def test_a_state_that_keeps_no_past_is_gone_back_to() -> None:
    """The first refusal reads everything again; from then on a copy from before the round is taken up."""
    network = Recurrent(5)
    reader = Reader(network, 64)
    whole = reader.read([0, 1, 2, 1, 0], last=5)
    for _ in range(2):
        reader.keep(3)
        assert reader.tokens == [0, 1, 2]
        torch.testing.assert_close(reader.read([0, 1, 2, 1, 0], last=2), whole[3:])
    before = network.fed
    reader.keep(4)
    assert network.fed - before == 1  # the copy had read 3


def test_the_rule_of_a_round() -> None:
    p, q = (torch.tensor(row, dtype=torch.float64) for row in ([0.5, 0.3, 0.2, 0.0], [0.1, 0.6, 0.2, 0.1]))
    kept = sum(float(q[token]) * keeping(p, q, token) for token in range(4))
    assert kept == pytest.approx(1 - float((p - q).abs().sum()) / 2)  # 1 - TV
    torch.testing.assert_close(residual(p, q), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(residual(p, p), p)
    after = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    found = law_of(lambda dice: verify([p, after], [q], [dice.pick(q)], dice=dice))
    assert found == pytest.approx({(0, 3): 0.1, (1, 3): 0.3, (2, 3): 0.2, (0,): 0.4})


@pytest.mark.parametrize("options", [sampling(temperature=0.7, top_k=3), sampling(temperature=1.3, min_p=0.1)])
def test_what_is_drawn_from_is_what_the_engine_draws_from(options: Sampling) -> None:
    logits = 2 * torch.randn(6, generator=torch.Generator().manual_seed(0))
    chooser, counts = Chooser(options), torch.zeros(6)
    for _ in range(4000):
        counts[chooser.choose(logits.clone(), [0])] += 1
    found = law(logits, [0], options)
    assert bool((counts[found == 0] == 0).all())
    assert float((counts / 4000 - found).abs().sum()) / 2 < 0.03
    assert Chooser(sampling()).choose(logits.clone(), [0]) == int(law(logits, [0], sampling()).argmax())


def test_seeds_repeat_and_differ() -> None:
    target, draft = toys.toy("plain"), toys.toy("plain", seed=1)
    runs = [
        speculate(target, draft, Request(tokens=(1,), max_tokens=30, sampling=sampling(temperature=1.0, seed=seed)))
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_dice_fall_as_they_should() -> None:
    dice = Dice(0)
    assert sum(dice.happens(0.3) for _ in range(5000)) / 5000 == pytest.approx(0.3, abs=0.03)
    assert not dice.happens(0.0) and dice.happens(1.0)
    drawn = [dice.pick(torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64)) for _ in range(5000)]
    assert drawn.count(2) / 5000 == pytest.approx(0.8, abs=0.03) and 1 not in drawn


def test_what_cannot_be_served_is_refused() -> None:
    target = toys.toy("plain")
    with pytest.raises(ShapeError, match="draft over 5 tokens"):
        speculate(Recurrent(0), Recurrent(0, vocab=5), Request(tokens=(1,), max_tokens=2))
    with pytest.raises(RequestError, match="gamma is 0"):
        speculate(target, target, Request(tokens=(1,), max_tokens=2), gamma=0)
    with pytest.raises(RequestError, match="exceed the context"):
        speculate(target, target, Request(tokens=(1,), max_tokens=toys.CONTEXT))
    for options in ({"stop": ("x",)}, {"logprobs": 0}):
        with pytest.raises(UnsupportedError, match="draft"):
            speculate(target, target, Request(tokens=(1,), max_tokens=2, **options))
