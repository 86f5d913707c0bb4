"""What a model is to learn from windows of text, and all of a pre-training run that depends on it.

An objective names the control tokens that it needs, a shape for a run that was given none, what becomes of a window, the
criterion, and what is shown of a model as it learns. The run itself (`pretrain.run`) is one for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from almanac.core.batch import Tokens
from almanac.core.errors import RequestError
from almanac.core.spec import Spec
from almanac.core.value import Value
from almanac.data.mixture.sampler import MixtureBatches
from almanac.data.windows import WindowBatches
from almanac.language_model.model import LanguageModel
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import PLAIN, Controls
from almanac.train.criteria.corrupted import CorruptedWindows, Corruption, Place
from almanac.train.criterion import Criterion

Batches = WindowBatches | MixtureBatches
"""The windows of a run, of one corpus or of several."""
SEED = 0x5EED  # of what becomes of the windows that are measured on: the same at every step of every run


@dataclass(frozen=True)
class Judged:
    """How held-out text is measured: a loss on windows, spoilt or as they are (``corruption`` None)."""

    criterion: Criterion
    corruption: Corruption | None

    def batch(self, rows: Tokens, numbers: Sequence[int]) -> Any:
        """The criterion's batch of the windows of these numbers; a window's part is the same each time."""
        if self.corruption is None:
            return rows
        return self.corruption.batch(rows, [Place(SEED, number, 0) for number in numbers])


@dataclass(frozen=True)
class Shown:
    """What a sample is made from: a window of held-out text, its number, and how long a model may write."""

    rows: Tokens
    number: int
    seed: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Objective(Value):
    """Subclasses are values, so that a run's identity holds them."""

    @property
    def controls(self) -> Controls:
        """The special tokens of a tokenizer that is trained for it."""
        return PLAIN

    @property
    def goes_on(self) -> bool:
        """Whether the model goes on from a text; if so, what it writes is held against the words of the corpus, and its
        loss on held-out text, being of all tokens, is told in bits a byte as well."""
        return False

    @abstractmethod
    def spec(self, tokenizer: Tokenizer, *, time: int) -> Spec:
        """A small model for windows of ``time`` tokens."""

    @abstractmethod
    def shaped(self, given: Spec) -> Spec:
        """A spec that was given, with what the objective needs of it, as an encoder needs a head.

        Raises RequestError for a model of another kind.
        """

    @abstractmethod
    def require(self, spec: Spec, tokenizer: Tokenizer, *, time: int) -> None:
        """Raises RequestError for a vocabulary or a context that is too small, or a tokenizer without its marks."""

    def trained(self, spec: Spec, tokenizer: Tokenizer) -> Spec:
        """What is trained to get a model of ``spec``: itself, or itself with helpers."""
        return spec

    def kept(self, network: nn.Module) -> nn.Module:
        """The model within what is trained."""
        return network

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption | None:
        """What becomes of a window; None: nothing."""
        return None

    @property
    @abstractmethod
    def criterion(self) -> Criterion:
        """What is minimised."""

    def judged(self, tokenizer: Tokenizer, *, time: int) -> Judged:
        """How held-out text is measured: by default as in training."""
        return Judged(self.criterion, self.corruption(tokenizer, time=time))

    @abstractmethod
    def sample(self, model: LanguageModel | nn.Module, tokenizer: Tokenizer, shown: Shown) -> str:
        """What people are shown of it."""

    def batches(self, windows: Batches, tokenizer: Tokenizer, *, time: int) -> Batches | CorruptedWindows:
        """The steps of a run over ``windows`` of ``time`` tokens."""
        corruption = self.corruption(tokenizer, time=time)
        return windows if corruption is None else CorruptedWindows(windows, corruption)


def control_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[int, ...]:
    """The ids of control tokens. Raises RequestError for one that the tokenizer does not have."""
    found = [tokenizer.token_to_id(text) for text in texts]
    missing = [text for text, id in zip(texts, found, strict=True) if id is None]
    if missing:
        raise RequestError(
            f"The tokenizer has no token {missing[0]!r}, which this objective needs"
            + (f", nor {len(missing) - 1} more" if len(missing) > 1 else ""),
            remedy="Leave out the tokenizer, and one is trained with all of them.",
        )
    return tuple(id for id in found if id is not None)


def require_room(vocab_size: int, tokenizer: Tokenizer, *, lengths: Sequence[tuple[int, int]]) -> None:
    """Raises RequestError for a smaller vocabulary than the tokenizer's, or a (context, needed) that is too short."""
    short = [(held, needed) for held, needed in lengths if held < needed]
    if vocab_size < tokenizer.vocab_size or short:
        held, needed = (short or lengths)[0]
        raise RequestError(
            f"A model of {vocab_size} tokens and a context of {held} for a tokenizer of {tokenizer.vocab_size} and "
            f"windows that need {needed}",
            remedy="Give a spec whose vocabulary and context are at least as large, or shorter windows.",
        )


def continuations(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of tokens that go on a word: those that begin with a letter, or in the midst of a character, and no space.

    A tokenizer that marks such tokens itself (``##`` of WordPiece) is taken at its word.
    """
    pieces = [tokenizer.id_to_token(id) or "" for id in range(tokenizer.vocab_size)]
    special = {control.id for control in tokenizer.control_tokens().values()}
    if any(piece.startswith("##") for piece in pieces):
        return tuple(id for id, piece in enumerate(pieces) if piece.startswith("##"))
    begins = ("Ġ", "▁", "Ċ")
    return tuple(
        id
        for id, piece in enumerate(pieces)
        if id not in special and piece and not piece.startswith(begins) and (piece[0].isalpha() or ord(piece[0]) > 0x7F)
    )


def special_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that are no text."""
    return tuple(sorted({control.id for control in tokenizer.control_tokens().values()}))


def shown_ids(tokenizer: Tokenizer, ids: torch.Tensor | Sequence[int]) -> str:
    """Text with its control tokens in sight."""
    return tokenizer.decode([int(id) for id in ids], skip_special_tokens=False)
