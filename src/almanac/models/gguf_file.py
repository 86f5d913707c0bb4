"""GGUF files as models: metadata to a configuration and back, tensor names, and the order of rotary rows.

GGUF files of the llama architecture store the rows of each query and key head as neighbouring rotary pairs
(x_0, x_{d/2}, x_1, ...), because ggml rotates neighbours; we rotate halves. Rows are whole blocks, so they can be put back
in order without unpacking; the same for the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.gguf.reader import GGUF, GGUFTensor, read_gguf
from almanac.models.checkpoint import ForeignCheckpoint, Packed, describing, drop_tied_head
from almanac.models.family import Config, Family, Fields, family_for_gguf
from almanac.nn.attention.full import Attention
from almanac.nn.block import Block
from almanac.nn.positions import rope
from almanac.nn.stack import Decoder

FREQUENCY_FACTORS = "rope_freqs.weight"
DENSE_FORMATS = ("F32", "F16", "BF16")
_REMEDY = "Fetch the model again, or use its safetensors form."


def read_gguf_file(path: Path) -> tuple[ForeignCheckpoint, GGUF]:
    """Reads a GGUF model; weights stay packed and mapped.

    Raises:
        FileFormatError: damaged file or tensors that are not this architecture's. ArchitectureError: unknown one.
        UnsupportedError: a feature that would be silently lost.
    """
    file = read_gguf(path)
    family = family_for_gguf(str(file.metadata.get("general.architecture")))
    prefix = f"{family.gguf}."
    values = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    metadata = Fields(values, str(path))
    with describing(path):
        spec = family.read(Fields(gguf_config(metadata, file.tensors), str(path)))
        _require_whole_rotation(spec)
    if (factors := file.tensors.get(FREQUENCY_FACTORS)) is not None:
        spec = with_factors(spec, tuple(float(value) for value in factors.dense().flatten()))
    keys = {key.gguf: key for key in family.rows(spec) if key.gguf}
    tensors: dict[str, Tensor | Packed] = {}
    for name, stored in file.tensors.items():
        if name == FREQUENCY_FACTORS:
            continue
        owner, _, leaf = name.rpartition(".")
        key = keys.get(owner)
        if key is None or leaf not in ("weight", "bias"):
            raise FileFormatError(
                f"{path}: {name!r} is no tensor of a {family.gguf}",
                remedy="This variant of the architecture is not known here; use another file of the model.",
            )
        with describing(path):
            (owner,) = key.our_names
            tensors[f"{owner}.{leaf}"] = _tensor(stored, _head_dim(spec, owner) if key.interleaved else None)
    drop_tied_head(spec, tensors)
    return ForeignCheckpoint(family, spec, tensors, metadata.not_understood()), file


def gguf_config(metadata: Fields, tensors: Mapping[str, GGUFTensor]) -> Config:
    """The hub configuration that a GGUF's metadata (without the architecture's prefix) amounts to."""
    heads, hidden = metadata.integer("attention.head_count"), metadata.integer("embedding_length")
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise FileFormatError("The GGUF file has no token_embd.weight", remedy="Fetch a complete model file.")
    head_dim = metadata.integer("attention.key_length", hidden // heads)
    if metadata.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{metadata.origin}: values of another length than keys", remedy=_REMEDY)
    context = metadata.integer("context_length")
    if 0 < metadata.integer("attention.sliding_window", context, low=0) < context:
        raise UnsupportedError(f"{metadata.origin}: a sliding window in GGUF", remedy=_REMEDY)
    rotary_dim = metadata.integer("rope.dimension_count", head_dim)
    if rotary_dim % 2 or int(head_dim * (rotary_dim / head_dim)) != rotary_dim:
        raise UnsupportedError(f"{metadata.origin}: {rotary_dim} rotary dimensions", remedy=_REMEDY)
    metadata.any("vocab_size")  # the embedding's own size counts
    return {
        "hidden_size": hidden,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count", high=10_000),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "partial_rotary_factor": rotary_dim / head_dim,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": context,
        "vocab_size": embed.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors and "blk.0.attn_output.bias" in tensors,
        "rope_parameters": _rotary(metadata, scaled="rope_freqs.weight" in tensors),
    }


def _rotary(metadata: Fields, *, scaled: bool) -> Config:
    """The ``rope_parameters``; ``scaled``: the file brings factors of its own."""
    rotary: Config = {"rope_theta": metadata.number("rope.freq_base", 10_000.0), "rope_type": "default"}
    # llama.cpp takes a factor without a type for a linear one
    default = "none" if metadata.any("rope.scaling.factor") is None else "linear"
    kind = metadata.any("rope.scaling.type", default)
    metadata.any("rope.scaling.original_context_length")
    if kind not in ("none", "linear") or (kind == "linear" and scaled):
        raise UnsupportedError(f"{metadata.origin}: rope scaling {kind!r}", remedy=_REMEDY)
    if kind == "linear":
        rotary |= {"rope_type": "linear", "factor": metadata.number("rope.scaling.factor")}
    return rotary


def gguf_metadata(spec: Decoder.Spec, config: Config, family: Family) -> dict[str, Any]:
    """The architecture's metadata for a spec written as ``config`` by its family.

    Raises UnsupportedError for what the format has no field for.
    """
    prefix = f"{family.gguf}."
    rotary = config["rope_parameters"]
    if config.get("use_sliding_window") or config.get("mlp_bias") or config.get("hidden_act") != "silu":
        raise UnsupportedError(
            "GGUF has no field for this model's windows, channel biases or activation",
            remedy="Export it in another format; a GGUF file would silently be another model.",
        )
    _require_whole_rotation(spec)
    metadata: dict[str, Any] = {
        "general.architecture": family.gguf,
        prefix + "block_count": config["num_hidden_layers"],
        prefix + "context_length": config["max_position_embeddings"],
        prefix + "embedding_length": config["hidden_size"],
        prefix + "feed_forward_length": config["intermediate_size"],
        prefix + "attention.head_count": config["num_attention_heads"],
        prefix + "attention.head_count_kv": config["num_key_value_heads"],
        prefix + "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        prefix + "rope.freq_base": rotary["rope_theta"],
        prefix + "rope.dimension_count": _rotary_dim(spec),
        prefix + "vocab_size": config["vocab_size"],
    }
    head_dim = _head_dim(spec, "layers.0.mixer.q")
    metadata |= {prefix + "attention.key_length": head_dim, prefix + "attention.value_length": head_dim}
    if rotary["rope_type"] == "linear":
        metadata |= {prefix + "rope.scaling.type": "linear", prefix + "rope.scaling.factor": rotary["factor"]}
    return metadata


def gguf_order(name: str, tensor: Tensor, family: Family, spec: Decoder.Spec) -> tuple[str, Tensor]:
    """Our name and rows -> the GGUF name, and rows in the order that ggml rotates."""
    owner, _, leaf = name.rpartition(".")
    keys = {key.ours: key for key in family.rows(spec) if key.gguf}
    if (key := keys.get(owner)) is None:
        raise UnsupportedError(f"GGUF has no name for {owner}", remedy="Export in another format.")
    if key.interleaved:
        tensor = interleave(tensor, _head_dim(spec, owner))
    return f"{key.gguf}.{leaf}", tensor


def frequency_factors(spec: Decoder.Spec) -> Tensor | None:
    """The ``rope_freqs`` tensor float32 [rotary/2] of scalings that GGUF can only tell as factors, or None."""
    position = _mixer(spec, 0).position
    if position is None or position.scaling is None or isinstance(position.scaling, rope.Linear):
        return None
    if isinstance(position.scaling, rope.Factors):  # as they came: dividing them out again would round
        return torch.tensor(position.scaling.factors)
    return rope.frequencies(position.with_(scaling=None)) / rope.frequencies(position)


def with_factors(spec: Decoder.Spec, factors: tuple[float, ...]) -> Decoder.Spec:
    """The spec with every rotary frequency divided by its factor. Raises FileFormatError if they cannot be that."""
    if len(factors) != _rotary_dim(spec) // 2 or not all(0 < factor < float("inf") for factor in factors):
        raise FileFormatError(
            f"{FREQUENCY_FACTORS} holds {len(factors)} factors that do not fit {_rotary_dim(spec)} rotary dimensions",
            remedy=_REMEDY,
        )
    return spec.replace("layers.*.mixer.position", scaling=rope.Factors(factors=factors))


def without_factors(spec: Decoder.Spec) -> Decoder.Spec:
    """The spec less the factors that travel beside the metadata; a family has no field for them."""
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer, Block.Spec)]
    positions = [mixer.position for mixer in mixers if isinstance(mixer, Attention.Spec)]
    if any(position is not None and isinstance(position.scaling, rope.Factors) for position in positions):
        return spec.replace("layers.*.mixer.position", scaling=None)
    return spec


def interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Half-split rows [heads · head_dim, ...] -> rows as neighbouring pairs."""
    return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def deinterleave(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse of :func:`interleave`."""
    return rows.view(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _require_whole_rotation(spec: Decoder.Spec) -> None:
    """llama.cpp refuses (llama) or ends itself over (qwen2) heads of which only a part is rotated."""
    if _rotary_dim(spec) != _head_dim(spec, "layers.0.mixer.q"):
        raise UnsupportedError("A GGUF file cannot rotate a part of each head", remedy="Use the safetensors form.")


def _tensor(stored: GGUFTensor, head_dim: int | None) -> Tensor | Packed:
    if len(stored.shape) == 2 and stored.format.name not in DENSE_FORMATS:
        blocks = stored.blocks()
        blocks = deinterleave(blocks, head_dim) if head_dim else blocks
        return Packed(blocks, stored.format.name, tuple(stored.shape))
    dense = stored.dense()
    return (deinterleave(dense, head_dim) if head_dim else dense).to(torch.float32)


def _mixer(spec: Decoder.Spec, layer: int) -> Attention.Spec:
    block = spec.layers[layer]
    if not (isinstance(block, Block.Spec) and isinstance(block.mixer, Attention.Spec)):
        raise UnsupportedError("GGUF is defined for attention layers here", remedy="Export in the almanac format.")
    return block.mixer


def _head_dim(spec: Decoder.Spec, path: str) -> int:
    return _mixer(spec, int(path.split(".")[1])).head_dim


def _rotary_dim(spec: Decoder.Spec) -> int:
    positions = [_mixer(spec, index).position for index in range(len(spec.layers))]
    if any(position is None for position in positions) or positions[0] is None:
        raise UnsupportedError("GGUF has no field for layers without positions", remedy="Export in another format.")
    return positions[0].rotary_dim
