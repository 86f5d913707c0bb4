"""Cross-attention against the sum written out and against torch's own; its state, packing and padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.nn.attention.cross import CrossAttention, CrossState, cross_attention
from almanac.nn.positions.relative import relative_bias

ROWS, TIME, SOURCE, HIDDEN, WIDTH = 2, 7, 5, 24, 16


def built(**changes: object) -> CrossAttention:
    spec = cross_attention(HIDDEN, num_heads=4, num_kv_heads=2, width=WIDTH, bias=True).with_(**changes)
    layer = initialise(spec.build(), seed=0).double()
    for number, parameter in enumerate(layer.parameters()):
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
    assert isinstance(layer, CrossAttention)
    return layer


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, TIME, HIDDEN, generator=generator, dtype=torch.float64)
    return x, torch.randn(ROWS, SOURCE, WIDTH, generator=generator, dtype=torch.float64)


def context(encoder: Tensor | None, start: int = 0, time: int = TIME, **more: Tensor) -> Context:
    return Context(positions=torch.arange(start, start + time).expand(ROWS, -1), encoder=encoder, **more)


def slow(layer: CrossAttention, x: Tensor, encoder: Tensor) -> Tensor:
    """One query of one head at a time; x [t, h], encoder [s, w]."""
    q, k, v = layer.q(x), layer.k(encoder), layer.v(encoder)
    scale = 6**-0.5 if layer.scale is None else layer.scale
    out = torch.zeros_like(q)
    for t in range(len(x)):
        for n in range(4):
            mine, theirs = slice(6 * n, 6 * n + 6), slice(6 * (n // 2), 6 * (n // 2) + 6)
            scores = k[:, theirs] @ q[t, mine] * scale
            if layer.score_bias is not None:
                scores = scores + layer.score_bias(torch.tensor([[t]]), torch.arange(len(encoder))[None])[0, n, 0]
            out[t, mine] = scores.softmax(0) @ v[:, theirs]
    return layer.o(out)


@pytest.mark.parametrize("changes", [{}, {"scale": 1.0}, {"score_bias": relative_bias(4, num_buckets=4)}])
def test_every_query_weighs_the_whole_source(changes: dict[str, object]) -> None:
    layer, (x, encoder) = built(**changes), inputs()
    y, state = layer(x, context(encoder), None)
    assert state is None
    for row in range(ROWS):
        torch.testing.assert_close(y[row], slow(layer, x[row], encoder[row]), rtol=1e-10, atol=1e-12)


def test_torch_agrees() -> None:
    spec = cross_attention(HIDDEN, num_heads=4, width=WIDTH, bias=True)
    layer = initialise(spec.build(), seed=0).double()
    theirs = nn.MultiheadAttention(HIDDEN, 4, kdim=WIDTH, vdim=WIDTH, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for name, weight in (("q", theirs.q_proj_weight), ("k", theirs.k_proj_weight), ("v", theirs.v_proj_weight)):
            layer.get_submodule(name).weight.copy_(weight)
        layer.get_submodule("o").weight.copy_(theirs.out_proj.weight)
        x, encoder = inputs()
        y, _ = layer(x, context(encoder), None)
        torch.testing.assert_close(y, theirs(x, encoder, encoder)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pieces", [(7,), (1, 1, 5), (3, 4), (1,) * 7])
@pytest.mark.parametrize("before", [True, False])
def test_the_source_is_read_once(pieces: tuple[int, ...], before: bool) -> None:
    layer, (x, encoder) = built(score_bias=relative_bias(4, num_buckets=4)), inputs()
    segments = torch.tensor([[0] * 5, [-1, 0, 0, 0, -1]])
    expected, _ = layer(x, context(encoder[:, 1:4]), None)
    expected[0] = layer(x, context(encoder), None)[0][0]
    calls: list[int] = []
    layer.k.register_forward_hook(lambda *_: calls.append(1))
    state = layer.read(encoder, segments) if before else layer.init_state(ROWS, 3)
    outputs, start = [], 0
    for time in pieces:
        first = start == 0 and not before
        given = context(encoder if first else None, start, time, **({"encoder_segments": segments} if first else {}))
        y, state = layer(x[:, start : start + time], given, state)
        outputs.append(y)
        start += time
        assert state.lengths == [start] * ROWS
        assert state.nbytes == (5 + 3) * 2 * 2 * 6 * 8
    assert len(calls) == 1
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-10, atol=1e-12)


def test_rows_come_and_go() -> None:
    layer, (x, encoder) = built(), inputs()
    expected, _ = layer(x, context(encoder), None)
    one, two = layer.read(encoder[:1]), layer.read(encoder[1:, :3])
    state = two.join([one]).select([1, 0, 1])
    assert isinstance(state, CrossState)
    rows = torch.stack([x[0], x[1], x[0]])
    y, after = layer(rows, Context(positions=torch.arange(TIME).expand(3, -1)), state)
    short, _ = layer(x, context(encoder[:, :3]), None)
    torch.testing.assert_close(y, torch.stack([expected[0], short[1], expected[0]]), rtol=1e-10, atol=1e-12)
    fork = after.fork()
    fork.trim([0, 2, 7])
    assert (fork.lengths, after.lengths, state.lengths) == ([0, 2, 7], [7] * 3, [0] * 3)
    again, _ = layer(rows, Context(positions=torch.arange(TIME).expand(3, -1)), fork)
    torch.testing.assert_close(again, y)
    with pytest.raises(ShapeError, match="Cannot trim"):
        after.trim([8, 0, 0])


def test_packed_tokens_see_their_own_source() -> None:
    layer, (x, encoder) = built(), inputs()
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 2, 2, -1, -1, -1]])
    sources = torch.tensor([[0, 0, 1, 1, 1], [0, 2, 2, 2, -1]])
    y, _ = layer(x, context(encoder, segments=segments, encoder_segments=sources), None)
    for row, tokens, source in ((0, (0, 3), (0, 2)), (0, (3, 7), (2, 5)), (1, (0, 2), (0, 1)), (1, (2, 4), (1, 4))):
        part = slow(layer, x[row, slice(*tokens)], encoder[row, slice(*source)])
        torch.testing.assert_close(y[row, slice(*tokens)], part, rtol=1e-10, atol=1e-12)
    assert torch.isfinite(y).all()


def test_it_compiles_as_one_graph_and_builds_on_meta() -> None:
    layer, (x, encoder) = built(), inputs()
    segments = torch.tensor([[0] * 5, [0] * 3 + [-1] * 2])
    expected, _ = layer(x, context(encoder, encoder_segments=segments), None)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, context(encoder, encoder_segments=segments), None)[0], expected)
    with torch.device("meta"):
        empty = cross_attention(HIDDEN, num_heads=4).build()
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_nothing_to_look_at_is_an_error() -> None:
    layer, (x, _) = built(), inputs()
    for state in (None, layer.init_state(ROWS, 1)):
        with pytest.raises(RequestError, match="nothing to look at"):
            layer(x, context(None), state)


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(ShapeError, match="cannot share"):
        cross_attention(HIDDEN, num_heads=4, num_kv_heads=3)
    spec = cross_attention(HIDDEN, num_heads=4)
    with pytest.raises(ShapeError, match="k gives 24"):
        spec.with_(num_kv_heads=2)
    with pytest.raises(ShapeError, match="bias of 3 heads"):
        spec.with_(score_bias=relative_bias(3))
