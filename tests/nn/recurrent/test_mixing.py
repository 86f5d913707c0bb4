"""Mixers of fixed memory in company: fed in pieces, packed, forked, decoded by the engine, adapted and quantized."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from nn.recurrent.mixing import HIDDEN, PIECES, VOCAB, built, decoder, in_pieces, numbers, spec_of, whole
from torch import Tensor
from toys import tensors_of

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import UnsupportedError
from almanac.core.site import select
from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.core.technique import Plan, assemble
from almanac.core.weight import StoredWeight
from almanac.generate.engine import Engine, Request, run_all
from almanac.nn.attention.linear import linear_attention
from almanac.nn.linear import Linear
from almanac.nn.recurrent.delta import gated_delta
from almanac.nn.recurrent.gru import gru
from almanac.nn.recurrent.lstm import lstm
from almanac.nn.recurrent.mamba import mamba
from almanac.nn.recurrent.mamba2 import mamba2
from almanac.nn.recurrent.memory import external_memory
from almanac.nn.recurrent.retnet import retention
from almanac.nn.recurrent.rwkv4 import Rwkv4Channel, rwkv4, rwkv4_channel
from almanac.nn.recurrent.rwkv6 import rwkv6
from almanac.nn.recurrent.rwkv7 import rwkv7
from almanac.nn.recurrent.s4 import s4
from almanac.nn.recurrent.s4d import s4d

SPECS: dict[str, Callable[[], Spec]] = {
    "mamba": lambda: mamba(HIDDEN, num_states=5),
    "mamba without gate": lambda: mamba(HIDDEN, expand=1, num_states=3, gated=False, conv_width=2),
    "mamba without selection": lambda: mamba(HIDDEN, num_states=4, selective=False),
    "s4d": lambda: s4d(HIDDEN, num_states=5),
    "s4": lambda: s4(HIDDEN, num_states=4),
    "mamba2": lambda: mamba2(HIDDEN, num_heads=4, head_dim=6, num_states=5, num_groups=2),
    "rwkv4": lambda: rwkv4(HIDDEN, channels=16),
    "rwkv4 channel": lambda: rwkv4_channel(HIDDEN, 32),
    "rwkv6": lambda: rwkv6(HIDDEN, num_heads=3, share_rank=4, decay_rank=5),
    "rwkv7": lambda: rwkv7(HIDDEN, num_heads=3, rank=4, first=True),
    "rwkv7 channel": lambda: rwkv4_channel(HIDDEN, 32, receptance=False),
    "retention": lambda: retention(HIDDEN, num_heads=3),
    "delta": lambda: gated_delta(HIDDEN, num_heads=3, head_dim=5, forgets=False),
    "gated delta": lambda: gated_delta(HIDDEN, num_heads=4, head_dim=5, value_dim=6, num_key_heads=2),
    "lstm": lambda: lstm(HIDDEN),
    "lstm of fewer cells": lambda: lstm(HIDDEN, cells=9),
    "gru": lambda: gru(HIDDEN, cells=9),
    "external memory": lambda: external_memory(HIDDEN, slots=5, width=6, num_heads=2),
    "linear attention": lambda: linear_attention(HIDDEN, num_heads=3, bias=True),
}


@pytest.fixture(params=SPECS, ids=list(SPECS))
def spec(request: pytest.FixtureRequest) -> Spec:
    return SPECS[request.param]()


@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_pieces_give_what_the_whole_gives(spec: Spec, pieces: tuple[int, ...]) -> None:
    layer, x = built(spec, dtype=torch.float64), numbers(3, sum(pieces), dtype=torch.float64)
    torch.testing.assert_close(in_pieces(layer, x, pieces), whole(layer, x), rtol=1e-9, atol=1e-9)


def test_packed_sequences_do_not_see_each_other(spec: Spec) -> None:
    layer, x = built(spec), numbers(2, 20)
    cuts = ((0, 7, 8, 20), (0, 3, 12, 20))
    segments = torch.tensor([[0] * 7 + [1] + [2] * 12, [5] * 3 + [6] * 9 + [-1] * 8])
    found = whole(layer, x, segments)
    for row, cut in enumerate(cuts):
        for start, end in pairwise(cut):
            alone = whole(layer, x[row : row + 1, start:end])
            torch.testing.assert_close(found[row, start:end], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(in_pieces(layer, x, (20,), segments), found, rtol=1e-5, atol=1e-6)


def test_the_last_packed_sequence_can_be_continued(spec: Spec) -> None:
    layer, x = built(spec), numbers(1, 14)
    segments = torch.tensor([[0] * 4 + [1] * 6])
    positions = torch.arange(14).unsqueeze(0)
    _, state = layer(x[:, :10], Context(positions=positions[:, :10], segments=segments), layer.init_state(1, 1))
    y, _ = layer(x[:, 10:], Context(positions=positions[:, 10:]), state)
    torch.testing.assert_close(y, whole(layer, x[:, 4:])[:, 6:], rtol=1e-4, atol=1e-5)


def test_nothing_is_seen_before_its_time(spec: Spec) -> None:
    layer = built(spec, dtype=torch.float64)
    x = numbers(1, 9, dtype=torch.float64).requires_grad_()
    (reached,) = torch.autograd.grad(whole(layer, x)[0, 4].sum(), x)
    assert reached[0, 5:].abs().max() < 1e-12  # the Fourier transform rounds
    first = 3 if isinstance(layer, Rwkv4Channel) else 0  # which sees one token back
    assert reached[0, first:5].abs().amax(1).min() > 1e-9


@pytest.mark.parametrize("channel", [True, False])
def test_the_engine_decodes_what_the_whole_text_gives(spec: Spec, channel: bool) -> None:
    model = decoder(spec, channel=channel)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (1, 9, 4, 17)]
    engine = Engine(model, max_rows=3, prefill_chunk=5)
    found = run_all(engine, [Request(tokens=tuple(prompt), max_tokens=6 + 5 * i) for i, prompt in enumerate(prompts)])
    with torch.no_grad():
        for prompt, tokens in zip(prompts, found, strict=True):
            logits = model(torch.tensor([prompt + tokens[:-1]]))[0, len(prompt) - 1 :]
            assert logits.argmax(-1).tolist() == tokens
    assert any(len(set(tokens)) > 1 for tokens in found)


def test_forks_go_their_own_ways_and_the_past_cannot_be_had_back(spec: Spec) -> None:
    model = decoder(spec, channel=False)
    tokens = torch.randint(0, VOCAB, (1, 20), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        straight, _ = model.hidden(tokens)
        _, state = model.hidden(tokens[:, :8], model.init_state(1, 20))
        assert state is not None
        aside = state.fork()
        model.hidden(tokens.flip(1)[:, :5], aside)
        found, following = model.hidden(tokens[:, 8:], state)
    torch.testing.assert_close(found, straight[:, 8:], rtol=1e-4, atol=1e-5)
    assert following is not None
    with pytest.raises(UnsupportedError, match="keeps no past"):
        following.trim([12])


def test_memory_is_the_same_after_one_token_and_after_a_hundred(spec: Spec) -> None:
    model = decoder(spec, channel=False)
    state, held = model.init_state(2, 128), set()
    with torch.inference_mode():
        for _ in range(100):
            _, state = model.hidden(torch.zeros(2, 1, dtype=torch.int64), state)
            assert state is not None
            held.add(state.nbytes)
    assert len(held) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_it_compiles_as_one_graph(spec: Spec, packed: bool) -> None:
    torch._dynamo.reset()
    layer, x = built(spec), numbers(1, 9)
    segments = torch.tensor([[0] * 4 + [1] * 5]) if packed else None
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(whole(compiled, x, segments), whole(layer, x, segments), rtol=1e-4, atol=1e-5)


def test_compiled_training_has_the_same_gradients(spec: Spec) -> None:
    torch._dynamo.reset()
    layer, x = built(spec), numbers(1, 7)
    wholly = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found: list[dict[str, Tensor]] = []
    for module in (layer, wholly):
        layer.zero_grad()
        whole(module, x).square().sum().backward()
        found.append({name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-4 * scale)


def test_bfloat16_goes_through(spec: Spec) -> None:
    layer, x = built(spec), numbers(2, 12)
    expected = whole(layer, x)
    found = whole(layer.to(torch.bfloat16), x.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_adapters_and_stored_weights_attach(spec: Spec) -> None:
    model = decoder(spec, channel=False)
    tokens = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(7))
    before, names = model(tokens), set(tensors_of(model))
    Int8().attach(model)
    linear = select(model, "layers.**", of=Linear)
    assert len(linear) >= 2
    assert all(isinstance(site.weight, StoredWeight) for site in linear.values())
    difference = (model(tokens) - before).norm()
    assert 0 < difference < 0.1 * before.norm()
    quantized = model(tokens)
    Lora(rank=2).attach(model)
    torch.testing.assert_close(model(tokens), quantized)
    model(tokens).square().mean().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(trained) == 2 * len(linear) and all(".around.lora." in name for name in trained)
    Lora(rank=2).detach(model)
    assert {name.removesuffix(".codes") for name in tensors_of(model)} == names


def test_a_checkpoint_is_spec_and_tensors(spec: Spec) -> None:
    model = decoder(spec, channel=True)
    tokens = torch.randint(0, VOCAB, (1, 9), generator=torch.Generator().manual_seed(8))
    again = assemble(spec_of(spec, channel=True), Plan(), tensors_of(model))
    assert torch.equal(again(tokens), model(tokens))
