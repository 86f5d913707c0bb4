"""The tokenizer: text to ids and back, with its special roles, over the `tokenizers` library.

What this face adds to the library: hostile or broken files raise typed errors; nothing in the file can pad, cut or
randomise silently; text from users can be encoded so that it never becomes a control token; decoding can be streamed
without ever giving out half a character; and the whole can be saved so that transformers loads it with equal ids.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from almanac.core.errors import FileFormatError, NotFoundError, RequestError
from almanac.tokenizers.definition import MAX_BYTES, build_backend, read_definition, vet_definition
from almanac.tokenizers.detokenize import DecodeStream, Detokenizer, read_rule
from almanac.tokenizers.special_tokens import ControlToken, find_special_tokens, leading_special

_CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_MAX_CONFIG_BYTES = 16 * 1024 * 1024  # some publishers list 100,000 added tokens in it


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        special: ids by role (`SpecialTokens`).
        vocab_size: the smallest size of an embedding table that holds every id (largest id + 1).
        add_bos: whether `encode` puts the bos id in front (with `add_special_tokens=True`).
        chat_template: source of the model's chat template, or None.
    """

    def __init__(self, definition: dict[str, Any], *, config: Mapping[str, Any] | None = None) -> None:
        """From a parsed tokenizer.json and, optionally, a parsed tokenizer_config.json.

        Raises:
            FileFormatError: the definition is malformed, or the config names tokens that it does not hold.
            UnsafeFileError: a pattern can take exponential time.
        """
        config = config or {}
        self._backend = build_backend(vet_definition(definition))
        self.special = find_special_tokens(definition, config, self._backend)
        self._honour_flags(definition, config)
        self.chat_template = _template(config)
        self._stop_tokens = sorted(str(self._backend.id_to_token(id)) for id in self.special.stop)
        added = {token["id"]: token["content"] for token in definition["added_tokens"]}
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        self.vocab_size: int = max(ids, default=-1) + 1
        self.add_bos = leading_special(definition, self._backend) == self.special.bos is not None
        self._has_unknown = "unk_id" in definition["model"] or definition["model"].get("unk_token") is not None
        self._detokenizer = Detokenizer(
            self._backend,
            read_rule(definition.get("decoder")),
            added=added,
            special=frozenset(token["id"] for token in definition["added_tokens"] if token.get("special")),
            vocab_size=self.vocab_size,
        )
        self._plain: tokenizers.Tokenizer | None = None
        self._digest: str | None = None

    @classmethod
    def from_json(cls, text: str, *, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """From the text of a tokenizer.json and a parsed tokenizer_config.json. Raises as `Tokenizer`."""
        return cls(read_definition(text), config=config)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From a tokenizer.json, or the folder that holds it, with the tokenizer_config.json beside it if there is one.

        Raises:
            NotFoundError: no such file.
            FileFormatError: too large, unreadable or malformed.
            UnsafeFileError: a pattern can take exponential time.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        definition = read_definition(_read(file, MAX_BYTES))
        config: dict[str, Any] = {}
        if (beside := file.with_name(_CONFIG_FILE)).is_file():
            config = _read_object(beside)
        if (template := file.with_name(_TEMPLATE_FILE)).is_file():
            config["chat_template"] = _read(template, _MAX_CONFIG_BYTES)
        return cls(definition, config=config)

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True) -> list[int]:
        """Ids of `text`.

        Args:
            text: any text without lone surrogates. Bytes that the vocabulary lacks are dropped, as the model's own
                tokenizer does (SmolLM2 lacks six control characters and two planes of Unicode without characters).
            add_special_tokens: let the tokenizer add what it adds around a text (bos, [CLS], ...).
            allow_special: whether the text of a control token becomes that token. Say False for text from users:
                then "<|im_end|>" is encoded letter by letter and cannot end a turn.

        Raises:
            RequestError: lone surrogates, not a text, or (with `allow_special=False`) a vocabulary in which plain text
                cannot be told from a control token.
        """
        return self._encode(text, add_special_tokens, allow_special).ids

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, allow_special: bool = True
    ) -> list[list[int]]:
        """Ids of each text, encoded in parallel and never padded. Arguments and errors as `encode`."""
        backend = self._backend if allow_special else self._plain_backend()
        try:
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic derives from BaseException, not from Exception
            raise _encode_error(error, texts) from error
        if not allow_special:
            for encoding in encodings:
                self._refuse_control(encoding)
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(
        self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, the characters [start, end) of `text` it stands for; (0, 0) for ids that were added.

        Several ids share a span where one character takes several tokens. Arguments and errors as `encode`.
        """
        encoding = self._encode(text, add_special_tokens, allow_special)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; malformed UTF-8 becomes U+FFFD.

        Raises:
            RequestError: an id is outside the vocabulary.
        """
        return self._detokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def decode_stream(self, *, skip_special_tokens: bool = True) -> DecodeStream:
        """A stream whose pieces, joined, equal `decode` of all ids fed to it."""
        return DecodeStream(self._detokenizer, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The text of a token in the vocabulary (byte-level tokens in the byte alphabet), or None."""
        return self._backend.id_to_token(id) if 0 <= id < self.vocab_size else None

    def control_tokens(self) -> dict[str, ControlToken]:
        """Every control token that `encode` finds in a text, by that text."""
        added = self._backend.get_added_tokens_decoder().items()
        return {
            token.content: ControlToken(id=id, lstrip=token.lstrip, rstrip=token.rstrip)
            for id, token in added
            if id in self.special.control
        }

    def to_json(self) -> str:
        """The text of a tokenizer.json with the same ids."""
        return self._backend.to_str()

    def config(self) -> dict[str, Any]:
        """The tokenizer_config.json that belongs to `to_json`, in the form transformers reads."""
        roles = {"bos": self.special.bos, "eos": self.special.eos, "pad": self.special.pad, "unk": self.special.unk}
        named = {f"{role}_token": self._backend.id_to_token(id) for role, id in roles.items() if id is not None}
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "stop_tokens": self._stop_tokens,
            "clean_up_tokenization_spaces": False,
            **template,
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; each file whole or not at all."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = self.config()
        roles = {key: value for key, value in config.items() if key.endswith("_token")}
        _write(target / "tokenizer.json", self.to_json())
        _write(target / _CONFIG_FILE, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        _write(target / "special_tokens_map.json", json.dumps(roles, ensure_ascii=False, indent=2) + "\n")

    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides ids and roles; the chat template has its own digest."""
        if self._digest is None:
            config = {key: value for key, value in self.config().items() if key != "chat_template"}
            content = json.dumps([json.loads(self.to_json()), config], sort_keys=True)
            self._digest = hashlib.sha256(content.encode("utf-8")).hexdigest()
        return self._digest

    def _encode(self, text: str, add_special_tokens: bool, allow_special: bool) -> tokenizers.Encoding:
        backend = self._backend if allow_special else self._plain_backend()
        try:
            encoding = backend.encode(text, add_special_tokens=add_special_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic derives from BaseException, not from Exception
            raise _encode_error(error, [text]) from error
        if not allow_special:
            self._refuse_control(encoding)
        return encoding

    def _plain_backend(self) -> tokenizers.Tokenizer:
        """A second instance that reads the text of control tokens as plain text (built on first use)."""
        if self._plain is None:
            definition = json.loads(self.to_json())
            for token in definition["added_tokens"]:
                token["special"] = token["id"] in self.special.control
            plain = build_backend(definition)
            plain.encode_special_tokens = True
            self._plain = plain
        return self._plain

    def _refuse_control(self, encoding: tokenizers.Encoding) -> None:
        """A vocabulary whose ordinary pieces include a control token has no plain form of it."""
        control = self.special.control - ({self.special.unk} if self._has_unknown else set())
        if control.isdisjoint(encoding.ids):
            return
        for id, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
            if id in control and not added:
                token = self._backend.id_to_token(id)
                raise RequestError(
                    f"The text holds {token!r}, which this vocabulary cannot write as plain text",
                    remedy="Remove it from the text.",
                )

    def _honour_flags(self, definition: dict[str, Any], config: Mapping[str, Any]) -> None:
        """`add_bos_token` and `add_eos_token` of the config overrule the post-processor (as in transformers 5)."""
        ids = self._backend.encode("", add_special_tokens=True).ids
        ends = {"bos": (self.special.bos, ids[:1]), "eos": (self.special.eos, ids[-1:])}
        actual = {role: id is not None and shown == [id] for role, (id, shown) in ends.items()}
        wanted = {role: config.get(f"add_{role}_token", actual[role]) is True for role in ends}
        wanted = {role: flag and ends[role][0] is not None for role, flag in wanted.items()}
        if wanted != actual:
            text = {role: str(self._backend.id_to_token(id)) for role, (id, _) in ends.items() if wanted[role]}
            single = [*([text["bos"]] if wanted["bos"] else []), "$A", *([text["eos"]] if wanted["eos"] else [])]
            pairs = [(text[role], ends[role][0]) for role in text]
            self._backend.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=pairs)


def _encode_error(error: BaseException, texts: Sequence[Any]) -> RequestError:
    """What went wrong while encoding `texts`, in the user's terms."""
    for text in texts:
        if not isinstance(text, str):
            return RequestError("What is to be encoded is not a str", remedy="Decode bytes to str first.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as surrogate:
            return RequestError(
                f"The text holds a lone surrogate at character {surrogate.start}, which is no Unicode text",
                remedy="Decode the input with errors='replace', or remove that character.",
            )
    return RequestError(
        f"The tokenizer failed on this text: {str(error)[:200]}",
        remedy="Use a tokenizer whose patterns run in bounded time.",
    )


def _template(config: Mapping[str, Any]) -> str | None:
    """The chat template of a tokenizer_config.json: a text, or a list of named ones of which "default" counts."""
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
        value = named.get("default", next(iter(named.values()), None))
    return value if isinstance(value, str) else None


def _read(path: Path, limit: int) -> str:
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe would block, a device has no end
            raise FileFormatError(f"{path} is not a regular file", remedy="Name a tokenizer.json or its folder.")
        if size > limit:
            raise FileFormatError(
                f"{path} holds {size:,} bytes, more than the {limit:,} allowed",
                remedy="Check that this is the right file; fetch it again from its publisher.",
            )
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise FileFormatError(f"{path} grew while it was read", remedy="Try again when nothing writes to it.")
        return content.decode("utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}", remedy="Name a tokenizer.json or its folder.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read ({error})", remedy="Fetch the file again.") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON ({error})", remedy="Fetch the file again.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} does not hold an object", remedy="Fetch the file again.")
    return value


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
