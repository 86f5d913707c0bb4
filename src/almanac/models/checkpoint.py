"""A model as read from foreign files: family, spec, and tensors under our own names, nothing assembled yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from almanac.core.errors import AlmanacError, FileFormatError
from almanac.models.family import Family
from almanac.nn.head import TiedHead
from almanac.nn.stack import Decoder

IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "attn.masked_bias")  # derived tensors that old files carry along


@dataclass(frozen=True)
class Packed:
    """A tensor still in a GGUF format: ``blocks`` uint8 [rows, bytes of a row], ``format`` its name, dense ``shape``."""

    blocks: Tensor
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a folder or a GGUF file held.

    ``tensors`` maps spec path + ``.weight`` / ``.bias`` to dense tensors or :class:`Packed`; ``not_understood`` are
    configuration fields that have a value and that no code of ours read.
    """

    family: Family
    spec: Decoder.Spec
    tensors: dict[str, Tensor | Packed]
    not_understood: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """Turns what Python says about nonsense in a configuration into FileFormatError; errors of ours tell the path."""
    nonsense = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
    try:
        yield
    except AlmanacError as error:
        if str(path) in error.cause:
            raise
        raise type(error)(f"{path}: {error.cause}", remedy=error.remedy) from error
    except nonsense as error:
        raise FileFormatError(
            f"{path} describes no model ({type(error).__name__}: {str(error)[:200]})",
            remedy="Fetch the model again; the file is damaged.",
        ) from error


def drop_tied_head(spec: Decoder.Spec, tensors: dict[str, Tensor | Packed]) -> None:
    """Removes a stored copy of a tied head; refuses a stored head that differs from the embedding it is tied to."""
    head = tensors.get("head.projection.weight")
    if not isinstance(spec.head, TiedHead.Spec) or head is None:
        return
    embed = tensors.get("embed.weight")
    if not (isinstance(head, Tensor) and isinstance(embed, Tensor) and head.equal(embed)):
        raise FileFormatError(
            "The head is declared tied to the embedding, yet the file holds another head",
            remedy="Set tie_word_embeddings to false if the separate head is meant.",
        )
    del tensors["head.projection.weight"]
