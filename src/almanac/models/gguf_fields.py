"""What a GGUF file says of a model in its metadata, to and from the configuration that the hub would have.

A family that has an architecture in GGUF declares a `GgufFields` beside it; what it leaves out is as for Llama. Its two
directions need not be careful: `gguf_file.described` reads back what it writes and takes nothing that gives another spec.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from almanac.core.errors import UnsupportedError

if TYPE_CHECKING:
    from almanac.models.family import Fields, Keys

Config = dict[str, Any]
FACTORS = "rope_freqs.weight"
REMEDY = "Fetch the model again, or use its safetensors form."
_STACK = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
}  # fmt: skip
_HEADS = {
    **_STACK, "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}  # fmt: skip
_NONE = {"feed_forward_length": 0, "attention.head_count": 0}
"""What files of models without heads say all the same, since readers ask."""


@dataclass(frozen=True)
class Entry:
    """One field in both places; ``kind`` is a reader of `Fields`. With a ``default`` of None it may be absent."""

    gguf: str
    config: str
    kind: str = "number"
    needed: bool = True


RMS_EPSILON = Entry("attention.layer_norm_rms_epsilon", "rms_norm_eps")
LAYER_EPSILON = Entry("attention.layer_norm_epsilon", "layer_norm_eps")


BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_gate.bias"}


def as_it_is(config: Config) -> Config:
    """The configuration as it is."""
    return config


def read_heads(metadata: Fields) -> Config:
    """The sizes of a model whose layers have heads and channels."""
    heads, hidden = metadata.integer("attention.head_count"), metadata.integer("embedding_length")
    head_dim = metadata.integer("attention.key_length", hidden // heads)
    if metadata.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{metadata.origin}: values of another length than keys", remedy=REMEDY)
    return read_stack(metadata) | {
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
    }


def write_heads(config: Config, head_dim: int) -> Config:
    """The inverse of `read_heads`."""
    metadata = {gguf: config[name] for gguf, name in _HEADS.items() if name in config}
    metadata.setdefault("attention.head_count_kv", config["num_attention_heads"])
    return metadata | {"attention.key_length": head_dim, "attention.value_length": head_dim}


def read_stack(metadata: Fields) -> Config:
    """The sizes of a model of which nothing more is known than that it is a stack of layers."""
    metadata.pass_over(*_NONE)
    return {
        "hidden_size": metadata.integer("embedding_length"),
        "num_hidden_layers": metadata.integer("block_count", high=10_000),
        "max_position_embeddings": metadata.integer("context_length"),
    }


def write_stack(config: Config, head_dim: int) -> Config:
    """The inverse of `read_stack`."""
    return {gguf: config[name] for gguf, name in _STACK.items()} | _NONE


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How the metadata tell a model's sizes: ``read(metadata)`` gives a configuration, ``write(config, head_dim)``
    metadata."""

    read: Callable[[Fields], Config]
    write: Callable[[Config, int], Config]


HEADS = Sizes(read=read_heads, write=write_heads)
STACK = Sizes(read=read_stack, write=write_stack)


def nothing_more(config: Config, tensors: Collection[str]) -> Config:
    """The configuration, of which the tensors tell nothing."""
    return config


@dataclass(frozen=True, kw_only=True)
class GgufFields:
    """How an architecture's metadata and its family's configuration correspond.

    - ``sizes``: how many layers of what kinds and widths, by default with heads
    - ``entries``: fields beside the sizes and the rotary positions
    - ``implied``: what every file of the architecture means and none says
    - ``flags``: configuration flags told by a tensor's being there
    - ``told(config, tensors)``: what else the names of the tensors tell, such as which layers are of which kind
    - ``renamed``: the family's own spelling of what Llama's configuration calls otherwise
    - ``inward(config)``, ``outward(config)``: what is left to do after reading and before writing
    - ``needs``: fields without which, or without a value of which, a file belongs to another family of the architecture
    - ``windows``: layers may have windows; ``partial``: heads may be turned in part; ``factors``: scalings that only a
      tensor of factors tells; ``rotary``: there are such positions at all
    - ``tables``: LongRope's two tables of factors may lie beside the weights
    - ``keys``: the name table where it is another than the family's
    """

    sizes: Sizes = HEADS
    entries: tuple[Entry, ...] = (RMS_EPSILON,)
    implied: Config = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=lambda: dict(BIASES))
    told: Callable[[Config, Collection[str]], Config] = nothing_more
    renamed: Mapping[str, str] = field(default_factory=dict)
    inward: Callable[[Config], Config] = as_it_is
    outward: Callable[[Config], Config] = as_it_is
    needs: tuple[str | tuple[str, int], ...] = ()
    windows: bool = False
    partial: bool = False
    factors: bool = True
    tables: bool = False
    rotary: bool = True
    keys: Keys | None = None

    def fits(self, metadata: Mapping[str, object], architecture: str) -> bool:
        """Whether a file's metadata have all that is needed."""
        told = [(need, None) if isinstance(need, str) else need for need in self.needs]
        found = [(metadata.get(f"{architecture}.{name}"), value) for name, value in told]
        return all(bool(there) if value is None else there == value for there, value in found)

    def read(self, metadata: Fields, vocab_size: int, tensors: Collection[str]) -> Config:
        """The configuration that metadata (less the architecture's prefix) amount to; ``tensors``: the names there."""
        sizes = self.sizes.read(metadata)
        config: Config = {"vocab_size": vocab_size, **sizes, "tie_word_embeddings": "output.weight" not in tensors}
        metadata.any("vocab_size")  # the embedding's own size counts
        context = sizes["max_position_embeddings"]
        if not self.windows and 0 < metadata.integer("attention.sliding_window", context, low=0) < context:
            raise UnsupportedError(f"{metadata.origin}: a sliding window in GGUF", remedy=REMEDY)
        if self.rotary:
            share = _rotary_dim(metadata, config["head_dim"]) / config["head_dim"]
            config |= {"partial_rotary_factor": share, "rope_parameters": _rotary(metadata, scaled=FACTORS in tensors)}
        config |= {flag: tensor in tensors for flag, tensor in self.flags.items()}
        for entry in self.entries:
            if entry.needed or metadata.any(entry.gguf) is not None:
                config[entry.config] = getattr(metadata, entry.kind)(entry.gguf)
        config = self.told(config, tensors)
        config = {self.renamed.get(name, name): value for name, value in config.items()}
        return self.inward({**config, **self.implied})

    def write(self, config: Config, head_dim: int, rotary_dim: int) -> Config:
        """The metadata, less the prefix, of a configuration that the family wrote."""
        own = {theirs: ours for ours, theirs in self.renamed.items()}
        config = {own.get(name, name): value for name, value in self.outward(config).items()}
        metadata = self.sizes.write(config, head_dim)
        for entry in self.entries:
            if (value := config.get(entry.config)) is not None:
                metadata[entry.gguf] = float(value) if entry.kind == "number" else value
        if self.rotary:
            metadata |= _written_rotary(config["rope_parameters"]) | {"rope.dimension_count": rotary_dim}
        return metadata | {"vocab_size": config["vocab_size"]}


def _rotary_dim(metadata: Fields, head_dim: int) -> int:
    rotary_dim = metadata.integer("rope.dimension_count", head_dim)
    if rotary_dim % 2 or int(head_dim * (rotary_dim / head_dim)) != rotary_dim:
        raise UnsupportedError(f"{metadata.origin}: {rotary_dim} rotary dimensions", remedy=REMEDY)
    return rotary_dim


def _rotary(metadata: Fields, *, scaled: bool) -> Config:
    """The ``rope_parameters``; ``scaled``: the file brings factors of its own."""
    rotary: Config = {"rope_theta": metadata.number("rope.freq_base", 10_000.0), "rope_type": "default"}
    # llama.cpp takes a factor without a type for a linear one
    factor = metadata.any("rope.scaling.factor")
    kind = metadata.any("rope.scaling.type", "none" if factor is None else "linear")
    metadata.any("rope.scaling.original_context_length")
    known = kind == "none" or (kind in ("linear", "yarn") and factor is not None and not scaled)
    if not known:
        raise UnsupportedError(f"{metadata.origin}: rope scaling {kind!r}", remedy=REMEDY)
    if kind == "none":
        return rotary
    rotary |= {"rope_type": kind, "factor": metadata.number("rope.scaling.factor")}
    if kind == "yarn":
        rotary["original_max_position_embeddings"] = metadata.integer("rope.scaling.original_context_length")
        rotary["beta_fast"] = metadata.number("rope.scaling.yarn_beta_fast", 32.0)
        rotary["beta_slow"] = metadata.number("rope.scaling.yarn_beta_slow", 1.0)
    return rotary


def _written_rotary(rotary: Config) -> Config:
    out: Config = {"rope.freq_base": rotary["rope_theta"]}
    if rotary["rope_type"] not in ("linear", "yarn"):
        return out
    out |= {"rope.scaling.type": rotary["rope_type"], "rope.scaling.factor": float(rotary["factor"])}
    if rotary["rope_type"] == "yarn":
        out["rope.scaling.original_context_length"] = rotary["original_max_position_embeddings"]
        if (rotary["beta_fast"], rotary["beta_slow"]) != (32.0, 1.0):
            out["rope.scaling.yarn_beta_fast"] = float(rotary["beta_fast"])
            out["rope.scaling.yarn_beta_slow"] = float(rotary["beta_slow"])
    return out
