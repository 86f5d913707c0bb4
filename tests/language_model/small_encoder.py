"""Small encoders as folders: a WordPiece vocabulary of our own, random BERT weights, and what lies beside them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from almanac.files.safetensors import write_safetensors
from almanac.models.bert import FAMILY
from almanac.models.family import Fields, expand
from almanac.nn.encoder import Encoder

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?[]()'-"
WORDS = ("lamp", "ship", "stone", "river", "quiet", "seven", "the", "of", "cls", "sep", "mask")
CONTEXT, HIDDEN = 48, 32
CONFIG: dict[str, Any] = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": HIDDEN, "intermediate_size": 56,
    "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0, "position_embedding_type": "absolute",
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip


@cache
def vocabulary() -> dict[str, int]:
    """Control tokens, every letter at the start of a word and inside one, and some words."""
    pieces = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


@cache
def tokenizer_json() -> str:
    """A BERT tokenizer over that vocabulary, which pads and truncates by itself, as published files do."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(SPECIALS))
    frame = [(name, vocabulary()[name]) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    backend.enable_truncation(7)
    backend.enable_padding(length=7)
    return backend.to_str()


def spec() -> Encoder.Spec:
    """The spec of the small configuration."""
    return FAMILY.read(Fields({**CONFIG, "vocab_size": len(vocabulary())}))


def network(*, seed: int = 0) -> Encoder:
    """A random encoder of that spec, norms and biases included."""
    made = spec().build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def hub_tensors(made: Encoder, *, pooler: bool = True) -> dict[str, Tensor]:
    """The tensors under BERT's own names, with the pooler and the buffer that old files carry along."""
    names = {key.ours: key.safetensors for key in expand(FAMILY.keys, len(made.layers))}
    out: dict[str, Tensor] = {}
    for name, item in made.named_parameters():
        owner, _, leaf = name.rpartition(".")
        out[f"{names[owner]}.{leaf}"] = item.detach().clone()
    if pooler:
        out["pooler.dense.weight"], out["pooler.dense.bias"] = torch.zeros(HIDDEN, HIDDEN), torch.zeros(HIDDEN)
        out["embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    return out


def write_folder(folder: Path, *, made: Encoder | None = None) -> Path:
    """A folder to load, without the files of sentence-transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": len(vocabulary())}))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**roles, "model_max_length": 40}))
    write_safetensors(folder / "model.safetensors", hub_tensors(made or network()))
    return folder


def write_settings(folder: Path, pooling: dict[str, Any] | None, **settings: Any) -> Path:
    """What sentence-transformers lays beside the weights: modules.json, a pooling and sentence_bert_config.json."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": f"some.place.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if settings:
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder
