"""The dense families of GPT's line without their oracle: published models have their published sizes, what cannot be is
refused with its path, and what is not understood is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys

from almanac.core.errors import AlmanacError, FileFormatError, ShapeError, UnsupportedError
from almanac.models.family import Fields, family_for
from almanac.models.hub_folder import read_hub_folder, shapes_of

NAMES = "gpt_neox gptj codegen gpt_bigcode opt bloom falcon mpt phi phi3 stablelm starcoder2 cohere cohere2".split()

PYTHIA_70M = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 50304,
    "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "tie_word_embeddings": False,
}  # fmt: skip
OPT_125M = {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
OPT_350M = {
    "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
}  # fmt: skip
BLOOM_560M = {"n_embed": 1024, "n_layer": 24, "num_attention_heads": 16, "vocab_size": 250880, "offset_alibi": 100}
FALCON_40B = {
    "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128, "num_kv_heads": 8, "vocab_size": 65024,
    "new_decoder_architecture": True,
}  # fmt: skip
FALCON_RW_1B = {
    "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 50304, "alibi": True,
    "bias": True, "multi_query": False, "parallel_attn": False,
}  # fmt: skip
MPT_7B = {"d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432, "no_bias": True, "expansion_ratio": 4}
PHI_2 = {
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 51200, "partial_rotary_factor": 0.4,
}  # fmt: skip
PHI_3_MINI = {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
STABLELM_2 = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 100352, "use_qkv_bias": True,
}  # fmt: skip
STARCODER2_3B = {
    "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30, "num_attention_heads": 24,
    "num_key_value_heads": 2, "vocab_size": 49152, "sliding_window": 4096,
}  # fmt: skip
COMMAND_R = {"hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "vocab_size": 256000}
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "Pythia 70M": ("gpt_neox", PYTHIA_70M, 70_426_624),
    "GPT-J 6B": ("gptj", {"n_layer": 28}, 6_050_882_784),
    "OPT 125M": ("opt", OPT_125M, 125_239_296),
    "OPT 350M": ("opt", OPT_350M, 331_196_416),
    "BLOOM 560M": ("bloom", BLOOM_560M, 559_214_592),
    "Falcon 7B": ("falcon", {}, 6_921_720_704),
    "Falcon 40B": ("falcon", FALCON_40B, 41_303_293_952),
    "Falcon RW 1B": ("falcon", FALCON_RW_1B, 1_311_625_216),
    "MPT 7B": ("mpt", MPT_7B, 6_649_286_656),
    "Phi 2": ("phi", PHI_2, 2_779_683_840),
    "Phi 3 mini": ("phi3", PHI_3_MINI, 3_821_079_552),
    "StableLM 2 1.6B": ("stablelm", STABLELM_2, 1_644_515_328),
    "StarCoder2 3B": ("starcoder2", STARCODER2_3B, 3_030_371_328),
    "Command R": ("cohere", COMMAND_R, 34_980_831_232),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_have_their_published_sizes(model: str) -> None:
    name, config, parameters = PUBLISHED[model]
    fields = Fields({"model_type": name, **config})
    spec = family_for(name).read(fields)
    assert fields.not_understood() == {}
    assert sum(shape.numel() for shape in shapes_of(spec).values()) == parameters


IMPOSSIBLE: dict[str, tuple[str, dict[str, Any], type[AlmanacError]]] = {
    "heads that do not divide the width": ("gpt_neox", {"num_attention_heads": 7}, FileFormatError),
    "an unknown activation": ("gpt_neox", {"hidden_act": "swoosh"}, UnsupportedError),
    "more turned than there is": ("gpt_neox", {"rotary_pct": 2.0}, ShapeError),
    "an odd number of turned dimensions": ("gptj", {"rotary_dim": 7}, ShapeError),
    "more turned than a head has": ("gptj", {"rotary_dim": 32}, ShapeError),
    "heads that four machines cannot share": ("codegen", {"num_attention_heads": 2}, FileFormatError),
    "cross-attention": ("gpt_bigcode", {"add_cross_attention": True}, UnsupportedError),
    "a narrow table and another head": (
        "opt",
        {"word_embed_proj_dim": 32, "tie_word_embeddings": False},
        UnsupportedError,
    ),
    "a billion layers": ("bloom", {"n_layer": 10**9}, FileFormatError),
    "no heads": ("bloom", {"num_attention_heads": 0}, FileFormatError),
    "groups that do not divide the heads": ("falcon", {"num_kv_heads": 3}, ShapeError),
    "three norms in a block": ("falcon", {"num_ln_in_parallel_attn": 3}, FileFormatError),
    "sums after the norms in a Falcon": (
        "falcon",
        {"apply_residual_connection_post_layernorm": True},
        UnsupportedError,
    ),
    "one key-value head in an MPT": ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, UnsupportedError),
    "an MPT without ALiBi": ("mpt", {"attn_config": {"alibi": False}}, UnsupportedError),
    "an MPT with biases": ("mpt", {"no_bias": False}, UnsupportedError),
    "a word where fields should be": ("mpt", {"attn_config": "alibi"}, FileFormatError),
    "a clip of nothing": ("mpt", {"attn_config": {"clip_qkv": -1.0}}, FileFormatError),
    "a negative epsilon": ("phi", {"layer_norm_eps": -1e-5}, FileFormatError),
    "longrope without factors": ("phi3", {"rope_scaling": {"type": "su"}}, FileFormatError),
    "factors for other dimensions": (
        "phi3",
        {"rope_scaling": {"type": "yarn", "short_factor": [1.0], "long_factor": [2.0]}},
        ShapeError,
    ),
    "a window of nothing": ("starcoder2", {"sliding_window": 0}, FileFormatError),
    "a scaling nobody knows": ("stablelm", {"rope_scaling": {"type": "stretchy", "factor": 2.0}}, UnsupportedError),
    "an epsilon that is a word": ("cohere", {"layer_norm_eps": "small"}, FileFormatError),
    "too few kinds of layers": ("cohere2", {"layer_types": ["full_attention"]}, FileFormatError),
    "a kind of layer nobody knows": ("cohere2", {"layer_types": ["chunked_attention"] * 3}, UnsupportedError),
    "every nothingth layer": ("cohere2", {"sliding_window_pattern": 0}, FileFormatError),
}


def config_of(name: str) -> dict[str, Any]:
    return {**toys.CONFIG, **family_for(name).tiny, "model_type": name}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_configurations_are_refused_with_their_path(case: str, tmp_path: Path) -> None:
    name, changes, error = IMPOSSIBLE[case]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config_of(name), **changes}))
    with pytest.raises(error) as caught:
        read_hub_folder(tmp_path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_nobody_knows_are_told(name: str) -> None:
    fields, told = Fields(config_of(name)), Fields({**config_of(name), "surprise": 3})
    spec = family_for(name).read(fields)
    assert family_for(name).read(told) == spec
    assert told.not_understood() == {**fields.not_understood(), "surprise": 3}
    assert fields.not_understood().keys() <= toys.CONFIG.keys()


def test_a_share_of_a_head_survives_being_written() -> None:
    """26 of 46 dimensions, written as a float and rounded down again, would be 24 and a half pairs."""
    family = family_for("gpt_neox")
    odd = []
    for head_dim in range(2, 130):
        for turned in range(2, head_dim + 1, 2):
            spec = toys.toy_of(
                family, hidden_size=head_dim, num_attention_heads=1, rotary_pct=(turned + 0.5) / head_dim
            )
            config = family.write(spec)
            assert config is not None
            odd += [(head_dim, turned)] if family.read(Fields(config)) != spec else []
    assert odd == []


def test_mpt_norms_of_queries_have_their_authors_names() -> None:
    """Their model leaves ``qk_ln`` out, so the oracle of the rest cannot tell."""
    spec = toys.toy_of(family_for("mpt"))
    theirs = {row.our_names[0]: row.theirs_of("weight") for row in family_for("mpt").rows(spec)}
    assert theirs["layers.1.mixer.q_norm"] == ["transformer.blocks.1.attn.q_ln.weight"]
    assert shapes_of(spec)["layers.1.mixer.k_norm.weight"] == (64,)
    assert "layers.1.mixer.k_norm.bias" not in shapes_of(spec)


JUNK: list[Any] = [
    True,
    0,
    -1,
    3,
    2**40,
    0.3,
    1e300,
    float("nan"),
    "x",
    [],
    ["x"],
    {},
    {"rope_type": 5},
    {"alibi": "x"},
]


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_in_their_own_fields_is_refused_or_is_a_model(name: str) -> None:
    family = family_for(name)
    whole = family.write(toys.toy_of(family, num_hidden_layers=1))
    assert whole is not None
    refused = 0
    for field in whole:
        for junk in JUNK:
            try:
                spec = family.read(Fields({**whole, field: junk}))
            except AlmanacError as error:
                assert error.remedy
                refused += 1
            else:
                assert shapes_of(spec)
    assert refused > 4 * len(whole)
