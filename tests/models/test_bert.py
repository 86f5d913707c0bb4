"""Random tiny BERTs of transformers, read by us: the same hidden vectors; what would change them is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from language_model import small_encoder
from oracle import quiet, transformers
from torch import Tensor

import almanac
from almanac.core.errors import AlmanacError, ArchitectureError, FileFormatError, UnsupportedError
from almanac.core.state import Context
from almanac.core.technique import Plan, assemble
from almanac.files.safetensors import write_safetensors
from almanac.models.bert import FAMILY
from almanac.models.encoder_folder import read_encoder_folder
from almanac.models.family import (
    Family,
    Fields,
    encoder_families,
    encoder_family_for,
    expand,
    families,
    family_for,
)
from almanac.nn.activation import GeluTanh, Silu
from almanac.nn.encoder import Encoder

VOCAB, TIME = 61, 13
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 40,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"num_attention_heads": 1, "num_hidden_layers": 1},
    "other activation": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "silu, three types": {"hidden_act": "silu", "type_vocab_size": 3},
    "relu, one type": {"hidden_act": "relu", "type_vocab_size": 1},
}
TOLERANCE = 1e-5


@pytest.fixture(params=CASES)
def theirs(request: pytest.FixtureRequest) -> Any:
    """A model whose every parameter is random, norms and biases included."""
    with quiet():
        config = transformers.AutoConfig.for_model("bert", **{**SIZES, **CASES[request.param]})
        model = transformers.BertModel._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(len(request.param))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 + (1 if parameter.dim() == 1 else 0))
    return model


@pytest.fixture
def ours(theirs: Any, tmp_path: Path) -> Encoder:
    """Read back from the folder that they wrote."""
    with quiet():
        theirs.save_pretrained(tmp_path)
    read = read_encoder_folder(tmp_path)
    assert read.not_understood == {}
    assert set(read.unused) == {"pooler.dense.weight", "pooler.dense.bias"}
    made = assemble(read.spec, Plan(), read.tensors)
    assert isinstance(made, Encoder)
    return made


def tokens(rows: int, time: int = TIME) -> Tensor:
    return torch.randint(0, VOCAB, (rows, time), generator=torch.Generator().manual_seed(rows))


def test_hidden_vectors_agree(theirs: Any, ours: Encoder) -> None:
    rows = tokens(3)
    with torch.no_grad():
        reference = theirs(rows).last_hidden_state
        torch.testing.assert_close(ours(rows), reference, rtol=0, atol=TOLERANCE)
        kinds = torch.randint(0, ours.num_token_types, rows.shape)
        reference = theirs(rows, token_type_ids=kinds).last_hidden_state
        torch.testing.assert_close(ours(rows, token_types=kinds), reference, rtol=0, atol=TOLERANCE)
    assert reference.std() > 0.1


def test_padded_rows_agree(theirs: Any, ours: Encoder) -> None:
    rows, lengths = tokens(3), torch.tensor([13, 5, 1])
    own = torch.arange(TIME) < lengths[:, None]
    with torch.no_grad():
        reference = theirs(rows, attention_mask=own.long()).last_hidden_state
        context = Context(positions=torch.arange(TIME).repeat(3, 1), segments=own.long() - 1)
        got = ours(rows, context)
    torch.testing.assert_close(got[own], reference[own], rtol=0, atol=TOLERANCE)


def test_what_is_written_is_read_as_the_same(theirs: Any) -> None:
    spec = FAMILY.read(Fields(json.loads(theirs.config.to_json_string(use_diff=False))))
    config = FAMILY.write(spec)
    assert config is not None
    fields = Fields(json.loads(json.dumps(config)))
    assert FAMILY.read(fields) == spec
    assert fields.not_understood() == {}
    with quiet():
        again = transformers.AutoConfig.for_model("bert", **config)
    assert FAMILY.read(Fields(json.loads(again.to_json_string(use_diff=False)))) == spec


def test_silent_fields_mean_what_they_mean_to_them() -> None:
    silent = {name: size for name, size in SIZES.items() if name != "max_position_embeddings"}
    with quiet():
        spoken = json.loads(transformers.AutoConfig.for_model("bert", **silent).to_json_string(use_diff=False))
    assert FAMILY.read(Fields(silent)) == FAMILY.read(Fields(spoken))


# --- the declaration


def test_encoders_are_found_beside_decoders_and_not_among_them() -> None:
    assert {"bert", "roberta"} <= {family.model_type for family in encoder_families()}
    assert all(isinstance(family, Family) for family in families())
    assert encoder_family_for("bert") is FAMILY
    with pytest.raises(ArchitectureError, match=r"almanac\.load_encoder"):
        family_for("bert")
    with pytest.raises(ArchitectureError, match=r"almanac\.load,"):
        encoder_family_for("llama")
    with pytest.raises(ArchitectureError, match="nearest is 'roberta'"):
        encoder_family_for("robarta")


def test_load_names_the_right_door(tmp_path: Path) -> None:
    small_encoder.write_folder(tmp_path)
    with pytest.raises(ArchitectureError, match=r"almanac\.load_encoder"):
        almanac.load(tmp_path)


def test_name_table_names_every_parameter_once() -> None:
    made = small_encoder.network()
    keys = list(expand(FAMILY.keys, len(made.layers)))
    assert {key.ours for key in keys} == {name.rpartition(".")[0] for name, _ in made.named_parameters()}
    assert len({key.safetensors for key in keys}) == len(keys)


def test_a_spec_that_is_no_bert_is_not_written() -> None:
    spec = small_encoder.spec()
    changes: list[tuple[str, dict[str, Any]]] = [
        ("layers.1.channel", {"activation": GeluTanh()}),
        ("layers.0.mixer", {"num_heads": 2}),
        ("layers.*.mixer.q", {"bias": False}),
        ("layers.2.mixer_norm", {"epsilon": 0.1}),
        ("norm", {"bias": False}),
    ]
    for pattern, change in changes:
        assert FAMILY.write(spec.replace(pattern, **change)) is None, pattern
    assert FAMILY.write(spec.replace("layers.*.channel", activation=Silu())) is not None
    assert FAMILY.write(spec.with_(layers=())) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"position_embedding_type": "relative_key"}, UnsupportedError, "relative_key"),
        ({"is_decoder": True}, UnsupportedError, "is_decoder"),
        ({"add_cross_attention": True}, UnsupportedError, "cross"),
        ({"hidden_act": "swish9"}, UnsupportedError, "swish9"),
        ({"num_attention_heads": 5}, FileFormatError, "no multiple"),
        ({"num_hidden_layers": 10**9}, FileFormatError, "num_hidden_layers"),
    ],
)
def test_what_would_change_the_vectors_is_refused(change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        FAMILY.read(Fields({**SIZES, **change}))


JUNK = [None, True, -1, 0, 1, 7, 2**40, 0.5, float("nan"), float("inf"), "", "x", [], [1], {}, {"a": 1}]


def test_damaged_configurations_never_crash() -> None:
    """Whatever a field holds, the answer is an encoder that runs or one of our errors."""
    rng, outcomes = random.Random(1), {"ran": 0, "refused": 0}
    names = [*small_encoder.CONFIG, "vocab_size", "is_decoder", "add_cross_attention"]
    cases = [{name: junk} for name in names for junk in JUNK]
    cases += [{rng.choice(names): rng.choice(JUNK) for _ in range(3)} for _ in range(60)]
    for case in cases:
        try:
            spec = FAMILY.read(Fields({**small_encoder.CONFIG, "vocab_size": VOCAB, **case}))
            with torch.device("meta"):
                out = spec.build()(torch.zeros(1, 1, dtype=torch.int64, device="meta"))
        except AlmanacError as error:
            assert error.cause and error.remedy
            outcomes["refused"] += 1
        else:
            assert out.shape == (1, 1, spec.hidden)
            outcomes["ran"] += 1
    assert outcomes["ran"] > 50
    assert outcomes["refused"] > 50


# --- folders


def rewrite(folder: Path, **changes: Tensor | None) -> Path:
    """The small folder with some tensors changed, added or (None) left out."""
    small_encoder.write_folder(folder)
    tensors = {**small_encoder.hub_tensors(small_encoder.network()), **changes}
    write_safetensors(folder / "model.safetensors", {key: item for key, item in tensors.items() if item is not None})
    return folder


def test_every_tensor_is_placed_or_named_or_refused(tmp_path: Path) -> None:
    read = read_encoder_folder(small_encoder.write_folder(tmp_path))
    assert set(read.tensors) == {name for name, _ in small_encoder.network().named_parameters()}
    assert set(read.unused) == {"pooler.dense.weight", "pooler.dense.bias"}
    for name in ("cls.predictions.bias", "encoder.layer.3.output.dense.weight", "embeddings.LayerNorm.gamma", "weight"):
        with pytest.raises(FileFormatError, match="is no tensor of a bert encoder"):
            read_encoder_folder(rewrite(tmp_path, **{name: torch.zeros(3)}))


def test_sizes_are_held_against_the_configuration(tmp_path: Path) -> None:
    def assembled(**changes: Tensor | None) -> None:
        read = read_encoder_folder(rewrite(tmp_path, **changes))
        assemble(read.spec, Plan(), read.tensors)

    query = "encoder.layer.1.attention.self.query.weight"
    with pytest.raises(AlmanacError, match="the spec says"):
        assembled(**{query: torch.zeros(3, 3)})
    with pytest.raises(AlmanacError, match="missing"):
        assembled(**{query: None})
    with pytest.raises(AlmanacError, match="int8"):
        assembled(**{query: torch.zeros(small_encoder.HIDDEN, small_encoder.HIDDEN, dtype=torch.int8)})
    assembled()


def test_a_lie_about_the_layers_costs_nothing(tmp_path: Path) -> None:
    small_encoder.write_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9_000}))
    with pytest.raises(FileFormatError, match="9,000 layers"):
        read_encoder_folder(tmp_path)
