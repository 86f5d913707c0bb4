"""The dense families of GPT's line against transformers: GPT-NeoX, GPT-J, OPT, BLOOM, Falcon, MPT, Phi, StableLM and kin."""

from __future__ import annotations

import pytest
import torch
from parity import Cases, Parity, transformers

from almanac.nn.positions.alibi import Alibi

LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0, "partial_rotary_factor": 0.5}
GPT_NEOX: Cases = {
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "gpt_neox, no attention bias": ("gpt_neox", {"attention_bias": False, "hidden_act": "gelu_new", "rotary_pct": 0.5}),
    "gpt_neox, wholly turned": ("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 37, "layer_norm_eps": 1e-2}),
    "gpt_neox, linear scaling": ("gpt_neox", {"rope_parameters": LINEAR, "hidden_act": "gelu_fast"}),
}


class TestGptNeoX(Parity):
    cases = GPT_NEOX


GPTJ: Cases = {
    "gptj": ("gptj", {"n_inner": 80, "num_attention_heads": 3, "rotary_dim": 8}),
    "gptj, wholly turned": ("gptj", {"rotary_dim": 8, "n_inner": None, "activation_function": "gelu"}),
    "gptj, tied": ("gptj", {"n_inner": 80, "rotary_dim": 4, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-2}),
}
BIGCODE: Cases = {
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_bigcode, heads of their own": ("gpt_bigcode", {"multi_query": False, "n_inner": 80}),
    "gpt_bigcode, untied, no scale": (
        "gpt_bigcode",
        {"tie_word_embeddings": False, "scale_attn_weights": False, "activation_function": "relu"},
    ),
}
CODEGEN: Cases = {
    "codegen": ("codegen", {"num_attention_heads": 8, "hidden_size": 64, "rotary_dim": 6}),
    "codegen, tied": (
        "codegen",
        {"num_attention_heads": 4, "rotary_dim": 12, "n_inner": 80, "tie_word_embeddings": True},
    ),
}
OPT: Cases = {
    "opt": ("opt", {"ffn_dim": 80}),
    "opt, untied, no biases": ("opt", {"ffn_dim": 80, "tie_word_embeddings": False, "enable_bias": False}),
    "opt, 350M": ("opt", {"ffn_dim": 80, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "opt, narrow table": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 64, "activation_function": "gelu"}),
    "opt, norms after": ("opt", {"ffn_dim": 80, "do_layer_norm_before": False, "tie_word_embeddings": False}),
    "opt, norms without gains": ("opt", {"ffn_dim": 80, "layer_norm_elementwise_affine": False}),
    "opt, no last norm": ("opt", {"ffn_dim": 80, "_remove_final_layer_norm": True}),
}
PHI: Cases = {
    "phi": ("phi", {}),
    "phi, norms of queries": ("phi", {"qk_layernorm": True, "num_key_value_heads": 6, "hidden_act": "gelu"}),
    "phi, one key-value head": ("phi", {"num_key_value_heads": 1, "qk_layernorm": True, "layer_norm_eps": 1e-2}),
    "phi, tied": ("phi", {"tie_word_embeddings": True, "partial_rotary_factor": 0.25}),
    "phi, linear scaling": ("phi", {"rope_parameters": LINEAR, "hidden_act": "quick_gelu"}),
}


class TestGptJ(Parity):
    cases = GPTJ
    rounds = ("gptj",)  # queries and keys are cast to float32 before their product


class TestCodeGen(Parity):
    cases = CODEGEN
    rounds = ("codegen",)  # queries and keys are cast to float32 before their product


class TestGptBigCode(Parity):
    cases = BIGCODE


class TestOpt(Parity):
    cases = OPT


class TestPhi(Parity):
    cases = PHI


BLOOM: Cases = {
    "bloom": ("bloom", {}),
    "bloom, untied, eight heads": ("bloom", {"num_attention_heads": 8, "tie_word_embeddings": False}),
    "bloom, sums after the norms": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "bloom, twelve heads": ("bloom", {"n_head": 12, "num_attention_heads": 12, "layer_norm_epsilon": 1e-2}),
}
RW = {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
NEW = {"new_decoder_architecture": True}
FALCON: Cases = {
    "falcon, 7B": ("falcon", {}),
    "falcon, 7B, untied, biases": ("falcon", {"bias": True, "tie_word_embeddings": False, "activation": "relu"}),
    "falcon, 40B": ("falcon", {**NEW, "num_kv_heads": 2, "ffn_hidden_size": 80}),
    "falcon, 11B": ("falcon", {**NEW, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1}),
    "falcon, 40B, a key-value head each": ("falcon", {**NEW, "bias": True}),
    "falcon, RW": ("falcon", {**RW, "num_attention_heads": 3}),
    "falcon, RW, six heads": ("falcon", {**RW, "hidden_size": 96, "layer_norm_epsilon": 1e-2}),
    "falcon, heads of their own, parallel": ("falcon", {"multi_query": False}),
    "falcon, one key-value head, in turn": ("falcon", {"parallel_attn": False, "alibi": True, "hidden_size": 96}),
    "falcon, linear scaling": (
        "falcon",
        {**NEW, "num_kv_heads": 2, "rope_parameters": {"rope_type": "linear", "rope_theta": 37.0, "factor": 2.0}},
    ),
}
MPT: Cases = {
    "mpt": ("mpt", {"max_seq_len": 256}),
    "mpt, clipped": ("mpt", {"max_seq_len": 256, "attn_config": {"clip_qkv": 0.3}, "tie_word_embeddings": False}),
    "mpt, own scale": ("mpt", {"max_seq_len": 256, "attn_config": {"softmax_scale": 0.7}}),
    "mpt, eight heads": ("mpt", {"max_seq_len": 256, "num_attention_heads": 8, "layer_norm_epsilon": 1e-2}),
}


class TestBloom(Parity):
    cases = BLOOM
    rounds = ("bloom",)  # the softmax is taken in float32


class TestFalcon(Parity):
    cases = FALCON


class TestMpt(Parity):
    cases = MPT
    rounds = ("mpt",)  # the softmax is taken in float32


@pytest.mark.parametrize("heads", [1, 4, 6, 12])
@pytest.mark.parametrize("most", [8, 16])
def test_mpt_slopes_are_its_authors(heads: int, most: int) -> None:
    """Their model leaves ``alibi_bias_max`` out, though their function of the slopes, the authors' own, knows it."""
    reference = transformers.models.mpt.modeling_mpt.build_mpt_alibi_tensor(heads, 9, alibi_bias_max=most)
    bias = Alibi.Spec(num_heads=heads, gentlest=most).build()(torch.tensor([[8]]), torch.arange(9)[None])
    torch.testing.assert_close(bias[0], reference, rtol=1e-6, atol=0)


STARCODER2: Cases = {
    "starcoder2": ("starcoder2", {}),
    "starcoder2, window": ("starcoder2", {"sliding_window": 7, "tie_word_embeddings": False}),
    "starcoder2, no biases": ("starcoder2", {"use_bias": False, "num_key_value_heads": 6, "norm_epsilon": 1e-2}),
    "starcoder2, linear scaling": (
        "starcoder2",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 37.0, "factor": 2.0}, "hidden_act": "relu2"},
    ),
}
STABLELM: Cases = {
    "stablelm": ("stablelm", {}),
    "stablelm, norms of queries": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "stablelm, side by side": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "stablelm, tied": ("stablelm", {"tie_word_embeddings": True, "num_key_value_heads": 6, "hidden_act": "gelu"}),
    "stablelm, half turned": ("stablelm", {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-2}),
    "stablelm, linear scaling": ("stablelm", {"rope_parameters": LINEAR, "num_key_value_heads": 1}),
}
COHERE: Cases = {
    "cohere": ("cohere", {}),
    "cohere, norms of queries": ("cohere", {"use_qk_norm": True, "logit_scale": 0.5}),
    "cohere, untied, biases": ("cohere", {"tie_word_embeddings": False, "attention_bias": True}),
    "cohere, a key-value head each": ("cohere", {"num_key_value_heads": 6, "use_qk_norm": True}),
    "cohere, linear scaling": (
        "cohere",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 37.0, "factor": 2.0}, "layer_norm_eps": 1e-2},
    ),
}
COHERE2: Cases = {
    "cohere2": ("cohere2", {"num_hidden_layers": 5, "sliding_window": 7}),
    "cohere2, every second": (
        "cohere2",
        {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "cohere2, untied, biases": (
        "cohere2",
        {"tie_word_embeddings": False, "attention_bias": True, "logit_scale": 1.0, "sliding_window": 3},
    ),
}
SHORT, LONG = [1.0, 1.1, 1.3, 1.7], [1.0, 2.0, 4.0, 8.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": SHORT, "long_factor": LONG}
PHI3: Cases = {
    "phi3": ("phi3", {}),
    "phi3, window": ("phi3", {"sliding_window": 7, "tie_word_embeddings": True}),
    "phi3, a key-value head each": ("phi3", {"num_key_value_heads": 6, "rms_norm_eps": 1e-2}),
}
PHI3_LONG: Cases = {
    "phi3, longrope": ("phi3", {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE}),
    "phi3, longrope, partly turned": (
        "phi3",
        {
            "original_max_position_embeddings": 128,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5, "attention_factor": 1.3},
        },
    ),
}


class TestStarcoder2(Parity):
    cases = STARCODER2


class TestStableLm(Parity):
    cases = STABLELM


class TestCohere(Parity):
    cases = COHERE
    rounds = ("cohere",)  # norms and rotations are taken in float32


class TestCohere2(Parity):
    cases = COHERE2
    rounds = ("cohere2",)  # norms and rotations are taken in float32


class TestPhi3(Parity):
    cases = PHI3


class TestPhi3LongRope(Parity):
    cases = PHI3_LONG
    rounds = (
        "phi3",
    )  # they divide 1 by factor times period, we frequency by factor: float32 angles differ in the last bit
