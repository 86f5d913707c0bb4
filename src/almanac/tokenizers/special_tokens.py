"""Which token ids have a role: beginning, end, padding, unknown, the ids that end a generation, and the control tokens.

The roles come from `tokenizer_config.json` (or from GGUF metadata in the same form). Which tokens end a turn is nowhere
declared in either format, so it is known by text, as llama.cpp does it (its list of end-of-generation tokens).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from almanac.core.errors import FileFormatError

END_OF_TURN_TEXTS = frozenset(
    "<|im_end|> <|eot_id|> <|eom_id|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|end_of_text|> </s> "
    "<eos> <EOT> [EOT] [EOS] <end_of_utterance> <|endofturn|> <|end_of_turn|> <｜end▁of▁sentence｜>".split()
)
_END_OF_BLOCK = "<|end|>"  # ends a turn in the Phi style, but only a channel where the two below exist (Harmony style)
_HARMONY = ("<|return|>", "<|call|>")

# Control-looking tokens that some publishers forget to mark as special: <|...|>, <start_of_turn>, [INST]. Not <h1>,
# <think>.
_CONTROL_LOOKING = re.compile(r"<[|｜].*[|｜]?>|</?\w+_\w+>|\[/?[A-Z][A-Z_]+\]", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Token ids by role; None where the tokenizer has no such token.

    Args:
        bos: beginning of sequence.
        eos: end of sequence.
        pad: padding.
        unk: what unknown text becomes.
        stop: every id that ends a generation (eos and end-of-turn tokens).
        control: ids whose text is a command to the model; text from users must never turn into one of them.
    """

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    stop: frozenset[int] = frozenset()
    control: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ControlToken:
    """A control token as it is found in a text.

    Args:
        id: its id.
        lstrip: whether it takes the white space before it along.
        rstrip: whether it takes the white space after it along.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False


def find_special_tokens(
    definition: Mapping[str, Any], config: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> SpecialTokens:
    """Roles from `config` (tokenizer_config.json), completed from the definition where the config is silent.

    Raises:
        FileFormatError: the config names a token that the tokenizer does not have.
    """
    roles = {role: _role(config, f"{role}_token", backend) for role in ("bos", "eos", "pad", "unk")}
    model = definition["model"]
    if roles["unk"] is None and isinstance(model.get("unk_token"), str):
        roles["unk"] = backend.token_to_id(model["unk_token"])
    if not config:  # without tokenizer_config.json, what the post-processor puts in front is the only witness
        roles["bos"] = leading_special(definition, backend)
    added = definition["added_tokens"]
    ends = {token["content"]: token["id"] for token in added if token["content"] in END_OF_TURN_TEXTS}
    if all(text in ends for text in _HARMONY):
        ends.pop(_END_OF_BLOCK, None)
    declared = [_token_id(text, "stop_tokens", backend) for text in _texts(config.get("stop_tokens"))]
    stop = {*ends.values(), *declared, *([roles["eos"]] if roles["eos"] is not None else [])}
    control = {token["id"] for token in added if token.get("special") or _CONTROL_LOOKING.fullmatch(token["content"])}
    named = {id for id in roles.values() if id is not None}
    return SpecialTokens(**roles, stop=frozenset(stop), control=frozenset(control | stop | named))


def text_of(value: Any) -> str | None:
    """The text of a token entry of tokenizer_config.json: a string or an object with 'content'."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [text for item in value if (text := text_of(item))] if isinstance(value, list) else []


def _role(config: Mapping[str, Any], key: str, backend: tokenizers.Tokenizer) -> int | None:
    text = text_of(config.get(key))
    return None if not text else _token_id(text, key, backend)


def _token_id(text: str, key: str, backend: tokenizers.Tokenizer) -> int:
    found = backend.token_to_id(text)
    if found is None:
        raise FileFormatError(
            f"tokenizer_config.json names {text!r} as {key}, which tokenizer.json does not hold",
            remedy="Use the two files of one release together.",
        )
    return found


def leading_special(definition: Mapping[str, Any], backend: tokenizers.Tokenizer) -> int | None:
    """The special id that the post-processor puts in front of an empty text, if any."""
    ids = backend.encode("", add_special_tokens=True).ids
    special = {token["id"] for token in definition["added_tokens"] if token.get("special")}
    return ids[0] if ids and ids[0] in special else None
