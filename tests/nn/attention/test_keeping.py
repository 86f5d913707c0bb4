"""Every attention variant that has a state: the one contract of mixers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nn.attention.keeping import (
    HIDDEN,
    built,
    check_builds,
    check_compiles,
    check_leaks,
    check_packed,
    check_pieces,
    check_rows,
)

from almanac.core.spec import Spec
from almanac.nn.attention.content import choosing
from almanac.nn.attention.full import attention
from almanac.nn.attention.gated_linear import gated_linear
from almanac.nn.attention.latent import latent_attention
from almanac.nn.attention.masks import ChunkedAttention, SlidingWindow
from almanac.nn.attention.multiscale import multiscale
from almanac.nn.attention.patterns import BigBird, BlockSparse, Dilated, Fixed, Hierarchical, Strided
from almanac.nn.attention.sparse import sparse_attention
from almanac.nn.positions.relative import relative_bias
from almanac.nn.positions.rope import Rope, Yarn

YARN = Rope.Spec(rotary_dim=6, interleaved=True, scaling=Yarn(factor=4.0, original=8))
SPECS: dict[str, Callable[[], Spec]] = {
    "latent": lambda: latent_attention(HIDDEN, num_heads=3, rank=10, dims=(4, 5), position=YARN),
    "latent, query rank": lambda: latent_attention(
        HIDDEN, num_heads=3, rank=10, dims=(4, 5), position=YARN, query_rank=7
    ).with_(mask=SlidingWindow(size=6), scale=0.7),
    "full, chunks": lambda: attention(HIDDEN, num_heads=4, mask=ChunkedAttention(size=5)),
    "full, T5": lambda: attention(HIDDEN, num_heads=4).with_(
        score_bias=relative_bias(4, num_buckets=6, max_distance=9)
    ),
    "BigBird": lambda: sparse_attention(HIDDEN, num_heads=4, mask=BigBird(block=3), tile=4, num_kv_heads=2),
    "dilated": lambda: sparse_attention(
        HIDDEN,
        num_heads=4,
        mask=Dilated(window=3, dilation=2, anchors=1),
        tile=4,
        step=2,
        position=Rope.Spec(rotary_dim=6),
    ),
    "strided": lambda: sparse_attention(HIDDEN, num_heads=4, mask=Strided(stride=5), tile=5),
    "fixed": lambda: sparse_attention(HIDDEN, num_heads=4, mask=Fixed(stride=5), tile=1),
    "blocks": lambda: sparse_attention(
        HIDDEN, num_heads=4, mask=BlockSparse(block=4, offsets=(0, 2), anchors=1), tile=8
    ),
    "hierarchical": lambda: sparse_attention(HIDDEN, num_heads=4, mask=Hierarchical(window=3), tile=64),
    "gated linear": lambda: gated_linear(HIDDEN, num_heads=2, rank=4),
    "multi-scale": lambda: multiscale(
        HIDDEN, num_heads=6, scales=(1, 3, 4), window=2, position=Rope.Spec(rotary_dim=4)
    ),
    "choosing": lambda: choosing(HIDDEN, num_heads=4, num_kv_heads=2, block=3, chosen=2, window=2),
    "choosing, rotary": lambda: choosing(
        HIDDEN, num_heads=2, block=4, chosen=1, window=5, position=Rope.Spec(rotary_dim=12)
    ),
}
RECURRENT = frozenset({"gated linear"})  # keep no past, so cannot be trimmed


@pytest.fixture(params=SPECS, ids=list(SPECS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_pieces_give_what_the_whole_gives(name: str) -> None:
    check_pieces(built(SPECS[name]()))


def test_packed_texts_are_read_alone(name: str) -> None:
    check_packed(built(SPECS[name]()))


def test_nothing_is_seen_before_its_time(name: str) -> None:
    check_leaks(built(SPECS[name]()))


def test_rows_go_on_as_if_alone(name: str) -> None:
    check_rows(built(SPECS[name]()), trims=name not in RECURRENT)


def test_it_compiles_as_one_graph(name: str) -> None:
    check_compiles(built(SPECS[name]()))


def test_it_builds_on_meta_and_from_json(name: str) -> None:
    check_builds(SPECS[name]())
