"""Byte-level byte-pair encoding: text is UTF-8 bytes, and the most frequent pair of neighbours becomes a token, again and
again. Every Unicode text can be written and is given back exactly.

Sennrich, Haddow & Birch 2016, "Neural machine translation of rare words with subword units" (arXiv 1508.07909); on bytes:
Radford et al. 2019, "Language models are unsupervised multitask learners". With c(a, b) the number of places where token
b follows a inside a word, each step adds

    argmax over (a, b) of c(a, b)        ties: the pair whose tokens were there first

and joins all those places, until the vocabulary is full. A text is encoded by the same joins in the same order.

The cutting rule is one that GGUF has a name for, so that every tokenizer made here can be exported. ``smollm``, the default,
lets every digit stand alone, which arithmetic gains from, and otherwise cuts as GPT-2. A pair must occur ``MIN_COUNT``
times: a token seen once is never trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers.trainers import BpeTrainer

from almanac.tokenizers.detokenize import byte_alphabet
from almanac.tokenizers.pretokenizers import find_pretokenizer
from almanac.tokenizers.train.kind import Kind, Texts, require_learned, require_room, run_trainer

MIN_COUNT = 2


@dataclass(frozen=True, kw_only=True)
class ByteBpe(Kind):
    """Byte-level BPE.

    Args:
        vocab_size: tokens in all, special ones and the 256 bytes included.
        pretokenizer: which rule cuts text into words, by the name GGUF has for it (`almanac.tokenizers.pretokenizers`).
    """

    pretokenizer: str = "smollm"

    @property
    def stated_losses(self) -> tuple[str, ...]:
        """None, but for the rules that normalise first."""
        return ("text becomes Unicode NFC",) if find_pretokenizer(self.pretokenizer).nfc else ()

    def learn(self, texts: Texts, room: int) -> dict[str, Any]:
        """As `Kind.learn`. Raises UnsupportedError for an unknown pre-tokenizer."""
        rule = find_pretokenizer(self.pretokenizer)
        alphabet = sorted(byte_alphabet())
        require_room(room, len(alphabet), "the alphabet of bytes")
        parts: dict[str, Any] = {"normalizer": rule.normalizer(), "pre_tokenizer": rule.pre_tokenizer()}
        parts["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        trainer = BpeTrainer(
            vocab_size=room, min_frequency=MIN_COUNT, initial_alphabet=alphabet, special_tokens=[], show_progress=False
        )
        empty = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": rule.ignore_merges}
        model = run_trainer({**parts, "model": empty}, trainer, texts)
        require_learned(len(model["vocab"]), room)
        return {**parts, "model": {**model, "ignore_merges": rule.ignore_merges}}
