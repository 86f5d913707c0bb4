"""Span corruption: stretches of a text are each replaced by one mark, and the model writes what stood there after the marks.

T5 (Raffel 2019, arXiv 1910.10683, sections 3.1.4 and 3.3.4). Of a text of n tokens, m = round(share · n) are noise, in
k = round(m / mean_span) spans; kept and noise stretches alternate, the lengths of either being uniform among all ways to
write its total as k positive numbers. With x0, x1, ... the marks:

    text    Thank you for inviting me to your party last week
    input   Thank you x0 me to your party x1 week
    target  x0 for inviting x1 last x2

A target has m + k + 1 tokens, an input n - m + k. As in the authors' code a text always begins with a kept stretch and ends
with a noisy one; the last mark of the target stands in the paper's figure, not in that code.

Legend: n tokens of a text; m noise tokens; k spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(Value):
    """``share`` of tokens that are noise, in spans of ``mean_span`` tokens on average."""

    share: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not self.mean_span >= 1:
            raise RequestError(
                f"Noise of a share of {self.share:g} in spans of {self.mean_span:g}",
                remedy="Give a share between 0 and 1, and spans of one token or more.",
            )

    def counts(self, length: int) -> tuple[int, int]:
        """(noise tokens, spans) of a text of ``length`` tokens. Raises RequestError below 2 tokens."""
        if length < 2:
            raise RequestError(f"A text of {length} tokens to corrupt", remedy="Give texts of 2 tokens at least.")
        noise = min(max(round(self.share * length), 1), length - 1)
        return noise, min(max(round(noise / self.mean_span), 1), length - noise)


def noise_mask(length: int, spec: SpanCorruption, dice: torch.Generator) -> Tensor:
    """bool [length]: which tokens are noise. Raises RequestError below 2 tokens."""
    noise, spans = spec.counts(length)
    lengths = torch.stack([parts(length - noise, spans, dice), parts(noise, spans, dice)], dim=1).flatten()
    return torch.repeat_interleave(torch.arange(2 * spans) % 2 == 1, lengths)


def parts(total: int, count: int, dice: torch.Generator) -> Tensor:
    """int64 [count]: positive numbers that sum to ``total``, uniform over all C(total - 1, count - 1) ways."""
    cuts = torch.randperm(total - 1, generator=dice)[: count - 1].sort().values + 1
    return torch.diff(cuts, prepend=cuts.new_zeros(1), append=cuts.new_full((1,), total))


def corrupt_spans(tokens: Tensor, noise: Tensor, *, marks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(input, target), int64 each, of tokens int64 [n] and the noise bool [n].

    Raises RequestError if there are not enough ``marks``, or one of them occurs in the text, which could not be undone.
    """
    if bool(torch.isin(tokens, torch.tensor(marks)).any()):
        raise RequestError("A mark of a missing span stands in the text", remedy="Keep these ids for marks alone.")
    given, wanted = list[int](), list[int]()
    spans, inside = 0, False
    for token, hidden in zip(tokens.tolist(), noise.tolist(), strict=True):
        if hidden and not inside:
            mark = _mark(marks, spans)
            given.append(mark)
            wanted.append(mark)
            spans += 1
        (wanted if hidden else given).append(token)
        inside = hidden
    wanted.append(_mark(marks, spans))
    return torch.tensor(given, dtype=torch.int64), torch.tensor(wanted, dtype=torch.int64)


def restore_spans(given: Tensor, wanted: Tensor, *, marks: Sequence[int]) -> Tensor:
    """The text, int64 [n], from input and target: each mark of the input replaced by what follows it in the target."""
    known, current = dict[int, list[int]](), list[int]()
    special = set(marks)
    for token in wanted.tolist():
        if token in special:
            current = known.setdefault(token, [])
        else:
            current.append(token)
    out = [piece for token in given.tolist() for piece in (known[token] if token in special else [token])]
    return torch.tensor(out, dtype=torch.int64)


def _mark(marks: Sequence[int], index: int) -> int:
    if index >= len(marks):
        raise RequestError(
            f"{index} missing spans and {len(marks)} marks, of which the target needs one more than spans",
            remedy="Add marks to the vocabulary, shorten the text, or make spans longer.",
        )
    return marks[index]
