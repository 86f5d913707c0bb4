"""The encoder's parts against their formulas, and what an encoder must not do: look outside its own text, or keep a state."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest
import torch
from language_model import small_encoder
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import RequestError, ShapeError, UnsupportedError
from almanac.core.state import Context
from almanac.core.technique import Plan, Technique, assemble
from almanac.nn import product
from almanac.nn.attention.bidirectional import BidirectionalAttention, bidirectional
from almanac.nn.attention.kv import KeyValueState
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.pooling import First, Max, Mean, Pooling
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.postnorm_block import PostNormBlock

ROWS, TIME = 3, 11


def tokens(rows: int = ROWS, time: int = TIME) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + time)
    return torch.randint(0, len(small_encoder.vocabulary()), (rows, time), generator=generator)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder.network()


def close(got: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=atol)


# --- parts


def filled(spec: BidirectionalAttention.Spec) -> BidirectionalAttention:
    made = spec.build()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def slow_attention(layer: BidirectionalAttention, x: Tensor, segments: list[list[int]]) -> Tensor:
    """Equation 1, one query at a time, in float64."""

    def product_of(linear: Linear) -> Tensor:
        assert linear.bias is not None
        return (x.double() @ linear.dense_weight().double().T + linear.bias.double()).detach()

    q, k, v = product_of(layer.q), product_of(layer.k), product_of(layer.v)
    size = q.shape[-1] // layer.num_heads
    out = torch.zeros_like(q)
    for row in range(x.shape[0]):
        for place in range(x.shape[1]):
            own = [other for other in range(x.shape[1]) if segments[row][other] == segments[row][place]]
            for head in range(layer.num_heads):
                part = slice(head * size, (head + 1) * size)
                scores = (k[row, own, part] @ q[row, place, part]) / math.sqrt(size)
                out[row, place, part] = scores.softmax(0) @ v[row, own, part]
    assert layer.o.bias is not None
    return out @ layer.o.dense_weight().double().T.detach() + layer.o.bias.double().detach()


@pytest.mark.parametrize(
    "segments", [None, [[0] * 7, [0] * 5 + [-1] * 2], [[0, 0, 0, 1, 1, 2, -1], [4, 4, 5, 5, 5, 5, 5]]]
)
def test_attention_is_the_formula(segments: list[list[int]] | None) -> None:
    layer = filled(bidirectional(24, num_heads=3))
    x = torch.randn(2, 7, 24)
    given = None if segments is None else torch.tensor(segments)
    got, state = layer(x, Context(positions=torch.arange(7).repeat(2, 1), segments=given))
    assert state is None
    close(got.detach(), slow_attention(layer, x, segments or [[0] * 7] * 2))


def test_attention_keeps_no_state() -> None:
    layer = bidirectional(8, num_heads=2).build()
    with pytest.raises(UnsupportedError, match="whole text"):
        layer.init_state(1, 4)
    context = Context(positions=torch.arange(2)[None])
    with pytest.raises(UnsupportedError, match="whole text"):
        layer(torch.zeros(1, 2, 8), context, KeyValueState.empty(1, 4))
    with pytest.raises(ShapeError, match="3 heads"):
        bidirectional(8, num_heads=3)


def test_learned_positions_are_rows_of_the_table() -> None:
    table = LearnedPositions.Spec(length=9, hidden=4).build()
    torch.nn.init.normal_(table.weight)
    places = torch.tensor([[0, 8, 3], [3, 3, 1]])
    assert torch.equal(table(places), table.weight[places])
    dense = table.dense_weight().detach().clone()
    Int8(targets="**").attach(torch.nn.ModuleDict({"table": table}))
    close(table(places), dense[places], atol=float(dense.abs().max()) / 127)


def test_a_postnorm_block_is_its_formula() -> None:
    made = small_encoder.network().layers[1]
    assert isinstance(made, PostNormBlock)
    context, x = Context(positions=torch.arange(5)[None]), torch.randn(1, 5, small_encoder.HIDDEN)
    with torch.no_grad():
        mixed = made.mixer(x, context)[0]
        inner = made.mixer_norm(x + mixed)
        assert torch.equal(made(x, context)[0], made.channel_norm(inner + made.channel(inner)))
        assert not torch.allclose(inner, x + mixed)


@pytest.mark.parametrize("pooling", [Mean(), First(), Max()], ids=lambda item: item.kind())
def test_pooling_sees_the_texts_own_tokens(pooling: Pooling) -> None:
    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "nn.pooling.Mean": lambda rows: rows.mean(0),
        "nn.pooling.First": lambda rows: rows[0],
        "nn.pooling.Max": lambda rows: rows.max(0).values,
    }
    hidden, lengths = torch.randn(3, 6, 4) - 5, [6, 1, 4]
    own = torch.arange(6) < torch.tensor(lengths)[:, None]
    hidden[~own] = 1e6  # what padding holds must not matter
    expected = torch.stack([rules[pooling.kind()](row[:length]) for row, length in zip(hidden, lengths, strict=True)])
    close(pooling(hidden, own), expected)
    close(pooling(hidden[:1]), expected[:1])


# --- the product


def test_wide_products_are_the_same_products() -> None:
    for shape, out, bias in (((3, 5, 24), 7, True), ((1, 1, 24), 64, False), ((130, 24), 33, True), ((0, 24), 3, True)):
        x, weight = torch.randn(shape), torch.randn(out, 24)
        b = torch.randn(out) if bias else None
        with torch.no_grad(), product.wide():
            got = product.linear(x, weight, b)
        expected = x.double() @ weight.double().T + (0 if b is None else b.double())
        assert got.dtype == torch.float32
        close(got, expected, atol=2e-5)
        part = torch.randn(shape[0] * 2, *shape[1:])[::2].transpose(0, -2)  # not contiguous
        with torch.no_grad(), product.wide():
            close(product.linear(part, weight, b), torch.nn.functional.linear(part, weight, b), atol=2e-5)


def test_products_with_gradient_and_of_other_precisions_stay_torchs() -> None:
    x, weight = torch.randn(4, 24, requires_grad=True), torch.randn(7, 24)
    with product.wide():
        product.linear(x, weight, None).sum().backward()
        with torch.no_grad():
            assert product.linear(x.detach().double(), weight.double(), None).dtype == torch.float64
            assert product.linear(x.detach()[0], weight, None).shape == (7,)
    assert x.grad is not None
    close(x.grad, weight.sum(0).expand(4, 24))


def test_only_the_block_and_its_thread_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding beside an embedding keeps its own products, to the bit."""
    asked: list[bool] = []
    monkeypatch.setattr(product, "_is_fit", lambda *given: asked.append(True) or False)
    x, weight = torch.randn(2, 4), torch.randn(3, 4)

    def count() -> int:
        asked.clear()
        product.linear(x, weight, None)
        return len(asked)

    assert count() == 0
    with product.wide():
        assert count() == int(product.available())
        elsewhere: list[int] = []
        thread = threading.Thread(target=lambda: elsewhere.append(count()))
        thread.start()
        thread.join()
        assert elsewhere == [0]
    assert count() == 0
    monkeypatch.setattr(product, "available", lambda: False)
    with product.wide():
        assert count() == 0


# --- the whole


def test_tokens_see_both_ways_and_no_other_row(encoder: Encoder) -> None:
    rows = tokens()
    with torch.no_grad():
        before = encoder(rows)
        changed = rows.clone()
        changed[1, 5] = (changed[1, 5] + 1) % encoder.vocab_size
        after = encoder(changed)
    moved = (after - before).abs().amax(-1) > 1e-7
    assert moved[1].all()
    assert not moved[0].any() and not moved[2].any()


def test_padding_and_packing_change_nothing(encoder: Encoder) -> None:
    lengths = [9, 4, 6]
    texts = [tokens(1, length)[0] for length in lengths]
    with torch.no_grad():
        alone = [encoder(text[None])[0] for text in texts]
        for filler in (0, 17):
            padded = torch.full((3, 9), filler)
            segments = torch.full((3, 9), -1)
            for row, text in enumerate(texts):
                padded[row, : len(text)], segments[row, : len(text)] = text, 0
            got = encoder(padded, Context(positions=torch.arange(9).repeat(3, 1), segments=segments))
            for row, text in enumerate(texts):
                close(got[row, : len(text)], alone[row], atol=2e-6)
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        segments = torch.cat([torch.full((length,), row) for row, length in enumerate(lengths)])[None]
        packed = encoder(torch.cat(texts)[None], Context(positions=positions, segments=segments))
    close(packed[0], torch.cat(alone), atol=2e-6)


def test_token_types_are_added(encoder: Encoder) -> None:
    rows = tokens(1, 6)
    kinds = torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        zero = encoder(rows)
        assert torch.equal(zero, encoder(rows, token_types=torch.zeros_like(kinds)))
        assert not torch.allclose(zero, encoder(rows, token_types=kinds), atol=1e-2)


@pytest.mark.parametrize(
    ("rows", "types", "message"),
    [
        (torch.zeros(0, 3, dtype=torch.int64), None, "shape"),
        (torch.zeros(4, dtype=torch.int64), None, "shape"),
        (torch.zeros(1, small_encoder.CONTEXT + 1, dtype=torch.int64), None, "Position"),
        (torch.tensor([[5000]]), None, "Token id 5000"),
        (torch.tensor([[-1]]), None, "Token id -1"),
        (torch.tensor([[1]]), torch.tensor([[2]]), "Token type 2"),
    ],
)
def test_what_no_table_holds_is_refused(encoder: Encoder, rows: Tensor, types: Tensor | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        encoder(rows, token_types=types)


def test_spec_path_is_module_path_is_checkpoint_key(encoder: Encoder) -> None:
    spec = small_encoder.spec()
    modules = dict(encoder.named_modules())
    assert all(type(item.build()) is type(modules[path]) for path, item in spec.walk())
    assert {key.rpartition(".")[0] for key in encoder.state_dict()} <= {path for path, _ in spec.walk()}
    assert Encoder.Spec.from_dict(spec.to_dict()) == spec


# --- techniques


def parameters_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in model.named_parameters()}


@pytest.mark.parametrize("technique", [Lora(rank=3), Int8()], ids=["lora", "int8"])
def test_a_technique_keeps_base_keys_and_comes_back_from_its_plan(technique: Technique) -> None:
    model, spec = small_encoder.network(), small_encoder.spec()
    base = set(parameters_of(model))
    plan = Plan(techniques=(technique,))
    plan.replay(spec, model)
    kept = {name.removesuffix(".codes") for name in parameters_of(model)}
    assert base <= kept
    with torch.no_grad():
        expected = model(tokens())
        assert torch.equal(assemble(spec, plan, parameters_of(model))(tokens()), expected)


def test_lora_starts_as_nothing_trains_itself_and_folds_exactly() -> None:
    model = small_encoder.network()
    with torch.no_grad():
        before = model(tokens())
    lora = Lora(rank=3)
    lora.attach(model)
    with torch.no_grad():
        assert torch.equal(model(tokens()), before)
    model(tokens()).square().mean().backward()
    trained = {name for name, item in model.named_parameters() if item.requires_grad}
    assert trained == {name for name, item in model.named_parameters() if item.grad is not None}
    assert all(".around.lora." in name for name in trained)
    assert len(trained) == 2 * 6 * len(model.layers)
    with torch.no_grad():
        for name, item in model.named_parameters():
            if name in trained:
                item += 0.1 * torch.randn(item.shape)
        attached = model(tokens())
        assert not torch.allclose(attached, before, atol=1e-2)
        lora.fold(model)
        close(model(tokens()), attached)
    assert set(parameters_of(model)) == set(parameters_of(small_encoder.network()))


def test_int8_slides_underneath_lora() -> None:
    model = small_encoder.network()
    with torch.no_grad():
        before = model(tokens())
    Lora(rank=3).attach(model)
    Int8().attach(model)
    with torch.no_grad(), product.wide():
        cosine = torch.nn.functional.cosine_similarity(model(tokens()), before, dim=-1)
    assert cosine.min() > 0.99


def test_the_whole_compiles_as_one_graph(encoder: Encoder) -> None:
    rows = tokens(2, 8)
    with torch.no_grad(), product.wide():
        close(torch.compile(encoder, fullgraph=True, backend="eager")(rows), encoder(rows), atol=2e-5)
