"""One token a word: the most frequent words of the text, everything else unknown.

The oldest vocabulary there is, kept as the baseline that subwords are measured against and for word vectors. A word is a run
of letters, digits and underscores, or of anything else that is not white space. White space is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenizers.trainers import WordLevelTrainer

from almanac.tokenizers.train.kind import UNKNOWN, Kind, Texts, require_learned, require_room, run_trainer


@dataclass(frozen=True, kw_only=True)
class Word(Kind):
    """A tokenizer of words.

    Args:
        vocab_size: tokens in all, special ones included; the most frequent words get in.
        lowercase: read ``The`` as ``the``.
    """

    lowercase: bool = False
    unknown: ClassVar[str | None] = UNKNOWN

    @property
    def stated_losses(self) -> tuple[str, ...]:
        """White space, words outside the vocabulary, and capital letters where they are lowered."""
        lowered = ("capital letters become small",) if self.lowercase else ()
        return (
            *lowered,
            "every run of white space becomes one space, which is also put before punctuation",
            f"words outside the vocabulary become {UNKNOWN}",
        )

    def learn(self, texts: Texts, room: int) -> dict[str, Any]:
        """As `Kind.learn`."""
        require_room(room, 2, "the unknown token and a word")
        parts = {
            "normalizer": {"type": "Lowercase"} if self.lowercase else None,
            "pre_tokenizer": {"type": "Whitespace"},
            "decoder": None,
        }
        empty = {"type": "WordLevel", "vocab": {}, "unk_token": UNKNOWN}
        trainer = WordLevelTrainer(vocab_size=room, special_tokens=[UNKNOWN], show_progress=False)
        model = run_trainer({**parts, "model": empty}, trainer, texts)
        require_learned(len(model["vocab"]), room)
        return {**parts, "model": {**model, "unk_token": UNKNOWN}}
