"""Tiny tokenizers trained on text made up here, and texts that break tokenizers."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from almanac.tokenizers.tokenizer import Tokenizer

POOLS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJ",
    "0123456789",
    " \t\n\r  ",
    "!?.,;:'\"()[]{}<>|/\\@#$%^&*-_=+`~",
    "éàüñçßøæœ",
    "αβγδεжзийк",
    "你好世界日本語かなカナ한국어",
    "😀🎉👩\u200d🚀🇫🇷👍🏽\U000e0067",
    "\u0301\u0308\u20dd",
    "\u00a0\u2003\u3000\u200b\ufeff\u2028",
    "½²³٣४五Ⅷ",
]
WORDS = ["'s", "'LL", "don't", " the", "  ", "\n\n", "camelCase", "HTTPServer", "123456", "3.14", "e\u0301", "\ufffd"]
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "_end|>"]


def made_up_text(seed: int, words: int) -> list[str]:
    """Lines of invented words with a skewed distribution, so that byte-pair merges have something to find."""
    rng = random.Random(seed)
    syllables = ["".join(rng.choice("bcdfglmnprstv") + rng.choice("aeiou") for _ in range(2)) for _ in range(60)]
    lexicon = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(300)]
    lexicon += ["你好", "世界", "привет", "été", "naïve", "😀", "don't", "x = 1", "2024", "10,000"]
    lines = []
    for _ in range(words // 10):
        chosen = [lexicon[int(len(lexicon) * rng.random() ** 3)] for _ in range(10)]
        lines.append(" ".join(chosen).capitalize() + rng.choice([".", "!", "?\n", ":\n\n\t"]))
    return lines


def fuzz_texts(seed: int, count: int) -> Iterator[str]:
    """Texts of mixed scripts, white space, digits, emoji, combining characters, control tokens and any code point."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 9)):
            draw = rng.random()
            if draw < 0.25:
                parts.append(rng.choice(WORDS))
            elif draw < 0.35:
                parts.append(rng.choice(CONTROLS))
            elif draw < 0.45:
                code = rng.randrange(0x110000)
                parts.append(chr(code) if not 0xD800 <= code < 0xE000 else "")
            else:
                pool = rng.choice(POOLS)
                parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 6))))
        yield "".join(parts)


@pytest.fixture(scope="session")
def fuzz() -> Callable[[int, int], list[str]]:
    return lambda seed, count: list(fuzz_texts(seed, count))


@pytest.fixture(scope="session")
def byte_level_json() -> str:
    """A byte-level BPE in the manner of SmolLM: every digit alone, then the GPT-2 pattern; 900 tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(made_up_text(1, 20_000), trainer)
    backend.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return backend.to_str()


@pytest.fixture(scope="session")
def byte_level_config() -> dict[str, Any]:
    return {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }


@pytest.fixture(scope="session")
def byte_level(byte_level_json: str, byte_level_config: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_json(byte_level_json, config=byte_level_config)


@pytest.fixture(scope="session")
def pieces_metadata() -> dict[str, Any]:
    """GGUF metadata of a SentencePiece BPE with byte fallback, scores by rank, and two added tokens."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(made_up_text(2, 20_000), trainer)
    vocab = backend.get_vocab()
    learned = sorted(vocab, key=lambda token: vocab[token])[len(specials) :]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*specials, *learned, "  ", "<start_of_turn>"],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(learned), 4, 3],
        "tokenizer.ggml.scores": [*[0.0] * len(specials), *(-float(rank) for rank in range(len(learned) + 2))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


@pytest.fixture(scope="session")
def word_piece() -> Tokenizer:
    """A WordPiece tokenizer with the BERT post-processor: a decoder that is no byte rule."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(
        made_up_text(3, 8_000), trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return Tokenizer.from_json(backend.to_str())


@pytest.fixture(scope="session")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers is the oracle (extra 'oracles')")


@pytest.fixture
def definition(byte_level_json: str) -> dict[str, Any]:
    """A fresh copy of the byte-level tokenizer.json, to break."""
    return json.loads(byte_level_json)
