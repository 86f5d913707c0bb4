"""Prefix and chunk masks: against transformers' rules, with packing, and with a state."""

from __future__ import annotations

import pytest
import torch
from nn.attention.keeping import HIDDEN, built, numbers
from torch import Tensor
from transformers.masking_utils import chunked_overlay, sliding_window_overlay

from almanac.core.errors import RequestError
from almanac.core.state import Context, Mixer
from almanac.nn.attention.latent import latent_attention
from almanac.nn.attention.masks import ChunkedAttention, Mask, PrefixLM, SlidingWindow, seen, visible
from almanac.nn.attention.sparse import sparse_attention
from almanac.nn.positions.rope import Rope


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_windows_and_chunks_are_those_of_transformers(size: int) -> None:
    places = torch.arange(30)
    for mask, theirs in (
        (SlidingWindow(size=size), sliding_window_overlay(size)),
        (ChunkedAttention(size=size), chunked_overlay(size, torch.zeros(1, dtype=torch.int64))),
    ):
        wanted = torch.tensor([[bool(theirs(0, 0, q, k)) and k <= q for k in places] for q in places])
        assert torch.equal(mask.allowed(places[:, None], places[None, :]), wanted)


def layers(mask: Mask) -> list[Mixer]:
    latent = latent_attention(HIDDEN, num_heads=2, rank=8, dims=(4, 5), position=Rope.Spec(rotary_dim=4))
    return [built(latent.with_(mask=mask)), built(sparse_attention(HIDDEN, num_heads=2, mask=mask, tile=4))]


def context(rows: int, time: int, start: int = 0, **more: Tensor) -> Context:
    return Context(positions=torch.arange(start, start + time).expand(rows, -1), **more)


def test_a_prefix_sees_itself_whole_and_the_rest_is_causal() -> None:
    found = visible(PrefixLM(), context(2, 5, prefix=torch.tensor([3, 0])))
    wanted = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.equal(found[1], wanted)
    wanted[:3, :3] = True
    assert torch.equal(found[0], wanted)
    assert torch.equal(visible(PrefixLM(), context(1, 5))[0], torch.ones(5, 5, dtype=torch.bool).tril())


def test_packed_texts_have_prefixes_of_their_own() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    segments = torch.tensor([[0] * 4 + [1] * 4])
    prefix = torch.tensor([[3] * 4 + [2] * 4])
    for layer in layers(PrefixLM()):
        x = numbers(1, 8)
        y, _ = layer(x, Context(positions=positions, segments=segments, prefix=prefix), None)
        for part, length in ((slice(0, 4), 3), (slice(4, 8), 2)):
            alone, _ = layer(x[:, part], context(1, 4, prefix=torch.tensor([length])), None)
            torch.testing.assert_close(y[:, part], alone, rtol=1e-9, atol=1e-10)


def test_a_state_goes_on_after_the_prefix() -> None:
    prefix = torch.tensor([4, 6])
    for layer in layers(PrefixLM()):
        x = numbers(2, 12)
        whole, _ = layer(x, context(2, 12, prefix=prefix), None)
        y, state = layer(x[:, :7], context(2, 7, prefix=prefix), layer.init_state(2, 12))
        tail, state = layer(x[:, 7:9], context(2, 2, 7, prefix=prefix), state)
        last, _ = layer(x[:, 9:], context(2, 3, 9), state)
        torch.testing.assert_close(torch.cat([y, tail, last], 1), whole, rtol=1e-9, atol=1e-10)
        causal, _ = layer(x, context(2, 12), None)
        assert not torch.allclose(causal[:, :3], whole[:, :3])
        with pytest.raises(RequestError, match="whole prefix"):
            layer(x[:, :5], context(2, 5, prefix=prefix), layer.init_state(2, 12))


def test_a_prefix_changes_no_other_rule() -> None:
    places = torch.arange(6)[None]
    prefix = torch.tensor([4])
    window = SlidingWindow(size=2)
    assert torch.equal(seen(window, places, places, prefix), seen(window, places, places))
