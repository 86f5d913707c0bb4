"""The convolution beside a block: against torch's own, and blind to other texts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.nn.attention.bidirectional import bidirectional
from almanac.nn.channel.dense import dense
from almanac.nn.convolved_block import CentredConv, ConvolvedBlock
from almanac.nn.norm import LayerNorm
from almanac.nn.postnorm_block import PostNormBlock

HIDDEN = 12


def filled(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().requires_grad_(False)


@pytest.mark.parametrize(("width", "groups"), [(1, 1), (3, 1), (5, 4), (7, 12)])
def test_it_is_a_convolution_with_zeros_at_both_ends(width: int, groups: int) -> None:
    conv = filled(CentredConv.Spec(hidden=HIDDEN, width=width, groups=groups).build())
    x = torch.randn(2, 9, HIDDEN, dtype=torch.float64)
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=width // 2, groups=groups).transpose(1, 2)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)
    one = torch.zeros(2, 9, dtype=torch.int64)
    torch.testing.assert_close(conv(x, one), expected, rtol=0, atol=1e-12)


def test_texts_of_one_row_do_not_meet() -> None:
    norm = LayerNorm.Spec(hidden=HIDDEN)
    inner = PostNormBlock.Spec(
        mixer=bidirectional(HIDDEN, num_heads=3), mixer_norm=norm, channel=dense(HIDDEN, 20), channel_norm=norm
    )
    block = filled(ConvolvedBlock.Spec(block=inner, conv=CentredConv.Spec(hidden=HIDDEN, width=5), norm=norm).build())
    lengths = (4, 1, 7)
    texts = [torch.randn(1, length, HIDDEN, dtype=torch.float64) for length in lengths]
    alone = [block(text, Context(positions=torch.arange(text.shape[1])[None]))[0] for text in texts]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    segments = torch.tensor([[0] * 4 + [1] + [-1] * 7])
    together, _ = block(torch.cat(texts, dim=1), Context(positions=positions, segments=segments))
    torch.testing.assert_close(together[:, :5], torch.cat(alone, dim=1)[:, :5], rtol=0, atol=1e-12)
    unlike, _ = block(torch.cat(texts, dim=1), Context(positions=positions))
    assert not torch.allclose(unlike[:, :5], together[:, :5], atol=1e-3)


@pytest.mark.parametrize("changes", [{"width": 2}, {"width": 0}, {"groups": 5}, {"groups": 0}])
def test_what_has_no_middle_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ShapeError) as caught:
        CentredConv.Spec(**{"hidden": HIDDEN, **changes})
    assert caught.value.remedy
