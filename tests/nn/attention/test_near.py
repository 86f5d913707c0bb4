"""Windows by tiles against the reference, their cost, and states that keep a window."""

from __future__ import annotations

import itertools

import pytest
import torch
from nn.attention.keeping import HIDDEN, built, check_pieces, check_rows, flops, going_on, numbers, splits, whole
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.spec import Spec
from almanac.core.state import Context, Mixer
from almanac.nn.attention import near
from almanac.nn.attention.backends import Reference, using
from almanac.nn.attention.full import attention
from almanac.nn.attention.kv import MARGIN, KeyValueState, Row
from almanac.nn.attention.latent import latent_attention
from almanac.nn.attention.masks import ChunkedAttention, Mask, SlidingWindow
from almanac.nn.attention.sparse import sparse_attention
from almanac.nn.positions.alibi import Alibi
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent.learned import Learned

LONG = 250
MASKS = {"window": SlidingWindow(size=21), "chunks": ChunkedAttention(size=21), "one": SlidingWindow(size=1)}


def full(mask: Mask) -> Spec:
    return attention(HIDDEN, num_heads=4, num_kv_heads=2, mask=mask, position=Rope.Spec(rotary_dim=4))


KINDS = {
    "rotary": full,
    "ALiBi": lambda mask: attention(HIDDEN, num_heads=4, mask=mask).with_(score_bias=Alibi.Spec(num_heads=4)),
    "capped": lambda mask: full(mask).with_(softcap=2.0),
    "sinks": lambda mask: full(mask).with_(sinks=Learned.Spec(size=(4,), axes=("heads",))),
    "latent": lambda mask: latent_attention(
        HIDDEN, num_heads=2, rank=8, dims=(4, 5), position=Rope.Spec(rotary_dim=4)
    ).with_(mask=mask),
    "sparse": lambda mask: sparse_attention(HIDDEN, num_heads=2, mask=mask, tile=16),
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))
every_mask = pytest.mark.parametrize("mask", list(MASKS.values()), ids=list(MASKS))


def with_gradients(layer: Mixer, x: Tensor, context: Context) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y, _ = layer(x, context, None)
    return [y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])]


def of_packed(cuts: tuple[int, ...]) -> Context:
    """Two rows of the same packed texts."""
    parts = [end - start for start, end in itertools.pairwise(cuts)]
    positions = torch.cat([torch.arange(part) for part in parts]).expand(2, -1)
    segments = torch.cat([torch.full((part,), number) for number, part in enumerate(parts)]).expand(2, -1)
    return Context(positions=positions, segments=segments)


@every_mask
@pytest.mark.parametrize("kind", ["rotary", "ALiBi", "capped", "sinks"])
@pytest.mark.parametrize("at_once", [near.AT_ONCE, 5000])
def test_tiles_are_the_reference_and_so_are_their_gradients(
    mask: Mask, kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "AT_ONCE", at_once)
    layer, x = built(KINDS[kind](mask)), numbers(2, LONG)
    assert near.pays(mask.size, LONG, LONG)
    for context in (Context(positions=torch.arange(LONG).expand(2, -1)), of_packed((0, 5, 100, LONG))):
        found = with_gradients(layer, x, context)
        with using(Reference()):
            assert not near.pays(mask.size, LONG, LONG)
            expected = with_gradients(layer, x, Context(positions=context.positions, segments=context.segments))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)


def test_positions_that_repeat_are_seen_as_by_the_reference() -> None:
    layer, x = built(full(MASKS["window"])), numbers(1, LONG)
    context = Context(positions=torch.arange(LONG)[None] // 7)
    assert near.near_of(MASKS["window"], 21, context) is None
    found, _ = layer(x, context, None)
    with using(Reference()):
        expected, _ = layer(x, Context(positions=context.positions), None)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_operations_and_what_is_kept_for_the_gradient_grow_with_the_length() -> None:
    layer = built(full(MASKS["window"])).float()
    counts, kept = [], []
    for time in (512, 1024, 2048):
        x = torch.randn(1, time, HIDDEN)
        counts.append(flops(lambda x=x: whole(layer, x)))
        held: dict[int, int] = {}

        def save(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            whole(layer, x.requires_grad_())
        kept.append(sum(held.values()))
    for grown in (counts, kept):
        assert grown[2] - grown[1] <= 2.2 * (grown[1] - grown[0]), grown


# --- states


@every_kind
@every_mask
def test_long_texts_in_pieces_give_what_the_whole_gives(mask: Mask, kind: str) -> None:
    check_pieces(built(KINDS[kind](mask)), time=LONG)


@every_kind
def test_rows_of_all_lengths_go_on_as_if_alone(kind: str) -> None:
    layer = built(KINDS[kind](SlidingWindow(size=5)))
    check_rows(layer)
    x, tail = numbers(3, LONG), numbers(3, 30, seed=4)
    lengths = (LONG, 90, 140)
    states = [
        going_on(layer, x[i : i + 1, :n], layer.init_state(1, 8), splits(n, 4, i))[1] for i, n in enumerate(lengths)
    ]
    joined = states[0].join(states[1:]).select([2, 0, 1, 0])
    fork = joined.fork()
    fork.trim([140 - MARGIN, LONG - 3, 0, LONG])
    for state, kept in ((joined, (140, LONG, 90, LONG)), (fork, (140 - MARGIN, LONG - 3, 0, LONG))):
        found, _ = going_on(layer, tail[[2, 0, 1, 0]], state, (1, 20, 9))
        for row, source in enumerate((2, 0, 1, 0)):
            alone = whole(layer, torch.cat([x[source, : kept[row]], tail[source]])[None])[0, kept[row] :]
            torch.testing.assert_close(found[row], alone, rtol=1e-8, atol=1e-9)


@every_kind
def test_bytes_stop_growing_after_the_window(kind: str) -> None:
    layer, held = built(KINDS[kind](SlidingWindow(size=8))), []
    state, x = layer.init_state(1, 10_000), numbers(1, 100)
    for step in range(12):
        _, state = going_on(layer, x, state, (100,) if step % 2 else (60, 1, 39))
        held.append(state.nbytes)
    assert state.lengths == [1200]
    assert held[2:] == held[2:3] * 10
    assert layer.init_state(1, 10_000).rows[0].reach == 8
    assert held[-1] <= held[0] * 2


def test_only_what_is_held_can_be_gone_back_to() -> None:
    layer, x = built(full(SlidingWindow(size=8))), numbers(1, 600)
    _, state = going_on(layer, x, layer.init_state(1, 8), (600,))
    assert isinstance(state, KeyValueState)
    with pytest.raises(UnsupportedError, match=r"windowed state of 600 tokens .* cannot be taken back to 20"):
        state.trim([20])
    with pytest.raises(ShapeError):
        state.trim([601])
    assert state.lengths == [600], "what is refused changes nothing"
    state.trim([600 - MARGIN])
    state.trim([0])
    found, _ = going_on(layer, x[:, :50], state, (30, 20))
    torch.testing.assert_close(found, whole(layer, x[:, :50]), rtol=1e-8, atol=1e-9)


def test_a_bounded_row_shows_what_is_seen_however_it_is_fed() -> None:
    for seed in range(20):
        reach, total = 1 + seed * 7, 700
        row, aside, place = Row(4, reach), None, 0
        for size in splits(total, 3 + 5 * seed, seed):
            keys = torch.arange(place, place + size, dtype=torch.float64).view(1, size, 1)
            shown, values = row.append(keys, -keys)
            first = max(0, place - reach + 1)
            assert shown[0, :, 0].tolist() == list(range(first, place + size))
            assert torch.equal(values, -shown)
            place += size
            if place > total // 2 and aside is None:
                aside, kept = row.fork(), row.length
        assert aside is not None
        more = torch.full((1, 1, 1), float(kept), dtype=torch.float64)
        assert aside.append(more, -more)[0][0, :, 0].tolist() == list(range(max(0, kept - reach + 1), kept + 1))
