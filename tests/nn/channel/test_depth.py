"""Mixture of depths: whose turn it is, against a loop; at inference cached = full, no leak, packed = separate."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.nn.block import Block
from almanac.nn.channel.depth import Choice, Depth, DepthRouter, depth, gathered, highest, prediction_loss
from almanac.nn.channel.moe.balance import record
from almanac.nn.stack import Decoder

TIME = 24


def model(capacity: float = 0.5, *, seed: int = 0) -> Decoder:
    """The plain toy with its second block for a share of the tokens; about half are predicted."""
    spec = toys.plain()
    first, second = spec.layers
    made = toys.model_of(spec.with_(layers=(first, depth(second, toys.HIDDEN, capacity=capacity), first)), seed=seed)
    with torch.no_grad():
        layer = made.layers[1]
        assert isinstance(layer, Depth)
        layer.router.projection.dense_weight().mul_(3)
        layer.router.predictor.down.dense_weight().mul_(10)
        with record(made, of=DepthRouter) as records:
            made(toys.tokens(4, TIME, seed=8))
        (choice,) = next(iter(records.values()))
        layer.router.predictor.down.bias -= choice.predicted.median()
    return made


def logits(one: Decoder, tokens: Tensor, context: Context | None = None) -> Tensor:
    with torch.no_grad():
        return one(tokens, context)


def test_the_highest_are_chosen_within_each_sequence() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.2, 0.8, 0.3, 0.4]])
    assert highest(scores, None, 0.5)[0].tolist() == [False, True, True, True, False, True, False, False]
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    assert highest(scores, segments, 0.5)[0].tolist() == [False, True, False, True, False, True, False, False]
    assert int(highest(torch.rand(1, 100), None, 0.29).sum()) == 29
    assert bool(highest(scores, segments, 1.0).all())
    assert int(highest(torch.zeros(3, 10), None, 0.35).sum(1).max()) == 3  # ties too


def test_gathered_keeps_the_order() -> None:
    chosen = torch.tensor([[False, True, True, False], [True, False, False, False]])
    places, taken = gathered(chosen, 2)
    assert places[0].tolist() == [1, 2]
    assert places[1, 0] == 0
    assert taken.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("packed", [False, True])
def test_training_is_the_loop(packed: bool) -> None:
    """Each sequence alone: pick, run the block on those picked, add σ(r) of what it adds."""
    made = model(0.4).train().double()
    layer = made.layers[1]
    assert isinstance(layer, Depth)
    x = torch.randn(2, 20, toys.HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cuts = [(0, 11), (11, 20)] if packed else [(0, 20)]
    segments = torch.tensor([[0] * 11 + [1] * 9] * 2) if packed else None
    positions = torch.cat([torch.arange(end - start) for start, end in cuts]).expand(2, -1)
    with torch.no_grad():
        got, _ = layer(x, Context(positions=positions, segments=segments), None)
        expected = x.clone()
        for row in range(2):
            for start, end in cuts:
                own = x[row, start:end]
                scores = layer.router.projection(own)[:, 0]
                places = scores.topk(int(0.4 * len(own))).indices.sort().values
                context = Context(positions=torch.arange(len(places))[None])
                done = layer.block(own[places][None], context, None)[0][0]
                for place, value in zip(places.tolist(), done, strict=True):
                    expected[row, start + place] = own[place] + torch.sigmoid(scores[place]) * (value - own[place])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert not torch.equal(got, x)


def test_full_capacity_at_full_weight_is_the_block_itself() -> None:
    made = model(1.0).train()
    layer = made.layers[1]
    assert isinstance(layer, Depth)
    assert isinstance(layer.block, Block)
    x, context = torch.randn(2, 9, toys.HIDDEN).abs() + 1, Context(positions=torch.arange(9).expand(2, -1))
    with torch.no_grad():
        layer.router.projection.dense_weight().fill_(10.0)
        torch.testing.assert_close(layer(x, context, None)[0], layer.block(x, context, None)[0], rtol=0, atol=1e-5)


def test_padding_takes_no_ones_place() -> None:
    made = model().train()
    tokens, padded = toys.tokens(1, 10), toys.tokens(1, 16)
    padded[:, :10] = tokens
    segments = torch.tensor([[0] * 10 + [-1] * 6])
    context = Context(
        positions=torch.cat([torch.arange(10), torch.zeros(6, dtype=torch.int64)])[None], segments=segments
    )
    torch.testing.assert_close(logits(made, padded, context)[:, :10], logits(made, tokens), rtol=0, atol=1e-5)


# --- inference


@pytest.mark.parametrize("chunks", [[1] * TIME, [7, 1, 9, 7], [TIME]])
def test_cached_is_full(chunks: list[int]) -> None:
    made, tokens = model(), toys.tokens(3, TIME)
    with record(made, of=DepthRouter) as records:
        full = logits(made, tokens)
    share = next(iter(records.values()))[0].chosen.float().mean()
    assert 0.2 < float(share) < 0.8
    state, parts = made.init_state(3, 4), []
    for chunk in tokens.split(chunks, dim=1):
        with torch.no_grad():
            hidden, state = made.hidden(chunk, state)
        parts.append(made.logits(hidden).detach())
    assert state.lengths == [TIME] * 3
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=1e-5)


def test_nothing_leaks_at_inference_and_something_does_in_training() -> None:
    made, tokens = model(), toys.tokens(2, TIME)
    before, changed = logits(made, tokens), tokens.clone()
    changed[:, 15:] = toys.tokens(2, TIME - 15, seed=5)
    torch.testing.assert_close(logits(made, changed)[:, :15], before[:, :15], rtol=0, atol=1e-5)
    made.train()
    assert not torch.allclose(logits(made, changed)[:, :15], logits(made, tokens)[:, :15], atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_packed_is_separate(training: bool) -> None:
    made = model().train(training)
    rows = [toys.tokens(1, size, seed=size)[0] for size in (6, 13, 1, 4)]
    segments = torch.cat([torch.full((len(row),), index) for index, row in enumerate(rows)])[None]
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    together = logits(made, torch.cat(rows)[None], Context(positions=positions, segments=segments))[0]
    for row, part in zip(rows, together.split([len(row) for row in rows]), strict=True):
        torch.testing.assert_close(part, logits(made, row[None])[0], rtol=0, atol=1e-5)


def test_states_fork_trim_select_and_join() -> None:
    made, tokens, tail = model(), toys.tokens(2, 16), toys.tokens(2, 6, seed=4)
    with torch.no_grad():
        _, state = made.hidden(tokens, made.init_state(2, 32))
        fork = state.fork()
        fork.trim([16, 5])
        got, _ = made.hidden(tail, fork)
        for row, kept in enumerate((16, 5)):
            straight = torch.cat([tokens[row, :kept], tail[row]])[None]
            torch.testing.assert_close(got[row], made.hidden(straight)[0][0, kept:], rtol=0, atol=1e-5)
        assert state.lengths == [16, 16]
        chosen = state.select([1]).join([made.hidden(tokens[:1, :7], made.init_state(1, 8))[1]])
        assert chosen.lengths == [16, 7]
        got, _ = made.hidden(tail, chosen)
        for row, past in enumerate((tokens[1], tokens[0, :7])):
            straight = torch.cat([past, tail[row]])[None]
            torch.testing.assert_close(got[row], made.hidden(straight)[0][0, len(past) :], rtol=0, atol=1e-5)
    assert 0 < state.layers[1].nbytes < state.layers[0].nbytes + 1
    for wrong in ([17, 1], [3], [-1, 3]):
        with pytest.raises(ShapeError):
            state.layers[1].trim(wrong)


def test_compiled_is_eager() -> None:
    made, tokens = model(), toys.tokens(2, TIME)
    for training in (False, True):
        torch._dynamo.reset()
        made.train(training)
        compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(logits(compiled, tokens), logits(made, tokens), rtol=0, atol=1e-5)


def test_gradients_reach_the_score_and_the_predictor_learns_the_choice_alone() -> None:
    made = model().train()
    with record(made, of=DepthRouter) as records:
        made(toys.tokens(2, TIME)).square().mean().backward()
    leaves = toys.leaves(made)
    score, guess = (leaves[f"layers.1.router.{name}"].weight for name in ("projection", "predictor.down"))
    assert score.grad is not None
    assert bool(score.grad.any())
    assert guess.grad is None
    (choice,) = next(iter(records.values()))
    score.grad = None
    prediction_loss(choice).backward()
    assert score.grad is None
    assert guess.grad is not None
    exact = Choice(choice.scores, torch.where(choice.chosen, 50.0, -50.0), choice.chosen)
    assert float(prediction_loss(exact)) < 1e-9
    half = torch.zeros_like(choice.chosen)
    half[:, :12] = True
    wrong = Choice(choice.scores, torch.where(half & ~choice.chosen, 50.0, exact.predicted), choice.chosen)
    assert float(prediction_loss(wrong)) > 1
    assert float(prediction_loss(wrong, ~half)) < 1e-9


def test_techniques_act_within() -> None:
    made, tokens = model(), toys.tokens(2, TIME)
    before = logits(made, tokens)
    Lora(targets="layers.1.block.**").attach(made)
    toys.stir(item for item in made.parameters() if item.requires_grad)
    assert not torch.equal(logits(made, tokens), before)


def test_no_token_chosen_is_no_change() -> None:
    made = model()
    layer = made.layers[1]
    assert isinstance(layer, Depth)
    with torch.no_grad():
        layer.router.predictor.down.bias.fill_(-1e4)
        x, context = torch.randn(2, 5, toys.HIDDEN), Context(positions=torch.arange(5).expand(2, -1))
        assert torch.equal(layer(x, context, None)[0], x)
        y, state = layer(x, context, layer.init_state(2, 8))
        assert torch.equal(y, x)
        assert state.lengths == [5, 5]
        assert state.nbytes == 0


def test_impossible_shares_are_refused() -> None:
    block = toys.plain().layers[0]
    for capacity in (0.0, 1.1):
        with pytest.raises(UnsupportedError):
            depth(block, toys.HIDDEN, capacity=capacity)
    spec = depth(block, toys.HIDDEN, capacity=0.5)
    with pytest.raises(ShapeError):
        spec.replace("router.projection", out_features=2)
    assert initialise(spec.build(), seed=0) is not None
