"""What a model is to learn from windows of text, and all of a pre-training run that depends on it.

An objective names the control tokens that it needs, a shape for a run that was given none, what becomes of a window, the
criterion, and what is shown of a model as it learns. The run itself (`pretrain.run`) is one for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    def covers_text(self) -> bool:
        """Whether its loss on held-out text is that of all tokens, told in bits a byte too, and its samples are plain text,
        whose words are held against those of the corpus."""
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
