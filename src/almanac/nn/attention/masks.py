"""Which past tokens a token may see, as a value. True means visible.

A rule knows absolute positions alone, never a length, so that what a token sees does not depend on how the text was fed:
decoding with a state gives what the whole text gives.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Mask(Value):
    """A rule on absolute positions."""

    @abstractmethod
    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """bool, broadcast of the two: may the query see the key?"""

    @abstractmethod
    def is_plain_causal(self, length: int) -> bool:
        """Whether for ``length`` tokens the rule is just "the past and oneself"."""


@dataclass(frozen=True, kw_only=True)
class Causal(Mask):
    """The past and oneself."""

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return key_positions <= query_positions

    def is_plain_causal(self, length: int) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Mask):
    """The last ``size`` tokens, oneself included (Beltagy 2020, arXiv 2004.05150)."""

    size: int

    def __post_init__(self) -> None:
        require_positive("A window", self.size)

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return (key_positions <= query_positions) & (key_positions > query_positions - self.size)

    def is_plain_causal(self, length: int) -> bool:
        return length <= self.size


@dataclass(frozen=True, kw_only=True)
class ChunkedAttention(Mask):
    """The past within one's own chunk of ``size`` tokens, counted from the text's beginning (Llama 4, layers with RoPE)."""

    size: int

    def __post_init__(self) -> None:
        require_positive("A chunk", self.size)

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        same = query_positions // self.size == key_positions // self.size
        return same & (key_positions <= query_positions)

    def is_plain_causal(self, length: int) -> bool:
        return length <= self.size


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Mask):
    """The past and oneself; the first ``context.prefix`` tokens of a text also see each other (Raffel 2019, arXiv 1910.10683,
    section 3.2.1). Without ``context.prefix`` it is causal. A state must be given the whole prefix in its first call."""

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return key_positions <= query_positions

    def is_plain_causal(self, length: int) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class BothWays(Mask):
    """What ``past`` lets the later of two tokens see of the earlier one, each sees of the other: for encoders, which keep no
    state."""

    past: Mask

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        back = self.past.allowed(query_positions, key_positions)
        return back | self.past.allowed(key_positions, query_positions)

    def is_plain_causal(self, length: int) -> bool:
        return False


def visible(mask: Mask, context: Context) -> Tensor:
    """What the tokens of one call see of each other, bool [b, t, t]: by the mask, within their own segment."""
    positions = context.positions
    found = seen(mask, positions, positions, context.prefix)
    if context.segments is not None:  # positions restart per segment, so order is judged within one only
        found = found & (context.segments[:, :, None] == context.segments[:, None, :])
    return found


def visible_after(mask: Mask, keys: Tensor, time: int, *, prefix: Tensor | None = None) -> Tensor:
    """What the last ``time`` tokens of one row see of its last tokens, at the positions ``keys`` int64 [1, l]: bool
    [1, time, l]; ``prefix`` int64 [1] or None.

    Raises RequestError for a prefix that this call brings a part of.
    """
    if isinstance(mask, PrefixLM) and prefix is not None:
        length = int(keys[0, -1]) + 1
        first, bound = length - time, int(prefix.max())
        if first < bound and (first > 0 or length < bound):
            raise RequestError(
                f"Tokens {first} to {length} of a prefix of {bound}, whose tokens see each other",
                remedy="Give the whole prefix in the first call.",
            )
    return seen(mask, keys[:, keys.shape[1] - time :], keys, prefix)


def seen_last(mask: Mask, length: int) -> int | None:
    """How many tokens, the last ones, the last of ``length`` sees; None where it is not all of those and no others."""
    if isinstance(mask, SlidingWindow):
        return min(mask.size, length)
    if isinstance(mask, ChunkedAttention):
        return (length - 1) % mask.size + 1
    return length if mask.is_plain_causal(length) else None


def seen(mask: Mask, queries: Tensor, keys: Tensor, prefix: Tensor | None = None) -> Tensor:
    """bool [b, t, l] of positions [b, t] and [b, l]; ``prefix`` as in `Context`."""
    found = mask.allowed(queries[:, :, None], keys[:, None, :])
    if isinstance(mask, PrefixLM) and prefix is not None:
        found = found | (keys[:, None, :] < (prefix[:, :, None] if prefix.dim() == 2 else prefix[:, None, None]))
    return found


def require_positive(what: str, size: int) -> None:
    """Raises ShapeError for a size below one."""
    if size < 1:
        raise ShapeError(f"{what} of {size} tokens", remedy="Give one at least.")
