"""`train`: from a corpus and an algorithm to a tokenizer that was checked.

Nothing in it is drawn by chance: the same text and settings give the same tokenizer, bit for bit, however many cores there
are.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.core.errors import RequestError
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import PLAIN, Controls
from almanac.tokenizers.train.corpus import Corpus, Seen
from almanac.tokenizers.train.exports import require_export
from almanac.tokenizers.train.kind import Kind
from almanac.tokenizers.train.losses import Losses, losses, require_lossless

TRAINING_FILE = "tokenizer_training.json"
MAX_CHECKED = 256  # held-out pieces that are encoded and decoded: two million characters, a few seconds


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A tokenizer and what is known about it.

    Args:
        tokenizer: ready to use.
        kind: the algorithm with its settings.
        losses: of text given back, on the held-out text.
        held_out: whether that text was kept out of training; a corpus of few pieces is too small for it, and the check
            is then on the text it was trained on.
        gguf: "same ids", or why GGUF cannot hold this tokenizer.
        pieces, bytes: of text it was trained on.
        replaced: malformed bytes that were read as U+FFFD.
    """

    tokenizer: Tokenizer
    kind: Kind
    losses: Losses
    held_out: bool
    gguf: str
    pieces: int
    bytes: int
    replaced: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the vocabulary."""
        return {
            "kind": type(self.kind).__module__.rpartition(".")[2],
            "settings": dataclasses.asdict(self.kind),
            "vocab_size": self.tokenizer.vocab_size,
            "digest": self.tokenizer.digest(),
            "trained_on": {"pieces": self.pieces, "bytes": self.bytes, "malformed_bytes_replaced": self.replaced},
            "stated_losses": list(self.kind.stated_losses),
            "losses": {**self.losses.to_dict(), "on_held_out_text": self.held_out},
            "gguf": self.gguf,
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and tokenizer_training.json."""
        self.tokenizer.save(folder)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / TRAINING_FILE).write_text(text, encoding="utf-8")


def train(
    corpus: Corpus | Iterable[str], kind: Kind, *, controls: Controls = PLAIN, held_out: Iterable[str] | None = None
) -> Trained:
    """Trains a tokenizer and checks it.

    Args:
        corpus: the text, streamed; memory grows with the number of different words, not with the length. A list of texts
            is taken as `Corpus.of_texts`.
        kind: the algorithm with its settings, for instance ``ByteBpe(vocab_size=8000)``.
        controls: special tokens and chat template.
        held_out: text to check losses on; a thirty-second part of the corpus is kept back for it if None.

    Raises:
        PreflightError: the corpus is empty, or nothing but copies of a few lines.
        RequestError: the vocabulary is smaller than the alphabet or larger than the text supports, a special token is
            also an ordinary one, or the corpus is a stream that can be read only once.
        FileFormatError: a file is not UTF-8 text.
        ParityError: the tokenizer loses text that its kind promises to keep, or other readers come to other ids.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.of_texts(corpus)
    special = controls.texts()
    if kind.unknown in special:
        raise RequestError(f"{kind.unknown!r} is the unknown token of this kind", remedy="Leave it out.")
    first = Seen()
    passages = 0

    def texts() -> Iterator[str]:
        nonlocal passages
        passages += 1
        return corpus.pieces(first if passages == 1 else Seen())

    parts = kind.learn(texts, kind.vocab_size - len(special))
    tokenizer = assemble(parts, kind, controls)
    checked = list(held_out) if held_out is not None else first.held_out
    unseen = bool(checked)
    checked = _spread(checked, MAX_CHECKED) or _first(corpus, MAX_CHECKED)
    found = losses(tokenizer, checked if kind.lossless else _lines(checked))
    if kind.lossless:
        require_lossless(found)
    return Trained(
        tokenizer=tokenizer,
        kind=kind,
        losses=found,
        held_out=unseen,
        gguf=require_export(tokenizer, checked),
        pieces=first.pieces,
        bytes=first.bytes,
        replaced=first.replaced,
    )


def assemble(parts: dict[str, Any], kind: Kind, controls: Controls) -> Tokenizer:
    """The tokenizer of what was learned, with the special tokens after the vocabulary.

    Raises RequestError if a special token is also an ordinary one.
    """
    vocab = parts["model"]["vocab"]
    ordinary = vocab if isinstance(vocab, dict) else {piece: id for id, (piece, _) in enumerate(vocab)}
    if clash := [text for text in controls.texts() if text in ordinary]:
        raise RequestError(
            f"The special token {clash[0]!r} is also an ordinary token of the vocabulary",
            remedy="Give it a text that does not occur, like <|name|>.",
        )
    ids = {text: len(ordinary) + index for index, text in enumerate(controls.texts())}
    known = {} if kind.unknown is None else {kind.unknown: ordinary[kind.unknown]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition = {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": text, **flags} for text, id in {**known, **ids}.items()],
        "post_processor": controls.post_processor(ids),
        **parts,
    }
    config: dict[str, Any] = dict(controls.roles())
    if kind.unknown is not None:
        config["unk_token"] = kind.unknown
    if controls.chat_template is not None:
        config["chat_template"] = controls.chat_template
    return Tokenizer(definition, config=config)


def _spread(texts: list[str], most: int) -> list[str]:
    """At most so many of them, from the whole length of the list."""
    return texts[:: -(-len(texts) // most)] if texts else []


def _lines(texts: list[str]) -> list[str]:
    """The lines that are not blank: where something is lost in every page, only lines tell how much."""
    return [line for text in texts for line in text.splitlines() if line.strip()]


def _first(corpus: Corpus, most: int) -> list[str]:
    return [text for text, _ in zip(corpus.texts(), range(most), strict=False)]
