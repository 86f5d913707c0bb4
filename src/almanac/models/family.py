"""What a family is: how its configuration, tensor names and GGUF metadata translate to a spec of ours, both ways.

A family is one file named after the checkpoint's ``model_type``; it is found by import, so adding one edits nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from almanac.core.errors import ArchitectureError, FileFormatError
from almanac.files.quoting import quoted
from almanac.models.gguf_fields import GgufFields
from almanac.models.tensor_layout import Layout, Same
from almanac.nn.encoder import Encoder
from almanac.nn.stack import Decoder

Config = dict[str, Any]
MAX_LAYERS = 10_000  # far above any model; a damaged file must not make us build a million layers


@dataclass(frozen=True)
class Key:
    """One row of a family's name table; ``{i}`` stands for the layer's number, the same in all three columns.

    Names are those of modules: weight and bias travel alike. Several names in a column are tensors that belong together,
    and ``layout`` says how; a ``bare`` name of theirs is that of a tensor itself, our weight. The layout is that of
    safetensors, or of GGUF in a row for GGUF alone (`gguf_names`).
    """

    ours: str | tuple[str, ...]
    safetensors: str | tuple[str, ...]
    gguf: str | tuple[str, ...] | None = None
    interleaved: bool = False  # GGUF stores the rows of each head as neighbouring rotary pairs
    layout: Layout = Same()
    bare: bool = False

    @property
    def our_names(self) -> tuple[str, ...]:
        """The modules of ours."""
        return self.ours if isinstance(self.ours, tuple) else (self.ours,)

    def theirs_of(self, leaf: str) -> list[str]:
        """The names in safetensors of the ``weight`` or ``bias``."""
        names = self.safetensors if isinstance(self.safetensors, tuple) else (self.safetensors,)
        return list(names) if self.bare else [f"{name}.{leaf}" for name in names]

    def gguf_of(self, leaf: str) -> list[str]:
        """The names in GGUF of the ``weight`` or ``bias``; several only where a layout makes them of one of ours."""
        names = self.gguf if isinstance(self.gguf, tuple) else (str(self.gguf),)
        return list(names) if self.bare else [f"{name}.{leaf}" for name in names]

    def of_layer(self, number: int) -> Key:
        """The row of one layer."""

        def put(name: str) -> str:
            return name.replace("{i}", str(number))

        def put_all(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
            return tuple(put(name) for name in names) if isinstance(names, tuple) else put(names)

        gguf = put_all(self.gguf) if self.gguf else None
        return replace(self, ours=put_all(self.ours), safetensors=put_all(self.safetensors), gguf=gguf)


Keys = tuple[Key, ...] | Callable[[Any], tuple[Key, ...]]


@dataclass(frozen=True)
class Family:
    """A model family.

    - ``model_type``, ``architecture``: as in the hub's config.json
    - ``gguf``: ``general.architecture`` of its GGUF files, or None where none is defined
    - ``read(fields) -> spec`` and ``write(spec) -> config``: config.json both ways; ``write`` returns None for a spec
      that this family cannot express
    - ``keys``: the name table; a function of the spec where names depend on it (experts, layers of several kinds)
    - ``tiny``: fields of the configuration of a tiny model that has all that is special to the family
    - ``derived``: endings of tensors that old files carry along and that follow from the configuration
    - ``unread``: beginnings of tensors that no next token comes of, such as further heads that predict later ones
    - ``gguf_fields``: how the metadata of its GGUF files tell the configuration
    """

    model_type: str
    architecture: str
    read: Callable[[Fields], Decoder.Spec]
    write: Callable[[Decoder.Spec], Config | None]
    keys: Keys
    gguf: str | None = None
    tiny: Config = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    gguf_fields: GgufFields = field(default_factory=GgufFields)

    def rows(self, spec: Decoder.Spec) -> list[Key]:
        """The name table of a model, a row for each layer."""
        keys = self.keys if isinstance(self.keys, tuple) else self.keys(spec)
        return list(expand(keys, len(spec.layers)))


@dataclass(frozen=True)
class EncoderFamily:
    """A family of encoders; ``model_type`` to ``keys`` as in :class:`Family`, by the names of safetensors alone.

    - ``unused``: modules that checkpoints carry and a text's vectors do not pass through, such as a pooler
    - ``derived``: tensors that old files carry and that follow from the configuration
    """

    model_type: str
    architecture: str
    read: Callable[[Fields], Encoder.Spec]
    write: Callable[[Encoder.Spec], Config | None]
    keys: Keys
    unused: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()


Declared = TypeVar("Declared")
Named = TypeVar("Named", Family, EncoderFamily)


@dataclass
class Fields:
    """Checked access to a configuration, remembering what was read, so that what was not understood can be told."""

    config: Mapping[str, Any]
    origin: str = "config.json"
    used: set[str] = field(default_factory=set)

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 2**31) -> int:
        """The integer ``name``; FileFormatError if absent without default, of another type, or out of range."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def whole(self, name: str) -> int:
        """The integer ``name``, which may be 0."""
        return self.integer(name, low=0)

    def number(self, name: str, default: float | None = None) -> float:
        """The finite positive number ``name``."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """The truth value ``name``."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """The string ``name``."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a word")
        return value

    def per_layer(self, name: str, layers: int) -> list[Any] | None:
        """The list ``name`` with an entry for each layer, or None where there is none."""
        value = self._get(name, None)
        if value is not None and not (isinstance(value, list) and len(value) == layers):
            raise self._wrong(name, value, f"a list of {layers} entries, one per layer")
        return value

    def places(self, name: str, layers: int) -> list[int]:
        """The list ``name`` of numbers of layers, empty where there is none."""
        value = self._get(name, [])
        if not (isinstance(value, list) and all(type(item) is int and 0 <= item < layers for item in value)):
            raise self._wrong(name, value, f"a list of numbers of layers, below {layers}")
        return value

    def table(self, name: str) -> Config:
        """The nested object ``name``, empty where there is none."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def pass_over(self, *names: str) -> None:
        """Marks as understood fields that change nothing of what a model computes."""
        self.used.update(names)

    def any(self, name: str, default: Any = None) -> Any:
        """``name`` unchecked, or the default; for optional nested fields."""
        self.used.add(name)
        return self.config.get(name, default)

    def not_understood(self) -> dict[str, Any]:
        """Fields that have a value and that no code read: shown to the user, not silently dropped."""
        quiet = (None, False, [], {}, "", 0, 0.0)
        return {
            name: value
            for name, value in sorted(self.config.items())
            if name not in self.used and name not in HARMLESS and not name.startswith("_") and value not in quiet
        }

    def _get(self, name: str, default: Any) -> Any:
        self.used.add(name)
        value = self.config.get(name)
        return default if value is None else value

    def _wrong(self, name: str, value: Any, wanted: str) -> FileFormatError:
        return FileFormatError(
            f"{self.origin}: {name} is {quoted(str(value))}, expected {wanted}",
            remedy="Fetch the model again; the file is damaged.",
        )


HARMLESS = frozenset(
    "architectures model_type torch_dtype dtype transformers_version use_cache bos_token_id eos_token_id pad_token_id "
    "attention_dropout initializer_range return_dict output_attentions output_hidden_states chunk_size_feed_forward "
    "id2label label2id problem_type pretraining_tp transformers.js_config is_llama_config is_encoder_decoder "
    "vocab_parts layer_norm_epsilon_bias max_window_layers use_sliding_window quantization_config".split()
)
"""Configuration fields that do not change what an inference computes (or that the families read themselves)."""


def family_for(model_type: str) -> Family:
    """The family of a config.json ``model_type``.

    Raises:
        ArchitectureError: no such family; names the nearest known one.
    """
    if any(family.model_type == model_type for family in encoder_families()):
        raise ArchitectureError(
            f"{model_type!r} is an encoder: it turns texts into vectors and writes none",
            remedy="Open it with almanac.load_encoder.",
        )
    return _named(model_type, families())


def encoder_family_for(model_type: str) -> EncoderFamily:
    """The encoder family of a config.json ``model_type``. Raises ArchitectureError as ``family_for``."""
    if any(family.model_type == model_type for family in families()):
        raise ArchitectureError(
            f"{model_type!r} is a decoder: it writes text and has no vectors of texts",
            remedy="Open it with almanac.load, or name an encoder such as all-minilm-l6-v2.",
        )
    return _named(model_type, encoder_families())


def family_for_gguf(architecture: str) -> Family:
    """The family of a GGUF ``general.architecture``. Raises ArchitectureError as ``family_for``."""
    known = {family.gguf: family for family in reversed(list(families())) if family.gguf}
    if architecture not in known:
        names = ", ".join(sorted(known))
        raise ArchitectureError(f"No family reads the GGUF architecture {architecture!r}", remedy=f"Known are {names}.")
    return known[architecture]


def families() -> Iterator[Family]:
    """All families, ``llama`` first (it is the one to write a spec that several could express), then by name."""
    return declared("FAMILY", Family)


def encoder_families() -> Iterator[EncoderFamily]:
    """All encoder families, by name."""
    return declared("FAMILY", EncoderFamily)


def declared(name: str, kind: type[Declared]) -> Iterator[Declared]:
    """What the files of this folder declare as ``name``, where it is of that kind: ``llama``'s first, then by file."""
    files = sorted(info.name for info in pkgutil.iter_modules(importlib.import_module("almanac.models").__path__))
    for file in ["llama", *(file for file in files if file != "llama")]:
        found = vars(importlib.import_module(f"almanac.models.{file}")).get(name)
        if isinstance(found, kind):
            yield found


def _named(model_type: str, families: Iterator[Named]) -> Named:
    known = {family.model_type: family for family in families}
    if model_type not in known:
        near = get_close_matches(str(model_type), list(known), n=1, cutoff=0.3)
        hint = f"The nearest is {near[0]!r}; known are" if near else "Known are"
        raise ArchitectureError(
            f"No family reads model_type {model_type!r}", remedy=f"{hint} {', '.join(sorted(known))}."
        )
    return known[model_type]


def expand(keys: tuple[Key, ...], num_layers: int) -> Iterator[Key]:
    """The name table with every ``{i}`` row repeated for each layer."""
    for key in keys:
        if "{i}" in key.our_names[0]:
            yield from (key.of_layer(number) for number in range(num_layers))
        else:
            yield key
