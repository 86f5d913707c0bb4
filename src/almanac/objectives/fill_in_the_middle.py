"""Fill in the middle: a text is cut twice and its middle moved to the end, so that a causal model learns to fill gaps.

Bavarian 2022, arXiv 2207.14255, section 3. With prefix, middle and suffix of a text, and marks of its own vocabulary:

    PSM  <PRE> prefix <SUF> suffix <MID> middle <EOT>
    SPM  <PRE> <SUF> suffix <MID> prefix middle <EOT>

A share of the texts (the paper: 0.5 to 0.9) is changed, a share of these to SPM; the others stay as they are, at no cost to
ordinary generation. The loss is plain next-token prediction over the whole. SPM is the paper's second variant, in which
prefix and middle are contiguous. The two cuts are uniform over all places of the text: between characters, so that the model
meets parts of tokens as it will in use, or between tokens. In characters the three parts are encoded one by one.

Legend: n tokens or characters of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from almanac.core.errors import FileFormatError, RequestError
from almanac.core.value import Value
from almanac.objectives.example_dice import chance

Parts = tuple[list[int], list[int], list[int]]
"""prefix, middle, suffix"""


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(Value):
    """The ids of the four marks; ``share`` of texts that are changed, and ``suffix_first`` of these in SPM form."""

    prefix_id: int
    middle_id: int
    suffix_id: int
    end_id: int
    share: float = 0.5
    suffix_first: float = 0.5

    def __post_init__(self) -> None:
        if len(set(self.marks)) < 3 or not (0 <= self.share <= 1 and 0 <= self.suffix_first <= 1):
            raise RequestError(
                f"Marks {self.marks} with shares {self.share:g} and {self.suffix_first:g}",
                remedy="Give three different marks, and shares from 0 to 1.",
            )

    @property
    def marks(self) -> tuple[int, int, int]:
        """What tells a changed text from others."""
        return self.prefix_id, self.middle_id, self.suffix_id


def fill_in_tokens(tokens: Sequence[int], spec: FillInTheMiddle, dice: torch.Generator) -> list[int]:
    """A text cut between tokens, changed or not; an end mark always closes it."""
    if not chance(spec.share, dice):
        return [*tokens, spec.end_id]
    low, high = cuts(len(tokens), dice)
    return arranged((list(tokens[:low]), list(tokens[low:high]), list(tokens[high:])), spec, dice)


def fill_in_characters(
    text: str, spec: FillInTheMiddle, dice: torch.Generator, *, encode: Callable[[str], Sequence[int]]
) -> list[int]:
    """A text cut between characters; ``encode`` must add no special tokens."""
    if not chance(spec.share, dice):
        return [*encode(text), spec.end_id]
    low, high = cuts(len(text), dice)
    return arranged((list(encode(text[:low])), list(encode(text[low:high])), list(encode(text[high:]))), spec, dice)


def cuts(length: int, dice: torch.Generator) -> tuple[int, int]:
    """Two places from 0 to ``length``, in order, each drawn uniformly; they may be one."""
    low, high = torch.randint(length + 1, (2,), generator=dice).sort().values.tolist()
    return low, high


def arranged(parts: Parts, spec: FillInTheMiddle, dice: torch.Generator) -> list[int]:
    """The parts in PSM or SPM form, as the dice say.

    Raises RequestError if a mark occurs in the text, which could not be told from the marks that are put in.
    """
    if set(spec.marks) & {token for part in parts for token in part}:
        raise RequestError("A mark of fill in the middle stands in the text", remedy="Keep these ids for marks alone.")
    prefix, middle, suffix = parts
    if chance(spec.suffix_first, dice):
        head = [spec.prefix_id, spec.suffix_id, *suffix, spec.middle_id]
        return [*head, *prefix, *middle, spec.end_id]
    return [spec.prefix_id, *prefix, spec.suffix_id, *suffix, spec.middle_id, *middle, spec.end_id]


def restored(tokens: Sequence[int], spec: FillInTheMiddle) -> list[int]:
    """The tokens of the text in their order, without marks.

    Raises FileFormatError for what no text becomes here.
    """
    row = list(tokens)
    if not row or row[-1] != spec.end_id:
        raise FileFormatError("A text without its end mark", remedy="Give whole examples.")
    row.pop()
    if spec.prefix_id not in row:
        return row
    marks = [at for at, token in enumerate(row) if token in spec.marks]
    if [row[at] for at in marks] != [spec.prefix_id, spec.suffix_id, spec.middle_id] or marks[0]:
        raise FileFormatError("Marks of fill in the middle out of order", remedy="Give whole examples.")
    _, suffix_at, middle_at = marks
    suffix, rest = row[suffix_at + 1 : middle_at], row[middle_at + 1 :]
    return [*row[1:suffix_at], *rest, *suffix]
