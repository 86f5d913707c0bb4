"""A folder with an encoder as the hub knows it: config.json and safetensors, under the family's own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from almanac.core.errors import FileFormatError
from almanac.files.quoting import quoted
from almanac.files.safetensors import read_sharded
from almanac.models.checkpoint import describing
from almanac.models.family import EncoderFamily, Fields, encoder_family_for, expand
from almanac.models.hub_folder import WEIGHT_NAMES, read_plain_config
from almanac.nn.encoder import Encoder


@dataclass(frozen=True)
class EncoderCheckpoint:
    """What a folder held: ``tensors`` by spec path + ``.weight`` / ``.bias``.

    ``unused`` names the tensors that were there and that no text's vector passes through; ``not_understood`` are
    configuration fields that have a value and that no code of ours read.
    """

    family: EncoderFamily
    spec: Encoder.Spec
    tensors: dict[str, Tensor]
    unused: tuple[str, ...] = ()
    not_understood: Mapping[str, Any] = field(default_factory=dict)


def read_encoder_folder(folder: Path) -> EncoderCheckpoint:
    """Reads an encoder's folder without running anything in it; every tensor is placed, named as unused, or refused.

    Raises:
        NotFoundError: no config.json or weights. ArchitectureError: no encoder family reads it. FileFormatError:
        damaged files, or a tensor that the family does not know.
    """
    config = read_plain_config(folder)
    family = encoder_family_for(str(config.get("model_type")))
    fields = Fields(config, str(folder / "config.json"))
    with describing(folder / "config.json"):
        spec = family.read(fields)
    source = read_sharded(folder)
    if len(spec.layers) > len(source):  # before any is built: a lie about their number must not cost time
        raise FileFormatError(
            f"{folder}: {len(spec.layers):,} layers are declared and {len(source):,} tensors given",
            remedy="The configuration and the weights belong to different models; fetch both from one place.",
        )
    names = {key.safetensors: key.ours for key in expand(family.keys, len(spec.layers))}
    tensors: dict[str, Tensor] = {}
    unused: list[str] = []
    for name in source:
        owner, _, leaf = name.rpartition(".")
        if name in family.derived:
            continue
        if owner in names and leaf in WEIGHT_NAMES:
            tensors[f"{names[owner]}.{leaf}"] = source[name]
        elif owner in family.unused and leaf in WEIGHT_NAMES:
            unused.append(name)
        else:
            raise FileFormatError(
                f"{folder}: {quoted(name)} is no tensor of a {family.model_type} encoder",
                remedy="The weights and config.json belong to different models, or this variant is not known here.",
            )
    return EncoderCheckpoint(family, spec, tensors, tuple(unused), fields.not_understood())
