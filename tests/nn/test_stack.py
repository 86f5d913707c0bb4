"""Positions added to the embedding: GPT-2 against transformers on random weights, decoding with a state, and the limits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import toys
from transformers import GPT2Config, GPT2LMHeadModel

from almanac.core.errors import RequestError, ShapeError
from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.core.technique import Plan, assemble
from almanac.nn.activation import GeluTanh
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import TiedHead
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.alibi import Alibi
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.positions.rope import Dynamic, Rope
from almanac.nn.positions.sinusoidal import SinusoidalPositions
from almanac.nn.stack import Decoder

VOCAB, HIDDEN, HEADS, CONTEXT = 61, 48, 4, 40
LEARNED = LearnedPositions.Spec(length=CONTEXT, hidden=HIDDEN)


def decoder_spec(positions: Spec | None, position: Spec | None = None) -> Decoder.Spec:
    norm = LayerNorm.Spec(hidden=HIDDEN)
    mixer = attention(HIDDEN, num_heads=HEADS, bias=True, position=position)  # type: ignore[arg-type]
    channel = dense(HIDDEN, 4 * HIDDEN, activation=GeluTanh())
    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=HIDDEN),
        positions=positions,
        layers=(Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel),) * 2,
        norm=norm,
        head=TiedHead.Spec(),
        context_length=CONTEXT,
    )


def test_gpt2_is_a_decoder_with_learned_positions() -> None:
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=HIDDEN, n_layer=2, n_head=HEADS, initializer_range=0.2
    )
    theirs = GPT2LMHeadModel(config).eval()
    source = {name: tensor.detach() for name, tensor in theirs.transformer.named_parameters()}
    ours = {"embed.weight": source["wte.weight"], "positions.weight": source["wpe.weight"]}
    names = {
        "mixer_norm": "ln_1", "channel_norm": "ln_2", "mixer.o": "attn.c_proj",
        "channel.up": "mlp.c_fc", "channel.down": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(2):
        for leaf in ("weight", "bias"):
            for own, other in names.items():
                tensor = source[f"h.{layer}.{other}.{leaf}"]
                ours[f"layers.{layer}.{own}.{leaf}"] = tensor.T if tensor.dim() == 2 else tensor  # Conv1D is transposed
            parts = source[f"h.{layer}.attn.c_attn.{leaf}"].chunk(3, dim=-1)
            for letter, tensor in zip("qkv", parts, strict=True):
                ours[f"layers.{layer}.mixer.{letter}.{leaf}"] = tensor.T if tensor.dim() == 2 else tensor
    for leaf in ("weight", "bias"):
        ours[f"norm.{leaf}"] = source[f"ln_f.{leaf}"]
    model = assemble(decoder_spec(LEARNED), Plan(), {name: tensor.contiguous() for name, tensor in ours.items()})
    tokens = torch.randint(0, VOCAB, (2, 17))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=2e-4)


KINDS: dict[str, tuple[Spec | None, Spec | None]] = {
    "learned": (LEARNED, None),
    "sinusoidal": (SinusoidalPositions.Spec(hidden=HIDDEN), None),
    "alibi": (None, Alibi.Spec(num_heads=HEADS)),
    "dynamic rope": (None, Rope.Spec(rotary_dim=12, theta=30.0, scaling=Dynamic(factor=2.0, original=5))),
    "both at once": (LEARNED, Alibi.Spec(num_heads=HEADS)),
}


@pytest.mark.parametrize("chunk", [1, 3, 24])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_with_a_state_is_decoding_without(kind: str, chunk: int) -> None:
    model = toys.model_of(decoder_spec(*KINDS[kind]))
    tokens = torch.randint(0, VOCAB, (2, 24))
    state, parts = model.init_state(2, 4), []
    for start in range(0, 24, chunk):
        hidden, state = model.hidden(tokens[:, start : start + chunk], state)
        parts.append(model.logits(hidden))
    straight = model(tokens)
    torch.testing.assert_close(torch.cat(parts, dim=1), straight, rtol=0, atol=1e-4)
    assert (
        float(
            (straight[:, -1] - model(tokens.roll(1, dims=1).index_copy(1, torch.tensor([23]), tokens[:, 23:]))[:, -1])
            .abs()
            .max()
        )
        > 1e-3
    )  # order matters


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_packed_texts_are_apart(kind: str) -> None:
    model = toys.model_of(decoder_spec(*KINDS[kind]))
    tokens = torch.randint(0, VOCAB, (1, 15))
    positions = torch.cat([torch.arange(9), torch.arange(6)])[None]
    packed = model(tokens, Context(positions=positions, segments=torch.tensor([[0] * 9 + [1] * 6])))
    alone = torch.cat([model(tokens[:, :9]), model(tokens[:, 9:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)


def test_without_positions_nothing_changes() -> None:
    spec = decoder_spec(None)
    assert "positions" not in spec.to_dict()
    assert dataclasses.replace(spec, positions=LEARNED).digest() != spec.digest()
    assert Decoder.Spec.from_dict(decoder_spec(LEARNED).to_dict()) == decoder_spec(LEARNED)
    assert "positions" not in dict(spec.build().named_children())


def test_limits() -> None:
    with pytest.raises(ShapeError, match="39 positions"):
        decoder_spec(LEARNED.with_(length=CONTEXT - 1))
    model = toys.model_of(decoder_spec(LEARNED))
    for wrong in (CONTEXT, -1):
        with pytest.raises(RequestError, match="Position"):
            model(torch.zeros(1, 1, dtype=torch.int64), Context(positions=torch.tensor([[wrong]])))
