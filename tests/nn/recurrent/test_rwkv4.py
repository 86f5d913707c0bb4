"""RWKV-4's weighted mean against transformers' loop and the bare formula; blocks whose both sublayers remember."""

from __future__ import annotations

import pytest
import torch
from nn.recurrent.mixing import HIDDEN, VOCAB, numbers
from torch import Tensor
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.generate.engine import Engine, Request, run_all
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.recurrent.rwkv4 import rwkv4, rwkv4_channel, wkv
from almanac.nn.recurrent.rwkv6 import rwkv6
from almanac.nn.recurrent.rwkv7 import rwkv7
from almanac.nn.stack import Decoder
from almanac.nn.two_mixer_block import TwoMixerBlock


def given(time: int, *, spread: float = 1.0) -> tuple[Tensor, ...]:
    """k, v, w, u of 2 rows of 3 channels."""
    generator = torch.Generator().manual_seed(time)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return spread * some(2, time, 3), some(2, time, 3), some(3).exp(), some(3)


@pytest.mark.parametrize("time", [1, 2, 9])
def test_the_mean_is_the_formula(time: int) -> None:
    """Equation 14 with its sums written out, nothing kept relative to anything."""
    k, v, w, u = given(time)
    y, _ = wkv(k, v, w, u, torch.zeros(2, 3, 3, dtype=torch.float64))
    for t in range(time):
        apart = torch.arange(t - 1, -1, -1, dtype=torch.float64)[None, :, None]
        weights = torch.cat([torch.exp(k[:, :t] - apart * w), torch.exp(u + k[:, t : t + 1])], dim=1)
        torch.testing.assert_close(y[:, t], (weights * v[:, : t + 1]).sum(1) / weights.sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spread", [1.0, 30.0, 500.0])
def test_transformers_loop_gives_the_same_however_large_the_keys(spread: float) -> None:
    k, v, w, u = (item.float() for item in given(40, spread=spread))
    w = w * torch.tensor([1.0, 30.0, 1e-3])
    theirs, state = rwkv_linear_attention_cpu(w.log(), u, k, v, return_state=True)
    y, memory = wkv(k, v, w, u, torch.zeros(2, 3, 3))
    torch.testing.assert_close(y, theirs, rtol=1e-4, atol=1e-5)
    scale = torch.exp(memory[:, 2] - state[2])  # any bound near theirs will do
    for mine, other in zip(memory[:, :2].unbind(1), state[:2], strict=True):
        torch.testing.assert_close(mine * scale, other, rtol=1e-3, atol=1e-5)


def test_a_packed_text_does_not_feel_how_large_the_keys_before_it_were() -> None:
    k, v, w, u = given(12)
    k[:, :6] += 900.0  # e^900 above the second text's
    begins = torch.zeros(2, 12, dtype=torch.bool)
    begins[:, 6] = True
    nothing = torch.zeros(2, 3, 3, dtype=torch.float64)
    y, memory = wkv(k, v, w, u, nothing, begins=begins)
    alone, after = wkv(k[:, 6:], v[:, 6:], w, u, nothing)
    torch.testing.assert_close(y[:, 6:], alone)
    torch.testing.assert_close(memory[:, :2] * torch.exp(memory[:, 2:] - after[:, 2:]), after[:, :2])


def test_gradients_by_differences() -> None:
    k, v, w, u = (item.clone().requires_grad_() for item in given(6))
    nothing = torch.zeros(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *items: wkv(*items, nothing)[0], (k, v, w, u))


def stack_of(kind: str) -> Decoder.Spec:
    """Three blocks of a time mix and a channel mix."""
    norm = LayerNorm.Spec(hidden=HIDDEN)

    def block(number: int) -> TwoMixerBlock.Spec:
        time: Spec = {
            "rwkv4": lambda: rwkv4(HIDDEN),
            "rwkv6": lambda: rwkv6(HIDDEN, num_heads=3, share_rank=4, decay_rank=5),
            "rwkv7": lambda: rwkv7(HIDDEN, num_heads=3, rank=4, first=number == 0),
        }[kind]()
        channel = rwkv4_channel(HIDDEN, 32, receptance=kind != "rwkv7")
        return TwoMixerBlock.Spec(mixer_norm=norm, time=time, channel_norm=norm, channel=channel)

    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=HIDDEN),
        layers=tuple(block(number) for number in range(3)),
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=VOCAB)),
        context_length=128,
    )


@pytest.fixture(params=["rwkv4", "rwkv6", "rwkv7"])
def model(request: pytest.FixtureRequest) -> Decoder:
    spec = stack_of(request.param)
    assert Decoder.Spec.from_dict(spec.to_dict()) == spec
    made = initialise(spec.build(), seed=3).eval()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    assert isinstance(made, Decoder)
    return made


def test_both_sublayers_remember(model: Decoder) -> None:
    tokens = torch.randint(0, VOCAB, (2, 14), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        state, pieces = model.init_state(2, 1), []
        held = state.nbytes
        for piece in tokens.split([1, 1, 5, 7], dim=1):
            hidden, state = model.hidden(piece, state)
            assert state is not None
            pieces.append(model.logits(hidden))
            assert state.nbytes == held
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=1e-4, atol=1e-5)
        assert state.lengths == [14, 14]
        emptied = state.fork()
        emptied.trim([0, 14])
        chosen = emptied.select([1, 0])
        hidden, _ = model.hidden(tokens[:, :3], chosen)
        torch.testing.assert_close(model.logits(hidden)[1], model(tokens[1:, :3])[0], rtol=1e-4, atol=1e-5)
    requests = [Request(tokens=tuple(tokens[row, : 3 + row].tolist()), max_tokens=9) for row in (0, 1)]
    found = run_all(Engine(model, max_rows=2, prefill_chunk=2), requests)
    for row, got in enumerate(found):
        text = torch.tensor([[*requests[row].tokens, *got[:-1]]])
        assert model(text)[0, 2 + row :].argmax(-1).tolist() == got


def test_packed_texts_are_apart_in_both_sublayers(model: Decoder) -> None:
    tokens = torch.randint(0, VOCAB, (1, 12), generator=torch.Generator().manual_seed(6))
    segments = torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        found = model(tokens, Context(positions=torch.arange(12)[None], segments=segments))
        torch.testing.assert_close(found[:, 5:], model(tokens[:, 5:]), rtol=1e-4, atol=1e-5)


def test_it_compiles_as_one_graph(model: Decoder) -> None:
    torch._dynamo.reset()
    tokens = torch.randint(0, VOCAB, (1, 12), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-4, atol=1e-5)


def test_the_block_is_a_site_that_holds_two(model: Decoder) -> None:
    block = model.layers[0]
    assert isinstance(block, TwoMixerBlock) and block.mixer is block
    assert isinstance(block.time, Site) and isinstance(block.channel, Site)
    model(torch.tensor([[1, 2, 3]])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_value_of_the_first_layer_must_come_from_somewhere() -> None:
    layer = initialise(rwkv7(HIDDEN, num_heads=3, rank=4, first=False).build(), seed=0)
    with pytest.raises(ShapeError, match="first value"):
        layer(numbers(1, 3), Context(positions=torch.arange(3)[None]), None)


def test_sizes_that_do_not_fit_are_refused() -> None:
    time, channel = rwkv4(HIDDEN, channels=16), rwkv4_channel(HIDDEN, 32)
    for spec, changes in (
        (time, {"k": time.k.with_(out_features=5)}),
        (time, {"bonus": time.share_k}),
        (time, {"share_v": time.bonus}),
        (channel, {"v": channel.k}),
        (channel, {"r": None}),
    ):
        with pytest.raises(ShapeError):
            spec.with_(**changes)
