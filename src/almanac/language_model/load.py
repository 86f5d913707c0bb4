"""``almanac.load``: an alias, a folder, a GGUF file or a hub id becomes a language model. Nothing in a file is ever run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almanac.compress.quantize.blocks import Blocks
from almanac.core.errors import FileFormatError, NotFoundError, UnsafeFileError
from almanac.core.technique import Plan, assemble
from almanac.files.gguf.formats import format_named
from almanac.files.hub import HUB_ID, PACKAGES, alias_path, hub_path
from almanac.files.refuse import refuse_content, refuse_name
from almanac.files.safetensors import read_sharded
from almanac.files.strict_json import read_json
from almanac.language_model.model import LanguageModel
from almanac.models.checkpoint import ForeignCheckpoint, Packed
from almanac.models.gguf_file import read_gguf_file
from almanac.models.hub_folder import read_hub_folder
from almanac.nn.stack import Decoder
from almanac.nn.stored.blocks import BlockWeight
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.gguf import from_gguf_metadata
from almanac.tokenizers.tokenizer import Tokenizer

MANIFEST = "almanac.json"
MANIFEST_VERSION = 1


def load(
    source: str | Path,
    *,
    packed: bool = True,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    download: bool | None = None,
    report: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Loads a model.

    Args:
        source: an alias (``smollm2-135m-instruct``), a model folder, a ``.gguf`` file, or a hub id ``owner/name``.
        packed: keep GGUF's quantized weights packed; False expands them to ``dtype``.
        dtype: of dense weights.
        revision: the pinned commit of a hub id.
        download: whether fetching is allowed; by default yes for aliases (pinned by digest), no for hub ids.
        report: told in a line what is being fetched.

    Raises:
        NotFoundError: no such thing, or not cached and not allowed to fetch.
        FileFormatError, UnsafeFileError, IntegrityError, ArchitectureError: nothing is half-loaded.
    """
    path = _locate(str(source), revision, download, report)
    if path.is_dir():
        return load_folder(path, dtype=dtype)
    if path.suffix.lower() == ".gguf":
        return load_gguf(path, packed=packed, dtype=dtype)
    refuse_name(path)
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"GGUF"):
        return load_gguf(path, packed=packed, dtype=dtype)
    refuse_content(path, head)
    raise UnsafeFileError(f"{path} is no model file that is read here", remedy="Give a model folder or a .gguf file.")


def load_gguf(path: Path, *, packed: bool = True, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A GGUF file with the tokenizer and the template inside it."""
    checkpoint, file = read_gguf_file(path)
    tokenizer = from_gguf_metadata(file.metadata)
    plan, tensors = _packed(checkpoint) if packed else (Plan(), _expanded(checkpoint, dtype))
    return _model(checkpoint.spec, plan, tensors, tokenizer, checkpoint, {"source": path.name, "format": "gguf"})


def load_folder(path: Path, *, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A folder: ours (spec and plan in almanac.json) or the hub's."""
    tokenizer = Tokenizer.from_json_file(path)
    if (path / MANIFEST).is_file():
        return _load_own(path, tokenizer)
    checkpoint = read_hub_folder(path)
    tensors = _expanded(checkpoint, dtype)
    return _model(checkpoint.spec, Plan(), tensors, tokenizer, checkpoint, {"source": path.name, "format": "hf"})


def read_manifest(path: Path) -> dict[str, Any]:
    """almanac.json of a model folder. Raises FileFormatError if it is none of ours or of a later version."""
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("version") != MANIFEST_VERSION:
        raise FileFormatError(
            f"{path / MANIFEST} is not of version {MANIFEST_VERSION}", remedy="Update almanac, or save the model again."
        )
    return manifest


def _load_own(path: Path, tokenizer: Tokenizer) -> LanguageModel:
    manifest = read_manifest(path)
    spec, plan = Decoder.Spec.from_dict(manifest["spec"]), Plan.from_dict(manifest["plan"])
    if manifest.get("layout") == "hf":
        tensors = dict(_dense(read_hub_folder(path)).items())
    else:
        source = read_sharded(path)
        tensors = {name: source[name] for name in source}
    network = assemble(spec, plan, tensors)
    return LanguageModel(
        network=network,
        spec=spec,
        tokenizer=tokenizer,
        template=_template(tokenizer),
        plan=plan,
        family=manifest.get("family"),
        provenance=manifest.get("provenance", {}),
    )


def _model(
    spec: Decoder.Spec,
    plan: Plan,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer,
    checkpoint: ForeignCheckpoint,
    provenance: dict[str, Any],
) -> LanguageModel:
    if tokenizer.vocab_size > spec.embed.vocab_size:
        raise FileFormatError(
            f"The tokenizer makes ids up to {tokenizer.vocab_size - 1}, the embedding holds {spec.embed.vocab_size}",
            remedy="Tokenizer and weights belong to different models; fetch both from one place.",
        )
    if checkpoint.not_understood:
        provenance["not_understood"] = {name: repr(value)[:200] for name, value in checkpoint.not_understood.items()}
    return LanguageModel(
        network=assemble(spec, plan, tensors),
        spec=spec,
        tokenizer=tokenizer,
        template=_template(tokenizer),
        plan=plan,
        family=checkpoint.family.model_type,
        provenance=provenance,
    )


def _packed(checkpoint: ForeignCheckpoint) -> tuple[Plan, dict[str, Tensor]]:
    """A plan of one storing technique per format found, and the tensors as that plan expects them."""
    by_format: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, Packed):
            by_format.setdefault(tensor.format, []).append(name.removesuffix(".weight"))
            tensors[f"{name}.codes"] = tensor.blocks
        else:
            tensors[name] = tensor
    steps = tuple(Blocks(format=format, targets=_pattern(paths)) for format, paths in by_format.items())
    return Plan(techniques=steps), tensors


def _pattern(paths: Iterable[str]) -> str:
    """A pattern for exactly these paths."""
    return "{" + ",".join(sorted(paths)) + "}"


def _expanded(checkpoint: ForeignCheckpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in _dense(checkpoint).items()}


def _dense(checkpoint: ForeignCheckpoint) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, Packed):
            rows, columns = tensor.shape
            out[name] = BlockWeight(tensor.blocks, format=format_named(tensor.format), shape=(rows, columns)).dense()
        else:
            out[name] = tensor
    return out


def _template(tokenizer: Tokenizer) -> ChatTemplate | None:
    if tokenizer.chat_template is None:
        return None
    special = tokenizer.special
    text = {name: tokenizer.id_to_token(id) or "" if id is not None else "" for name, id in
            (("bos_token", special.bos), ("eos_token", special.eos))}  # fmt: skip
    return ChatTemplate(tokenizer.chat_template, **text)


def _locate(source: str, revision: str | None, download: bool | None, report: Callable[[str], None] | None) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source in PACKAGES:
        return alias_path(source, download=download is not False, report=report)
    if HUB_ID.fullmatch(source) and not source.startswith(".") and not path.suffix:
        return hub_path(source, revision=revision, download=bool(download))
    raise NotFoundError(
        f"There is no model {source!r}",
        remedy=f"Give a folder, a .gguf file, a hub id owner/name, or an alias ({', '.join(PACKAGES)}).",
    )
