"""What an encoder's family can be trained for: its architectures with a head (``BertForMaskedLM`` and so on), both ways.

A family file that knows such architectures holds them as ``TASKS`` beside its ``FAMILY``; they are found by import, so that
adding one edits nothing. The encoder's tensors stand below the family's ``prefix`` there, and the head's beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from almanac.core import spec as core_spec
from almanac.core.errors import ArchitectureError, FileFormatError
from almanac.files.quoting import quoted
from almanac.models.family import Config, EncoderFamily, Fields, Key, declared, expand
from almanac.nn.activation import Activation, Tanh
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.recurrent.learned import Learned
from almanac.nn.task_heads import MaskedHead, PretrainingHead, SequenceHead, SpanHead, TokenHead, Transform
from almanac.nn.task_model import TaskModel

MAX_LABELS = 1_000_000
ENCODER = "encoder"  # where a `TaskModel` has its encoder


@dataclass(frozen=True)
class Task:
    """One architecture of a family.

    - ``head``: what kind of head it has; ``read(fields, encoder) -> spec`` of it
    - ``keys``: the head's name table, ours from the head on (``head.output``), or a function of the head's spec
    - ``write(head) -> config``: the fields that say how the head is, beside its labels
    """

    architecture: str
    head: type[core_spec.Spec]
    read: Callable[[Fields, Encoder.Spec], core_spec.Spec]
    keys: tuple[Key, ...] | Callable[[Any], tuple[Key, ...]]
    write: Callable[[Any], Config] = lambda head: {}


@dataclass(frozen=True)
class EncoderTasks:
    """The tasks of a family. ``prefix`` is where its encoder stands in their checkpoints."""

    family: EncoderFamily
    prefix: str
    tasks: tuple[Task, ...]

    def named(self, architecture: str) -> Task:
        """The task of config.json's ``architectures``. Raises ArchitectureError where the family has none such."""
        for task in self.tasks:
            if task.architecture == architecture:
                return task
        names = ", ".join(task.architecture for task in self.tasks)
        raise ArchitectureError(
            f"{quoted(architecture)} is no task of {self.family.model_type} here", remedy=f"Known are {names}."
        )


def encoder_tasks() -> Iterator[EncoderTasks]:
    """The tasks of all encoder families, by file name."""
    return declared("TASKS", EncoderTasks)


def tasks_of(family: EncoderFamily) -> EncoderTasks:
    """The tasks of a family. Raises ArchitectureError where it has none."""
    for found in encoder_tasks():
        if found.family == family:
            return found
    raise ArchitectureError(
        f"No task of {family.model_type} is read here", remedy="Open it with almanac.load_encoder, for its vectors."
    )


def encoder_rows(family: EncoderFamily, spec: Encoder.Spec, *, prefix: str = "", ours: str = "") -> list[Key]:
    """The encoder's name table, with something before theirs and before ours."""
    table: Any = family.keys
    keys = table(spec) if callable(table) else table
    rows = expand(keys, len(spec.layers))
    return [replace(row, ours=_below(ours, row.ours), safetensors=_below(prefix, row.safetensors)) for row in rows]


def task_rows(tasks: EncoderTasks, task: Task, spec: TaskModel.Spec) -> list[Key]:
    """The whole name table of a `TaskModel`."""
    encoder = encoder_rows(tasks.family, spec.encoder, prefix=tasks.prefix, ours=ENCODER)
    return [*encoder, *head_keys(task, spec.head)]


def head_keys(task: Task, head: core_spec.Spec) -> tuple[Key, ...]:
    """The rows of a task's head."""
    return task.keys(head) if callable(task.keys) else task.keys


def write_task(
    spec: TaskModel.Spec, *, labels: tuple[str, ...] | None = None, preferred: str | None = None
) -> tuple[EncoderTasks, Task, Config]:
    """A family and task that can express ``spec``, and its config.json; the architecture ``preferred`` first.

    Raises ArchitectureError where there is none.
    """
    known = [(tasks, task) for tasks in encoder_tasks() for task in tasks.tasks]
    for tasks, task in sorted(known, key=lambda pair: pair[1].architecture != preferred):
        body = tasks.family.write(spec.encoder) if isinstance(spec.head, task.head) else None
        if body is None:
            continue
        config = body | task.write(spec.head) | label_fields(spec.head, labels)
        fields = Fields(config)
        encoder = tasks.family.read(fields)
        if encoder == spec.encoder and task.read(fields, encoder) == spec.head:
            head = {"architectures": [task.architecture], "model_type": tasks.family.model_type}
            return tasks, task, head | config
    raise ArchitectureError(
        f"No family has an encoder and a head {quoted(spec.head.kind())} of this kind",
        remedy="Save it in almanac's own layout.",
    )


def _below(prefix: str, names: str | tuple[str, ...]) -> Any:
    if isinstance(names, tuple):
        return tuple(_below(prefix, name) for name in names)
    return f"{prefix}.{names}" if prefix else names


# --- what the families' heads have in common


def labels(fields: Fields, *, default: int = 2) -> tuple[str, ...]:
    """The names of the classes, from ``id2label`` or as many as ``num_labels`` says."""
    table = fields.table("id2label")
    if not table:
        count = fields.integer("num_labels", default, high=MAX_LABELS)
        return tuple(f"LABEL_{index}" for index in range(count))
    fields.any("num_labels"), fields.any("label2id")
    numbered = {str(index): table.get(str(index)) for index in range(len(table))}
    if not all(isinstance(name, str) for name in numbered.values()):
        raise FileFormatError(
            f"{fields.origin}: id2label does not number its labels from 0", remedy="Fetch the model again."
        )
    return tuple(str(name) for name in numbered.values())


def label_fields(head: core_spec.Spec, names: tuple[str, ...] | None = None) -> Config:
    """``id2label`` and its inverse for a head that has classes."""
    head = head.pair if isinstance(head, PretrainingHead.Spec) else head
    has_classes = isinstance(head, SequenceHead.Spec | TokenHead.Spec | SpanHead.Spec)
    count = head.output.out_features if has_classes else 2
    names = names or tuple(f"LABEL_{index}" for index in range(count))
    given = {str(index): name for index, name in enumerate(names)}
    return {"id2label": given, "label2id": {name: int(index) for index, name in given.items()}}


def output(fields: Fields, width: int) -> Linear.Spec:
    """A matrix from ``width`` to the classes, with a bias."""
    return Linear.Spec(in_features=width, out_features=len(labels(fields)), bias=True)


def transform(
    width: int,
    *,
    activation: Activation,
    out: int | None = None,
    epsilon: float | None = None,
) -> Transform.Spec:
    """dense with a bias, activation and, with an ``epsilon``, LayerNorm."""
    out = out or width
    norm = None if epsilon is None else LayerNorm.Spec(hidden=out, epsilon=epsilon)
    dense = Linear.Spec(in_features=width, out_features=out, bias=True)
    return Transform.Spec(dense=dense, activation=activation, norm=norm)


def masked(fields: Fields, encoder: Encoder.Spec, *, activation: Activation, epsilon: float) -> MaskedHead.Spec:
    """A head tied to the token table, or with a matrix of its own where ``tie_word_embeddings`` is false."""
    vocab, width = encoder.embed.vocab_size, encoder.embed.hidden
    step = transform(encoder.hidden, activation=activation, out=width, epsilon=epsilon)
    if fields.flag("tie_word_embeddings", True):
        return MaskedHead.Spec(transform=step, bias=Learned.Spec(size=(vocab,), axes=("vocab",)))
    return MaskedHead.Spec(
        transform=step,
        projection=Linear.Spec(in_features=width, out_features=vocab, bias=True, axes=("vocab", "embed")),
    )


def write_masked(head: MaskedHead.Spec) -> Config:
    """The field that says whether the head is tied."""
    return {"tie_word_embeddings": head.projection is None}


def write_pretraining(head: PretrainingHead.Spec) -> Config:
    """As `write_masked`, of the part that is so."""
    return write_masked(head.masked)


def read_pooled(fields: Fields, encoder: Encoder.Spec, *, activation: Activation | None = None) -> SequenceHead.Spec:
    """Classes of a text, off its first token through a dense layer and tanh, BERT's pooler."""
    step = transform(encoder.hidden, activation=activation or Tanh())
    return SequenceHead.Spec(transform=step, output=output(fields, encoder.hidden))


def read_tokens(fields: Fields, encoder: Encoder.Spec) -> TokenHead.Spec:
    """Classes of every token."""
    return TokenHead.Spec(output=output(fields, encoder.hidden))


def read_span(fields: Fields, encoder: Encoder.Spec) -> SpanHead.Spec:
    """The ends of a span; FileFormatError for more or fewer than two."""
    if len(labels(fields)) != 2:
        raise FileFormatError(
            f"{fields.origin}: {len(labels(fields))} labels for the two ends of an answer",
            remedy="Fetch the model again; the file is damaged.",
        )
    return SpanHead.Spec(output=output(fields, encoder.hidden))


def label_tasks(
    name: str,
    dense: str,
    output: str = "classifier",
    *,
    read: Callable[[Fields, Encoder.Spec], SequenceHead.Spec] = read_pooled,
    write: Callable[[SequenceHead.Spec], Config] = lambda head: {},
) -> tuple[Task, Task, Task]:
    """The tasks that have labels: classes of a text, of its tokens, and spans. ``name`` begins their architectures' names.

    ``dense`` and ``output`` are theirs of the text's head; ``read`` and ``write`` as of its `Task`.
    """
    text = (Key("head.transform.dense", dense), Key("head.output", output))
    return (
        Task(f"{name}ForSequenceClassification", SequenceHead.Spec, read, text, write),
        Task(f"{name}ForTokenClassification", TokenHead.Spec, read_tokens, (Key("head.output", "classifier"),)),
        Task(f"{name}ForQuestionAnswering", SpanHead.Spec, read_span, (Key("head.output", "qa_outputs"),)),
    )


def tied_keys(transform: str, norm: str, bias: str, own: str) -> tuple[Key, ...]:
    """The rows of a `MaskedHead`: theirs of the dense layer, its norm, the bias, and of the matrix that holds both."""
    return (
        Key("head.transform.dense", transform),
        Key("head.transform.norm", norm),
        Key("head.bias", bias, bare=True),
        Key("head.projection", own),
    )


def within_pretraining(keys: tuple[Key, ...], part: str) -> tuple[Key, ...]:
    """Rows of a head as rows of one ``part`` of a `PretrainingHead`."""
    return tuple(replace(key, ours=str(key.ours).replace("head.", f"head.{part}.", 1)) for key in keys)
