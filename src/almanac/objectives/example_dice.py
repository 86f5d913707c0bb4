"""Dice of one example: what is drawn for a text depends on the text's number alone, never on what was drawn before it.

A corruption that takes its randomness from here gives every worker, every order of examples and every resumed run the same
result. Numbers are mixed by SHA-256, since generators seeded with neighbouring integers may begin alike.
"""

from __future__ import annotations

import hashlib

import torch


def example_dice(seed: int, example: int, *, epoch: int = 0) -> torch.Generator:
    """A generator on the CPU for one example in one epoch of a run."""
    mixed = hashlib.sha256(f"{seed} {epoch} {example}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little") >> 1)


def draw(bound: int, dice: torch.Generator) -> int:
    """One integer from 0 to ``bound`` - 1, each as likely."""
    return int(torch.randint(bound, (), generator=dice))


def chance(share: float, dice: torch.Generator) -> bool:
    """True with probability ``share``."""
    return bool(torch.rand((), generator=dice) < share)
