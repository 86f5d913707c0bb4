"""The contract of an algorithm: from text to the vocabulary and the rules of a tokenizer.json.

An algorithm is a frozen value in a file of its own, found by walking this folder; its name is the file's.
"""

from __future__ import annotations

import abc
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import tokenizers

from almanac.core.errors import NotFoundError, PreflightError, RequestError

Texts = Callable[[], Iterator[str]]
"""Opens the stream of pieces anew."""

UNKNOWN = "<unk>"


@dataclass(frozen=True, kw_only=True)
class Kind(abc.ABC):
    """One algorithm with its settings.

    Args:
        vocab_size: tokens in all, special ones included.
    """

    vocab_size: int
    unknown: ClassVar[str | None] = None
    """Token for what the vocabulary lacks; None where it lacks nothing."""

    @property
    @abc.abstractmethod
    def stated_losses(self) -> tuple[str, ...]:
        """What decoding does not give back, in words; empty for a lossless tokenizer."""

    @abc.abstractmethod
    def learn(self, texts: Texts, room: int) -> dict[str, Any]:
        """Learns a vocabulary.

        Args:
            texts: opens the stream of text anew.
            room: how many tokens there is room for besides the special ones; the unknown token counts.

        Returns:
            The parts ``normalizer``, ``pre_tokenizer``, ``model`` and ``decoder`` of a tokenizer.json.

        Raises:
            RequestError: ``room`` is too small for the alphabet, or larger than the text supports.
        """

    @property
    def lossless(self) -> bool:
        """Whether every Unicode text is given back as it was."""
        return not self.stated_losses


def run_trainer(parts: dict[str, Any], trainer: Any, texts: Texts) -> dict[str, Any]:
    """The 'model' of a tokenizer.json that the library's ``trainer`` learns from ``texts`` cut by ``parts``.

    Raises PreflightError where the library gives up; errors of the stream pass through.
    """
    backend = backend_of(parts)
    try:
        backend.train_from_iterator(texts(), trainer)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic derives from BaseException, not from Exception
        raise PreflightError(
            f"The library could not learn from this text: {str(error)[:200]}",
            remedy="Give more text, or ask for fewer tokens.",
        ) from error
    return json.loads(backend.to_str())["model"]


def backend_of(parts: dict[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer of the parts of a tokenizer.json, without added tokens."""
    empty = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None}
    return tokenizers.Tokenizer.from_str(json.dumps({**empty, **parts}))


def require_room(room: int, least: int, what: str) -> None:
    """Raises RequestError unless ``room`` holds ``least`` tokens."""
    if room < least:
        raise RequestError(
            f"There is room for {max(room, 0):,} tokens besides the special ones, and {what} takes {least:,}",
            remedy=f"Ask for a vocabulary that is larger by {least - room:,} tokens or more.",
        )


def require_learned(learned: int, room: int) -> None:
    """Raises RequestError if the text gave fewer tokens than were asked for."""
    if learned < room:
        raise RequestError(
            f"The corpus supports {learned:,} tokens besides the special ones, not the {room:,} asked for",
            remedy=f"Ask for a vocabulary that is smaller by {room - learned:,} tokens, or give more text.",
        )


def kinds() -> dict[str, type[Kind]]:
    """Every algorithm by the name of its file."""
    found: dict[str, type[Kind]] = {}
    room = importlib.import_module(str(__package__))
    for info in pkgutil.iter_modules(room.__path__):
        module = importlib.import_module(f"{room.__name__}.{info.name}")
        for item in vars(module).values():
            if (
                isinstance(item, type)
                and issubclass(item, Kind)
                and item.__module__ == module.__name__
                and item is not Kind
            ):
                found[info.name] = item
    return found


def kind_named(name: str) -> type[Kind]:
    """The algorithm called ``name``. Raises NotFoundError."""
    found = kinds()
    if name not in found:
        raise NotFoundError(f"No kind of tokenizer is called {name!r}", remedy=f"There are {', '.join(found)}.")
    return found[name]
