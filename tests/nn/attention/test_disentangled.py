"""Disentangled attention against transformers' DeBERTa-v2, its buckets, packing, sharing and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, make_log_bucket_position

from almanac.core.errors import SelectionError, ShapeError, UnsupportedError
from almanac.core.state import Context
from almanac.nn.attention.disentangled import DisentangledAttention, disentangled
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.disentangled import Distances, SharedDistances, buckets, distances
from almanac.nn.positions.relative import share

HIDDEN, HEADS, TIME = 24, 3, 20


@pytest.mark.parametrize(("span", "far"), [(256, 512), (8, 20), (4, 100), (6, 9)])
def test_buckets_are_those_of_transformers(span: int, far: int) -> None:
    distance = torch.arange(-700, 701)
    assert torch.equal(buckets(distance, span, max_distance=far), make_log_bucket_position(distance, span, far).long())


def pair(span: int, far: int | None, kinds: list[str], shared: bool) -> tuple[DisentangledAttention, nn.Module, Tensor]:
    """Ours, theirs with the same weights, and the vectors of distances."""
    config = DebertaV2Config(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        relative_attention=True,
        position_buckets=span if far else -1,
        max_relative_positions=far or span,
        pos_att_type=kinds,
        share_att_key=shared,
    )
    torch.manual_seed(0)
    theirs = DisentangledSelfAttention(config).double().eval()
    spec = disentangled(
        HIDDEN, num_heads=HEADS, span=span, max_distance=far, shared_maps=shared, distances=distances(HIDDEN, span=span)
    )
    spec = spec.with_(content_to_position="c2p" in kinds, position_to_content="p2c" in kinds)
    if not shared:
        spec = spec.with_(distance_k=spec.q if "c2p" in kinds else None, distance_q=spec.q if "p2c" in kinds else None)
    ours = spec.build().double()
    names = {"query_proj": "q", "key_proj": "k", "value_proj": "v", "pos_key_proj": "distance_k"}
    names["pos_query_proj"] = "distance_q"
    for theirs_name, module in theirs.named_children():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
            nn.init.normal_(module.bias, std=0.5)
            ours.get_submodule(names[theirs_name]).load_state_dict(module.state_dict())
    nn.init.eye_(ours.o.weight)
    nn.init.normal_(ours.distances.table.weight)
    return ours, theirs, ours.distances.table.weight.detach()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kinds", [["c2p", "p2c"], ["c2p"], ["p2c"], []])
@pytest.mark.parametrize(("span", "far"), [(8, 16), (4, 50), (7, None), (30, None)])
def test_scores_are_those_of_transformers(span: int, far: int | None, kinds: list[str], shared: bool) -> None:
    ours, theirs, vectors = pair(span, far, kinds, shared)
    x = torch.randn(2, TIME, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    real = torch.ones(2, TIME, dtype=torch.bool)
    real[1, 13:] = False
    segments = torch.where(real, 0, -1)
    if kinds:
        expected, _ = theirs(x, (real[:, None, :, None] & real[:, None, None, :]), rel_embeddings=vectors)
    else:
        theirs.relative_attention = False
        expected, _ = theirs(x, (real[:, None, :, None] & real[:, None, None, :]))
    found, state = ours(x, Context(positions=torch.arange(TIME).expand(2, -1), segments=segments), None)
    assert state is None
    torch.testing.assert_close(
        found[real], expected[real], rtol=1e-7, atol=1e-7
    )  # theirs takes square roots in float32
    assert torch.isfinite(found).all()


def test_packed_texts_are_read_alone() -> None:
    ours, _, _ = pair(8, 16, ["c2p", "p2c"], True)
    x = torch.randn(1, TIME, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positions = torch.tensor([[*range(7), *range(13)]])
    found, _ = ours(x, Context(positions=positions, segments=torch.tensor([[0] * 7 + [1] * 13])), None)
    for part, time in ((slice(0, 7), 7), (slice(7, 20), 13)):
        alone, _ = ours(x[:, part], Context(positions=torch.arange(time)[None]), None)
        torch.testing.assert_close(found[:, part], alone, rtol=1e-10, atol=1e-12)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        owned = distances(HIDDEN, span=8, norm=LayerNorm.Spec(hidden=HIDDEN))
        self.layers = nn.ModuleList(
            disentangled(HIDDEN, num_heads=HEADS, span=8, max_distance=16, distances=item).build()
            for item in (owned, SharedDistances.Spec())
        )
        for number, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
        share(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        context = Context(positions=torch.arange(x.shape[1]).expand(x.shape[0], -1))
        for layer in self.layers:
            x, _ = layer(x, context, None)
        return x


def test_layers_share_a_normalised_table() -> None:
    stack, x = Stack().double(), torch.randn(2, 9, HIDDEN, dtype=torch.float64)
    names = [name for name in stack.state_dict() if "distances" in name]
    assert names == [f"layers.0.distances.{name}" for name in ("table.weight", "norm.weight", "norm.bias")]
    before = stack(x)
    with torch.no_grad():
        stack.layers[0].distances.norm.weight.mul_(2)
    assert not torch.allclose(stack.layers[1](x, Context(positions=torch.arange(9).expand(2, -1)), None)[0], before)
    torch._dynamo.reset()
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), stack(x))
    with pytest.raises(SelectionError, match="whose they are"):
        SharedDistances.Spec().build()(torch.arange(3))


def test_what_cannot_be_is_refused() -> None:
    layer = pair(8, 16, ["c2p", "p2c"], True)[0]
    with pytest.raises(UnsupportedError, match="no state"):
        layer.init_state(1, 1)
    make = lambda **changes: disentangled(  # noqa: E731
        HIDDEN, **{"num_heads": 3, "span": 8, "distances": distances(HIDDEN, span=8), **changes}
    )
    with pytest.raises(ShapeError, match="5 heads"):
        make(num_heads=5)
    with pytest.raises(ShapeError, match="16 distances for 7"):
        make(span=7)
    with pytest.raises(ShapeError, match="up to 4"):
        make(max_distance=4)
    with pytest.raises(ShapeError, match="0 distances"):
        make(span=0, distances=SharedDistances.Spec())
    with pytest.raises(ShapeError, match="even"):
        Distances.Spec(table=distances(HIDDEN, span=8).table.with_(vocab_size=5))
