"""Folders as the hub knows them: config.json and safetensors, read and written under the family's own names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from almanac.core.errors import AlmanacError, ArchitectureError, FileFormatError, NotFoundError
from almanac.core.spec import Spec
from almanac.files.quoting import quoted
from almanac.files.safetensors import read_sharded, write_safetensors
from almanac.files.strict_json import read_json
from almanac.models.checkpoint import IGNORED_SUFFIXES, ForeignCheckpoint, Packed, describing, drop_tied_head
from almanac.models.family import Config, Family, Fields, families, family_for
from almanac.models.packing import Packing, packing_of, packings, unpacked
from almanac.models.tensor_layout import to_ours, to_theirs
from almanac.nn.head import TiedHead
from almanac.nn.stack import Decoder

WEIGHT_NAMES = ("weight", "bias")
MAX_CONFIG_BYTES = 16 << 20
Found = TypeVar("Found")


def read_config(folder: Path) -> Config:
    """config.json as a dict. Raises NotFoundError or FileFormatError."""
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(f"{folder} has no config.json", remedy="Name a model folder, a .gguf file or an alias.")
    config = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise FileFormatError(f"{path} does not hold an object", remedy="Fetch the model again.")
    return config


def read_plain_config(folder: Path) -> Config:
    """config.json of a model that needs no code of its own. Raises as ``read_config``, ArchitectureError for code."""
    config = read_config(folder)
    if "auto_map" in config and "model_type" not in config:
        raise ArchitectureError(f"{folder} wants code of its own (auto_map)", remedy="Use a model of a known family.")
    return config


def family_and_fields(
    folder: Path, find: Callable[[str], Found], methods: Mapping[str, Packing] | None = None
) -> tuple[Found, Fields]:
    """The family that ``find`` has for the folder's ``model_type``, and its configuration.

    ``methods``: the ways of packing weights that the caller reads. Raises as ``read_plain_config``, ``find``, and
    FileFormatError for weights packed otherwise.
    """
    config = read_plain_config(folder)
    packing_of(config, folder, methods or {})
    return find(str(config.get("model_type"))), Fields(config, str(folder / "config.json"))


def read_weights(folder: Path, num_layers: int) -> Mapping[str, Tensor]:
    """All tensors of a folder. Raises NotFoundError, or FileFormatError for fewer tensors than layers.

    A lie about the number of layers must not cost time: it is found before any layer is built.
    """
    source = read_sharded(folder)
    if num_layers > len(source):
        raise FileFormatError(
            f"{folder}: {num_layers:,} layers are declared and {len(source):,} tensors given",
            remedy="The configuration and the weights belong to different models; fetch both from one place.",
        )
    return source


def no_tensor_of(folder: Path, name: str, model: str) -> FileFormatError:
    """The error for a tensor that a ``model`` has not."""
    return FileFormatError(
        f"{folder}: {quoted(name)} is no tensor of a {model}",
        remedy="The weights and config.json belong to different models, or this variant is not known here.",
    )


def write_folder(folder: Path, config: Config, tensors: Mapping[str, Tensor]) -> Path:
    """Writes config.json and model.safetensors, making the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config_text(config))
    write_safetensors(folder / "model.safetensors", {name: item.contiguous() for name, item in tensors.items()})
    return folder


def read_hub_folder(folder: Path) -> ForeignCheckpoint:
    """Reads a model folder without running anything in it.

    Raises:
        NotFoundError: no config.json or weights. ArchitectureError: unknown family. FileFormatError: damaged files,
        weights packed in a way not read, or a name that the family does not know.
    """
    family, fields = family_and_fields(folder, family_for, packings())
    with describing(folder / "config.json"):
        spec = family.read(fields)
    source = unpacked(fields.config, folder, read_sharded(folder))
    with describing(folder / "config.json"):
        shapes, rows = shapes_of(spec), family.rows(spec)
    found, unknown = to_ours(rows, shapes, source)
    ignored = (*IGNORED_SUFFIXES, *family.derived)
    left = [name for name in unknown if not (name.endswith(ignored) or name.startswith(family.unread))]
    if left:
        raise no_tensor_of(folder, left[0], family.model_type)
    tensors: dict[str, Tensor | Packed] = {**found}
    drop_tied_head(spec, tensors)
    return ForeignCheckpoint(family, spec, tensors, fields.not_understood())


def family_of(spec: Decoder.Spec, preferred: str | None = None, *, gguf: bool = False) -> tuple[Family, Config] | None:
    """A family that can express ``spec``, and its config.json; ``preferred`` first, None if there is none.

    ``gguf``: only families that GGUF has an architecture for (a Mistral without windows is a Llama there).
    """
    known = [family for family in families() if family.gguf or not gguf]
    for family in sorted(known, key=lambda family: family.model_type != preferred):
        config = family.write(spec)
        if config is not None and _reads_as(family, config, spec):
            return family, config
    return None


def _reads_as(family: Family, config: Config, spec: Decoder.Spec) -> bool:
    """Whether a written configuration gives ``spec`` again; one that cannot be read gives nothing."""
    try:
        return family.read(Fields(config)) == spec
    except AlmanacError:
        return False


def hub_config(family: Family, config: Config, *, dtype: torch.dtype, special: Mapping[str, int | None]) -> Config:
    """The whole config.json: what the family wrote and what loaders expect beside it."""
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **config,
        **{name: value for name, value in special.items() if value is not None},
        "dtype": str(dtype).removeprefix("torch."),
    }


def hub_names(family: Family, spec: Decoder.Spec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and layout -> the family's own."""
    return to_theirs(family.rows(spec), tensors)


def shapes_of(spec: Spec) -> dict[str, torch.Size]:
    """The shape of every tensor of a network, by our names; nothing is allocated."""
    with torch.device("meta"):
        model = spec.build()
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def is_tied(spec: Decoder.Spec) -> bool:
    """Whether the head shares the embedding's table."""
    return isinstance(spec.head, TiedHead.Spec)


def config_text(config: Config) -> str:
    """config.json as the hub formats it."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
