"""The families nearest to Llama, and GPT-2, against transformers; and what is asked of every family alike."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from parity import SIZES, Cases, Parity, pair_of, quiet, transformers

from almanac.models.family import Fields, families, family_for

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 256}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}

CASES: Cases = {
    "llama": ("llama", {}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, a key-value head each": ("llama", {"num_key_value_heads": 6}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, narrow heads": ("llama", {"head_dim": 4}),
    "llama, llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear scaling": ("llama", {"rope_parameters": LINEAR}),
    "llama, another theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "llama, gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2}),
    "llama, exact gelu": ("llama", {"hidden_act": "gelu"}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "mistral, window of one": ("mistral", {"sliding_window": 1}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, upper windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2, windows unused": ("qwen2", {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0}),
    "gpt2": ("gpt2", GPT2),
    "gpt2, untied, other scales": (
        "gpt2",
        {**GPT2, "n_inner": 80, "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt2, no scale": ("gpt2", {**GPT2, "scale_attn_weights": False, "activation_function": "relu"}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, yarn, no whole blend": ("llama", {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 8.0}}),
    "llama, yarn, own temperature": ("llama", {"rope_parameters": {**YARN, "attention_factor": 0.7}}),
    "llama, dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3, every second": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "attention_bias": True}),
    "smollm3, listed": ("smollm3", {"no_rope_layers": [0, 1, 0], "tie_word_embeddings": False}),
    "smollm3, windows": (
        "smollm3",
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 6, "no_rope_layer_interval": 2},
    ),
}


class TestLlamaAndKin(Parity):
    cases = CASES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_angles_stay_exact_in_every_precision(dtype: torch.dtype) -> None:
    """A cast of the model must not round the rotary frequencies: far positions would turn to noise."""
    ours = copy.deepcopy(pair_of("angles", "llama", json.dumps({"rope_parameters": LLAMA3})).ours)
    before = [buffer.clone() for buffer in ours.buffers()]
    assert before
    for after, kept in zip(ours.to(dtype).float().buffers(), before, strict=True):
        assert torch.equal(after, kept)


FITTING: dict[str, dict[str, object]] = {
    "mamba2": {"num_heads": 8, "head_dim": 12},
    "bamba": {"mamba_n_heads": 6},
    "granitemoehybrid": {"mamba_n_heads": 6},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention"]},
}
"""What a class has a default of that it refuses beside such small sizes."""


@pytest.mark.parametrize("name", [family.model_type for family in families()])
def test_silent_fields_mean_what_they_mean_to_them(name: str) -> None:
    """A config.json may leave out what equals the default of its own class."""
    with quiet():
        known = transformers.AutoConfig.for_model(name).to_dict()
        needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        silent = {field: SIZES[field] for field in needed if field in known}
        silent |= {"num_key_value_heads": 2} if "num_key_value_heads" in known else {}
        silent |= FITTING.get(name, {})
        config = transformers.AutoConfig.for_model(name, **silent)
    spoken = json.loads(config.to_json_string(use_diff=False))
    family = family_for(name)
    assert family.read(Fields(silent)) == family.read(Fields(spoken))
