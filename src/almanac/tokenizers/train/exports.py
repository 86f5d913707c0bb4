"""Whether other programs read what was trained to the same ids: tried, not assumed.

Three readers. The library reads the saved tokenizer.json again, which is what transformers' PreTrainedTokenizerFast and
most servers do. The GGUF metadata are read back by our reader, whose agreement with llama.cpp the tests hold. Where
transformers itself is installed it can be asked as well; that takes seconds, so it is a call of its own.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers

from almanac.core.errors import MissingExtraError, ParityError, UnsupportedError
from almanac.tokenizers.gguf import from_gguf_metadata, to_gguf_metadata
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.losses import PROBES

SAME = "same ids"


def require_export(tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    """Tries both files on ``texts`` and the probes.

    Returns:
        ``SAME`` if GGUF holds this tokenizer, else the reason why it cannot.

    Raises:
        ParityError: a reader came to other ids.
    """
    texts = [*texts, *PROBES.values()]
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    _compare(tokenizer, lambda text: backend.encode(text).ids, texts, "The tokenizers library")
    try:
        metadata = to_gguf_metadata(tokenizer)
    except UnsupportedError as error:
        return error.cause
    again = from_gguf_metadata(metadata)
    _compare(tokenizer, again.encode, texts, "A reader of the GGUF metadata")
    return SAME


def transformers_is_there() -> bool:
    """Whether transformers can be asked."""
    return importlib.util.find_spec("transformers") is not None


def require_transformers(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Saves the tokenizer and lets transformers load it.

    Raises:
        MissingExtraError: transformers is not installed.
        ParityError: it came to other ids, or to another text.
    """
    if not transformers_is_there():
        raise MissingExtraError(
            "transformers is not installed", remedy="Install the extra: pip install almanac-lm[oracles]"
        )
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*texts, *PROBES.values()]
    _compare(tokenizer, theirs.encode, texts, "transformers")
    named = {"bos": theirs.bos_token_id, "eos": theirs.eos_token_id, "pad": theirs.pad_token_id}
    ours = {"bos": tokenizer.special.bos, "eos": tokenizer.special.eos, "pad": tokenizer.special.pad}
    if named != ours:
        raise ParityError(f"transformers reads the roles {named}, not {ours}", remedy="Report this fault of ours.")


def _compare(tokenizer: Tokenizer, encode: Callable[[str], list[int]], texts: Sequence[str], reader: str) -> None:
    for text in texts:
        if encode(text) != tokenizer.encode(text):
            raise ParityError(
                f"{reader} cuts {text[:60]!r} into other ids than the tokenizer that was trained",
                remedy="This is a fault of ours: please report it with the text.",
            )
