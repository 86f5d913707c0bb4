"""LoRA folders in the peft library's form: loaded there over the transformers model, the same logits come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_model import small

from almanac.adapt.lora import Lora
from almanac.compress.quantize.blocks import Blocks
from almanac.core.errors import UnsupportedError
from almanac.core.technique import Technique
from almanac.files.safetensors import open_safetensors

BOUND = 1e-5
IDS = torch.randint(0, small.VOCAB, (2, 30), generator=torch.Generator().manual_seed(3))
ADAPTERS: dict[str, Lora] = {
    "every map": Lora(rank=4, alpha=8.0),
    "queries and values": Lora(rank=2, alpha=3.0, targets="layers.*.mixer.{q,v}"),
    "one layer": Lora(rank=1, alpha=1.0, targets="layers.1.**"),
    "the head": Lora(rank=3, alpha=6.0, targets="{head.projection,layers.0.channel.down}"),
}


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("variant", ["llama", "llama biases", "qwen2 windows", "smollm3", "mistral window"])
@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_peft_computes_what_we_do(adapter: str, variant: str, transformers: Any, peft: Any, tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": False}
    lora = ADAPTERS[adapter]
    lm = small.language_model(variant, lora, **changes)
    bare = small.language_model(variant, **changes)
    bare.save(tmp_path / "base")
    folder = lm.export(tmp_path / "adapter", format="peft")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with small.quiet(), torch.no_grad():
        base = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", dtype=torch.float32, local_files_only=True
        ).eval()
        before = base(IDS).logits
        theirs = peft.PeftModel.from_pretrained(base, folder).eval()(IDS).logits
    with torch.no_grad():
        ours = lm.network(IDS)
    assert largest(ours, theirs) <= BOUND
    assert largest(before, theirs) > 1e-3, "the adapter did something"


def test_what_the_folder_declares(tmp_path: Path) -> None:
    lora = Lora(rank=2, alpha=3.0, dropout=0.25, targets="layers.*.mixer.{q,v}")
    folder = small.language_model("llama", lora).export(tmp_path / "a", format="peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 3.0, 0.25)
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == sorted(
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qv"
    )
    weights = open_safetensors(folder / "adapter_model.safetensors")
    assert len(weights) == 12
    assert weights["base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight"].shape == (2, 64)


def test_the_adapter_of_a_packed_model_is_exported_alone(tmp_path: Path) -> None:
    """QLoRA: the adapter is the same file, whatever the base is held in."""
    lora = Lora(rank=2)
    dense = small.language_model("llama", lora).export(tmp_path / "dense", format="peft")
    packed = small.language_model("llama", Blocks(format="Q8_0"), seed=0)
    packed.attach(lora)
    source = small.language_model("llama", lora)
    values = dict(source.network.named_parameters())
    with torch.no_grad():
        for name, parameter in packed.network.named_parameters():
            if ".around." in name:
                parameter.copy_(values[name])
    assert small.files_in(packed.export(tmp_path / "packed", format="peft")) == small.files_in(dense)


@pytest.mark.parametrize("techniques", [(), (Lora(), Lora(name="second"))])
def test_exactly_one_adapter(techniques: tuple[Technique, ...], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"{len(techniques)} LoRAs"):
        small.language_model("llama", *techniques).export(tmp_path / "a", format="peft")
    assert list(tmp_path.iterdir()) == []
