"""The control tokens of a tokenizer, as objectives need them: by text, all together, and in sight of people."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from almanac.core.errors import RequestError
from almanac.tokenizers.tokenizer import Tokenizer


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
