"""Options that several verbs share, each as one value: how tokens are chosen, and where a model comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from almanac.cli.environment import allow_hub
from almanac.cli.printing import note
from almanac.cli.typed import unmarked

if TYPE_CHECKING:
    from almanac.generate.sampling import Sampling
    from almanac.language_model.model import LanguageModel

MAX_TOKENS = 256

Json = Annotated[bool, Parameter(help="Print JSON for machines.", show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is made.

    Args:
        max_tokens: Longest answer, in tokens; less where the context is full before.
        temperature: 0 takes the most probable token every time; above 0 draws, flatter the higher.
        top_k: Draw among the k most probable tokens.
        top_p: Draw among the most probable tokens that together reach this probability.
        min_p: Draw among tokens at least this share as probable as the most probable one.
        repetition_penalty: Above 1, tokens that were there before lose.
        seed: Of the draw; the same seed draws the same tokens.
        stop: End before this text; may be given several times.
    """

    max_tokens: int = MAX_TOKENS
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    stop: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()

    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return tuple(map(unmarked, self.stop))

    def sampling(self) -> Sampling:
        """The engine's value for these. Raises RequestError for one out of range."""
        from almanac.generate.sampling import sampling

        return sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model of the hub comes from; aliases, folders and files need none of it.

    Args:
        revision: For a hub id: the 40 hex digits of the commit you have checked.
        download: For a hub id: allow fetching it over the network.
    """

    revision: str | None = None
    download: Annotated[bool, Parameter(show_default=False)] = False

    def load(self, model: str) -> LanguageModel:
        """The model; raises as ``almanac.load``."""
        if self.download:
            allow_hub()
        from almanac.language_model.load import load

        return load(unmarked(model), revision=self.revision, download=self.download or None, report=note)


GREEDY = Decoding()
LOCAL = Source()
