"""Sparse patterns against loops over pairs of places, their growth, and tiles against the masked dense product."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from nn.attention.keeping import HIDDEN, built, flops, going_on, numbers, splits, whole
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.nn.attention import sparse
from almanac.nn.attention.backends import Reference, Sdpa, using
from almanac.nn.attention.full import attention
from almanac.nn.attention.masks import BothWays, Causal, ChunkedAttention, Mask, SlidingWindow
from almanac.nn.attention.patterns import BigBird, BlockSparse, Dilated, Fixed, Hierarchical, Strided, drawn
from almanac.nn.attention.scores import Rule, attend
from almanac.nn.attention.sparse import attend_tiles, layout, sparse_attention

TIME = 61


def level(distance: int, window: int, branch: int) -> int:
    """Tokens of which one is kept at a distance."""
    step = 1
    while distance >= window * step:
        step *= branch
    return step


PATTERNS: dict[str, tuple[Mask, Callable[[int, int], bool]]] = {
    "window": (SlidingWindow(size=5), lambda i, j: i - j < 5),
    "chunks": (ChunkedAttention(size=7), lambda i, j: i // 7 == j // 7),
    "strided": (Strided(stride=6), lambda i, j: i - j < 6 or (i - j) % 6 == 0),
    "fixed": (Fixed(stride=8, summary=2), lambda i, j: i // 8 == j // 8 or j % 8 >= 6),
    "dilated": (Dilated(window=4, dilation=3, anchors=2), lambda i, j: j < 2 or i - j in (0, 3, 6, 9)),
    "every third": (Dilated(dilation=3), lambda i, j: (i - j) % 3 == 0),
    "blocks": (BlockSparse(block=4, offsets=(0, 1, 5), anchors=1), lambda i, j: j < 4 or i // 4 - j // 4 in (0, 1, 5)),
    "hierarchical": (Hierarchical(window=4, branch=2), lambda i, j: (j + 1) % level(i - j, 4, 2) == 0),
    "hierarchical by 3": (Hierarchical(window=2, branch=3), lambda i, j: (j + 1) % level(i - j, 2, 3) == 0),
    "BigBird": (
        BigBird(block=4, near=2, anchors=1, random=2, seed=5),
        lambda i, j: j < 4 or i // 4 - j // 4 < 2 or j // 4 in [drawn(torch.tensor(i // 4), 5045 + r) for r in (0, 1)],
    ),
}
every_pattern = pytest.mark.parametrize("name", PATTERNS)


def table(mask: Mask, time: int = TIME) -> Tensor:
    places = torch.arange(time)
    return mask.allowed(places[:, None], places[None, :])


@every_pattern
def test_a_pattern_is_its_rule(name: str) -> None:
    mask, rule = PATTERNS[name]
    wanted = torch.tensor([[j <= i and rule(i, j) for j in range(TIME)] for i in range(TIME)])
    assert torch.equal(table(mask), wanted)
    assert table(mask).diagonal().all()
    assert type(mask).from_dict(mask.to_dict()) == mask
    for length in range(1, TIME):
        if mask.is_plain_causal(length):
            assert torch.equal(table(mask)[:length, :length], table(Causal(), length)), length
    assert mask.is_plain_causal(1) and not mask.is_plain_causal(TIME)


def test_random_blocks_are_those_before_and_never_drawn_anew() -> None:
    blocks = torch.arange(400)
    draws = torch.stack([drawn(blocks, salt) for salt in range(40)])
    assert (draws[:, 1:] < blocks[1:]).all() and (draws >= 0).all()
    assert torch.equal(drawn(blocks[200:], 3), draws[3, 200:])
    share = draws[:, 100:].double() / blocks[100:]
    assert abs(float(share.mean()) - 0.5) < 0.01 and abs(float(share.std()) - 12**-0.5) < 0.01  # as uniform as it gets
    assert not torch.equal(table(BigBird(block=4, seed=1)), table(BigBird(block=4, seed=2)))


def test_what_is_seen_grows_as_promised() -> None:
    """Keys of the last query, at 1024 and at 4096 tokens: constant, root and logarithm, where the whole past grows 4-fold."""

    def last(mask: Mask, time: int) -> int:
        return int(mask.allowed(torch.tensor(time - 1), torch.arange(time)).sum())

    assert last(SlidingWindow(size=64), 4096) == last(SlidingWindow(size=64), 1024) == 64
    assert last(BigBird(block=16), 4096) <= 5 * 16
    for time in (1024, 4096):
        root = math.isqrt(time)
        assert last(Strided(stride=root), time) == 2 * root - 1 == last(Fixed(stride=root), time)
    assert last(Hierarchical(window=64), 4096) - last(Hierarchical(window=64), 1024) == 64  # 32 for every doubling


@every_pattern
def test_both_ways_each_sees_who_sees_it(name: str) -> None:
    mask = PATTERNS[name][0]
    assert torch.equal(table(BothWays(past=mask)), table(mask) | table(mask).T)
    layer = built(sparse_attention(HIDDEN, num_heads=2, mask=BothWays(past=mask), tile=4))
    x, seen = numbers(1), table(BothWays(past=mask), 23)
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (layer.q, layer.k, layer.v))
    weights = (q @ k.mT * 12**-0.5).masked_fill(~seen, -math.inf).softmax(-1)
    torch.testing.assert_close(whole(layer, x), layer.o((weights @ v).transpose(1, 2).flatten(2)))
    with pytest.raises(UnsupportedError, match="no state"):
        layer.init_state(1, 1)


@pytest.mark.parametrize(("tile", "step"), [(1, 1), (4, 1), (64, 1), (5, 3), (3, 100)])
@every_pattern
def test_tiles_give_what_the_masked_dense_gives(name: str, tile: int, step: int) -> None:
    mask, generator = PATTERNS[name][0], torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, TIME, 6, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, TIME, 6, generator=generator, dtype=torch.float64)
    tiles = layout(mask, TIME, tile, step, torch.device("cpu"))
    found = attend_tiles(q, k, v, tiles, Rule())
    torch.testing.assert_close(found, attend(q, k, v, table(mask)[None, None], Rule()), rtol=1e-10, atol=1e-12)
    seen = sum(int(item.mask.sum()) for item in tiles)
    assert seen == int(table(mask).sum())


@pytest.mark.parametrize(
    ("mask", "step", "least"),
    [
        (SlidingWindow(size=32), 1, 10.0),
        (BigBird(block=32), 1, 4.0),
        (Fixed(stride=32), 1, 8.0),
        (Dilated(window=8, dilation=4), 4, 20.0),
        (BlockSparse(block=32, offsets=(0, 1, 4)), 1, 7.0),
        (Hierarchical(window=16), 1, 2.5),
        (ChunkedAttention(size=64), 1, 15.0),
    ],
    ids=str,
)
def test_what_is_hidden_is_not_computed(mask: Mask, step: int, least: float) -> None:
    """Multiplications of scores and sums at 1024 tokens, against the dense product; the outputs agree."""
    x = torch.randn(1, 1024, HIDDEN, generator=torch.Generator().manual_seed(0))
    dense = initialise(attention(HIDDEN, num_heads=2, mask=mask).build(), seed=0)
    skipping = sparse_attention(HIDDEN, num_heads=2, mask=mask, tile=32, step=step).build()
    skipping.load_state_dict(dense.state_dict())
    counts, outputs = [], []
    for layer, backend in ((dense, Reference()), (skipping, Sdpa())):  # the reference leaves no pair out
        with using(backend):
            counts.append(flops(lambda layer=layer: outputs.append(whole(layer, x))) - 4 * 2 * 1024 * HIDDEN * HIDDEN)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-6)
    assert counts[0] >= least * counts[1] > 0, counts[0] / counts[1]


def test_layouts_are_made_once_per_length() -> None:
    layer, x = built(sparse_attention(HIDDEN, num_heads=2, mask=BigBird(block=3), tile=4)), numbers()
    sparse.layout.cache_clear()
    for _ in range(3):
        whole(layer, x)
    whole(layer, x[:, :9])
    assert (sparse.layout.cache_info().hits, sparse.layout.cache_info().misses) == (2, 2)


def test_text_that_does_not_begin_at_0_is_seen_by_its_positions() -> None:
    layer, x = built(sparse_attention(HIDDEN, num_heads=2, mask=ChunkedAttention(size=5), tile=4)), numbers(1)
    y, _ = layer(x, Context(positions=torch.arange(3, 26)[None]), None)
    expected = torch.cat([whole(layer, x[:, :2]), whole(layer, x[:, 2:])], 1)
    torch.testing.assert_close(y, expected)


def test_a_long_past_is_not_touched_for_one_token() -> None:
    layer = built(sparse_attention(HIDDEN, num_heads=2, mask=SlidingWindow(size=8)))
    x = numbers(2, 600)
    expected = whole(layer, x)
    _, state = going_on(layer, x[:, :599], layer.init_state(2, 600), splits(599, 4, 0))
    found: list[Tensor] = []
    count = flops(lambda: found.append(going_on(layer, x[:, 599:], state, (1,))[0]))
    torch.testing.assert_close(found[0], expected[:, 599:])
    assert count - 2 * 2 * 4 * HIDDEN * HIDDEN == 2 * 2 * 2 * HIDDEN * 8


def test_impossible_patterns_are_refused() -> None:
    for make in (
        lambda: SlidingWindow(size=0),
        lambda: ChunkedAttention(size=0),
        lambda: Strided(stride=0),
        lambda: Fixed(stride=4, summary=5),
        lambda: Fixed(stride=0),
        lambda: Dilated(window=0),
        lambda: Dilated(dilation=0),
        lambda: Dilated(anchors=-1),
        lambda: BigBird(block=0),
        lambda: BigBird(block=4, near=0),
        lambda: BlockSparse(block=4, offsets=(1, 2)),
        lambda: Hierarchical(window=0),
        lambda: Hierarchical(window=4, branch=1),
        lambda: sparse_attention(HIDDEN, num_heads=4, num_kv_heads=3, mask=Causal()),
        lambda: sparse_attention(HIDDEN, num_heads=4, mask=Causal(), tile=0),
    ):
        with pytest.raises(ShapeError):
            make()
