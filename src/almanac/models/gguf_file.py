"""GGUF files as models: metadata to a configuration and back, tensor names, and the order of rotary rows.

GGUF files of the llama architecture store the rows of each query and key head as neighbouring rotary pairs
(x_0, x_{d/2}, x_1, ...), because ggml rotates neighbours; we rotate halves. Rows are whole blocks, so they can be put back
in order without unpacking; the same for the bias. What a family's files fuse lies row after row in one tensor, and gains
that we keep as what they add to 1 are stored whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor

from almanac.core.errors import AlmanacError, FileFormatError, UnsupportedError
from almanac.files.gguf.reader import GGUF, GGUFTensor, read_gguf
from almanac.models.checkpoint import ForeignCheckpoint, Packed, describing, drop_tied_head
from almanac.models.family import Family, Fields, Key, expand, families, family_for_gguf
from almanac.models.gguf_fields import FACTORS as FREQUENCY_FACTORS
from almanac.models.gguf_fields import REMEDY
from almanac.models.hub_folder import shapes_of
from almanac.models.tensor_layout import LEAVES, Same
from almanac.nn.attention.full import Attention
from almanac.nn.norm import RMSNorm
from almanac.nn.positions import rope
from almanac.nn.stack import Decoder

TABLES = ("rope_factors_short.weight", "rope_factors_long.weight")
BESIDE = (FREQUENCY_FACTORS, *TABLES)
ORIGINAL, TEMPERATURE = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
DENSE_FORMATS = ("F32", "F16", "BF16")
Row = tuple[str, str, Tensor, tuple[int, ...]]
"""(name, GGUF format, tensor packed or dense, dense shape)"""


def read_gguf_file(path: Path) -> tuple[ForeignCheckpoint, GGUF]:
    """Reads a GGUF model; weights stay packed and mapped.

    Raises:
        FileFormatError: damaged file or tensors that are not this architecture's. ArchitectureError: unknown one.
        UnsupportedError: a feature that would be silently lost.
    """
    file = read_gguf(path)
    family = _family_of_file(file)
    metadata = _fields(file.metadata, family, str(path))
    with describing(path):
        spec = _read_spec(family, metadata, _vocab_size(file.tensors), file.tensors)
    if len(spec.layers) > len(file.tensors):  # before any is built: a lie about their number must not cost memory
        raise FileFormatError(
            f"{path}: {len(spec.layers):,} layers are declared and {len(file.tensors):,} tensors given",
            remedy="Fetch the model again; the file is damaged.",
        )
    beside = {name: file.tensors[name].dense() for name in BESIDE if name in file.tensors}
    spec = scaled(spec, beside, metadata)
    with describing(path):
        keys, shapes = by_stored_name(family, spec), shapes_of(spec)
    offsets = _offsets(spec)
    tensors: dict[str, Tensor | Packed] = {}
    for name, stored in file.tensors.items():
        if name in BESIDE:
            continue
        if name not in keys:
            raise FileFormatError(
                f"{path}: {name!r} is no tensor of a {family.gguf}",
                remedy="This variant of the architecture is not known here; use another file of the model.",
            )
        key, leaf = keys[name]
        together = [file.tensors.get(item) for item in key.gguf_of(leaf)]
        if None in together:
            raise FileFormatError(
                f"{path}: {name!r} lacks what belongs to it", remedy="Fetch the complete model again."
            )
        if stored is not together[0]:
            continue  # read with the first
        with describing(path):
            heads = _head_dim(spec, key.our_names[0]) if key.interleaved else None
            for part, tensor in _parts(key, leaf, [item for item in together if item], shapes):
                tensors[part] = _ours(tensor, stored, heads, offsets.get(part, 0.0))
    drop_tied_head(spec, tensors)
    return ForeignCheckpoint(family, spec, tensors, metadata.not_understood()), file


def described(spec: Decoder.Spec, preferred: str | None = None) -> tuple[Family, dict[str, Any], dict[str, Tensor]]:
    """The family whose GGUF files can hold a model of ``spec``, the file's metadata, and tensors that are no weights.

    ``preferred`` first. Raises UnsupportedError if there is none: a file would silently be another model.
    """
    more, beside = untold(spec)
    told = spec.replace("layers.*.mixer.position", scaling=None) if beside else spec
    names = [name.rpartition(".") for name in shapes_of(told)]
    refusal: AlmanacError | None = None
    for family in sorted(families(), key=lambda family: family.model_type != preferred):
        known = TABLES * family.gguf_fields.tables + (FREQUENCY_FACTORS,) * family.gguf_fields.factors
        if family.gguf is None or not beside.keys() <= set(known):
            continue
        try:
            metadata = _metadata(family, told)
            keys = by_name(family, told)
            there = {stored for owner, _, leaf in names for stored in _known(keys, owner).gguf_of(leaf)}
            read = _read_spec(family, _fields(metadata, family, "the file"), told.embed.vocab_size, there)
        except (AlmanacError, LookupError, TypeError, ValueError) as error:
            if family.model_type == preferred and isinstance(error, UnsupportedError):
                refusal = error
            continue
        if read == told and _family_among(family.gguf, metadata) is family:
            require_room(metadata, there)
            return family, metadata | {f"{family.gguf}.{name}": value for name, value in more.items()}, beside
    raise refusal or UnsupportedError(
        f"GGUF has no architecture for this {preferred or 'model'} (its windows, scales, layers without positions or "
        "biases would be lost)",
        remedy="Export as hf instead.",
    )


def require_room(metadata: Mapping[str, Any], tensors: Collection[str]) -> None:
    """Raises UnsupportedError for so many chosen experts that llama.cpp would end the process.

    It lays out room for as many operations as 8 a tensor, 1,024 at least, and adds up chosen experts by operations of their
    own: about 3 each beside 30 of a layer, as measured with its release of 2026 (ours computed the same below the bound).
    """
    chosen = max((value for name, value in metadata.items() if name.endswith(".expert_used_count")), default=0)
    split = sum(name.endswith("ffn_gate_inp.weight") for name in tensors)
    layers = max((value for name, value in metadata.items() if name.endswith(".block_count")), default=0)
    if chosen and 30 * layers + 3 * chosen * split > max(1024, 8 * len(tensors)):
        raise UnsupportedError(
            f"{chosen} chosen experts in each of {split} layers: llama.cpp has no room for so many operations",
            remedy="Export as hf instead.",
        )


def _metadata(family: Family, spec: Decoder.Spec) -> dict[str, Any]:
    config = family.write(spec)
    if config is None:
        raise LookupError(f"no {family.model_type}")
    values = family.gguf_fields.write(config, _first_head_dim(spec), _rotary_dim(spec))
    return {"general.architecture": family.gguf, **{f"{family.gguf}.{name}": value for name, value in values.items()}}


def _read_spec(family: Family, metadata: Fields, vocab_size: int, tensors: Collection[str]) -> Decoder.Spec:
    fields = family.gguf_fields
    spec = family.read(Fields(fields.read(metadata, vocab_size, tensors), metadata.origin))
    # llama.cpp refuses (llama) or ends itself over (qwen2) heads of which only a part is rotated
    if fields.rotary and not fields.partial and _rotary_dim(spec) != _first_head_dim(spec):
        raise UnsupportedError("A GGUF file cannot rotate a part of each head", remedy="Use the safetensors form.")
    return spec


def _fields(metadata: Mapping[str, object], family: Family, origin: str) -> Fields:
    prefix = f"{family.gguf}."
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    lists = {name: value.tolist() for name, value in values.items() if isinstance(value, np.ndarray)}
    return Fields(values | lists, origin)


def _family_of_file(file: GGUF) -> Family:
    architecture = str(file.metadata.get("general.architecture"))
    return _family_among(architecture, file.metadata) or family_for_gguf(architecture)


def _family_among(architecture: str, metadata: Mapping[str, object]) -> Family | None:
    """Of the families that share an architecture, the one whose needs are met and that has most of them."""
    fitting = [
        family
        for family in families()
        if family.gguf == architecture and family.gguf_fields.fits(metadata, architecture)
    ]
    return max(fitting, key=lambda family: len(family.gguf_fields.needs), default=None)


def _vocab_size(tensors: Mapping[str, GGUFTensor]) -> int:
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise FileFormatError("The GGUF file has no token_embd.weight", remedy="Fetch a complete model file.")
    return embed.shape[0]


def gguf_rows(family: Family, spec: Decoder.Spec) -> list[Key]:
    """The rows of the family's name table that GGUF has names for."""
    keys = family.gguf_fields.keys
    if keys is None:
        return [key for key in family.rows(spec) if key.gguf]
    return [key for key in expand(keys if isinstance(keys, tuple) else keys(spec), len(spec.layers)) if key.gguf]


def by_name(family: Family, spec: Decoder.Spec) -> dict[str, Key]:
    """Our modules -> the rows that have them."""
    return {name: key for key in gguf_rows(family, spec) for name in key.our_names}


def by_stored_name(family: Family, spec: Decoder.Spec) -> dict[str, tuple[Key, str]]:
    """Names of tensors in GGUF -> their rows, and which of ``weight`` and ``bias`` they are."""
    rows = gguf_rows(family, spec)
    both = ((key, leaf) for key in rows for leaf in (LEAVES[:1] if key.bare else LEAVES))
    return {name: (key, leaf) for key, leaf in both for name in key.gguf_of(leaf)}


def laid_out(family: Family, spec: Decoder.Spec) -> set[str]:
    """Our modules whose numbers GGUF holds in another arrangement than ours: these travel dense, as F32."""
    return {name for name, key in by_name(family, spec).items() if key.layout != Same()}


def _known(keys: Mapping[str, Key], owner: str) -> Key:
    if (found := keys.get(owner)) is None:
        raise UnsupportedError(f"GGUF has no name for {owner}", remedy="Export in another format.")
    return found


def gguf_order(name: str, tensor: Tensor, family: Family, spec: Decoder.Spec) -> list[tuple[str, Tensor]]:
    """Our name and rows -> the GGUF name, and rows in the order that ggml rotates, gains whole; or the tensors that a
    layout makes of a dense one."""
    owner, _, leaf = name.rpartition(".")
    key = _known(by_name(family, spec), owner)
    if key.interleaved:
        tensor = interleave(tensor, _head_dim(spec, owner))
    if offset := _offsets(spec).get(name):
        tensor = tensor + offset
    return list(zip(key.gguf_of(leaf), key.layout.write([tensor]), strict=True))


def fused(rows: Sequence[tuple[str, Row]], family: Family, spec: Decoder.Spec) -> dict[str, tuple[str, Tensor, Any]]:
    """(GGUF name, row of ours) pairs -> the file's tensors: those of one name one after another, as the table has them.

    Raises UnsupportedError for parts packed in different formats.
    """
    places = {name: place for key in gguf_rows(family, spec) for place, name in enumerate(key.our_names)}
    together: dict[str, list[Row]] = {}
    for target, row in rows:
        together.setdefault(target, []).append(row)
    out: dict[str, tuple[str, Tensor, Any]] = {}
    for target, parts in together.items():
        parts.sort(key=lambda row: places[row[0].rpartition(".")[0]])
        if len({format for _, format, _, _ in parts}) > 1:
            raise UnsupportedError(
                f"GGUF holds {target} as one tensor, and its parts here are packed in different formats",
                remedy="Pack them in one format, or export with quantization.",
            )
        shape = (sum(shape[0] for *_, shape in parts), *parts[0][3][1:])
        out[target] = (parts[0][1], parts[0][2] if len(parts) == 1 else torch.cat([row[2] for row in parts]), shape)
    return out


def untold(spec: Decoder.Spec) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors float32 [rotary/2] of a scaling that GGUF tells by factors beside the weights; empty if none."""
    positions = {mixer.position for mixer in _attentions(spec).values()}
    position = next(iter(positions)) if len(positions) == 1 else None
    if position is None or not isinstance(position, rope.Rope.Spec):
        return {}, {}
    match position.scaling:
        case rope.LongRope() as scaling:
            tables = (torch.tensor(table) for table in (scaling.short, scaling.long))
            more = {ORIGINAL: scaling.original, TEMPERATURE: scaling.attention}
            return more, dict(zip(TABLES, tables, strict=True))
        case rope.Factors() as scaling:  # as they came: dividing them out again would round
            return {}, {FREQUENCY_FACTORS: torch.tensor(scaling.factors)}
        case rope.Llama3() | rope.Ntk():
            factors = rope.frequencies(position.with_(scaling=None)) / rope.frequencies(position)
            return {}, {FREQUENCY_FACTORS: factors}
        case _:
            return {}, {}


def scaled(spec: Decoder.Spec, beside: Mapping[str, Tensor], metadata: Fields) -> Decoder.Spec:
    """The spec with the scaling that a file's factors tell. Raises FileFormatError if they cannot be that."""
    if not beside:
        return spec
    tables = {name: tuple(float(value) for value in tensor.flatten()) for name, tensor in beside.items()}
    for name, table in tables.items():
        if len(table) != _rotary_dim(spec) // 2 or not all(0 < factor < float("inf") for factor in table):
            raise FileFormatError(
                f"{name} holds {len(table)} factors that do not fit {_rotary_dim(spec)} rotary dimensions",
                remedy=REMEDY,
            )
    scaling: rope.Scaling
    if FREQUENCY_FACTORS in tables:
        scaling = rope.Factors(factors=tables[FREQUENCY_FACTORS])
    elif tables.keys() == set(TABLES):
        short, long = (tables[name] for name in TABLES)
        original, attention = metadata.integer(ORIGINAL), metadata.number(TEMPERATURE, 1.0)
        scaling = rope.LongRope(short=short, long=long, original=original, attention=attention)
    else:
        raise FileFormatError("The file holds one of LongRope's two tables", remedy=REMEDY)
    return spec.replace("layers.*.mixer.position", scaling=scaling)


def interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Half-split rows [heads · head_dim, ...] -> rows as neighbouring pairs."""
    return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def deinterleave(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse of :func:`interleave`."""
    return rows.view(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _parts(
    key: Key, leaf: str, together: Sequence[GGUFTensor], shapes: Mapping[str, Size]
) -> Iterator[tuple[str, Tensor | Packed]]:
    """Our tensors that a stored one holds, packed if it is a packed matrix, or that a layout makes of several."""
    names = [f"{name}.{leaf}" for name in key.our_names]
    if key.layout != Same():
        dense = [item.dense().to(torch.float32) for item in together]
        yield from zip(names, key.layout.read(dense, [shapes[name] for name in names]), strict=True)
        return
    (stored,) = together
    is_packed = len(stored.shape) >= 2 and stored.format.name not in DENSE_FORMATS
    whole = stored.blocks().view(*stored.shape[:-1], -1) if is_packed else stored.dense()
    if len(names) == 1 and not is_packed and (shape := shapes.get(names[0])) and shape.numel() == whole.numel():
        whole = whole.view(shape)  # dimensions of 1 come and go
    sizes = [shapes[name][0] if len(names) > 1 else whole.shape[0] for name in names]
    for name, rows in zip(names, whole.split(sizes), strict=True):
        shape = (rows.shape[0], *stored.shape[1:])
        yield name, Packed(rows, stored.format.name, shape) if is_packed else rows


def _ours(tensor: Tensor | Packed, stored: GGUFTensor, head_dim: int | None, offset: float) -> Tensor | Packed:
    if isinstance(tensor, Packed):
        blocks = deinterleave(tensor.blocks, head_dim) if head_dim else tensor.blocks
        return Packed(blocks, tensor.format, tensor.shape)
    dense = (deinterleave(tensor, head_dim) if head_dim else tensor).to(torch.float32)
    return dense - offset if offset else dense


def _offsets(spec: Decoder.Spec) -> dict[str, float]:
    """Our gains that are stored whole in GGUF -> what we leave out of them."""
    return {
        f"{path}.weight": item.offset for path, item in spec.walk() if isinstance(item, RMSNorm.Spec) and item.offset
    }


def _attentions(spec: Decoder.Spec) -> dict[int, Attention.Spec]:
    """The attention of every layer that has one, whatever block it is in."""
    found = ((path, item) for path, item in spec.walk() if path.endswith(".mixer"))
    return {int(path.split(".")[1]): item for path, item in found if isinstance(item, Attention.Spec)}


def _head_dim(spec: Decoder.Spec, path: str) -> int:
    return _attentions(spec)[int(path.split(".")[1])].head_dim


def _first_head_dim(spec: Decoder.Spec) -> int:
    """0 where no layer has heads."""
    return next((mixer.head_dim for mixer in _attentions(spec).values()), 0)


def _rotary_dim(spec: Decoder.Spec) -> int:
    """0 where no layer has rotary positions; those that have them share their part."""
    positions = (item for path, item in spec.walk() if path.endswith(".mixer.position"))
    dims = [item.rotary_dim for item in positions if isinstance(item, rope.Rope.Spec)]
    return dims[0] if dims else 0
