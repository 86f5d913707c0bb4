"""Reading and vetting `tokenizer.json`: what it may hold is checked before the native library sees it.

The file is data from a stranger. It is parsed once, here; the library is given our own serialisation of what was
checked, so that two parsers cannot disagree about one file. Three kinds of state that would change ids behind the
caller's back (padding, truncation, BPE dropout) are removed. Regular expressions that can take exponential time are
refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers

from almanac.core.errors import FileFormatError, UnsafeFileError

MAX_BYTES = 64 * 1024 * 1024  # the largest published tokenizer.json files hold about 33 MB (vocabulary of 262,144)
MAX_TOKEN_ID = 1 << 24  # an embedding table of 16.7 M rows; ids beyond it are a lie or an attack
MAX_PATTERN_CHARACTERS = 16 * 1024
_FREE_REPEATS = 3  # a group repeated at most this often cannot blow up: 2**3 ways per position

_REMEDY = "Fetch the file again from its publisher, or rebuild the tokenizer."


def read_definition(text: str) -> dict[str, Any]:
    """Parse and vet the text of a `tokenizer.json`.

    Returns the definition with padding, truncation and dropout switched off.

    Raises:
        FileFormatError: not JSON, larger than `MAX_BYTES`, or not shaped like a tokenizer.
        UnsafeFileError: a regular expression in it can take exponential time.
    """
    if len(text) > MAX_BYTES:
        raise FileFormatError(
            f"tokenizer.json holds {len(text):,} characters, more than the {MAX_BYTES:,} allowed", remedy=_REMEDY
        )
    try:
        definition = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"tokenizer.json is not valid JSON ({error})", remedy=_REMEDY) from error
    return vet_definition(definition)


def vet_definition(definition: Any) -> dict[str, Any]:
    """Check the shape of a parsed definition and switch off, in it, what would act silently.

    Raises as `read_definition`.
    """
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise FileFormatError("tokenizer.json has no 'model' object", remedy=_REMEDY)
    definition["truncation"] = None
    definition["padding"] = None
    if "dropout" in definition["model"]:
        definition["model"]["dropout"] = None
    _vet_vocabulary(definition["model"].get("vocab"))
    _vet_added_tokens(definition.setdefault("added_tokens", []))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for pattern in _patterns(definition.get(part)):
            _vet_pattern(pattern, part)
    return definition


def build_backend(definition: dict[str, Any]) -> tokenizers.Tokenizer:
    """The native tokenizer of a vetted definition; its added tokens carry the ids that the file declares.

    Raises:
        FileFormatError: the library refuses the definition, or would give an added token another id than declared.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
        backend.encode("")  # some contradictions show only when the first text comes
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic derives from BaseException, not from Exception
        raise FileFormatError(f"tokenizer.json was refused: {str(error)[:300]}", remedy=_REMEDY) from error
    for token in definition["added_tokens"]:
        actual = backend.token_to_id(token["content"])
        if actual != token["id"]:
            raise FileFormatError(
                f"tokenizer.json declares id {token['id']} for {token['content']!r}, which would get id {actual}",
                remedy=_REMEDY,
            )
    return backend


def _vet_vocabulary(vocabulary: Any) -> None:
    if isinstance(vocabulary, list):  # Unigram: [[piece, log-probability], ...], ids by position
        if len(vocabulary) > MAX_TOKEN_ID:
            raise FileFormatError(f"the vocabulary has {len(vocabulary):,} entries", remedy=_REMEDY)
        return
    if not isinstance(vocabulary, dict):
        raise FileFormatError("tokenizer.json has no vocabulary", remedy=_REMEDY)
    ids = vocabulary.values()
    if not all(type(id) is int and 0 <= id < MAX_TOKEN_ID for id in ids):
        raise FileFormatError(f"a token id is not an integer in [0, {MAX_TOKEN_ID:,})", remedy=_REMEDY)
    if len(set(ids)) != len(vocabulary):
        raise FileFormatError("two tokens of the vocabulary share one id", remedy=_REMEDY)


def _vet_added_tokens(tokens: Any) -> None:
    if not isinstance(tokens, list):
        raise FileFormatError("'added_tokens' is not a list", remedy=_REMEDY)
    for token in tokens:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            raise FileFormatError("an added token has no text", remedy=_REMEDY)
        if type(token.get("id")) is not int or not 0 <= token["id"] < MAX_TOKEN_ID:
            raise FileFormatError(f"added token {token['content']!r} has no valid id", remedy=_REMEDY)


def _patterns(part: Any) -> Iterator[str]:
    """Every regular expression in a pipeline part."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "Regex" and isinstance(value, str):
                yield value
            else:
                yield from _patterns(value)
    elif isinstance(part, list):
        for value in part:
            yield from _patterns(value)


def _vet_pattern(pattern: str, part: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise FileFormatError(f"a pattern of the {part} has {len(pattern):,} characters", remedy=_REMEDY)
    if is_exponential(pattern):
        raise UnsafeFileError(
            f"a pattern of the {part} repeats a group that itself repeats or branches ({pattern[:80]!r}), "
            "which can take exponential time on ordinary text",
            remedy="Use the tokenizer of a publisher you trust, or rewrite the pattern without nested repetition.",
        )


def is_exponential(pattern: str) -> bool:
    """Whether a repeated group holds a variable repetition or an alternative, the shape of catastrophic backtracking.

    Errs on the strict side: `(a|b)*` is refused although harmless. No published byte-level pattern needs one.
    """
    groups = [False]  # per open group: does it hold a variable repetition or an alternative?
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        body = False
        if character == "\\":
            position += 1
            if pattern[position - 1 : position] in ("p", "P") and pattern[position : position + 1] == "{":
                position = _after(pattern, position, "}")
        elif character == "[":
            position = _after_class(pattern, position)
        elif character == "(":
            groups.append(False)
            if pattern[position : position + 1] == "?":
                position += 1  # the '?' of '(?:' is no repetition
            continue
        elif character == "|":
            groups[-1] = True
            continue
        elif character == ")" and len(groups) > 1:
            body = groups.pop()
        least, most, position = _repetition(pattern, position)
        if body and most > _FREE_REPEATS:
            return True
        groups[-1] = groups[-1] or body or least != most
    return False


def _after(pattern: str, position: int, end: str) -> int:
    found = pattern.find(end, position)
    return len(pattern) if found < 0 else found + 1


def _after_class(pattern: str, position: int) -> int:
    """Where a character class ends; classes nest, and a bracket that comes first is a literal."""
    if pattern[position : position + 1] == "^":
        position += 1
    if pattern[position : position + 1] == "]":
        position += 1
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "\\":
            position += 1
        elif character == "[":
            position = _after_class(pattern, position)
        elif character == "]":
            break
    return position


def _repetition(pattern: str, position: int) -> tuple[int, int, int]:
    """(least, most, next position) of the quantifier at `position`; (1, 1) for none, or one that cannot backtrack."""
    unbounded = 1 << 30
    least, most = 1, 1
    character = pattern[position : position + 1]
    symbols = {"*": (0, unbounded), "+": (1, unbounded), "?": (0, 1)}
    if character in symbols:
        least, most = symbols[character]
        position += 1
    elif character == "{":
        end = pattern.find("}", position)
        low, comma, high = pattern[position + 1 : end].partition(",")
        if end < 0 or not (low + high).isdecimal():
            return least, most, position
        least = int(low or 0)
        most = (int(high) if high else unbounded) if comma else least
        position = end + 1
    else:
        return least, most, position
    follower = pattern[position : position + 1]
    if follower == "+":  # possessive: never backtracks
        return 1, 1, position + 1
    return least, most, position + (follower == "?")
