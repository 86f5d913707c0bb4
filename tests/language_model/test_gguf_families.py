"""GGUF files of every family that has an architecture there: read back by us, computed by llama.cpp, named by `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from language_model import small
from language_model.test_gguf import rewritten
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.files.gguf.reader import read_gguf
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.models.family import Fields, families, family_for
from almanac.models.gguf_file import by_name
from almanac.models.hub_folder import shapes_of
from almanac.tokenizers.chat_template import ChatTemplate

LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
FULL, SLIDING = "full_attention", "sliding_attention"
GEMMA3_ROPES = {FULL: {**LINEAR, "rope_theta": 1e6}, SLIDING: {"rope_type": "default", "rope_theta": 1e4}}
FACTORS = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 1.5,
}  # fmt: skip
HYBRID = {
    **FACTORS, "layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 64, "mamba_n_heads": 8,
    "mamba_d_state": 16,
}  # fmt: skip
TIED = {"tie_word_embeddings": True}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0, 1.5, 2, 2.5, 3, 3.5, 4, 4.5],
    "long_factor": [2.0, 3, 4, 5, 6, 7, 8, 9],
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": small.CONTEXT, "n_inner": 96}
LATENT = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "rms_norm_eps": 1e-6, "head_dim": None,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, tied, yarn": ("qwen3", {**TIED, "head_dim": 16, "rope_parameters": YARN}),
    "gemma": ("gemma", {**TIED, "head_dim": 32, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": (
        "gemma2",
        {
            **TIED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 9, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **TIED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 9, "num_hidden_layers": 7,
            "rope_parameters": GEMMA3_ROPES,
        },
    ),
    "olmo": ("olmo", {"clip_qkv": 0.4}),
    "olmo, no bounds": ("olmo", {**TIED, "num_key_value_heads": 4}),
    "olmo2": ("olmo2", {}),
    "olmo2, a key-value head each, linear": ("olmo2", {"num_key_value_heads": 4, "rope_parameters": LINEAR}),
    "granite": ("granite", FACTORS),
    "granite, tied, biases": ("granite", {**TIED, **FACTORS, "attention_bias": True, "rope_parameters": small.LLAMA3}),
    "granite 4": ("granitemoehybrid", {**HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite 4, dense, rotary, tied, groups": (
        "granitemoehybrid",
        {**TIED, **HYBRID, "num_local_experts": 0, "position_embedding_type": "rope", "mamba_n_groups": 4},
    ),
    "olmo3, yarn": (
        "olmo3",
        {
            "num_hidden_layers": 5, "sliding_window": 9,
            "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 1000.0}},
        },
    ),
    "smollm3": ("smollm3", {**TIED, "num_hidden_layers": 5}),
    "glm4": ("glm4", {"head_dim": 32}),
    "glm4, no biases, whole heads": ("glm4", {"head_dim": 16, "attention_bias": False, "partial_rotary_factor": 1.0}),
    "ernie4_5": ("ernie4_5", {**TIED, "head_dim": 32}),
    "ernie4_5, own head": ("ernie4_5", {"head_dim": 16}),
    "exaone4": ("exaone4", {"sliding_window": None}),
    "gpt2": ("gpt2", {**GPT2, "tie_word_embeddings": True}),
    "gpt2, own head": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "starcoder2": ("starcoder2", {**TIED, "hidden_act": "gelu_pytorch_tanh", "sliding_window": None}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "command-r": ("cohere", {**TIED, "logit_scale": 0.25}),
    "phi3": ("phi3", {"pad_token_id": 2}),
    "phi3, tied, partly turned": ("phi3", {**TIED, "pad_token_id": 2, "partial_rotary_factor": 0.5}),
    "stablelm, half of each head": ("stablelm", {"partial_rotary_factor": 0.5}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2 with experts": (
        "qwen2_moe",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_key_value_heads": 4,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3 with experts": (
        "qwen3_moe",
        {
            "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True,
            "head_dim": 32,
        },
    ),
    "mamba": ("mamba", {**TIED, "state_size": 5, "time_step_rank": 32, "intermediate_size": 128}),
    "mamba, own head": ("mamba", {"state_size": 16, "conv_kernel": 3, "intermediate_size": 128}),
    "falcon mamba": (
        "falcon_mamba",
        {"state_size": 16, "intermediate_size": 128, "layer_norm_epsilon": 1e-3, "mixer_rms_eps": 1e-3},
    ),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1}),
    "mamba2, groups, tied": (
        "mamba2",
        {**TIED, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 4, "layer_norm_epsilon": 1e-3},
    ),
    "jamba": (
        "jamba",
        {
            "num_hidden_layers": 5, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4,
            "mamba_d_state": 16, "mamba_dt_rank": 32,
        },
    ),
    "falcon, two norms": ("falcon", {**TIED, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, one key-value head, own head": ("falcon", {"multi_query": True, "ffn_hidden_size": 96}),
    "falcon, a key-value head each": ("falcon", {**TIED, "multi_query": False, "rope_parameters": LINEAR}),
    "falcon, groups under one norm": (
        "falcon",
        {**TIED, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "bloom": ("bloom", {**TIED, "seq_length": small.CONTEXT}),
    "bloom, heads that are no power of two": ("bloom", {"seq_length": 64, "hidden_size": 96, "n_head": 6}),
    "mpt": ("mpt", {**TIED, "max_seq_len": 64}),
    "mpt, clipped, own head": ("mpt", {"max_seq_len": 64, "attn_config": {"clip_qkv": 0.5, "alibi_bias_max": 6}}),
    "gpt_neox": ("gpt_neox", {"hidden_act": "gelu", "rotary_pct": 0.5}),
    "gpt_neox, one after the other": (
        "gpt_neox",
        {"hidden_act": "gelu", "rotary_pct": 1.0, "use_parallel_residual": False, "rotary_emb_base": 500.0},
    ),
    "deepseek v3": ("deepseek_v3", {**LATENT, "n_group": 4, "topk_group": 2}),
    "deepseek v3, yarn, no groups, tied": (
        "deepseek_v3",
        {
            **TIED, **LATENT, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek v2": ("deepseek_v2", {**LATENT, "first_k_dense_replace": 0, "routed_scaling_factor": 2.0}),
    "deepseek v2, lite, yarn": (
        "deepseek_v2",
        {
            **LATENT, "q_lora_rank": None, "num_hidden_layers": 27,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "sliding_window": 9,
            "rope_parameters": YARN,
        },
    ),
    "llama4": (
        "llama4_text",
        {
            "num_hidden_layers": 5, "head_dim": 32, "intermediate_size_mlp": 96, "intermediate_size": 64,
            "num_local_experts": 4, "interleave_moe_layer_step": 2, "num_experts_per_tok": 1,
        },
    ),
    "llama4, experts everywhere, tied": (
        "llama4_text",
        {
            **TIED, "head_dim": 16, "intermediate_size_mlp": 64, "intermediate_size": 32, "num_local_experts": 128,
            "use_qk_norm": False, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "num_hidden_layers": 4,
        },
    ),
    "jamba, no experts, tied": (
        "jamba",
        {
            **TIED, "attn_layer_period": 2, "attn_layer_offset": 0, "num_experts": 1, "mamba_d_state": 8,
            "num_key_value_heads": 4,
        },
    ),
}  # fmt: skip
every_model = pytest.mark.parametrize("case", list(MODELS))
EXACT = 2e-6
IDS = torch.randint(0, small.VOCAB, (1, 40), generator=torch.Generator().manual_seed(3))


def model(case: str, **changes: Any) -> LanguageModel:
    name, own = MODELS[case]
    config = {**small.CONFIG, **own, **changes}
    if name.startswith("gemma"):
        config.pop("rope_theta")  # gemma 3 has two
    spec = family_for(name).read(Fields(config))
    words = small.tokenizer()
    return LanguageModel(
        network=toys.model_of(spec), spec=spec, tokenizer=words, template=ChatTemplate.of(words), family=name,
        provenance={"source": "toy"},
    )  # fmt: skip


def logits(lm: LanguageModel) -> Tensor:
    with torch.no_grad():
        return lm.network(IDS)[0]


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@every_model
def test_what_is_written_reads_back(case: str, tmp_path: Path) -> None:
    lm = model(case)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    again = load(path)
    assert again.family == lm.family
    assert relative(logits(again), logits(lm)) <= EXACT
    assert "not_understood" not in again.provenance
    twice = again.export(tmp_path / "twice.gguf", format="gguf", quantization="F32")
    first, second = (read_gguf(item).tensors for item in (path, twice))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name].dense(), second[name].dense(), rtol=0, atol=1e-6) for name in first)


def witnessed(llama_cpp: Any, path: Path, ids: Tensor) -> Tensor:
    """The logits of llama.cpp with its cache in float32, [time, vocab]."""
    kind = llama_cpp.GGML_TYPE_F32
    witness = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False, type_k=kind, type_v=kind,
        flash_attn=False,
    )  # fmt: skip
    try:
        witness.eval(ids[0].tolist())
        return torch.from_numpy(witness.scores[: ids.shape[1]].copy())
    finally:
        witness.close()


@every_model
def test_llama_cpp_computes_what_we_do(case: str, llama_cpp: Any, tmp_path: Path) -> None:
    lm = model(case)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    theirs = witnessed(llama_cpp, path, IDS)
    assert relative(logits(lm), theirs) <= 1e-3
    assert logits(lm).argmax(-1).equal(theirs.argmax(-1))


@every_model
def test_packed_weights_go_out_as_they_came_in(case: str, tmp_path: Path) -> None:
    path = model(case).export(tmp_path / "m.gguf", format="gguf", quantization="Q8_0")
    again = load(path)
    assert relative(logits(again), logits(load(path, packed=False))) <= 1e-5
    twice = again.export(tmp_path / "again.gguf", format="gguf")
    first, second = (read_gguf(item).tensors for item in (path, twice))
    assert {name: item.type for name, item in first.items()} == {name: item.type for name, item in second.items()}
    packed = [name for name, item in first.items() if item.type == "Q8_0"]
    assert len(packed) >= 2 * len(again.spec.layers)
    assert all(first[name].blocks().equal(second[name].blocks()) for name in packed)


@every_model
def test_the_gguf_package_knows_every_name(case: str, gguf: Any) -> None:
    lm = model(case)
    family = family_for(MODELS[case][0])
    architecture = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}[family.gguf]
    table = gguf.get_tensor_name_map(architecture, len(lm.spec.layers))
    keys = by_name(family, lm.spec)
    names = (name.rpartition(".") for name in shapes_of(lm.spec))
    stored = [name for owner, _, leaf in names for name in keys[owner].gguf_of(leaf)]
    found = {name.removesuffix(".weight").removesuffix(".bias") for name in stored}
    assert found <= {value[1] for value in table.mapping.values()}


def test_every_family_with_an_architecture_is_here() -> None:
    tested = {"mistral", "qwen2", *(name for name, _ in MODELS.values())}
    assert {family.model_type for family in families() if family.gguf} <= tested


def test_more_chosen_experts_than_llama_cpp_has_room_for_are_refused(tmp_path: Path) -> None:
    """It aborts the process (GGML_ASSERT in ggml.c) where its graph is full; below, `witnessed` agrees."""
    case = next(case for case, (name, _) in MODELS.items() if name == "qwen3_moe")
    few = model(case, num_experts=32, num_experts_per_tok=16, num_hidden_layers=12)
    few.export(tmp_path / "few.gguf", format="gguf", quantization="F32")
    many = model(case, num_experts=32, num_experts_per_tok=24, num_hidden_layers=12)
    with pytest.raises(UnsupportedError, match="24 chosen experts in each of 12 layers"):
        many.export(tmp_path / "many.gguf", format="gguf", quantization="F32")
    assert not (tmp_path / "many.gguf").exists()


@pytest.mark.parametrize("original", [256, 32])
def test_longrope_travels_as_two_tables(original: int, llama_cpp: Any, tmp_path: Path) -> None:
    """llama.cpp takes one table for all of a context (of 256 at least), we one for what each token has seen: they meet
    within the original length, and beyond it where both tables are the long one."""
    tables = LONGROPE if original == 256 else {**LONGROPE, "short_factor": LONGROPE["long_factor"]}
    changes = {"max_position_embeddings": 512, "original_max_position_embeddings": original}
    lm = model("phi3", rope_parameters=tables, **changes)
    path = lm.export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    again = load(path)
    scaling = again.spec.layers[0].mixer.position.scaling
    assert scaling.with_(attention=1) == lm.spec.layers[0].mixer.position.scaling.with_(attention=1)
    assert relative(logits(again), logits(lm)) <= EXACT
    theirs = witnessed(llama_cpp, path, IDS)
    assert relative(logits(lm), theirs) <= 1e-3
    plain = rewritten(path, tmp_path / "odd.gguf", rope_factors_short__weight=torch.ones(8))
    assert relative(logits(load(plain)), theirs) > 1e-2, "the factors matter here"


UNTOLD: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("qwen3", {"attention_bias": True}),
    "no biases": ("starcoder2", {**TIED, "use_bias": False, "hidden_act": "gelu_pytorch_tanh", "sliding_window": None}),
    "windows that it does not honour": ("phi3", {"pad_token_id": 2, "sliding_window": 9}),
    "windows of experts": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    "windows without positions elsewhere": ("exaone4", {"num_hidden_layers": 5, "sliding_window": 9}),
    "norms that few layers cannot have": ("cohere", {**TIED, "use_qk_norm": True}),
    "some layers without experts": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 2},
    ),
    "windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "another activation": ("qwen3", {"hidden_act": "gelu"}),
    "an untied head": ("gemma", {"tie_word_embeddings": False, "hidden_act": "gelu_pytorch_tanh"}),
    "another scale": ("gemma2", {**TIED, "query_pre_attn_scalar": 24}),
    "another pattern": ("gemma2", {**TIED, "query_pre_attn_scalar": 16, "layer_types": [FULL, FULL, SLIDING]}),
    "another local theta": ("gemma3_text", {**TIED, "query_pre_attn_scalar": 16, "rope_local_base_freq": 37.0}),
    "a part of each head": ("olmo2", {"partial_rotary_factor": 0.5}),
    "ALiBi in a Falcon": ("falcon", {"alibi": True, "parallel_attn": False, "bias": True, "multi_query": False}),
    "biases in a Falcon": ("falcon", {"bias": True}),
    "norms behind the residuals": ("bloom", {"seq_length": 64, "apply_residual_connection_post_layernorm": True}),
    "norms of queries in an MPT": ("mpt", {"max_seq_len": 64, "attn_config": {"qk_ln": True}}),
    "another scale in an MPT": ("mpt", {"max_seq_len": 64, "attn_config": {"softmax_scale": 0.3}}),
    "a tied GPT-NeoX": ("gpt_neox", {**TIED, "hidden_act": "gelu"}),
    "a GPT-NeoX without biases": ("gpt_neox", {"hidden_act": "gelu", "attention_bias": False}),
    "another activation in a GPT-NeoX": ("gpt_neox", {"hidden_act": "silu"}),
    "a GPT-J, which llama.cpp does not run": ("gptj", {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8}),
    "groups judged by their best expert": (
        "deepseek_v2",
        {**LATENT, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "queries of full rank in few layers": ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    "another epsilon than that within": (
        "deepseek_v3",
        {**LATENT, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5},
    ),
    "halves of latent attention": ("deepseek_v3", {**LATENT, "n_group": 1, "topk_group": 1, "rope_interleave": False}),
    "a YaRN that is not truncated": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 9,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "another clamp": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 9,
            "rope_parameters": YARN,
            "swiglu_limit": 1.0,
        },
    ),
    "short chunks": ("llama4_text", {"num_local_experts": 4, "intermediate_size_mlp": 96, "attention_chunk_size": 7}),
    "another temperature": (
        "llama4_text",
        {"num_local_experts": 4, "intermediate_size_mlp": 96, "floor_scale": 5, "num_hidden_layers": 4},
    ),
    "experts here and there": (
        "llama4_text",
        {"num_local_experts": 4, "intermediate_size_mlp": 96, "num_hidden_layers": 4, "moe_layers": [0, 3]},
    ),
    "factors that it does not read": ("qwen3", {"rope_parameters": small.LLAMA3}),
}


@pytest.mark.parametrize("case", list(UNTOLD))
def test_what_a_file_cannot_tell_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, changes = UNTOLD[case]
    monkeypatch.setitem(MODELS, "untold", (name, {"head_dim": 16, **changes}))
    with pytest.raises(UnsupportedError):
        model("untold").export(tmp_path / "m.gguf", format="gguf", quantization="F32")
    assert list(tmp_path.iterdir()) == []
