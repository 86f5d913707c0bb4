"""A text that was given as an argument, or on stdin where the argument is ``-``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

STDIN = "\0stdin"
"""What a lone ``-`` becomes before parsing, as it looks like an option; no argument from a shell can hold a NUL."""
READERS = ("generate", "ask")  # the verbs that read stdin for it


def marked(tokens: Sequence[str]) -> list[str]:
    """The words of a command line; of a verb that reads stdin, with every lone ``-`` marked."""
    reads = bool(tokens) and tokens[0] in READERS
    return [STDIN if reads and token == "-" else token for token in tokens]


def unmarked(text: str) -> str:
    """A parser's message, or the value of an option, with the marks taken back."""
    return text.replace(STDIN, "-")


def typed(argument: str) -> str:
    """The text; from stdin without its last line end, which ``echo`` adds and no one means."""
    return sys.stdin.read().removesuffix("\n") if argument == STDIN else argument
