"""Qwen3-Next against transformers: delta rule and gated attention, with experts in all, some or no layers."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from oracle import quiet, transformers
from parity import Cases, Pair, Parity, make, tokens, translate
from torch import Tensor
from transformers.models.qwen3_next import modeling_qwen3_next as theirs_of

from almanac.core.errors import AlmanacError, FileFormatError, ShapeError, UnsupportedError
from almanac.core.state import Context
from almanac.files.safetensors import read_sharded, write_safetensors
from almanac.models.family import Fields, family_for
from almanac.models.hub_folder import read_hub_folder
from almanac.models.tensor_layout import PerHead
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.channel.moe.mixture import Mixture
from almanac.nn.recurrent.delta import Delta

SMALL: dict[str, Any] = {
    "head_dim": 16, "full_attention_interval": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 12, "linear_value_head_dim": 8, "num_experts": 6, "num_experts_per_tok": 3,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40,
}  # fmt: skip
FULL, LINEAR = "full_attention", "linear_attention"
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}

CASES: Cases = {
    "as published, small": ("qwen3_next", {**SMALL, "num_hidden_layers": 4, "full_attention_interval": 4}),
    "as many value heads as key heads": (
        "qwen3_next",
        {**SMALL, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 3, "norm_topk_prob": False},
    ),
    "three value heads a key head, one key-value head": (
        "qwen3_next",
        {**SMALL, "linear_num_value_heads": 6, "linear_value_head_dim": 14, "num_key_value_heads": 1, "head_dim": 24},
    ),
    "listed layers, tied, half of each head turned": (
        "qwen3_next",
        {
            **SMALL, "layer_types": [FULL, LINEAR, LINEAR], "tie_word_embeddings": True, "num_key_value_heads": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 90.0, "partial_rotary_factor": 0.5},
        },
    ),
    "every second layer sparse, biases, gelu": (
        "qwen3_next",
        {
            **SMALL, "num_hidden_layers": 4, "decoder_sparse_step": 2, "attention_bias": True, "hidden_act": "gelu",
            "full_attention_interval": 3, "rms_norm_eps": 1e-3,
        },
    ),
    "some layers dense, all experts, yarn": (
        "qwen3_next",
        {
            **SMALL, "mlp_only_layers": [0, 2], "num_experts_per_tok": 6, "shared_expert_intermediate_size": 8,
            "rope_parameters": {**YARN, "partial_rotary_factor": 0.75},
        },
    ),
    "attention alone, linear scaling, all of each head turned": (
        "qwen3_next",
        {
            **SMALL, "full_attention_interval": 1, "partial_rotary_factor": 1.0,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
        },
    ),
    "delta rule alone, no experts": (
        "qwen3_next",
        {
            **SMALL, "layer_types": [LINEAR] * 3, "num_experts": 0, "linear_conv_kernel_dim": 2, "rms_norm_eps": 1e-4,
        },
    ),
    "one expert, dynamic scaling": (
        "qwen3_next",
        {
            **SMALL, "num_experts": 1, "num_experts_per_tok": 1, "linear_num_key_heads": 1,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 400.0, "factor": 2.0},
        },
    ),
}  # fmt: skip


def recurrence(
    query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor, **rest: Any
) -> tuple[Tensor, Tensor]:
    """Equation 10 of arXiv 2412.06464, token by token: q, k [b, t, m, d], v [b, t, n, e], g, beta [b, t, n]."""
    times = value.shape[2] // key.shape[2]
    query, key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
    query, key = (x.repeat_interleave(times, dim=2) for x in (query / query.shape[-1] ** 0.5, key))
    memory = value.new_zeros(*value[:, 0].shape[:2], key.shape[-1], value.shape[-1])  # [b, n, d, e]
    read = []
    for place in range(value.shape[1]):
        k, rate = key[:, place, :, :, None], beta[:, place, :, None, None]
        memory = g[:, place].exp()[..., None, None] * memory
        memory = memory + rate * k * (value[:, place, :, None] - (memory * k).sum(2, keepdim=True))
        read.append((memory * query[:, place, :, :, None]).sum(2))
    return torch.stack(read, dim=1), memory


def gated_norm(self: Any, hidden_states: Tensor, gate: Tensor) -> Tensor:
    x = hidden_states / (hidden_states.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
    return self.weight * x * F.silu(gate)


@functools.lru_cache(maxsize=2)
def pair_of(case: str) -> Pair:
    """As `parity.pair_of`, with gains around 1 and states that fade slowly: twice the gain in every norm, or what a token
    reads of itself alone, which may be nothing and is normalised all the same, would blow up the rounding of float32."""
    theirs = make(*CASES[case], seed=len(case))
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, theirs_of.Qwen3NextRMSNorm):
                module.weight.sub_(1)
            if isinstance(module, theirs_of.Qwen3NextGatedDeltaNet):
                module.A_log.sub_(4)
                module.conv1d.weight.mul_(5)
    theirs.config._experts_implementation = "eager"  # their grouped product knows no float64
    return Pair("qwen3_next", theirs, translate(theirs))


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their code rounds to float32 whatever it is given; here float64 stays."""
    narrow, softmax = Tensor.float, F.softmax

    def kept(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else narrow(x)

    def wide(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)

    monkeypatch.setattr(Tensor, "float", kept)
    monkeypatch.setattr(F, "softmax", wide)
    monkeypatch.setattr(theirs_of, "torch_chunk_gated_delta_rule", recurrence)
    monkeypatch.setattr(theirs_of.Qwen3NextRMSNormGated, "forward", gated_norm)
    yield


class TestQwen3Next(Parity):
    cases: ClassVar[Cases] = CASES

    @pytest.fixture(autouse=True)
    def uncached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Theirs makes a cache even for one call, and that wants an attention to know the length of the past."""
        monkeypatch.setattr(theirs_of, "DynamicCache", lambda config: None)

    @pytest.fixture
    def pair(self, case: str) -> Pair:
        return pair_of(case)

    @pytest.mark.usefixtures("unrounded")
    def test_they_agree_in_double_precision(self, pair: Pair) -> None:
        """Theirs unrounded, and its delta rule written out token by token."""
        assert self.difference(copy.deepcopy(pair.theirs).double(), copy.deepcopy(pair.ours).double()) <= 1e-10


@pytest.mark.parametrize("case", ["as published, small", "every second layer sparse, biases, gelu"])
def test_a_state_goes_on_where_theirs_does(case: str) -> None:
    """Token by token and several at once: their cache holds the same past as our state."""
    pair, rows = pair_of(case), tokens(2, 20)
    with torch.no_grad(), quiet():
        _, state = pair.ours.hidden(rows[:, :7], pair.ours.init_state(2, 1))
        given = pair.theirs(rows[:, :7], use_cache=True)
        for piece in rows[:, 7:].split([1, 1, 6, 1, 4], dim=1):
            given = pair.theirs(piece, past_key_values=given.past_key_values, use_cache=True)
            hidden, state = pair.ours.hidden(piece, state)
            torch.testing.assert_close(pair.ours.logits(hidden), given.logits, rtol=0, atol=1e-5)


def test_the_configuration_as_the_release_spells_it() -> None:
    """Rotary fields beside each other, a period for the layers with attention, sizes of the 80B release."""
    told = {
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "hidden_act": "silu",
        "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6, "rope_theta": 10_000_000, "rope_scaling": None,
        "partial_rotary_factor": 0.25, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "output_router_logits": False, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
    }  # fmt: skip
    fields = Fields(told)
    spec = family_for("qwen3_next").read(fields)
    assert fields.not_understood() == {}
    blocks = [layer for layer in spec.layers if isinstance(layer, Block.Spec)]
    assert len(blocks) == 48
    assert [number for number, block in enumerate(blocks) if isinstance(block.mixer, Attention.Spec)] == [
        *range(3, 48, 4)
    ]
    assert all(isinstance(block.channel, Mixture.Spec) for block in blocks)
    looking, remembering = blocks[3].mixer, blocks[0].mixer
    assert isinstance(looking, Attention.Spec) and looking.position is not None and looking.gate is not None
    assert (looking.position.rotary_dim, looking.position.theta, looking.gate.out_features) == (64, 1e7, 4096)
    assert isinstance(remembering, Delta.Spec)
    assert (remembering.conv.channels, remembering.gate.out_features, remembering.num_heads) == (8192, 4096, 32)


def test_silence_means_what_it_means_to_them() -> None:
    with quiet():
        spoken = json.loads(transformers.AutoConfig.for_model("qwen3_next").to_json_string(use_diff=False))
    assert family_for("qwen3_next").read(Fields({})) == family_for("qwen3_next").read(Fields(spoken))


def test_heads_that_predict_later_tokens_are_passed_over(tmp_path: Path) -> None:
    """The release holds them; what else is unknown is refused."""
    pair = pair_of("as published, small")
    with quiet():
        pair.theirs.save_pretrained(tmp_path)
    tensors = {name: item.clone() for name, item in read_sharded(tmp_path).items()}
    more = {"mtp.fc.weight": torch.zeros(2, 2), "mtp.layers.0.mlp.gate.weight": torch.zeros(2)}
    write_safetensors(tmp_path / "model.safetensors", tensors | more)
    found = read_hub_folder(tmp_path)
    assert not any("mtp" in name for name in found.tensors)
    write_safetensors(tmp_path / "model.safetensors", tensors | {"model.mtp.weight": torch.zeros(2)})
    with pytest.raises(FileFormatError, match=r"model\.mtp"):
        read_hub_folder(tmp_path)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], type[AlmanacError]]] = {
    "a window": ({"layer_types": ["sliding_attention", LINEAR]}, UnsupportedError),
    "too few kinds": ({"layer_types": [LINEAR]}, FileFormatError),
    "every nothingth layer": ({"full_attention_interval": 0}, FileFormatError),
    "value heads that no key head has": ({"linear_num_value_heads": 5}, ShapeError),
    "more experts a token than there are": ({"num_experts_per_tok": 7}, ShapeError),
    "no shared expert": ({"shared_expert_intermediate_size": 0}, FileFormatError),
    "no width of the convolution": ({"linear_conv_kernel_dim": 0}, FileFormatError),
    "a share beyond the head": ({"partial_rotary_factor": 1.5}, ShapeError),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_configurations_are_refused(case: str) -> None:
    changes, error = IMPOSSIBLE[case]
    with pytest.raises(error) as caught:
        family_for("qwen3_next").read(Fields({**SMALL, "num_hidden_layers": 2, **changes}))
    assert caught.value.remedy


def test_a_gate_opens_for_each_number_of_each_head() -> None:
    """A gate of zeros lets half of everything through; one that knows but one head's numbers changes no other's."""
    plain = attention(12, num_heads=3, head_dim=4)
    layer = plain.with_(gate=plain.q).build()
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        layer.o.weight.copy_(torch.eye(12))
        x, context = torch.randn(1, 5, 12), Context(positions=torch.arange(5)[None])
        layer.gate.weight.zero_()
        half, _ = layer(x, context)
        layer.gate.weight[4] = 1.0  # the first number of the second head
        open_, _ = layer(x, context)
    whole, expected = 2 * half, half.clone()
    expected[..., 4] = whole[..., 4] * torch.sigmoid(x.sum(-1))
    torch.testing.assert_close(open_, expected)
    with pytest.raises(ShapeError, match="gate"):
        plain.with_(gate=plain.q.with_(out_features=8))


def test_fused_rows_lie_group_by_group() -> None:
    """Worked by hand: two groups, of one row of the first and two of the second."""
    layout, whole = PerHead(groups=2), torch.arange(6.0)[:, None]
    first, second = layout.read([whole], [torch.Size([2, 1]), torch.Size([4, 1])])
    assert (first.flatten().tolist(), second.flatten().tolist()) == ([0, 3], [1, 2, 4, 5])
    assert torch.equal(layout.write([first, second])[0], whole)
    for shapes in ([(3, 1), (3, 1)], [(2, 1), (2, 1)], [(2, 2), (4, 2)]):
        with pytest.raises(FileFormatError, match="groups"):
            layout.read([whole], [torch.Size(shape) for shape in shapes])
