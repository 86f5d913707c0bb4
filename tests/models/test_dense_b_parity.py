"""Dense decoder families whose norms, scales, masks or positions stand elsewhere than Llama's, against transformers."""

from __future__ import annotations

from typing import ClassVar

from parity import Cases, Parity

FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 37.0}
# widths whose root is exact: theirs keeps the embedding's factor in float32 even in a float64 model
EVEN = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class TestQwen3(Parity):
    cases: ClassVar[Cases] = {
        "qwen3": ("qwen3", {"head_dim": 16}),
        "qwen3, tied, biases": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
        "qwen3, upper windows": (
            "qwen3",
            {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        ),
        "qwen3, listed windows": (
            "qwen3",
            {
                "head_dim": 12, "use_sliding_window": True, "sliding_window": 3, "rope_parameters": LLAMA3,
                "layer_types": [SLIDING, FULL, SLIDING],
            },
        ),
        "qwen3, one key-value head, yarn": (
            "qwen3",
            {"head_dim": 8, "num_key_value_heads": 1, "rope_parameters": YARN, "rms_norm_eps": 1e-2},
        ),
    }  # fmt: skip


class TestGemma(Parity):
    cases: ClassVar[Cases] = {
        "gemma": ("gemma", EVEN),
        "gemma, untied, biases": (
            "gemma",
            {**EVEN, "head_dim": 8, "tie_word_embeddings": False, "attention_bias": True},
        ),
        "gemma, the approximation": (
            "gemma",
            {**EVEN, "head_dim": 8, "hidden_act": "gelu", "num_key_value_heads": 1},
        ),
        "gemma, silu, linear": ("gemma", {**EVEN, "head_dim": 8, "hidden_act": "silu", "rope_parameters": LINEAR}),
    }


class TestGemma2(Parity):
    cases: ClassVar[Cases] = {
        "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 7}),
        "gemma2, tight caps": (
            "gemma2",
            {
                "head_dim": 8, "sliding_window": 3, "attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5,
                "query_pre_attn_scalar": 5,
            },
        ),
        "gemma2, no caps": (
            "gemma2",
            {
                "head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None,
                "query_pre_attn_scalar": 8, "tie_word_embeddings": False, "attention_bias": True,
            },
        ),
        "gemma2, listed": (
            "gemma2",
            {
                "head_dim": 8, "sliding_window": 4, "layer_types": [FULL, FULL, SLIDING], "num_key_value_heads": 6,
                "hidden_activation": "silu", "rope_parameters": PLAIN,
            },
        ),
    }  # fmt: skip
    rounds = ("gemma2",)  # their attention with caps takes its softmax in float32


class TestGemma3(Parity):
    cases: ClassVar[Cases] = {
        "gemma3": ("gemma3_text", {**EVEN, "sliding_window": 7, "num_hidden_layers": 7}),
        "gemma3, scaled": (
            "gemma3_text",
            {
                **EVEN, "sliding_window": 5, "layer_types": [SLIDING, FULL, SLIDING], "query_pre_attn_scalar": 24,
                "rope_parameters": {FULL: LINEAR, SLIDING: PLAIN},
            },
        ),
        "gemma3, untied, biases, capped": (
            "gemma3_text",
            {
                **EVEN, "head_dim": 8, "tie_word_embeddings": False, "attention_bias": True, "sliding_window": 3,
                "final_logit_softcapping": 2.0, "hidden_activation": "silu", "num_key_value_heads": 1,
            },
        ),
        "gemma3, full alone": (
            "gemma3_text",
            {**EVEN, "layer_types": [FULL] * 3, "rope_parameters": {FULL: LLAMA3, SLIDING: PLAIN}},
        ),
    }  # fmt: skip


class TestOlmo(Parity):
    cases: ClassVar[Cases] = {
        "olmo": ("olmo", {}),
        "olmo, clipped": ("olmo", {"clip_qkv": 0.4, "tie_word_embeddings": True, "num_key_value_heads": 6}),
        "olmo, biases": ("olmo", {"attention_bias": True, "rope_parameters": LINEAR, "hidden_act": "gelu"}),
    }
    rounds = ("olmo",)  # their LayerNorm computes in float32


class TestOlmo2(Parity):
    cases: ClassVar[Cases] = {
        "olmo2": ("olmo2", {}),
        "olmo2, tied, a key-value head each": ("olmo2", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
        "olmo2, one key-value head, biases": ("olmo2", {"num_key_value_heads": 1, "attention_bias": True}),
        "olmo2, scaled": ("olmo2", {"rope_parameters": LLAMA3, "hidden_act": "relu", "rms_norm_eps": 1e-2}),
    }


class TestOlmo3(Parity):
    cases: ClassVar[Cases] = {
        "olmo3": ("olmo3", {"sliding_window": 7, "num_hidden_layers": 5}),
        "olmo3, scaled": (
            "olmo3",
            {
                "sliding_window": 5, "layer_types": [FULL, SLIDING, FULL], "tie_word_embeddings": True,
                "rope_parameters": {FULL: YARN, SLIDING: PLAIN},
            },
        ),
        "olmo3, biases": ("olmo3", {"sliding_window": 1, "attention_bias": True, "num_key_value_heads": 1}),
    }  # fmt: skip


class TestGranite(Parity):
    cases: ClassVar[Cases] = {
        "granite": ("granite", {}),
        "granite, factors": (
            "granite",
            {
                "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0078125,
                "logits_scaling": 6.0, "tie_word_embeddings": True,
            },
        ),
        "granite, biases": (
            "granite",
            {
                "attention_bias": True, "mlp_bias": True, "logits_scaling": 49, "attention_multiplier": 0.3,
                "embedding_multiplier": 2, "rope_parameters": YARN,
            },
        ),
    }  # fmt: skip


class TestGlm(Parity):
    cases: ClassVar[Cases] = {
        "glm": ("glm", {"head_dim": 16}),
        "glm, no biases, tied": ("glm", {"head_dim": 8, "attention_bias": False, "tie_word_embeddings": True}),
        "glm, whole heads": (
            "glm",
            {"head_dim": 8, "rope_parameters": {**PLAIN, "partial_rotary_factor": 1.0}, "num_key_value_heads": 1},
        ),
        "glm4": ("glm4", {"head_dim": 16}),
        "glm4, no biases, quarter": (
            "glm4",
            {
                "head_dim": 8, "attention_bias": False, "tie_word_embeddings": True, "hidden_act": "gelu",
                "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.25},
            },
        ),
    }  # fmt: skip


class TestBitnet(Parity):
    cases: ClassVar[Cases] = {
        "bitnet": ("bitnet", {}),
        "bitnet, tied, biases": ("bitnet", {"tie_word_embeddings": True, "attention_bias": True}),
        "bitnet, silu, scaled": (
            "bitnet",
            {"hidden_act": "silu", "rope_parameters": LINEAR, "num_key_value_heads": 1, "rms_norm_eps": 1e-2},
        ),
    }


LLAMA4 = {
    "head_dim": 8, "intermediate_size_mlp": 56, "num_local_experts": 4, "attention_chunk_size": 7, "floor_scale": 9,
    "num_hidden_layers": 4,
}  # fmt: skip


class TestLlama4(Parity):
    cases: ClassVar[Cases] = {
        "llama4": ("llama4_text", {**LLAMA4, "attn_temperature_tuning": False}),
        "llama4, every second dense, no norms": (
            "llama4_text",
            {
                **LLAMA4, "interleave_moe_layer_step": 2, "use_qk_norm": False, "attn_temperature_tuning": False,
                "tie_word_embeddings": True, "attention_bias": True,
            },
        ),
        "llama4, all dense, listed": (
            "llama4_text",
            {
                **LLAMA4, "moe_layers": [], "no_rope_layers": [0, 1, 1, 0], "attn_temperature_tuning": False,
                "layer_types": [FULL, "chunked_attention", FULL, "chunked_attention"],
                "rope_parameters": LLAMA3,
            },
        ),
    }  # fmt: skip
    rounds = ("llama4_text",)  # their rotation is in complex numbers of float32


class TestLlama4Temperature(Parity):
    cases: ClassVar[Cases] = {
        "llama4, temperature": ("llama4_text", {**LLAMA4, "attn_scale": 0.5, "num_experts_per_tok": 2}),
        "llama4, many without positions": (
            "llama4_text",
            {**LLAMA4, "no_rope_layer_interval": 2, "moe_layers": [1], "num_key_value_heads": 1},
        ),
    }
    rounds = ("llama4_text",)
    pad = ("llama4_text",)  # they count a query's place from the padding on


class TestErnie(Parity):
    cases: ClassVar[Cases] = {
        "ernie": ("ernie4_5", {"head_dim": 16}),
        "ernie, untied, biases": ("ernie4_5", {"head_dim": 8, "tie_word_embeddings": False, "use_bias": True}),
        "ernie, scaled": ("ernie4_5", {"head_dim": 8, "rope_parameters": LINEAR, "num_key_value_heads": 1}),
    }
    rounds = ("ernie4_5",)  # their rotation is in float32


class TestExaone4(Parity):
    cases: ClassVar[Cases] = {
        "exaone4": ("exaone4", {"sliding_window": 7, "num_hidden_layers": 5}),
        "exaone4, no windows": ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 3}),
        "exaone4, listed, tied": (
            "exaone4",
            {
                "sliding_window": 4, "layer_types": [FULL, SLIDING, SLIDING], "tie_word_embeddings": True,
                "rope_parameters": LLAMA3, "num_key_value_heads": 6,
            },
        ),
    }  # fmt: skip
