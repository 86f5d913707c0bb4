"""Latent attention against transformers' DeepSeek modules, absorbed against expanded, and the bytes it keeps."""

from __future__ import annotations

import pytest
import torch
from nn.attention.keeping import HIDDEN, built, flops, going_on, numbers, whole
from torch import nn
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from almanac.adapt.lora import Lora
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.nn.attention.latent import LatentAttention, latent_attention
from almanac.nn.low_rank import LowRank
from almanac.nn.positions.rope import Dynamic, Rope, Yarn

TIME = 17


def ours(query_rank: int | None = None, **changes: object) -> LatentAttention:
    spec = latent_attention(
        HIDDEN, num_heads=3, rank=10, dims=(4, 7), position=Rope.Spec(rotary_dim=6, interleaved=True), query_rank=query_rank
    )  # fmt: skip
    layer = built(spec.with_(**changes))
    assert isinstance(layer, LatentAttention)
    return layer


def theirs(version: int, query_rank: int | None, rope: dict[str, object]) -> tuple[nn.Module, nn.Module]:
    """Their attention and rotary embedding."""
    kind = DeepseekV2Config if version == 2 else DeepseekV3Config
    config = kind(
        hidden_size=HIDDEN,
        num_attention_heads=3,
        num_key_value_heads=3,
        q_lora_rank=query_rank,
        kv_lora_rank=10,
        qk_nope_head_dim=4,
        qk_rope_head_dim=6,
        v_head_dim=7,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"} | rope,
        attn_implementation="eager",
    )
    if version == 2:
        return DeepseekV2Attention(config, 0), DeepseekV2RotaryEmbedding(config)
    return DeepseekV3Attention(config, 0), DeepseekV3RotaryEmbedding(config)


YARN = {
    "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "mscale": 0.9, "mscale_all_dim": 0.7,
}  # fmt: skip


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("query_rank", [None, 8])
@pytest.mark.parametrize("version", [2, 3])
def test_it_is_that_of_transformers(version: int, query_rank: int | None, scaled: bool) -> None:
    module, rotary = theirs(version, query_rank, YARN if scaled else {})
    position, scale = Rope.Spec(rotary_dim=6, interleaved=True), None
    if scaled:
        temperature = (0.1 * 0.9 * torch.tensor(8.0).log() + 1) / (0.1 * 0.7 * torch.tensor(8.0).log() + 1)
        position = position.with_(scaling=Yarn(factor=8.0, original=8, attention=float(temperature)))
        scale = 10**-0.5 * float(0.1 * 0.7 * torch.tensor(8.0).log() + 1) ** 2
    layer = ours(query_rank, position=position, scale=scale).float()
    names = {"q_proj": "q", "q_a_proj": "q.down", "q_a_layernorm": "q.norm", "q_b_proj": "q.up"}
    names |= {"kv_a_proj_with_mqa": "kv_down", "kv_a_layernorm": "kv_norm", "kv_b_proj": "kv_up", "o_proj": "o"}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            path, _, leaf = name.rpartition(".")
            parameter.copy_(layer.get_submodule(names[path]).get_parameter(leaf))
    x = numbers(2, TIME).float()
    positions = torch.arange(TIME).expand(2, -1)
    hidden = torch.full((TIME, TIME), -torch.inf).triu(1)[None, None]
    expected, _ = module(x, position_embeddings=rotary(x, positions), attention_mask=hidden)
    torch.testing.assert_close(whole(layer, x), expected, rtol=1e-5, atol=1e-5)


def test_absorbed_is_expanded() -> None:
    layer, generator = ours(), torch.Generator().manual_seed(0)
    q = (torch.randn(2, 3, 5, 4, generator=generator).double(), torch.randn(2, 3, 5, 6, generator=generator).double())
    latent = torch.randn(2, 1, 9, 10, generator=generator).double()
    key = torch.randn(2, 1, 9, 6, generator=generator).double()
    mask = torch.ones(1, 1, 5, 9, dtype=torch.bool).tril(4)
    found = layer.absorbed(q, latent, key, mask)
    torch.testing.assert_close(found, layer.expanded(q, latent, key, mask), rtol=1e-10, atol=1e-12)


def test_a_token_absorbs_and_a_prompt_expands(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, used = ours(), numbers(1, 40), []
    for name in ("absorbed", "expanded"):
        method = getattr(layer, name)
        monkeypatch.setattr(layer, name, lambda *inputs, m=method, n=name: (used.append(n), m(*inputs))[1])
    found, _ = going_on(layer, x, layer.init_state(1, 40), (38, 1, 1))
    assert used == ["expanded", "absorbed", "absorbed"]
    torch.testing.assert_close(found, whole(layer, x), rtol=1e-9, atol=1e-10)


def test_a_decoded_token_costs_less_absorbed() -> None:
    layer, x, counts = ours(), numbers(1, 300), []
    _, state = going_on(layer, x[:, :299], layer.init_state(1, 300), (299,))
    for expand in (False, True):
        if expand:
            Lora(rank=1, targets="kv_up").attach(layer)
        counts.append(flops(lambda: going_on(layer, x[:, 299:], state.fork(), (1,))))
    assert counts[1] > 3 * counts[0]


def test_adapters_on_the_upward_map_are_obeyed() -> None:
    layer, x = ours(8), numbers()
    Lora(rank=2, targets="**").attach(layer)
    for name, parameter in layer.named_parameters():
        if ".lora." in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    layer.double()
    found, _ = going_on(layer, x, layer.init_state(2, 4), (20, 1, 1, 1))
    torch.testing.assert_close(found, whole(layer, x), rtol=1e-8, atol=1e-9)


def test_only_the_latent_and_the_turned_key_are_kept() -> None:
    layer = ours()
    state = layer.init_state(2, 16)
    _, state = layer_state = going_on(layer, numbers(2, 5), state, (5,))
    assert layer_state[1].nbytes == 2 * 16 * (10 + 6) * 8
    assert state.select([1]).nbytes == 16 * (10 + 6) * 8


def test_impossible_specs_are_refused() -> None:
    spec = latent_attention(HIDDEN, num_heads=3, rank=10, dims=(4, 7), position=Rope.Spec(rotary_dim=6), query_rank=5)
    assert isinstance(spec.q, LowRank.Spec)
    for changes in (
        {"value_dim": 6},
        {"num_heads": 2},
        {"position": Rope.Spec(rotary_dim=8)},
        {"kv_up": spec.kv_up.with_(bias=True)},
        {"kv_up": spec.kv_up.with_(out_features=21)},
        {"q": spec.q.with_(up=spec.q.up.with_(out_features=31))},
        {"q": spec.q.up.with_(out_features=31)},
    ):
        with pytest.raises(ShapeError):
            spec.with_(**changes)
    with pytest.raises(ShapeError, match="same rank"):
        spec.q.with_(down=spec.q.down.with_(out_features=4))
    with pytest.raises(UnsupportedError, match="latent"):
        spec.with_(position=Rope.Spec(rotary_dim=6, scaling=Dynamic(factor=2.0, original=8)))
