"""T5's buckets and bias against transformers, shared and owned tables, cached and packed attention."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from almanac.core.errors import SelectionError, ShapeError
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.nn.attention.full import Attention, attention
from almanac.nn.embedding import Embedding
from almanac.nn.positions.relative import RelativeBias, SharedBias, buckets, relative_bias, share


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "far"), [(32, 128), (8, 20), (64, 1000), (4, 3)])
def test_buckets_are_those_of_transformers(bidirectional: bool, count: int, far: int) -> None:
    distance = torch.arange(-1500, 1501)[None]
    theirs = T5Attention._relative_position_bucket(distance, bidirectional, count, far)
    assert torch.equal(buckets(distance, count, max_distance=far, bidirectional=bidirectional), theirs)


def test_near_distances_have_a_bucket_each_and_far_ones_share() -> None:
    found = buckets(-torch.arange(300), 32, max_distance=128, bidirectional=False)
    assert found[:16].tolist() == list(range(16))
    assert (found.diff() >= 0).all() and found[128:].unique().tolist() == [31] and found[110] < 31
    assert buckets(torch.tensor([5]), 32, max_distance=128, bidirectional=False).item() == 0
    assert buckets(torch.tensor([5]), 32, max_distance=128, bidirectional=True).item() == 16 + 5


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_is_that_of_transformers(bidirectional: bool) -> None:
    config = T5Config(
        d_model=32,
        num_heads=4,
        d_kv=8,
        is_decoder=not bidirectional,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=30,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = relative_bias(4, num_buckets=16, max_distance=30, bidirectional=bidirectional).build()
    ours.load_state_dict({"table.weight": theirs.relative_attention_bias.weight})
    places = torch.arange(50)[None]
    assert torch.equal(ours(places, places), theirs.compute_bias(50, 50))
    torch.testing.assert_close(ours(places[:, 40:], places), theirs.compute_bias(10, 50, past_seen_tokens=40))


def layer_of(position: object, seed: int = 0) -> Attention:
    spec = attention(32, num_heads=4, num_kv_heads=2).with_(score_bias=position)
    layer = initialise(spec.build(), seed=seed)
    for number, parameter in enumerate(layer.parameters()):
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number + seed))
    assert isinstance(layer, Attention)
    return layer.double()


def numbers(time: int) -> Tensor:
    return torch.randn(2, time, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def run(layer: nn.Module, x: Tensor, **more: Tensor) -> Tensor:
    return layer(x, Context(positions=torch.arange(x.shape[1]).expand(2, -1), **more), None)[0]


def test_a_kept_past_and_packed_texts_have_the_distances_of_their_own() -> None:
    layer, x = layer_of(relative_bias(4, num_buckets=8, max_distance=12)), numbers(15)
    whole, state, start, parts = run(layer, x), layer.init_state(2, 4), 0, []
    for time in (1, 6, 3, 5):
        positions = torch.arange(start, start + time).expand(2, -1)
        y, state = layer(x[:, start : start + time], Context(positions=positions), state)
        parts.append(y)
        start += time
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)
    packed = Context(
        positions=torch.tensor([[*range(9), *range(6)]] * 2), segments=torch.tensor([[0] * 9 + [1] * 6] * 2)
    )
    y, _ = layer(x, packed, None)
    torch.testing.assert_close(y[:, 9:], run(layer, x[:, 9:]), rtol=1e-10, atol=1e-12)


class Pair(nn.Module):
    """Two layers, the second with the first one's table."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layer_of(relative_bias(4, num_buckets=8, max_distance=12))
        self.second = layer_of(SharedBias.Spec(num_heads=4), seed=7)
        share(self)

    def forward(self, x: Tensor) -> Tensor:
        context = Context(positions=torch.arange(x.shape[1]).expand(2, -1))
        return self.second(self.first(x, context, None)[0], context, None)[0]


def test_a_shared_table_has_one_place_and_learns_from_all() -> None:
    pair, x = Pair(), numbers(9)
    assert [name for name in pair.state_dict() if "table" in name] == ["first.score_bias.table.weight"]
    owned = copy.deepcopy(pair)
    owned.second.score_bias = copy.deepcopy(owned.first.score_bias)
    owned.second.bias_key = ""
    torch.testing.assert_close(pair(x), owned(x), rtol=1e-12, atol=1e-12)
    pair(x).square().sum().backward()
    owned(x).square().sum().backward()
    both = [owned.get_submodule(f"{name}.score_bias.table").weight.grad for name in ("first", "second")]
    torch.testing.assert_close(pair.first.score_bias.table.weight.grad, sum(both))
    other = copy.deepcopy(pair)
    with torch.no_grad():
        other.first.score_bias.table.weight.normal_()
    assert not torch.allclose(other(x), pair(x))
    assert other.second.score_bias.owner[0] is other.first.score_bias


def test_a_shared_table_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    pair, x = Pair(), numbers(9)
    torch.testing.assert_close(torch.compile(pair, backend="aot_eager", fullgraph=True)(x), pair(x))


def test_a_share_of_nothing_is_refused() -> None:
    x = torch.arange(3)[None]
    alone = SharedBias.Spec(num_heads=4).build()
    with pytest.raises(SelectionError, match="whose they are"):
        alone(x, x)
    with pytest.raises(SelectionError, match="of which there are 0"):
        share(nn.ModuleList([alone]))
    with pytest.raises(SelectionError, match="of which there are 2"):
        share(nn.ModuleList([alone, relative_bias(4).build(), relative_bias(4).build()]))


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(ShapeError, match="columns"):
        RelativeBias.Spec(num_heads=4, table=Embedding.Spec(vocab_size=32, hidden=5))
    for buckets_, bidirectional in ((1, False), (2, True), (7, True)):
        with pytest.raises(ShapeError, match="buckets"):
            relative_bias(4, num_buckets=buckets_, bidirectional=bidirectional)
    with pytest.raises(ShapeError, match="distance 8"):
        relative_bias(4, num_buckets=32, max_distance=8)
