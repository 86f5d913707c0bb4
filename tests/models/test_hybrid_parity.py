"""Hybrids of Mamba-2 and attention against transformers."""

from __future__ import annotations

import copy
import json
from operator import truediv
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import toys
from oracle import largest_difference, quiet, watched
from parity import TIME, Cases, Pair, Parity, pair_of, tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import FileFormatError, SelectionError, UnsupportedError
from almanac.core.state import Context, StackState
from almanac.core.technique import Plan, assemble
from almanac.models.family import Fields, family_for
from almanac.models.tiny import tiny_spec
from almanac.nn.stack import Decoder
from almanac.train.parallel.pipeline import cut_stages
from almanac.train.parallel.rules import Layout
from almanac.verify.describe import counted, describe
from almanac.verify.leak import leaks_of

ROUNDING = ("bamba", "granitemoehybrid", "zamba2")  # gated norms, steps, decays and states in float32
MAMBA = {"mamba_n_heads": 6, "mamba_d_state": 5}
BAMBA = {**MAMBA, "attn_layer_indices": [1]}


class TestBamba(Parity):
    rounds = ROUNDING
    cases: ClassVar[Cases] = {
        "bamba": ("bamba", BAMBA),
        "bamba, groups, tied, other widths": (
            "bamba",
            {
                **BAMBA, "mamba_n_heads": 12, "mamba_n_groups": 3, "mamba_expand": 3, "mamba_d_conv": 2,
                "num_hidden_layers": 4, "attn_layer_indices": [0, 3], "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
            },
        ),
        "bamba, one key-value head, other turns": (
            "bamba",
            {
                **BAMBA, "num_key_value_heads": 1, "hidden_act": "gelu", "mamba_conv_bias": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0},
            },
        ),
        "bamba, wide heads, scaled turns": (
            "bamba",
            {
                **BAMBA, "head_dim": 20, "num_attention_heads": 4, "num_key_value_heads": None,
                "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
            },
        ),
        "bamba, attention alone": ("bamba", {**BAMBA, "attn_layer_indices": [0, 1, 2]}),
        "bamba, no attention, limited steps": (
            "bamba",
            {**MAMBA, "mamba_d_head": 16, "mamba_chunk_size": 16, "time_step_limit": [0.4, 1.5], "use_cache": False},
        ),
    }  # fmt: skip


GRANITE = {
    **MAMBA, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "shared_intermediate_size": 40,
    "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 1.5,
}  # fmt: skip
EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2, "position_embedding_type": "rope"}


class TestGranite(Parity):
    rounds = ROUNDING
    cases: ClassVar[Cases] = {
        "granite 4, dense, no positions": ("granitemoehybrid", {**GRANITE, "num_local_experts": 0}),
        "granite 4, experts, rotary": ("granitemoehybrid", {**GRANITE, **EXPERTS}),
        "granite 4, groups, biases of attention, tied": (
            "granitemoehybrid",
            {
                **GRANITE, **EXPERTS, "mamba_n_heads": 8, "mamba_n_groups": 4, "mamba_d_conv": 3, "mamba_conv_bias": False,
                "attention_bias": True, "tie_word_embeddings": True, "num_experts_per_tok": 5, "num_key_value_heads": 3,
                "layer_types": ["attention", "mamba", "attention"],
                "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
            },
        ),
        "granite 4, wide heads, one expert a token, limited steps": (
            "granitemoehybrid",
            {
                **GRANITE, **EXPERTS, "head_dim": 20, "num_experts_per_tok": 1, "time_step_limit": [0.4, 1.5],
                "hidden_act": "gelu", "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
            },
        ),
        "granite 4, attention alone": (
            "granitemoehybrid",
            {**GRANITE, "num_local_experts": 0, "layer_types": ["full_attention"] * 3, "position_embedding_type": "rope"},
        ),
        "granite 4, no attention": (
            "granitemoehybrid",
            {**GRANITE, **EXPERTS, "layer_types": None, "num_local_experts": 3, "use_cache": False},
        ),
    }  # fmt: skip

    @pytest.fixture
    def pair(self, case: str) -> Pair:
        found = pair_of(case, self.cases[case][0], json.dumps(self.cases[case][1]))
        found.theirs.config._experts_implementation = "eager"  # their grouped product knows no float64
        return found


ZAMBA = {
    "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"], "n_mamba_heads": 6,
    "mamba_d_state": 5, "adapter_rank": 4, "num_key_value_heads": 6,
}  # fmt: skip
ADAPTED = {"use_shared_attention_adapter": True, "num_mem_blocks": 2, "use_mem_rope": True}


class TestZamba2(Parity):
    rounds = ROUNDING
    cases: ClassVar[Cases] = {
        "zamba2": ("zamba2", ZAMBA),
        "zamba2, two blocks, rotary, adapters of attention": ("zamba2", {**ZAMBA, **ADAPTED}),
        "zamba2, untied, adapters": ("zamba2", {**ZAMBA, **ADAPTED, "tie_word_embeddings": False}),
        "zamba2, untied, grouped heads, silu, other widths": (
            "zamba2",
            {
                **ZAMBA, "num_hidden_layers": 6, "tie_word_embeddings": False, "num_key_value_heads": 2, "hidden_act": "silu",
                "layers_block_type": ["hybrid", "mamba", "hybrid", "hybrid", "mamba", "hybrid"], "mamba_ngroups": 3,
                "num_mem_blocks": 3, "mamba_expand": 3, "mamba_d_conv": 2, "time_step_min": 0.7, "rms_norm_eps": 1e-3,
            },
        ),
        "zamba2, a block used once, other positions": (
            "zamba2",
            {
                **ZAMBA, **ADAPTED, "num_mem_blocks": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
                "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
                "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
            },
        ),
    }  # fmt: skip

    def difference(self, theirs: Any, ours: Decoder) -> float:
        """Of the first half of our stream, the second being the embedding; relative to it where it grows beyond 1 (to 9)."""
        row, hidden = tokens(2, TIME), theirs.config.hidden_size
        with torch.no_grad(), quiet():
            reference = theirs(row, attention_mask=torch.ones_like(row), output_hidden_states=True)
            last, embedded = ours.hidden(row)[0], ours.embed(row)
        logits, left = watched(ours.layers, lambda: ours(row))
        mine = [logits, embedded, *(item[..., :hidden] for item in left[:-1]), last]
        assert all(torch.equal(item[..., hidden:], embedded) for item in left)
        other = [reference.logits, *reference.hidden_states]
        scales = [max(1.0, float(item.abs().max())) for item in other]
        return largest_difference(map(truediv, mine, scales), map(truediv, other, scales))


class TestBiasedZamba2(TestZamba2):
    """As below."""

    pad = ROUNDING
    cases: ClassVar[Cases] = {
        "zamba2, biases": ("zamba2", {**ZAMBA, **ADAPTED, "add_bias_linear": True, "mamba_ngroups": 2}),
    }


class TestBiasedMaps(Parity):
    """With biases of the Mamba's maps their padding is not silent: it enters the convolution."""

    rounds = ROUNDING
    pad = ROUNDING
    cases: ClassVar[Cases] = {
        "granite 4, biases": ("granitemoehybrid", {**GRANITE, **EXPERTS, "mamba_proj_bias": True, "mamba_n_groups": 2}),
        "bamba, biases": (
            "bamba",
            {**BAMBA, "mamba_n_groups": 2, "mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True},
        ),
    }


# --- what layers that share a block must keep apart


def sharing(**changes: Any) -> Decoder.Spec:
    """Two blocks, used by four layers."""
    kinds = ["hybrid", "mamba", "hybrid", "hybrid", "hybrid"]
    return tiny_spec(family_for("zamba2"), **{"num_hidden_layers": 5, "layers_block_type": kinds, **changes})


@pytest.fixture(scope="module")
def network() -> Decoder:
    return toys.model_of(sharing()).double()


def run(network: Decoder, row: Tensor, state: StackState, chunk: int) -> tuple[Tensor, StackState]:
    pieces = []
    with torch.no_grad():
        for piece in row.split(chunk, dim=1):
            hidden, after = network.hidden(piece, state)
            assert after is not None
            state = after
            pieces.append(network.logits(hidden))
    return torch.cat(pieces, dim=1), state


def test_a_shared_block_has_one_place_in_the_checkpoint(network: Decoder) -> None:
    spec = sharing()
    assert Decoder.Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    names = {name for name, _ in network.named_parameters()}
    assert {name for name in names if name.endswith("attention.o.weight")} == {
        "layers.0.attention.o.weight",
        "layers.2.attention.o.weight",
    }
    assert {f"layers.{layer}.attention.q.low_rank.up.weight" for layer in (0, 2, 3, 4)} <= names
    borrowed, owned = (network.get_submodule(f"layers.{layer}.attention.q.base") for layer in (4, 2))
    assert vars(borrowed)["owner"] == (owned,)
    for other in (copy.deepcopy(network), assemble(spec, Plan(), toys.tensors_of(network))):
        assert isinstance(other, Decoder)
        before = other(toys.tokens(1, 9))
        with torch.no_grad():
            other.get_submodule("layers.2.attention.o").weight.zero_()
        assert not other(toys.tokens(1, 9)).equal(before)
        assert vars(other.get_submodule("layers.4.attention.o"))["owner"][0] is other.get_submodule(
            "layers.2.attention.o"
        )


def test_each_use_has_a_past_of_its_own(network: Decoder) -> None:
    """Cached in chunks, forked, selected and joined: always as if the whole text were read at once."""
    rows, tail = toys.tokens(3, 12), toys.tokens(3, 6, seed=5)
    whole = network(torch.cat([rows, tail], dim=1)).detach()
    for chunk in (1, 5, 12):
        got, state = run(network, rows, network.init_state(3, 1), chunk)
        torch.testing.assert_close(got, whole[:, :12], rtol=0, atol=1e-9)
        fork = state.fork()
        run(network, tail.flip(0), state, 2)
        got, _ = run(network, tail[[2, 0, 1]], fork.select([2]).join([fork.select([0, 1])]), 4)
        torch.testing.assert_close(got, whole[[2, 0, 1], 12:], rtol=0, atol=1e-9)
    _, state = run(network, rows, network.init_state(3, 1), 12)
    with pytest.raises(UnsupportedError):
        state.trim([4, 4, 4])  # what the Mamba layers have seen
    assert state.lengths == [12, 12, 12]


def test_packed_texts_do_not_see_each_other_through_a_shared_block(network: Decoder) -> None:
    rows = [toys.tokens(1, size, seed=size) for size in (5, 1, 14)]
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    segments = torch.cat([torch.full((row.shape[1],), index) for index, row in enumerate(rows)])[None]
    with torch.no_grad():
        got = network(torch.cat(rows, dim=1), Context(positions=positions, segments=segments))
        expected = torch.cat([network(row) for row in rows], dim=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert leaks_of(network, length=60) == ()


def test_a_technique_on_the_owner_is_met_by_every_use(network: Decoder) -> None:
    """An adapter of a shared map is one adapter, and quantizing it quantizes all uses."""
    row = toys.tokens(2, 20)
    adapted = toys.model_of(sharing()).double()
    Lora(targets="layers.*.attention.o").attach(adapted)
    adapted.double()
    added = [name for name, _ in adapted.named_parameters() if "around" in name]
    assert {name.split(".")[1] for name in added} == {"0", "2"}
    assert adapted(row).equal(network(row))
    toys.stir(parameter for name, parameter in adapted.named_parameters() if name in added)
    adapted(row).sum().backward()
    packed = copy.deepcopy(network)
    Int8(targets="layers.{0,2}.attention.o").attach(packed)
    with torch.no_grad():
        assert 0 < float((packed(row) - network(row)).abs().max()) < 0.2


def test_uses_of_a_block_compile_as_one_graph() -> None:
    torch._dynamo.reset()
    pair = toys.model_of(sharing(num_hidden_layers=2, layers_block_type=["hybrid", "hybrid"], num_mem_blocks=1))
    compiled, row = torch.compile(pair, backend="aot_eager", fullgraph=True), toys.tokens(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(compiled(row), pair(row), rtol=0, atol=1e-5)


def test_a_block_without_its_owner_is_refused() -> None:
    spec = sharing()
    with pytest.raises(SelectionError, match="which 0 layers own"):
        spec.with_(layers=spec.layers[1:]).build()
    with pytest.raises(SelectionError, match="which 2 layers own"):
        spec.with_(layers=(spec.layers[0], *spec.layers)).build()
    with pytest.raises(SelectionError, match="whose block"):
        spec.layers[3].build()(torch.zeros(1, 2, 64), Context(positions=torch.arange(2)[None]))
    ranks = SimpleNamespace(size=lambda axis: 2, index=lambda axis: 0)
    with pytest.raises(UnsupportedError, match="share a block"):
        cut_stages(spec.build(), ranks, Layout({}))  # type: ignore[arg-type]


def test_figures_of_a_model_with_shared_blocks(network: Decoder) -> None:
    found = describe(sharing(), lengths=(16, 40), dtype=torch.float64)
    assert found.notes == ()
    assert found.parameters.total == sum(parameter.numel() for parameter in network.parameters())
    row = toys.tokens(1, 40)
    with torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH):
            real, _ = counted(lambda: network(row), network)
        _, state = network.hidden(row, network.init_state(1, 40))
    assert found.operations[40] == pytest.approx(real / 40, rel=0.01)
    assert state is not None
    assert found.state_bytes[40] == state.nbytes


# --- what is refused


@pytest.mark.parametrize(
    ("name", "changes", "error", "words"),
    [
        ("bamba", {"mamba_n_heads": 7}, FileFormatError, "7 heads"),
        ("bamba", {"mamba_d_head": 8}, FileFormatError, "heads of 8"),
        ("bamba", {"attn_layer_indices": [3]}, FileFormatError, "attn_layer_indices"),
        ("bamba", {"attn_rotary_emb": 16}, UnsupportedError, "another number"),
        ("bamba", {"partial_rotary_factor": 1.0}, UnsupportedError, "another number"),
        ("granitemoehybrid", {"layer_types": ["mamba", "sliding_attention", "mamba"]}, UnsupportedError, "sliding"),
        ("granitemoehybrid", {"layer_types": ["mamba"]}, FileFormatError, "layer_types"),
        ("granitemoehybrid", {"normalization_function": "layernorm"}, UnsupportedError, "RMSNorm"),
        ("zamba2", {"use_long_context": True}, UnsupportedError, "use_long_context"),
        ("zamba2", {"num_key_value_heads": 2}, UnsupportedError, "heads share"),
        ("zamba2", {"layers_block_type": None}, FileFormatError, "layers_block_type"),
        ("zamba2", {"n_mamba_heads": 7}, FileFormatError, "7 heads"),
        ("zamba2", {"num_attention_heads": 5}, FileFormatError, "5 heads"),
    ],
)
def test_other_hybrids_are_refused(name: str, changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tiny_spec(family_for(name), **changes)


def test_published_spellings_are_read() -> None:
    """Older words for kinds of layers, limits and positions, as the first checkpoints have them."""
    half = tiny_spec(family_for("bamba"), attn_rotary_emb=8, partial_rotary_factor=0.5)
    assert half == tiny_spec(family_for("bamba"))
    newer = ["linear_attention", "full_attention", "linear_attention"]
    assert tiny_spec(family_for("granitemoehybrid"), layer_types=newer) == tiny_spec(family_for("granitemoehybrid"))
    nope = Fields({**GRANITE, **MAMBA, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
                   "position_embedding_type": "nope", "rope_theta": 10000, "init_method": "mup"})  # fmt: skip
    assert family_for("granitemoehybrid").read(nope).layers[1].mixer.position is None  # type: ignore[attr-defined]
    assert nope.not_understood() == {}
