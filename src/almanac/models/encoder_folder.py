"""A folder with an encoder as the hub knows it: config.json and safetensors, under the family's own names.

Checkpoints of an encoder alone (``BertModel``) and with a head (``BertForMaskedLM``) are read: the encoder of either, or the
whole with its head. Norms whose gain and shift are called gamma and beta, as in files of 2018, are understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from almanac.core import spec as core_spec
from almanac.core.errors import FileFormatError
from almanac.models.checkpoint import describing
from almanac.models.encoder_task import (
    ENCODER,
    EncoderTasks,
    Task,
    encoder_rows,
    encoder_tasks,
    head_keys,
    labels,
    task_rows,
    tasks_of,
    write_task,
)
from almanac.models.family import EncoderFamily, Fields, Key, encoder_family_for
from almanac.models.hub_folder import (
    WEIGHT_NAMES,
    family_and_fields,
    no_tensor_of,
    read_weights,
    shapes_of,
    write_folder,
)
from almanac.models.tensor_layout import to_ours, to_theirs
from almanac.nn.encoder import Encoder
from almanac.nn.task_heads import MaskedHead
from almanac.nn.task_model import TaskModel

OLD_LEAVES = {"gamma": "weight", "beta": "bias"}


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


@dataclass(frozen=True)
class TaskCheckpoint:
    """As :class:`EncoderCheckpoint`, with the head; ``labels`` are the names of its classes."""

    tasks: EncoderTasks
    task: Task
    spec: TaskModel.Spec
    tensors: dict[str, Tensor]
    labels: tuple[str, ...]
    unused: tuple[str, ...] = ()
    not_understood: Mapping[str, Any] = field(default_factory=dict)


def read_encoder_folder(folder: Path) -> EncoderCheckpoint:
    """Reads an encoder's folder without running anything in it; every tensor is placed, named as unused, or refused.

    A head that the checkpoint brings is named as unused.

    Raises:
        NotFoundError: no config.json or weights. ArchitectureError: no encoder family reads it. FileFormatError:
        damaged files, or a tensor that the family does not know.
    """
    family, fields = family_and_fields(folder, encoder_family_for)
    with describing(folder / "config.json"):
        spec = family.read(fields)
    fields.any("num_labels")  # of a head, which is not read
    source = _weights(folder, len(spec.layers))
    tasks = next((found for found in encoder_tasks() if found.family == family), None)
    prefix = tasks.prefix if tasks is not None and any(name.startswith(f"{tasks.prefix}.") for name in source) else ""
    rows = encoder_rows(family, spec, prefix=prefix)
    tensors, left = to_ours(rows, shapes_of(spec), source)
    known = _heads(tasks, fields, spec) if tasks is not None and prefix else ()
    unused = _judged(folder, family, left, prefix=prefix, known=known)
    return EncoderCheckpoint(family, spec, tensors, unused, fields.not_understood())


def read_task_folder(folder: Path, *, architecture: str | None = None) -> TaskCheckpoint:
    """Reads the folder of an encoder with its head; ``architecture`` is config.json's first, unless given.

    Raises as `read_encoder_folder`, and ArchitectureError for an architecture that is no task of its family.
    """
    family, fields = family_and_fields(folder, encoder_family_for)
    tasks = tasks_of(family)
    given = fields.config.get("architectures")
    first = given[0] if isinstance(given, list) and given else None
    task = tasks.named(architecture or str(first))
    with describing(folder / "config.json"):
        encoder = family.read(fields)
        spec = TaskModel.Spec(encoder=encoder, head=task.read(fields, encoder))
        names = labels(fields)
    source = _weights(folder, len(encoder.layers))
    tensors, left = to_ours(task_rows(tasks, task, spec), shapes_of(spec), source)
    known = _heads(tasks, fields, encoder)
    _drop_copies(spec.head, tensors)
    unused = _judged(folder, family, left, prefix=tasks.prefix, known=known)
    return TaskCheckpoint(tasks, task, spec, tensors, names, unused, fields.not_understood())


def write_task_folder(
    folder: Path,
    spec: TaskModel.Spec,
    tensors: Mapping[str, Tensor],
    *,
    labels: tuple[str, ...] | None = None,
    architecture: str | None = None,
    special: Mapping[str, int] | None = None,
) -> Path:
    """Writes config.json and model.safetensors of an encoder with its head, as the hub knows them.

    ``architecture``: which of several that could express it; ``special``: ids of control tokens (``pad_token_id``).
    Raises ArchitectureError where no family can express it.
    """
    tasks, task, config = write_task(spec, labels=labels, preferred=architecture)
    return write_folder(folder, config | dict(special or {}), to_theirs(task_rows(tasks, task, spec), tensors))


def write_encoder_folder(
    folder: Path, family: EncoderFamily, spec: Encoder.Spec, tensors: Mapping[str, Tensor]
) -> Path:
    """As `write_task_folder`, of an encoder alone. Raises FileFormatError for a spec that the family cannot express."""
    config = family.write(spec)
    if config is None:
        raise FileFormatError(
            f"This encoder is no {family.model_type}", remedy="Save it in almanac's own layout, or as another family."
        )
    config = {"architectures": [family.architecture], "model_type": family.model_type, **config}
    return write_folder(folder, config, to_theirs(encoder_rows(family, spec), tensors))


def _weights(folder: Path, num_layers: int) -> dict[str, Tensor]:
    """All tensors of the folder; gamma and beta of old files under the names of today."""
    source = read_weights(folder, num_layers)
    found: dict[str, Tensor] = {}
    for name in source:
        owner, _, leaf = name.rpartition(".")
        today = f"{owner}.{OLD_LEAVES[leaf]}" if leaf in OLD_LEAVES else name
        found[name if today in source else today] = source[name]
    return found


def _heads(tasks: EncoderTasks, fields: Fields, encoder: Encoder.Spec) -> tuple[Key, ...]:
    """The rows of every head that the family knows."""
    rows: list[Key] = []
    for task in tasks.tasks:
        try:
            rows += head_keys(task, task.read(Fields(fields.config, fields.origin), encoder))
        except FileFormatError:  # labels of another task
            continue
    return tuple(rows)


def _judged(
    folder: Path, family: EncoderFamily, left: list[str], *, prefix: str, known: tuple[Key, ...]
) -> tuple[str, ...]:
    """Those of the tensors left over that are known and not used; FileFormatError for any other."""
    theirs = {name for key in known for leaf in WEIGHT_NAMES for name in key.theirs_of(leaf)}
    below = f"{prefix}." if prefix else ""
    unused: list[str] = []
    for name in left:
        owner, _, leaf = name.removeprefix(below).rpartition(".")
        if f"{owner}.{leaf}" in family.derived:
            continue
        if name not in theirs and not (owner in family.unused and leaf in WEIGHT_NAMES):
            raise no_tensor_of(folder, name, f"{family.model_type} encoder")
        unused.append(name)
    return tuple(unused)


def _drop_copies(head: core_spec.Spec, tensors: dict[str, Tensor]) -> None:
    """Takes out what files hold twice: of a head tied to the token table its copy, of another the bias of a tied one.

    Raises FileFormatError where a copy has other numbers.
    """
    for path, item in head.walk("head"):
        if not isinstance(item, MaskedHead.Spec):
            continue
        if item.projection is not None:
            bias = tensors.pop(f"{path}.bias.weight", None)
            if bias is not None and item.projection.bias:
                tensors.setdefault(f"{path}.projection.bias", bias)
            continue
        weight, bias = (tensors.pop(f"{path}.projection.{leaf}", None) for leaf in WEIGHT_NAMES)
        if bias is not None and item.bias is not None:
            tensors.setdefault(f"{path}.bias.weight", bias)
        if weight is not None and not weight.equal(tensors[f"{ENCODER}.embed.weight"]):
            raise FileFormatError(
                "The head is declared tied to the token table, yet the file holds another matrix",
                remedy="Set tie_word_embeddings to false if the separate matrix is meant.",
            )
