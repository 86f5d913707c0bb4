"""One token a character: nothing is learned but the alphabet.

What the alphabet lacks becomes the unknown token, or with ``byte_fallback`` its UTF-8 bytes, which loses nothing
(Kudo & Richardson 2018, arXiv 1808.06226). In the file it is a BPE without merges, which the library reads fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from almanac.tokenizers.train.alphabet import covered
from almanac.tokenizers.train.kind import UNKNOWN, Kind, Texts, require_room

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True, kw_only=True)
class Character(Kind):
    """A tokenizer of characters.

    Args:
        vocab_size: the most tokens in all; there are fewer where the text has fewer characters.
        coverage: share of the characters of the text that must have a token of their own; the rarest are left out first.
        byte_fallback: write what the alphabet lacks as bytes, for which 256 tokens are added.
    """

    vocab_size: int = 1 << 16
    coverage: float = 1.0
    byte_fallback: bool = False
    unknown: ClassVar[str | None] = UNKNOWN

    @property
    def stated_losses(self) -> tuple[str, ...]:
        """Characters that the alphabet lacks, unless they are written as bytes."""
        return () if self.byte_fallback else (f"characters that the corpus lacks become {UNKNOWN}",)

    def learn(self, texts: Texts, room: int) -> dict[str, Any]:
        """As `Kind.learn`, but an alphabet smaller than ``room`` is no error: it is all there is."""
        alphabet, _ = covered(texts, str, self.coverage)
        tokens = [UNKNOWN, *(BYTES if self.byte_fallback else ()), *alphabet]
        require_room(room, len(tokens), "the alphabet of the corpus")
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [],
        }
        steps = [{"type": "ByteFallback"}] if self.byte_fallback else []
        decoder = {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]}
        return {"normalizer": None, "pre_tokenizer": None, "model": model, "decoder": decoder}
