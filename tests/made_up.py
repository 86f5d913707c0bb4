"""Text made up here: words from syllables with a skewed distribution, so that there is something to learn."""

from __future__ import annotations

import random
from collections.abc import Iterator


def lines(seed: int, count: int, *, words: int = 9) -> list[str]:
    """Different lines of invented words, some with capitals, digits, punctuation and other scripts."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bcdfglmnprstv" for b in "aeiou"]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(400)]
    lexicon += ["été", "naïve", "привет", "мир", "don't", "2024", "3.14", "你好"]
    made = []
    for number in range(count):
        chosen = [lexicon[int(len(lexicon) * rng.random() ** 2)] for _ in range(words)]
        made.append(" ".join(chosen).capitalize() + rng.choice([".", "!", "?", " (x);"]) + f" {number}")
    return made


def planted_sentences(seed: int, count: int, *, size: int = 5, shuffled: bool = False) -> Iterator[list[str]]:
    """Sentences around a word ``w{row}{column}``: two words of its row and two of its column stand beside it.

    By construction w{a}{x} is to w{b}{x} as w{a}{y} is to w{b}{y}. With ``shuffled`` the word in the middle is any.
    """
    rng = random.Random(seed)
    for _ in range(count):
        row, column = rng.randrange(size), rng.randrange(size)
        around = [f"row{row}_{rng.randrange(4)}" for _ in range(2)] + [
            f"col{column}_{rng.randrange(4)}" for _ in range(2)
        ]
        rng.shuffle(around)
        word = f"w{rng.randrange(size)}{rng.randrange(size)}" if shuffled else f"w{row}{column}"
        yield [*around[:2], word, *around[2:]]
