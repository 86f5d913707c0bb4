"""A family of encoder-decoders, and folders of them as the hub knows them.

As `almanac.models.family` for decoders: one file per ``model_type``, found by import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from almanac.core.errors import ArchitectureError, FileFormatError
from almanac.files.quoting import quoted
from almanac.models.checkpoint import describing
from almanac.models.family import Config, Fields, Key, declared
from almanac.models.hub_folder import (
    family_and_fields,
    no_tensor_of,
    read_plain_config,
    read_weights,
    shapes_of,
    write_folder,
)
from almanac.models.tensor_layout import to_ours, to_theirs
from almanac.nn.encoder_decoder import EncoderDecoder


@dataclass(frozen=True)
class EncoderDecoderFamily:
    """A family; the fields as of `almanac.models.family.Family`, by the names of safetensors alone.

    - ``keys(spec)``: the name table, a row for each layer already
    - ``copies``: tensors that files may hold of the shared token table, under names of their own
    - ``settled(spec, tensors) -> spec``: what the tensors say and the configuration does not, and what files leave out;
      may change ``tensors``
    """

    model_type: str
    architecture: str
    read: Callable[[Fields], EncoderDecoder.Spec]
    write: Callable[[EncoderDecoder.Spec], Config | None]
    keys: Callable[[EncoderDecoder.Spec], tuple[Key, ...]]
    copies: tuple[str, ...] = ()
    settled: Callable[[EncoderDecoder.Spec, dict[str, Tensor]], EncoderDecoder.Spec] = lambda spec, tensors: spec


@dataclass(frozen=True)
class EncoderDecoderCheckpoint:
    """What a folder held: ``tensors`` by spec path + ``.weight`` / ``.bias``; ``not_understood`` as of other families."""

    family: EncoderDecoderFamily
    spec: EncoderDecoder.Spec
    tensors: dict[str, Tensor]
    not_understood: Mapping[str, Any] = field(default_factory=dict)


def encoder_decoder_families() -> Iterator[EncoderDecoderFamily]:
    """All families of encoder-decoders, by file name."""
    return declared("FAMILY", EncoderDecoderFamily)


def encoder_decoder_family_for(model_type: str) -> EncoderDecoderFamily:
    """The family of a config.json ``model_type``. Raises ArchitectureError where there is none."""
    known = {family.model_type: family for family in encoder_decoder_families()}
    if model_type not in known:
        raise ArchitectureError(
            f"No family of encoder-decoders reads model_type {quoted(model_type)}",
            remedy=f"Known are {', '.join(sorted(known))}.",
        )
    return known[model_type]


def family_of(spec: EncoderDecoder.Spec, preferred: str | None = None) -> tuple[EncoderDecoderFamily, Config] | None:
    """A family that can express ``spec``, and its config.json; ``preferred`` first, then T5, which its relatives resemble."""
    known = list(encoder_decoder_families())
    for family in sorted(known, key=lambda item: (item.model_type != preferred, item.model_type != "t5")):
        config = family.write(spec)
        if config is not None:
            return family, config
    return None


def read_encoder_decoder_folder(folder: Path) -> EncoderDecoderCheckpoint:
    """Reads a folder without running anything in it.

    Raises:
        NotFoundError: no config.json or weights. ArchitectureError: no family reads it. FileFormatError: damaged files,
        a tensor that the family does not know, or a copy of the token table that is another.
    """
    family, fields = family_and_fields(folder, encoder_decoder_family_for)
    with describing(folder / "config.json"):
        spec = family.read(fields)
    source = read_weights(folder, len(spec.encoder.layers) + len(spec.decoder.layers))
    with describing(folder / "config.json"):
        shapes, rows = shapes_of(spec), family.keys(spec)
    tensors, left = to_ours(rows, shapes, source)
    copies = [name for name in left if name in family.copies]
    if unknown := sorted(set(left) - set(copies)):
        raise no_tensor_of(folder, unknown[0], family.model_type)
    for name in copies:
        table = tensors.setdefault("embed.weight", source[name])
        if not source[name].equal(table):
            raise FileFormatError(
                f"{folder}: {quoted(name)} is another table than the one it is shared with",
                remedy="Encoder and decoder with tables of their own are not read.",
            )
    return EncoderDecoderCheckpoint(family, family.settled(spec, tensors), tensors, fields.not_understood())


def write_encoder_decoder_folder(
    folder: Path,
    spec: EncoderDecoder.Spec,
    tensors: Mapping[str, Tensor],
    *,
    special: Mapping[str, int | None] | None = None,
    preferred: str | None = None,
) -> Path:
    """Writes config.json and model.safetensors as the hub knows them; see `hub_form` for the arguments.

    Raises ArchitectureError where no family can express the spec.
    """
    found = hub_form(spec, tensors, preferred=preferred, special=special or {})
    if found is None:
        raise ArchitectureError("No family has an encoder-decoder of this kind", remedy="Save it in our own layout.")
    _, config, theirs = found
    return write_folder(folder, config, theirs)


def hub_form(
    spec: EncoderDecoder.Spec,
    tensors: Mapping[str, Tensor],
    *,
    preferred: str | None,
    special: Mapping[str, int | None],
) -> tuple[str, Config, dict[str, Tensor]] | None:
    """The family, its config.json and the tensors under its names; None if no family can express the spec.

    ``special``: ids of control tokens (``pad_token_id``); ``preferred``: which family of several.
    """
    found = family_of(spec, preferred)
    if found is None:
        return None
    family, config = found
    return (
        family.model_type,
        {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            "is_encoder_decoder": True,
            **config,
            **{name: value for name, value in special.items() if value is not None},
            "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        },
        to_theirs(family.keys(spec), tensors),
    )


def is_encoder_decoder(folder: Path) -> bool:
    """Whether config.json names a family of encoder-decoders. Raises as `read_plain_config`."""
    model_type = read_plain_config(folder).get("model_type")
    return any(family.model_type == model_type for family in encoder_decoder_families())
