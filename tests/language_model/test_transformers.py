"""Folders to and from transformers: the same ids, the same chat text, the same logits, the same greedy tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_model import small
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.core.errors import UnsupportedError
from almanac.core.technique import Plan
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel

BOUND = 1e-5
NEW_TOKENS = 40
every_variant = pytest.mark.parametrize("variant", list(small.VARIANTS))


def ids(rows: int = 2, time: int = 30) -> Tensor:
    return torch.randint(0, small.VOCAB, (rows, time), generator=torch.Generator().manual_seed(3))


def worst(ours: LanguageModel, theirs: Any, tokens: Tensor) -> float:
    """Largest difference of a logit, as a share of the largest."""
    with torch.no_grad(), small.quiet():
        a, b = ours.network(tokens), theirs(tokens).logits
    assert a.shape == b.shape
    assert torch.isfinite(b).all()
    return float((a - b).abs().max() / b.abs().max())


def greedy_ours(lm: LanguageModel, prompt: list[int]) -> list[int]:
    engine = lm.engine(prefill_chunk=7)
    handle = engine.submit(replace(lm.request(prompt, max_tokens=NEW_TOKENS), stop_tokens=frozenset()))
    engine.run()
    return handle.new_tokens


def greedy_theirs(model: Any, prompt: list[int]) -> list[int]:
    model.generation_config.eos_token_id = None
    with small.quiet():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@every_variant
def test_what_transformers_saves_we_load(variant: str, transformers: Any, tmp_path: Path) -> None:
    model = small.hub_folder(transformers, tmp_path, variant)
    lm = load(tmp_path)
    assert "not_understood" not in lm.provenance
    assert worst(lm, model, ids()) <= BOUND
    prompt = lm.tokenizer.encode(small.TEXTS[0])
    assert greedy_ours(lm, prompt) == greedy_theirs(model, prompt)
    with small.quiet():
        words = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in small.TEXTS:
        assert lm.tokenizer.encode(text) == words(text)["input_ids"]
        assert lm.tokenizer.decode(lm.tokenizer.encode(text)) == text
    chat = words.apply_chat_template(small.CONVERSATION, add_generation_prompt=True, tokenize=False)
    assert lm.template is not None
    assert lm.template.render(small.CONVERSATION, add_generation_prompt=True) == chat
    assert lm.chat_tokens(small.CONVERSATION) == words(chat, add_special_tokens=False)["input_ids"]
    assert lm.tokenizer.special.eos == words.eos_token_id == 2


@every_variant
@pytest.mark.parametrize("way", ["save", "export"])
def test_what_we_save_transformers_loads(variant: str, way: str, transformers: Any, tmp_path: Path) -> None:
    lm = small.language_model(variant)
    folder = lm.save(tmp_path / "m") if way == "save" else lm.export(tmp_path / "m", format="hf")
    with small.quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.model_type == small.VARIANTS[variant][0]
    assert worst(lm, model, ids()) <= BOUND
    prompt = lm.tokenizer.encode(small.TEXTS[1])
    assert greedy_ours(lm, prompt) == greedy_theirs(model, prompt)
    assert [words(text)["input_ids"] for text in small.TEXTS] == [lm.tokenizer.encode(text) for text in small.TEXTS]
    chat = words.apply_chat_template(small.CONVERSATION, add_generation_prompt=True, tokenize=False)
    assert lm.template is not None
    assert lm.template.render(small.CONVERSATION, add_generation_prompt=True) == chat
    roles = (words.bos_token_id, words.eos_token_id, words.pad_token_id)
    assert roles == (lm.tokenizer.special.bos, lm.tokenizer.special.eos, lm.tokenizer.special.pad)
    assert model.config.eos_token_id == lm.tokenizer.special.eos


def test_a_bos_in_front_survives_both_ways(transformers: Any, tmp_path: Path) -> None:
    lm = small.language_model("llama")
    lm.tokenizer = small.tokenizer(add_bos_token=True)
    assert lm.tokenizer.encode("a")[0] == lm.tokenizer.special.bos
    folder = lm.save(tmp_path / "m")
    with small.quiet():
        words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert [words(text)["input_ids"] for text in small.TEXTS] == [lm.tokenizer.encode(text) for text in small.TEXTS]
    assert load(folder).tokenizer.add_bos


SILENT: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "mistral's window": (
        "mistral window",
        {"sliding_window": 4096, "max_position_embeddings": 5000},
        ("sliding_window",),
    ),
    "qwen2's window": (
        "qwen2 windows",
        {"sliding_window": 4096, "max_position_embeddings": 5000},
        ("sliding_window", "layer_types"),
    ),
    "smollm3's tied head": ("smollm3", {}, ("tie_word_embeddings",)),
    "smollm3's theta": ("smollm3", {"rope_theta": 2_000_000.0}, ("rope_parameters", "rope_theta")),
    "smollm3's windows": ("smollm3 windows", {}, ("layer_types", "no_rope_layers")),
}


@pytest.mark.parametrize("case", list(SILENT))
def test_what_a_configuration_leaves_out_is_what_transformers_assumes(
    case: str, transformers: Any, tmp_path: Path
) -> None:
    """Published configurations leave fields out; a default of ours that differs would be another model, silently."""
    variant, changes, dropped = SILENT[case]
    model = small.hub_folder(transformers, tmp_path, variant, **changes)
    whole = load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in dropped:
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with small.quiet():
        again = transformers.AutoConfig.from_pretrained(tmp_path)
    strip = {"_name_or_path": None}
    assert again.to_dict() | strip == model.config.to_dict() | strip
    lm = load(tmp_path)
    assert lm.spec == whole.spec
    assert worst(lm, model, ids()) <= BOUND


def test_folded_lora_reaches_transformers(transformers: Any, tmp_path: Path) -> None:
    lm = small.language_model("qwen2", Lora(rank=4, alpha=12.0))
    bare = small.language_model("qwen2")
    folder = lm.export(tmp_path / "m", format="hf")
    with small.quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    assert worst(lm, model.eval(), ids()) <= BOUND
    assert worst(bare, model, ids()) > 0.05
    assert lm.plan.techniques == (Lora(rank=4, alpha=12.0),), "exporting must not touch the model"


def test_a_technique_that_does_not_fold_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lora, "folds", False)
    lm = small.language_model("llama", Lora())
    for format in ("hf", "gguf"):
        with pytest.raises(UnsupportedError, match=r"adapt\.lora"):
            lm.export(tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []
    assert lm.plan == Plan(techniques=(Lora(),))
