"""Chunked cross-attention against a loop over tokens, its shift and leaks, its state; the store against sorting."""

from __future__ import annotations

import pytest
import torch
from nn.attention.keeping import HIDDEN, built, numbers, splits
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context
from almanac.nn.attention.neighbours import NeighbourStore, mean_embedding
from almanac.nn.attention.retro import ChunkedCrossAttention, NeighbourState, chunked_cross_attention

CHUNK, RETRIEVED, WIDTH, TIME = 4, 3, 10, 18
CHUNKS = TIME // CHUNK


def layer() -> ChunkedCrossAttention:
    spec = chunked_cross_attention(HIDDEN, num_heads=2, chunk=CHUNK, retrieved=RETRIEVED, width=WIDTH)
    made = built(spec)
    assert isinstance(made, ChunkedCrossAttention)
    return made


def neighbours(rows: int = 2, chunks: int = CHUNKS) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, chunks * RETRIEVED, WIDTH, generator=generator, dtype=torch.float64)


def context(encoder: Tensor | None, time: int = TIME, **more: Tensor) -> Context:
    rows = 2 if encoder is None else len(encoder)
    return Context(positions=torch.arange(time).expand(rows, -1), encoder=encoder, **more)


def slow(made: ChunkedCrossAttention, x: Tensor, encoder: Tensor, real: Tensor) -> Tensor:
    """One token at a time: x [t, h], encoder [u r, w], real bool [u r]."""
    out = torch.zeros(len(x), HIDDEN, dtype=x.dtype)
    for t in range(len(x)):
        finished = [u for u in range(len(encoder) // RETRIEVED) if (u + 1) * CHUNK - 1 <= t]
        if not finished:
            continue
        own = [i for i in range(finished[-1] * RETRIEVED, finished[-1] * RETRIEVED + RETRIEVED) if real[i]]
        for n in range(2 if own else 0):
            part = slice(12 * n, 12 * n + 12)
            scores = made.k(encoder[own])[:, part] @ made.q(x[t])[part] * 12**-0.5
            out[t, part] = scores.softmax(0) @ made.v(encoder[own])[:, part]
    return made.o(out)


def test_tokens_read_the_last_finished_chunk() -> None:
    made, x, encoder = layer(), numbers(2, TIME), neighbours()
    owners = torch.zeros(2, CHUNKS * RETRIEVED, dtype=torch.int64)
    owners[0, 4] = owners[0, 9:12] = owners[1, :3] = -1  # a vector and whole chunks that are not there
    y, state = made(x, context(encoder, encoder_segments=owners), None)
    assert state is None
    for row in range(2):
        expected = slow(made, x[row], encoder[row], owners[row] >= 0)
        torch.testing.assert_close(y[row], expected, rtol=1e-10, atol=1e-12)
    assert not y[:, : CHUNK - 1].any() and y[0, CHUNK - 1].any()


@pytest.mark.parametrize("time", range(1, 10))
def test_texts_of_any_length(time: int) -> None:
    made, x, encoder = layer(), numbers(1, time), neighbours(1)
    y, _ = made(x, context(encoder, time), None)
    torch.testing.assert_close(y[0], slow(made, x[0], encoder[0], torch.ones(len(encoder[0]), dtype=torch.bool)))


def test_no_neighbour_is_read_before_its_chunk_is_whole() -> None:
    """By gradient: which vectors reach which tokens."""
    made, x, encoder = layer(), numbers(1, TIME), neighbours(1).requires_grad_()
    y, _ = made(x, context(encoder), None)
    for t in range(TIME):
        (reached,) = torch.autograd.grad(y[0, t].sum(), encoder, retain_graph=True)
        found = reached[0].abs().amax(1).view(CHUNKS, RETRIEVED).amax(1) > 0
        wanted = [u == (t + 1) // CHUNK - 1 for u in range(CHUNKS)]
        assert found.tolist() == wanted, t


def test_packed_texts_have_neighbours_of_their_own() -> None:
    made, x, encoder = layer(), numbers(1, TIME), neighbours(1)
    segments = torch.tensor([[3] * 9 + [7] * 6 + [-1] * 3])
    positions = torch.tensor([[*range(9), *range(6), *range(3)]])
    owners = torch.tensor([[3] * 6 + [7] * 3 + [-1] * 3])
    owners[0, 4] = -1
    given = Context(positions=positions, segments=segments, encoder=encoder, encoder_segments=owners)
    y, _ = made(x, given, None)
    for part, own in ((slice(0, 9), slice(0, 6)), (slice(9, 15), slice(6, 9))):
        expected = slow(made, x[0, part], encoder[0, own], owners[0, own] >= 0)
        torch.testing.assert_close(y[0, part], expected, rtol=1e-10, atol=1e-12)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("pieces", [(TIME,), (1,) * TIME, splits(TIME, 4, 0), splits(TIME, 6, 3)], ids=str)
def test_neighbours_come_as_chunks_are_finished(pieces: tuple[int, ...]) -> None:
    made, x, encoder = layer(), numbers(2, TIME), neighbours()
    expected, _ = made(x, context(encoder), None)
    state, start, outputs = made.init_state(2, 4), 0, []
    for time in pieces:
        new = slice(start // CHUNK * RETRIEVED, (start + time) // CHUNK * RETRIEVED)
        positions = torch.arange(start, start + time).expand(2, -1)
        y, state = made(x[:, start : start + time], Context(positions=positions, encoder=encoder[:, new]), state)
        outputs.append(y)
        start += time
        assert state.lengths == [start] * 2
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-10, atol=1e-12)
    assert isinstance(state, NeighbourState)
    assert state.nbytes == 2 * CHUNKS * RETRIEVED * (2 * HIDDEN * 8 + 1)


def test_rows_fork_trim_select_and_join() -> None:
    made, x, encoder = layer(), numbers(2, TIME), neighbours()
    expected, _ = made(x, context(encoder), None)
    _, state = made(x[:, :13], context(encoder[:, : 3 * RETRIEVED], 13), made.init_state(2, 4))
    fork = state.fork()
    fork.trim([6, 3])
    assert state.lengths == [13, 13]
    tail, _ = made(x[:1, 6:9], context(encoder[:1, RETRIEVED : 2 * RETRIEVED], 3), fork.select([0]))
    torch.testing.assert_close(tail[0], expected[0, 6:9], rtol=1e-10, atol=1e-12)
    swapped = state.select([1]).join([state.select([0])])
    tail, _ = made(x.flip(0)[:, 13:15], context(None, 2), swapped)
    torch.testing.assert_close(tail, expected.flip(0)[:, 13:15], rtol=1e-10, atol=1e-12)
    with pytest.raises(RequestError, match="of which 3 are known"):
        made(x[:, 13:], context(None, 5), state)
    with pytest.raises(ShapeError, match="Cannot trim"):
        state.trim([14, 0])


def test_rows_of_different_lengths_finish_their_chunks_apart() -> None:
    made, x, encoder = layer(), numbers(2, TIME), neighbours()
    expected, _ = made(x, context(encoder), None)
    _, one = made(x[:1, :7], context(encoder[:1, :RETRIEVED], 7), made.init_state(1, 4))
    _, two = made(x[1:, :5], context(encoder[1:, :RETRIEVED], 5), made.init_state(1, 4))
    tokens = torch.stack([x[0, 7:9], x[1, 5:7]])
    brought = encoder[:, RETRIEVED : 2 * RETRIEVED]  # the first row finishes a chunk, the second does not
    y, state = made(tokens, context(brought, 2), one.join([two]))
    torch.testing.assert_close(y, torch.stack([expected[0, 7:9], expected[1, 5:7]]), rtol=1e-10, atol=1e-12)
    tokens = torch.stack([x[0, 9:11], x[1, 7:9]])
    y, _ = made(tokens, context(brought, 2), state)
    torch.testing.assert_close(y, torch.stack([expected[0, 9:11], expected[1, 7:9]]), rtol=1e-10, atol=1e-12)


def test_it_compiles_as_one_graph_and_refuses_what_does_not_fit() -> None:
    made, x, encoder = layer(), numbers(2, TIME), neighbours()
    torch._dynamo.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, context(encoder), None)[0], made(x, context(encoder), None)[0])
    for bad, message in ((None, "Nothing is known"), (encoder[:, :7], "3 a chunk"), (encoder[:, :6], "of which 2")):
        with pytest.raises(RequestError, match=message):
            made(x, context(bad), None)
    for changes in ({"num_heads": 5}, {"chunk": 0}, {"retrieved": 0}):
        with pytest.raises(ShapeError):
            chunked_cross_attention(HIDDEN, **({"num_heads": 2, "chunk": 4, "retrieved": 3} | changes))


def store() -> tuple[NeighbourStore, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(30, 6, generator=generator)
    documents = [torch.randint(0, 30, (length,), generator=generator) for length in (11, 3, 8, 21)]
    return NeighbourStore.of(documents, chunk=4, embed=mean_embedding(table)), documents, table


def test_the_nearest_are_those_of_sorting_all() -> None:
    made, _, table = store()
    assert made.documents.tolist() == [0, 0, 2, 2, 3, 3, 3, 3, 3]
    asked = torch.randint(0, 30, (5, 4), generator=torch.Generator().manual_seed(1))
    owners = torch.tensor([3, -1, 0, 2, 3])
    found = made.nearest(asked, 3, documents=owners)
    for row in range(5):
        pairs = []
        for place, chunk in enumerate(made.chunks):
            if made.documents[place] != owners[row]:
                away = table[asked[row]].mean(0) - table[chunk].mean(0)
                pairs.append((float(away @ away), place))
        wanted = sorted(pairs)[:3]
        assert found.places[row].tolist() == [place for _, place in wanted]
        torch.testing.assert_close(found.distances[row], torch.tensor([d for d, _ in wanted]), rtol=1e-4, atol=1e-5)


def test_values_are_chunks_with_their_continuation() -> None:
    made, documents, _ = store()
    found = made.nearest(documents[3][4:8][None], 1)
    assert found.places.tolist() == [[5]] and float(found.distances) < 1e-6
    assert found.tokens[0, 0].tolist() == documents[3][4:12].tolist()
    end = made.nearest(documents[0][4:8][None], 1).tokens[0, 0]
    assert end.tolist() == [*documents[0][4:11].tolist(), -1]


def test_a_text_is_never_its_own_neighbour() -> None:
    made, documents, table = store()
    for number, document in enumerate(documents):
        for chunk in document[: len(document) // 4 * 4].view(-1, 4):
            found = made.nearest(chunk[None], 9, documents=torch.tensor([number]))
            there = found.places[found.places >= 0]
            assert not (made.documents[there] == number).any()
            assert len(there) == int((made.documents != number).sum())
            assert (found.tokens[found.places < 0] == -1).all()
    alone = NeighbourStore.of(documents[:1], chunk=4, embed=mean_embedding(table))
    assert alone.nearest(documents[2][None, :4], 4).places[0, 2:].tolist() == [-1, -1]


def test_what_cannot_be_asked_is_refused() -> None:
    made, documents, table = store()
    with pytest.raises(RequestError, match="stored length"):
        made.nearest(documents[0][None, :5], 1)
    with pytest.raises(RequestError, match="one at least"):
        made.nearest(documents[0][None, :4], 0)
    with pytest.raises(ShapeError, match="chunk"):
        NeighbourStore.of(documents, chunk=40, embed=mean_embedding(table))
