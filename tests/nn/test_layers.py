"""The small layers against their formulas, written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from almanac.core.spec import Constant
from almanac.core.technique import initialise
from almanac.nn.activation import Activation, Gelu, GeluTanh, Relu, Silu
from almanac.nn.channel.dense import dense
from almanac.nn.channel.gated import gated
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head, TiedHead
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm, RMSNorm

FORMULAS = {
    Silu(): lambda x: x / (1 + math.exp(-x)),
    Gelu(): lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    GeluTanh(): lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    Relu(): lambda x: max(x, 0.0),
}


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", FORMULAS, ids=lambda item: item.kind())
def test_activations(activation: Activation) -> None:
    xs = [-9.0, -1.5, -0.1, 0.0, 0.3, 2.0, 8.0]
    close(activation(torch.tensor(xs)), torch.tensor([FORMULAS[activation](x) for x in xs]))


def test_rms_norm() -> None:
    norm = RMSNorm.Spec(hidden=5, epsilon=0.3).build()
    x = torch.randn(2, 3, 5) * 4
    torch.nn.init.normal_(norm.weight)
    wide = x.double()
    close(norm(x), wide / (wide.square().mean(-1, keepdim=True) + 0.3).sqrt() * norm.weight.detach())
    assert norm(torch.zeros(5)).tolist() == [0.0] * 5


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias: bool) -> None:
    norm = LayerNorm.Spec(hidden=5, epsilon=0.3, bias=bias).build()
    x = torch.randn(2, 3, 5) * 4 + 7
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 0.3).sqrt() * norm.weight.detach()
    close(norm(x), expected + norm.bias.detach() if bias else expected)
    assert (norm.bias is None) == (not bias)


def test_channels() -> None:
    x = torch.randn(3, 4)
    one = initialise(gated(4, 6, bias=True).build(), seed=1)
    for leaf in (one.gate, one.up, one.down):
        torch.nn.init.normal_(leaf.bias)
    inner = torch.nn.functional.silu(x @ one.gate.weight.T + one.gate.bias) * (x @ one.up.weight.T + one.up.bias)
    close(one(x), inner @ one.down.weight.T + one.down.bias)
    two = initialise(dense(4, 6, activation=Relu()).build(), seed=1)
    torch.nn.init.normal_(two.up.bias)
    close(two(x), (x @ two.up.weight.T + two.up.bias).relu() @ two.down.weight.T + two.down.bias)


def test_heads() -> None:
    embed = initialise(Embedding.Spec(vocab_size=7, hidden=4).build(), seed=1)
    x = torch.randn(2, 3, 4)
    close(TiedHead.Spec().build()(x, embed), x @ embed.weight.T)
    head = initialise(Head.Spec(projection=Linear.Spec(in_features=4, out_features=7, bias=True)).build(), seed=2)
    torch.nn.init.normal_(head.projection.bias)
    close(head(x, embed), x @ head.projection.weight.T + head.projection.bias)
    assert list(TiedHead.Spec().build().parameters()) == []


def test_embedding_takes_rows() -> None:
    embed = Embedding.Spec(vocab_size=7, hidden=4, initialiser=Constant(value=2.0)).build()
    embed.initialise()
    with torch.no_grad():
        embed.weight[3] = torch.arange(4.0)
    assert embed(torch.tensor([[3, 0]])).tolist() == [[[0.0, 1.0, 2.0, 3.0], [2.0] * 4]]


def test_linear_maps() -> None:
    linear = Linear.Spec(in_features=3, out_features=2, bias=True).build()
    assert linear.bias is not None
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]]))
        linear.bias.copy_(torch.tensor([10.0, 20.0]))
    assert linear(torch.tensor([1.0, 1.0, 1.0])).tolist() == [16.0, 20.0]
    assert Linear.Spec(in_features=3, out_features=2).build().bias is None
