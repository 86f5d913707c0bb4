"""The families with experts against transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from parity import Cases, Pair, Parity, pair_of

from almanac.core.errors import UnsupportedError
from almanac.models.family import Fields, family_for

EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2}
QWEN = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}
OSS = {**EXPERTS, "head_dim": 16, "sliding_window": 7, "rope_parameters": {**YARN, "truncate": False}}
DEEPSEEK = {
    "num_key_value_heads": 6, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 10,
}  # fmt: skip
LIMITED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 3.0}

CASES: Cases = {
    "mixtral": ("mixtral", EXPERTS),
    "mixtral, one expert a token, window": (
        "mixtral",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 7, "tie_word_embeddings": True},
    ),
    "mixtral, all experts, gelu": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 4, "hidden_act": "gelu"}),
    "qwen2_moe": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 40}),
    "qwen2_moe, some layers dense, normalised": (
        "qwen2_moe",
        {**QWEN, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1], "norm_topk_prob": True, "qkv_bias": False},
    ),
    "qwen2_moe, every second, windows": (
        "qwen2_moe",
        {
            **QWEN, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2, "use_sliding_window": True,
            "sliding_window": 6, "max_window_layers": 2,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**QWEN, "norm_topk_prob": True, "head_dim": 16}),
    "qwen3_moe, plain weights, biases, some dense": (
        "qwen3_moe",
        {**QWEN, "attention_bias": True, "mlp_only_layers": [0], "tie_word_embeddings": True},
    ),
    "qwen3_moe, window": ("qwen3_moe", {**QWEN, "use_sliding_window": True, "sliding_window": 5}),
    "gpt_oss": ("gpt_oss", OSS),
    "gpt_oss, tight clamp, other windows, no biases": (
        "gpt_oss",
        {
            **OSS, "swiglu_limit": 0.3, "swiglu_alpha": 1.1, "attention_bias": False, "num_experts_per_tok": 4,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK),
    "deepseek_v2, groups, no query rank, biases": (
        "deepseek_v2",
        {**DEEPSEEK, **LIMITED, "q_lora_rank": None, "attention_bias": True},
    ),
    "deepseek_v2, yarn": (
        "deepseek_v2",
        {**DEEPSEEK, "first_k_dense_replace": 0, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    "deepseek_v3": ("deepseek_v3", {**DEEPSEEK, "n_group": 4, "topk_group": 2}),
    "deepseek_v3, half-split, plain weights, yarn": (
        "deepseek_v3",
        {
            **DEEPSEEK, "n_group": 1, "topk_group": 1, "rope_interleave": False, "norm_topk_prob": False,
            "routed_scaling_factor": 1.5, "n_shared_experts": 1,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
        },
    ),
}  # fmt: skip


class TestExperts(Parity):
    cases = CASES
    rounds = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")  # the router's scores

    @pytest.fixture
    def pair(self, case: str) -> Pair:
        found = pair_of(case, self.cases[case][0], json.dumps(self.cases[case][1]))
        found.theirs.config._experts_implementation = "eager"  # their grouped product knows no float64
        return found


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deepseek_v2", {"norm_topk_prob": True}),
        ("deepseek_v2", {"topk_method": "noaux_tc"}),
        ("deepseek_v3", {"scoring_func": "softmax", "n_group": 4, "topk_group": 2}),
    ],
)
def test_what_two_references_compute_differently_is_refused(name: str, changes: dict[str, Any]) -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
    with pytest.raises(UnsupportedError):
        family_for(name).read(Fields({**DEEPSEEK, **sizes, "vocab_size": 97, **changes}))
