"""Random tiny encoders of transformers, with and without a head, read by us: the same hidden vectors after every layer, the
same logits, and what we write back gives them the same again."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import largest_difference, quiet, randomised, transformers, watched
from torch import Tensor, nn

from almanac.core.errors import AlmanacError, ArchitectureError, FileFormatError
from almanac.core.state import Context
from almanac.core.technique import Plan, assemble
from almanac.files.safetensors import read_sharded, write_safetensors
from almanac.models.encoder_folder import (
    read_encoder_folder,
    read_task_folder,
    write_encoder_folder,
    write_task_folder,
)
from almanac.models.encoder_task import encoder_tasks
from almanac.models.family import Fields, encoder_families, encoder_family_for
from almanac.nn.convolved_block import ConvolvedBlock
from almanac.nn.encoder import Encoder
from almanac.nn.task_model import TaskModel

VOCAB, TIME = 61, 19
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
DISTIL = {
    "vocab_size": VOCAB, "dim": 36, "hidden_dim": 50, "n_layers": 3, "n_heads": 6, "max_position_embeddings": 40,
    "pad_token_id": 0,
}  # fmt: skip
MODERN = {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 6}
FULL_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
}
V3 = {
    **SIZES, "type_vocab_size": 0, "position_biased_input": False, "relative_attention": True, "position_buckets": 6,
    "max_relative_positions": 14, "pos_att_type": "p2c|c2p", "share_att_key": True, "norm_rel_ebd": "layer_norm",
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", SIZES),
    "bert, masked": ("BertForMaskedLM", {**SIZES, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    "bert, untied": ("BertForMaskedLM", {**SIZES, "tie_word_embeddings": False, "type_vocab_size": 1}),
    "bert, text": ("BertForSequenceClassification", {**SIZES, "num_labels": 5, "num_attention_heads": 1}),
    "bert, tokens": ("BertForTokenClassification", {**SIZES, "num_labels": 4, "hidden_act": "relu"}),
    "bert, span": ("BertForQuestionAnswering", {**SIZES, "type_vocab_size": 3}),
    "bert, next": ("BertForNextSentencePrediction", {**SIZES, "num_labels": 7}),
    "bert, both": ("BertForPreTraining", SIZES),
    "roberta": ("RobertaModel", {**SIZES, "pad_token_id": 1, "type_vocab_size": 1}),
    "roberta, masked": ("RobertaForMaskedLM", {**SIZES, "pad_token_id": 1, "hidden_act": "silu"}),
    "roberta, padding 4": ("RobertaForMaskedLM", {**SIZES, "pad_token_id": 4, "tie_word_embeddings": False}),
    "roberta, text": ("RobertaForSequenceClassification", {**SIZES, "num_labels": 1}),
    "roberta, tokens": ("RobertaForTokenClassification", {**SIZES, "num_labels": 3}),
    "roberta, span": ("RobertaForQuestionAnswering", SIZES),
    "albert": ("AlbertModel", {**SIZES, "embedding_size": 20}),
    "albert, groups": ("AlbertModel", {**SIZES, "num_hidden_groups": 2, "num_hidden_layers": 5, "embedding_size": 36}),
    "albert, inner": (
        "AlbertForMaskedLM",
        {**SIZES, "num_hidden_groups": 2, "num_hidden_layers": 4, "inner_group_num": 2, "embedding_size": 20},
    ),
    "albert, text": ("AlbertForSequenceClassification", {**SIZES, "num_labels": 3, "hidden_act": "relu"}),
    "albert, tokens": ("AlbertForTokenClassification", SIZES),
    "albert, span": ("AlbertForQuestionAnswering", SIZES),
    "albert, both": ("AlbertForPreTraining", {**SIZES, "embedding_size": 12, "num_labels": 4}),
    "electra": ("ElectraModel", {**SIZES, "embedding_size": 20}),
    "electra, one width": ("ElectraModel", {**SIZES, "embedding_size": 36}),
    "electra, replaced": ("ElectraForPreTraining", {**SIZES, "embedding_size": 20, "hidden_act": "gelu_new"}),
    "electra, masked": ("ElectraForMaskedLM", {**SIZES, "embedding_size": 20, "hidden_act": "relu"}),
    "electra, text": ("ElectraForSequenceClassification", {**SIZES, "embedding_size": 20, "num_labels": 6}),
    "electra, tokens": ("ElectraForTokenClassification", {**SIZES, "embedding_size": 20}),
    "electra, span": ("ElectraForQuestionAnswering", {**SIZES, "embedding_size": 20}),
    "distilbert": ("DistilBertModel", DISTIL),
    "distilbert, waves": ("DistilBertModel", {**DISTIL, "sinusoidal_pos_embds": True, "activation": "relu"}),
    "distilbert, masked": ("DistilBertForMaskedLM", DISTIL),
    "distilbert, text": ("DistilBertForSequenceClassification", {**DISTIL, "num_labels": 3}),
    "distilbert, tokens": ("DistilBertForTokenClassification", DISTIL),
    "distilbert, span": ("DistilBertForQuestionAnswering", DISTIL),
    "modernbert": ("ModernBertModel", MODERN),
    "modernbert, listed": (
        "ModernBertModel",
        {
            **MODERN, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "local_attention": 3,
            "rope_parameters": FULL_ROPE, "norm_bias": True, "attention_bias": True, "mlp_bias": True,
        },
    ),
    "modernbert, masked": ("ModernBertForMaskedLM", {**MODERN, "num_hidden_layers": 4, "hidden_activation": "silu"}),
    "modernbert, untied": (
        "ModernBertForMaskedLM",
        {**MODERN, "tie_word_embeddings": False, "classifier_bias": True, "classifier_activation": "relu"},
    ),
    "modernbert, no bias": ("ModernBertForMaskedLM", {**MODERN, "decoder_bias": False}),
    "modernbert, text": ("ModernBertForSequenceClassification", {**MODERN, "num_labels": 3}),
    "modernbert, mean": ("ModernBertForSequenceClassification", {**MODERN, "classifier_pooling": "mean"}),
    "modernbert, tokens": ("ModernBertForTokenClassification", MODERN),
    "modernbert, span": ("ModernBertForQuestionAnswering", MODERN),
    "deberta": ("DebertaV2Model", V3),
    "deberta, no relative": ("DebertaV2Model", {**SIZES, "position_biased_input": True, "type_vocab_size": 2}),
    "deberta, odd": ("DebertaV2Model", {**SIZES, "relative_attention": False, "pos_att_type": ["c2p"]}),
    "deberta, own maps": (
        "DebertaV2ForMaskedLM",
        {**V3, "share_att_key": False, "norm_rel_ebd": "none", "legacy": False, "hidden_act": "relu"},
    ),
    "deberta, one term": (
        "DebertaV2ForMaskedLM",
        {**V3, "share_att_key": False, "pos_att_type": ["p2c"], "type_vocab_size": 2, "position_biased_input": True},
    ),
    "deberta, untied": (
        "DebertaV2ForMaskedLM",
        {**V3, "pos_att_type": ["c2p"], "tie_word_embeddings": False, "embedding_size": 20, "num_hidden_layers": 4},
    ),
    "deberta, no buckets": (
        "DebertaV2ForSequenceClassification",
        {**V3, "position_buckets": -1, "max_relative_positions": 5, "num_labels": 3, "pooler_hidden_act": "relu"},
    ),
    "deberta, as long as the text": (
        "DebertaV2ForTokenClassification",
        {**V3, "position_buckets": -1, "max_relative_positions": -1, "num_labels": 5},
    ),
    "deberta, span": ("DebertaV2ForQuestionAnswering", {**V3, "position_buckets": 10, "max_relative_positions": 17}),
    "deberta, convolution": ("DebertaV2Model", {**V3, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta, wide convolution in groups": (
        "DebertaV2ForMaskedLM",
        {**V3, "conv_kernel_size": 5, "conv_groups": 4, "share_att_key": False, "embedding_size": 20},
    ),
    "deberta, a convolution of one, no relative": (
        "DebertaV2ForTokenClassification",
        {**SIZES, "conv_kernel_size": 1, "conv_act": "relu", "type_vocab_size": 2, "num_labels": 3},
    ),
}  # fmt: skip
LAYERS = {
    "AlbertLayer", "BertLayer", "RobertaLayer", "ElectraLayer", "TransformerBlock", "ModernBertEncoderLayer",
    "DebertaV2Layer", "ConvLayer",
}  # fmt: skip
LOGITS = (
    "logits", "prediction_logits", "seq_relationship_logits", "sop_logits", "start_logits", "end_logits",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One model in both implementations, and the folder that theirs was saved to."""

    theirs: Any
    ours: nn.Module
    folder: Path

    @property
    def encoder(self) -> Encoder:
        return self.ours.encoder if isinstance(self.ours, TaskModel) else self.ours  # type: ignore[return-value]


def make(case: str) -> Any:
    """A transformers model whose every parameter is random, norms and biases included."""
    name, settings = CASES[case]
    with quiet():
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**settings)).float().eval()
    return randomised(model, seed=len(case))


def read(folder: Path, name: str) -> tuple[Any, nn.Module]:
    """Our checkpoint and network of a folder."""
    found = read_encoder_folder(folder) if name.endswith("Model") else read_task_folder(folder)
    return found, assemble(found.spec, Plan(), found.tensors)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def pair(case: str) -> Pair:
        theirs, folder = make(case), tmp_path_factory.mktemp("theirs")
        with quiet():
            theirs.save_pretrained(folder)
        found, ours = read(folder, CASES[case][0])
        assert found.not_understood == {}
        assert all("pooler" in name for name in found.unused)
        return Pair(theirs, ours, folder)

    return pair


@pytest.fixture(params=sorted(CASES))
def pair(request: pytest.FixtureRequest, pairs: Any) -> Pair:
    return pairs(request.param)


def tokens(rows: int, time: int = TIME) -> Tensor:
    """Ids that are no padding."""
    return torch.randint(5, VOCAB, (rows, time), generator=torch.Generator().manual_seed(rows))


def answers(output: Any) -> list[Tensor]:
    """What a model of theirs gives."""
    named = [output[name] for name in LOGITS if name in output]
    return named or [output.last_hidden_state]


def listed(output: Any) -> list[Tensor]:
    """What a model of ours gives."""
    return list(output) if isinstance(output, tuple) else [output]


def steps_of(encoder: Encoder) -> list[nn.Module]:
    """The layers; of one with a convolution beside it first what it is beside, as theirs are two."""
    steps: list[nn.Module] = []
    for layer in encoder.layers:
        steps += [layer.block, layer] if isinstance(layer, ConvolvedBlock) else [layer]
    return steps


def difference(pair: Pair, *, mask: Tensor | None = None, kinds: bool = False) -> float:
    """The largest difference of what every layer gives and of the answers, where ``mask`` is true."""
    rows = tokens(3)
    own = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask
    rows = torch.where(own, rows, pair.theirs.config.pad_token_id)
    given: dict[str, Any] = {"attention_mask": own.long()}
    types = None
    if kinds and pair.encoder.num_token_types:
        types = torch.randint(0, pair.encoder.num_token_types, rows.shape, generator=torch.Generator().manual_seed(1))
        given["token_type_ids"] = types
    context = None
    if mask is not None:
        context = Context(positions=torch.arange(TIME).repeat(3, 1), segments=own.long() - 1)
    layers = [module for module in pair.theirs.modules() if type(module).__name__ in LAYERS]
    reference, theirs = watched(layers, lambda: pair.theirs(rows, **given))
    got, ours = watched(steps_of(pair.encoder), lambda: pair.ours(rows, context, types))
    assert len(theirs) == len(ours) > 2
    expected = answers(reference)
    assert all(other.std() > 0.01 or other.numel() < 4 for other in expected)
    by_token = [other.shape[:2] == own.shape for other in expected]
    mine = [item[own] if each else item for item, each in zip(listed(got), by_token, strict=True)]
    other = [item[own] if each else item for item, each in zip(expected, by_token, strict=True)]
    return largest_difference([*(item[own] for item in ours), *mine], [*(item[own] for item in theirs), *other])


def test_hidden_vectors_and_logits_agree(pair: Pair) -> None:
    assert difference(pair) <= 1e-5
    assert difference(pair, kinds=True) <= 1e-5


def test_padded_rows_agree(pair: Pair) -> None:
    lengths = torch.tensor([TIME, 7, 1])
    assert difference(pair, mask=torch.arange(TIME) < lengths[:, None]) <= 1e-5


def turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotation in the precision of its inputs; theirs goes through float32."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    half = q.shape[-1] // 2
    parts = [(x, torch.cat((-x[..., half:], x[..., :half]), dim=-1)) for x in (q, k)]
    return tuple(x * cos + y * sin for x, y in parts)  # type: ignore[return-value]


def test_they_agree_in_double_precision(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rounding to hide behind: float64 throughout, but for rotary angles, which are float32 in both."""
    from transformers.models.deberta_v2 import modeling_deberta_v2
    from transformers.models.modernbert import modeling_modernbert

    def exact(query: Tensor, terms: int) -> Tensor:
        return torch.tensor(query.shape[-1] * terms, dtype=torch.float64).sqrt()

    monkeypatch.setattr(modeling_deberta_v2, "scaled_size_sqrt", exact)  # theirs rounds the divisor to float32
    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", turned)
    double = Pair(copy.deepcopy(pair.theirs).double(), copy.deepcopy(pair.ours).double(), pair.folder)
    assert difference(double) <= 1e-10


def test_what_we_write_they_read_as_the_same(pair: Pair, tmp_path: Path) -> None:
    kind = type(pair.theirs)
    found, _ = read(pair.folder, kind.__name__)
    tensors = {name: item.detach() for name, item in pair.ours.named_parameters()}
    if isinstance(pair.ours, TaskModel):
        write_task_folder(tmp_path, found.spec, tensors, labels=found.labels, architecture=kind.__name__)
    else:
        write_encoder_folder(tmp_path, found.family, found.spec, tensors)
    with quiet():
        again, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    unread = ("cls.predictions.bias", "lm_head.bias", "predictions.bias")  # where the head has a matrix of its own
    assert all("pooler" in name or name in unread for name in info["missing_keys"])
    assert again.config.architectures == [kind.__name__]
    with torch.no_grad(), quiet():
        rows = tokens(2)
        for mine, other in zip(answers(again.eval()(rows)), answers(pair.theirs(rows)), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    back, _ = read(tmp_path, kind.__name__)
    assert back.spec == found.spec
    assert back.not_understood == {}


@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if not name.endswith("Model")])
def test_the_encoder_of_a_task_is_read_alone(case: str, pairs: Any) -> None:
    pair = pairs(case)
    found = read_encoder_folder(pair.folder)
    assert found.not_understood == {}
    assert found.unused
    made = assemble(found.spec, Plan(), found.tensors)
    with torch.no_grad():
        assert torch.equal(made(tokens(2)), pair.encoder(tokens(2)))


@pytest.mark.parametrize("family", list(encoder_families()), ids=lambda family: family.model_type)
def test_silent_fields_mean_what_they_mean_to_them(family: Any) -> None:
    """A config.json may leave out what equals the default of its own class."""
    silent = {"vocab_size": VOCAB}
    if family.model_type in ("bert", "roberta", "modernbert", "deberta-v2"):
        silent |= {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 2}
    if family.model_type in ("albert", "electra"):
        silent |= {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 2}
    with quiet():
        spoken = json.loads(
            transformers.AutoConfig.for_model(family.model_type, **silent).to_json_string(use_diff=False)
        )
    fields = Fields(spoken)
    assert family.read(Fields(silent)) == family.read(fields)


def test_every_family_and_task_has_an_oracle() -> None:
    covered = {name for name, _ in CASES.values()}
    assert {family.architecture for family in encoder_families()} <= covered
    assert {task.architecture for tasks in encoder_tasks() for task in tasks.tasks} <= covered
    for tasks in encoder_tasks():
        assert encoder_family_for(tasks.family.model_type) is tasks.family


def test_roberta_counts_what_is_no_padding(pairs: Any) -> None:
    """A padding id within a text takes no place, as in theirs; given positions are taken as they are."""
    pair = pairs("roberta, padding 4")
    rows = tokens(2)
    rows[0, 3], rows[1, 0] = 4, 4
    with torch.no_grad(), quiet():
        reference = pair.theirs(rows, attention_mask=torch.ones_like(rows)).logits
        torch.testing.assert_close(pair.ours(rows), reference, rtol=0, atol=1e-5)
        straight = pair.ours(rows, Context(positions=torch.arange(TIME).repeat(2, 1)))
    assert not torch.allclose(straight, reference, atol=1e-2)


def test_old_files_are_understood(pairs: Any, tmp_path: Path) -> None:
    """gamma and beta for a norm's weight and bias, and copies of the tied table and of the bias."""
    pair = pairs("bert, masked")
    (tmp_path / "config.json").write_text((pair.folder / "config.json").read_text())
    tensors = dict(read_sharded(pair.folder).items())
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): item.clone()
        for name, item in tensors.items()
    }
    table = old["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.weight"] = table.clone()
    old["cls.seq_relationship.weight"] = torch.zeros(2, 36)
    old["bert.pooler.dense.weight"] = torch.zeros(36, 36)
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    write_safetensors(tmp_path / "model.safetensors", old)
    found, made = read(tmp_path, "BertForMaskedLM")
    assert set(found.unused) == {"cls.seq_relationship.weight", "bert.pooler.dense.weight"}
    with torch.no_grad():
        assert torch.equal(made(tokens(2)), pair.ours(tokens(2)))
    write_safetensors(tmp_path / "model.safetensors", old | {"cls.predictions.decoder.weight": table + 1})
    with pytest.raises(FileFormatError, match="declared tied"):
        read_task_folder(tmp_path)


def test_what_belongs_elsewhere_is_refused(pairs: Any, tmp_path: Path) -> None:
    pair = pairs("bert, text")
    config = json.loads((pair.folder / "config.json").read_text())
    tensors = {name: item.clone() for name, item in read_sharded(pair.folder).items()}

    def folder(change: dict[str, Any], extra: dict[str, Tensor]) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        write_safetensors(tmp_path / "model.safetensors", tensors | extra)
        return tmp_path

    with pytest.raises(FileFormatError, match="lm_head"):
        read_task_folder(folder({}, {"lm_head.dense.weight": torch.zeros(2)}))
    with pytest.raises(ArchitectureError, match="BertForSequenceClassification"):
        read_task_folder(folder({"architectures": ["BertForFun"]}, {}))
    with pytest.raises(FileFormatError, match="id2label"):
        read_task_folder(folder({"id2label": {"0": "a", "7": "b"}}, {}))
    with pytest.raises(AlmanacError, match="the spec says"):
        found = read_task_folder(folder({"id2label": {"0": "a", "1": "b"}}, {}))
        assemble(found.spec, Plan(), found.tensors)
    with pytest.raises(FileFormatError, match="two ends"):
        read_task_folder(folder({"architectures": ["BertForQuestionAnswering"]}, {}))


def test_labels_keep_their_names(pairs: Any, tmp_path: Path) -> None:
    pair = pairs("bert, text")
    names = {"0": "zero", "1": "one", "2": "two", "3": "three", "4": "four"}
    config = json.loads((pair.folder / "config.json").read_text()) | {"id2label": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((pair.folder / "model.safetensors").read_bytes())
    found = read_task_folder(tmp_path)
    assert found.labels == tuple(names.values())
    write_task_folder(tmp_path / "again", found.spec, found.tensors, labels=found.labels)
    assert read_task_folder(tmp_path / "again").labels == found.labels
