"""Export to foreign formats, each read back and held against the model before it counts.

- ``hf``: a dense folder under the hub's names, adapters folded in (transformers, vLLM)
- ``gguf``: one file for llama.cpp and kin, packed
- ``peft``: the LoRA adapters alone, as the peft library writes them
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from almanac.adapt.lora import Lora, LowRank
from almanac.compress.quantize.blocks import LOSS_BOUNDS, Blocks
from almanac.core.errors import ParityError, UnsupportedError
from almanac.core.site import Leaf, select
from almanac.files.gguf.formats import format_named
from almanac.files.gguf.writer import write_gguf
from almanac.files.safetensors import write_safetensors
from almanac.files.store import write_atomic
from almanac.language_model.load import load_gguf
from almanac.language_model.save import save
from almanac.models.family import Family, expand
from almanac.models.gguf_file import (
    FREQUENCY_FACTORS,
    frequency_factors,
    gguf_metadata,
    gguf_order,
)
from almanac.models.hub_folder import Config, family_of
from almanac.nn.linear import Linear
from almanac.nn.stored.blocks import BlockWeight
from almanac.tokenizers.gguf import to_gguf_metadata
from almanac.verify import certificate as certificates
from almanac.verify.parity import EQUAL, require_equal, require_within
from almanac.verify.probes import divergence, probe_ids, probe_logits

if TYPE_CHECKING:
    from almanac.language_model.model import LanguageModel

FORMATS = ("hf", "gguf", "peft")


def export(lm: LanguageModel, path: Path, *, format: str, quantization: str | None = None) -> Path:
    """Writes ``lm`` to ``path`` in a foreign format; ``lm`` itself is not changed.

    Args:
        quantization: for gguf, the format of the matrices (``F16``, ``Q8_0``, ``Q4_K``, ...); None keeps packed weights
            packed bit for bit and writes dense ones as F16.

    Raises:
        UnsupportedError: unknown format, or something the format cannot express (never silently dropped).
        ParityError: what was read back is another model; nothing is left.
    """
    if format not in FORMATS:
        raise UnsupportedError(f"Format {format!r}", remedy=f"Choose one of {', '.join(FORMATS)}.")
    if quantization is not None and format != "gguf":
        raise UnsupportedError(f"{format} with quantization", remedy="Quantization belongs to gguf.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "peft":
        return export_peft(lm, path)
    if format == "hf":
        dense = merged(lm)
        if family_of(dense.spec, dense.family) is None:
            raise UnsupportedError("The hub knows no family for this spec", remedy="Save it as an almanac folder.")
        return save(dense, path)
    return export_gguf(lm, path, quantization)


def merged(lm: LanguageModel) -> LanguageModel:
    """A dense copy with all adapters folded in."""
    copied = replace(lm, network=copy.deepcopy(lm.network), provenance=copy.deepcopy(lm.provenance))
    return copied.fold()


def export_gguf(lm: LanguageModel, path: Path, quantization: str | None) -> Path:
    """One GGUF file with tokenizer and template inside, and its certificate beside it."""
    keep = quantization is None and all(isinstance(step, Blocks) for step in lm.plan.techniques)
    source = lm if keep else merged(lm)
    family, config = _gguf_family(source)
    chosen = quantization or "F16"
    tensors: dict[str, tuple[str, Tensor, tuple[int, ...]]] = {}
    worst = 0.0
    for name, leaf_format, tensor, shape in _rows(source, chosen):
        target, ordered = gguf_order(name, tensor, family, source.spec)
        tensors[target] = (leaf_format, ordered, shape)
        packed_already = keep and leaf_format not in ("F16", "F32")
        worst = max(worst, 0.0 if packed_already else LOSS_BOUNDS.get(leaf_format, 0.0))
    if (factors := frequency_factors(source.spec)) is not None:
        tensors[FREQUENCY_FACTORS] = ("F32", factors, tuple(factors.shape))
    metadata: dict[str, Any] = gguf_metadata(source.spec, config, family)
    metadata |= to_gguf_metadata(source.tokenizer)
    metadata |= {"general.name": str(lm.provenance.get("source", "almanac")), "general.quantization_version": 2}
    write_gguf(path, metadata, tensors)
    try:
        _seal_gguf(lm, path, worst)
    except ParityError:
        path.unlink()
        raise
    return path


def export_peft(lm: LanguageModel, path: Path) -> Path:
    """A folder with adapter_config.json and adapter_model.safetensors, for one LoRA of the plan."""
    adapters = [step for step in lm.plan.techniques if isinstance(step, Lora)]
    if len(adapters) != 1:
        raise UnsupportedError(f"A model with {len(adapters)} LoRAs as one PEFT folder", remedy="Keep exactly one.")
    lora, known = adapters[0], family_of(lm.spec, lm.family)
    if known is None:
        raise UnsupportedError("The hub knows no family for this spec", remedy="Save it as an almanac folder.")
    names = {key.ours: key.safetensors for key in expand(known[0].keys, len(lm.spec.layers))}
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    for site_path, site in select(lm.network, lora.targets, of=Linear).items():
        wrapper = site.wrapper(lora.name)
        assert isinstance(wrapper, LowRank)
        modules.append(names[site_path])
        prefix = f"base_model.model.{names[site_path]}"
        tensors[f"{prefix}.lora_A.weight"] = wrapper.a.detach()
        tensors[f"{prefix}.lora_B.weight"] = wrapper.b.detach()
    path.mkdir(parents=True, exist_ok=True)
    write_safetensors(path / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": lm.provenance.get("source"),
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": sorted(modules),
        "bias": "none", "inference_mode": True, "fan_in_fan_out": False, "init_lora_weights": True,
    }  # fmt: skip
    write_atomic(path / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())
    return path


def _gguf_family(lm: LanguageModel) -> tuple[Family, Config]:
    known = family_of(lm.spec, lm.family)
    if known is None or known[0].gguf is None:
        raise UnsupportedError(
            f"GGUF has no architecture for a {lm.family or 'model of this spec'}", remedy="Export as hf instead."
        )
    return known


def _rows(lm: LanguageModel, chosen: str) -> list[tuple[str, str, Tensor, tuple[int, ...]]]:
    """(name, GGUF format, tensor packed or dense, dense shape) of every parameter, in module order."""
    out: list[tuple[str, str, Tensor, tuple[int, ...]]] = []
    leaves = {path: module for path, module in lm.network.named_modules() if isinstance(module, Leaf)}
    seen: set[str] = set()
    for name, parameter in lm.network.named_parameters():
        owner = name.removesuffix(".codes").removesuffix(".weight")
        leaf = leaves.get(owner)
        if leaf is not None and isinstance(leaf.weight, BlockWeight):
            if owner not in seen:
                seen.add(owner)
                out.append((f"{owner}.weight", leaf.weight.format.name, leaf.weight.codes.detach(), tuple(leaf.shape)))
        elif parameter.dim() == 2:
            format = _fitting(chosen, parameter.shape[1], is_embedding=owner in ("embed", "head.projection"))
            out.append((name, format, parameter.detach(), tuple(parameter.shape)))
        else:
            out.append((name, "F32", parameter.detach().float(), tuple(parameter.shape)))
    return out


def _fitting(chosen: str, columns: int, *, is_embedding: bool) -> str:
    """The chosen format where its blocks divide the row; embeddings get at least 8 bits, as every logit hangs on them."""
    format = format_named("Q8_0" if is_embedding and chosen.startswith(("Q4", "Q5")) else chosen)
    if columns % format.block_size == 0:
        return format.name
    return "Q8_0" if columns % format_named("Q8_0").block_size == 0 and chosen != "F32" else "F16"


def _seal_gguf(lm: LanguageModel, path: Path, bound: float) -> None:
    rows = probe_ids(lm)
    again = load_gguf(path)
    found = divergence(probe_logits(lm, rows), probe_logits(again, rows))
    if bound == 0.0:
        require_equal(found, "exporting")
    else:
        require_within(found, bound, "Exporting to GGUF")
    steps = [*lm.provenance.get("parity", []), {"step": "export gguf", "bound": bound or EQUAL, **found.to_dict()}]
    sealed = certificates.certify(again, files=[path], steps=steps)
    if [answer["ids"] for answer in sealed["tokenizer"]["answers"]] != [
        lm.tokenizer.encode(answer["text"]) for answer in sealed["tokenizer"]["answers"]
    ]:
        raise ParityError(
            "The tokenizer in the GGUF file reads otherwise", remedy="Export as hf and report the tokenizer."
        )
    certificates.write(sealed, path.with_name(f"{path.name}.{certificates.NAME}"))
