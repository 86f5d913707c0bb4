"""Which characters a vocabulary covers.

A corpus of the web holds thousands of characters that occur a few times. A vocabulary of characters or pieces that gave each
its own token would be full of tokens that are never trained. So the rarest are left out until only ``coverage`` of all
occurrences is covered (Kudo & Richardson 2018, arXiv 1808.06226, "character coverage"); of equally rare characters the one
with the higher code point goes first, so that the same text always gives the same alphabet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from almanac.core.errors import RequestError
from almanac.tokenizers.train.kind import Texts

Normalise = Callable[[str], str]


def covered(texts: Texts, normalise: Normalise, coverage: float) -> tuple[list[str], Texts]:
    """The alphabet, and the normalised texts with everything outside it turned to spaces.

    Args:
        coverage: share of the occurrences of characters, in (0, 1]; white space always belongs to the alphabet.

    Returns:
        Characters in the order of their code points, and the stream.

    Raises:
        RequestError: ``coverage`` is out of range.
    """
    if not 0 < coverage <= 1:
        raise RequestError(f"A character coverage of {coverage}", remedy="Give a number above 0 and up to 1.")
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalise(text))
    budget = (1 - coverage) * counts.total()
    outside: dict[int, str] = {}
    for character, count in sorted(counts.items(), key=lambda item: (item[1], -ord(item[0]))):
        if count > budget:
            break
        if not character.isspace():
            budget -= count
            outside[ord(character)] = " "

    def stream() -> Iterator[str]:
        return (normalise(text).translate(outside) for text in texts()) if outside else map(normalise, texts())

    return sorted(character for character in counts if ord(character) not in outside), stream
