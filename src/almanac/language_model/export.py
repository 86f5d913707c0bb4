"""Export to foreign formats, each read back and held against the model before it counts.

- ``hf``: a dense folder under the hub's names, adapters folded in (transformers, vLLM)
- ``gguf``: one file for llama.cpp and kin, packed
- ``peft``: the LoRA adapters alone, as the peft library writes them
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from almanac.adapt.lora import Lora, LowRank
from almanac.compress.quantize.blocks import LOSS_BOUNDS, Blocks
from almanac.core.errors import IntegrityError, ParityError, UnsupportedError
from almanac.core.site import Leaf
from almanac.files.gguf.formats import format_named
from almanac.files.gguf.writer import write_gguf
from almanac.files.safetensors import open_safetensors, write_safetensors
from almanac.files.staging import move_into_place, staging
from almanac.files.store import sync_folder, write_atomic
from almanac.language_model.load import load_gguf
from almanac.language_model.save import save
from almanac.models.gguf_file import Row, described, fused, gguf_order, laid_out
from almanac.models.hub_folder import family_of
from almanac.models.tensor_layout import Same
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.nn.linear import Linear
from almanac.nn.linear_maps import linear_maps
from almanac.nn.stack import Decoder
from almanac.nn.stored.blocks import BlockWeight
from almanac.tokenizers.gguf import to_gguf_metadata
from almanac.verify import certificate as certificates
from almanac.verify.parity import EQUAL, require_equal, require_within
from almanac.verify.probes import divergence, probe_ids, probe_logits, template_answers, tokenizer_answers

if TYPE_CHECKING:
    from almanac.language_model.model import LanguageModel

FORMATS = ("hf", "gguf", "peft")
UNUSED = 5  # GGUF's type of a token that stands for nothing


def export(lm: LanguageModel, path: Path, *, format: str, quantization: str | None = None) -> Path:
    """Writes ``lm`` to ``path`` in a foreign format; ``lm`` itself is not changed.

    Args:
        quantization: for gguf, the format of the matrices (``F16``, ``Q8_0``, ``Q4_K``, ...); None keeps packed weights
            packed bit for bit and writes dense ones as F16.

    Raises:
        UnsupportedError: unknown format, or something the format cannot express (never silently dropped).
        ParityError: what was read back is another model; nothing is left, and an older file or folder stays.
    """
    if format not in FORMATS:
        raise UnsupportedError(f"Format {format!r}", remedy=f"Choose one of {', '.join(FORMATS)}.")
    if quantization is not None and format != "gguf":
        raise UnsupportedError(f"{format} with quantization", remedy="Quantization belongs to gguf.")
    if isinstance(lm.spec, EncoderDecoder.Spec) and format != "hf":
        raise UnsupportedError(f"An encoder-decoder as {format}", remedy="Export it as hf.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "peft":
        return export_peft(lm, path)
    if format == "hf":
        dense = merged(lm)
        if isinstance(dense.spec, Decoder.Spec) and family_of(dense.spec, dense.family) is None:
            raise UnsupportedError("The hub knows no family for this spec", remedy="Save it as an almanac folder.")
        return save(dense, path)
    return export_gguf(lm, path, quantization)


def merged(lm: LanguageModel) -> LanguageModel:
    """A dense copy with all adapters folded in."""
    copied = replace(lm, network=copy.deepcopy(lm.network), provenance=copy.deepcopy(lm.provenance)).fold()
    if copied.plan.techniques:
        left = copied.plan.techniques[0].title
        raise UnsupportedError(f"A model with {left} in a foreign format", remedy="Save it as an almanac folder.")
    return copied


def export_gguf(lm: LanguageModel, path: Path, quantization: str | None) -> Path:
    """One GGUF file with tokenizer and template inside, and its certificate beside it."""
    keep = quantization is None and all(isinstance(step, Blocks) for step in lm.plan.techniques)
    source = lm if keep else merged(lm)
    family, metadata, more = described(source.spec, lm.family)
    rows: list[tuple[str, Row]] = []
    worst = 0.0
    for name, leaf_format, tensor, shape in _rows(source, quantization or "F16", laid_out(family, source.spec)):
        for target, ordered in gguf_order(name, tensor, family, source.spec):
            rows.append((target, (name, leaf_format, ordered, tuple(ordered.shape) if leaf_format == "F32" else shape)))
        packed_already = keep and leaf_format not in ("F16", "F32")
        worst = max(worst, 0.0 if packed_already else LOSS_BOUNDS.get(leaf_format, 0.0))
    tensors = fused(rows, family, source.spec)
    tensors |= {name: ("F32", tensor, tuple(tensor.shape)) for name, tensor in more.items()}
    metadata |= _words(source)
    metadata |= {"general.name": str(lm.provenance.get("source", "almanac")), "general.quantization_version": 2}
    with staging(path) as scratch:
        made = scratch / path.name
        write_gguf(made, metadata, tensors)
        _seal_gguf(lm, made, worst)
        for place in sorted(scratch.iterdir()):  # the model before its certificate
            place.replace(path.with_name(place.name))
        sync_folder(path.parent)
    return path


def export_peft(lm: LanguageModel, path: Path) -> Path:
    """A folder with adapter_config.json and adapter_model.safetensors, for one LoRA of the plan."""
    adapters = [step for step in lm.plan.techniques if isinstance(step, Lora)]
    if len(adapters) != 1:
        raise UnsupportedError(f"A model with {len(adapters)} LoRAs as one PEFT folder", remedy="Keep exactly one.")
    lora, known = adapters[0], family_of(lm.spec, lm.family)
    if known is None:
        raise UnsupportedError("The hub knows no family for this spec", remedy="Save it as an almanac folder.")
    names = {row.ours: row.safetensors for row in known[0].rows(lm.spec) if row.layout == Same()}
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    for site_path, site in linear_maps(lm.network, lora.targets).items():
        wrapper = site.wrapper(lora.name)
        assert isinstance(wrapper, LowRank)
        if not isinstance(site, Linear):
            raise UnsupportedError(
                f"{site_path} holds many matrices, for each of which there is an update, as PEFT has no form for",
                remedy="Save it as an almanac folder, or merge it and export in the hf format.",
            )
        if not isinstance(name := names.get(site_path), str):
            raise UnsupportedError(
                f"{site_path} is a part of a fused tensor of {known[0].model_type}, which PEFT adapts as a whole",
                remedy="Save it as an almanac folder, or merge it and export in the hf format.",
            )
        modules.append(name)
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = wrapper.a.detach()
        tensors[f"{prefix}.lora_B.weight"] = wrapper.b.detach()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": lm.provenance.get("source"),
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": sorted(modules),
        "bias": "none", "inference_mode": True, "fan_in_fan_out": False, "init_lora_weights": True,
    }  # fmt: skip
    with staging(path) as scratch:
        write_atomic(scratch / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())
        write_safetensors(scratch / "adapter_model.safetensors", tensors)
        again = open_safetensors(scratch / "adapter_model.safetensors")
        if any(not again[name].equal(tensor) for name, tensor in tensors.items()):
            raise IntegrityError("The adapter read back is another", remedy="Check the disk; nothing was kept.")
        move_into_place(scratch, path)
    return path


def _words(lm: LanguageModel) -> dict[str, Any]:
    """The tokenizer's metadata, with a name for every row of the embedding: readers count rows by the tokens."""
    metadata = to_gguf_metadata(lm.tokenizer)
    prefix, size = "tokenizer.ggml.", lm.spec.embed.vocab_size
    fillers = {"tokens": [f"[PAD{id}]" for id in range(size)], "token_type": [UNUSED] * size, "scores": [0.0] * size}
    for name in fillers.keys() & {key.removeprefix(prefix) for key in metadata}:
        known = metadata[prefix + name]
        metadata[prefix + name] = [*known, *fillers[name][len(known) :]]
    return metadata


def _rows(lm: LanguageModel, chosen: str, dense: Collection[str]) -> list[Row]:
    """A row for every parameter, in module order; the weights of the modules ``dense`` as they are."""
    out: list[Row] = []
    leaves = {path: module for path, module in lm.network.named_modules() if isinstance(module, Leaf)}
    seen: set[str] = set()
    for name, parameter in lm.network.named_parameters():
        owner = name.removesuffix(".codes").removesuffix(".weight")
        leaf = leaves.get(owner)
        if leaf is not None and (owner in dense or isinstance(leaf.weight, BlockWeight)):
            if owner in seen:
                continue
            seen.add(owner)
            if owner in dense:
                out.append((f"{owner}.weight", "F32", leaf.dense_weight().detach().float(), tuple(leaf.shape)))
            elif isinstance(leaf.weight, BlockWeight):
                out.append((f"{owner}.weight", leaf.weight.format.name, leaf.weight.codes.detach(), tuple(leaf.shape)))
        elif leaf is not None and parameter is leaf.weight and parameter.dim() >= 2:
            format = _fitting(chosen, parameter.shape[-1], is_embedding=owner in ("embed", "head.projection"))
            out.append((name, format, parameter.detach(), tuple(parameter.shape)))
        else:
            out.append((name, "F32", parameter.detach().float(), tuple(parameter.shape)))
    return out


def _fitting(chosen: str, columns: int, *, is_embedding: bool) -> str:
    """The chosen format where its blocks divide the row; embeddings, on which all logits hang, get 8 bits for 4 or 5."""
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
    _require_same_words(lm, again)
    certificates.write(sealed, path.with_name(f"{path.name}.{certificates.NAME}"))


def _require_same_words(lm: LanguageModel, again: LanguageModel) -> None:
    """The tokenizer and the template inside the file must read, end and write as the model's own."""
    remedy = "Export as hf and report the tokenizer."
    if tokenizer_answers(lm) != tokenizer_answers(again):
        raise ParityError("The tokenizer in the GGUF file reads otherwise", remedy=remedy)
    if lm.tokenizer.special.stop != again.tokenizer.special.stop:
        raise ParityError("The tokens that end a generation are others in the GGUF file", remedy=remedy)
    before, after = template_answers(lm), template_answers(again)
    if (before is None) != (after is None) or (before and after and before["rendered"] != after["rendered"]):
        raise ParityError("The chat template in the GGUF file writes otherwise", remedy=remedy)
