"""``almanac.load``: an alias, a folder, a GGUF file or a hub id becomes a language model. Nothing in a file is ever run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almanac.compress.quantize.blocks import Blocks
from almanac.core.errors import FileFormatError, NotFoundError, RequestError, UnsafeFileError
from almanac.core.spec import Spec
from almanac.core.technique import Plan, assemble
from almanac.files.gguf.formats import format_named
from almanac.files.hub import HUB_ID, PACKAGES, alias_path, hub_path
from almanac.files.mapped import read_at_most
from almanac.files.quoting import quoted
from almanac.files.refuse import refuse_content, refuse_name
from almanac.files.safetensors import read_sharded
from almanac.files.store import safe_member
from almanac.files.strict_json import read_json
from almanac.language_model.model import LanguageModel
from almanac.models.checkpoint import ForeignCheckpoint, Packed, describing
from almanac.models.encoder_decoder_family import (
    EncoderDecoderCheckpoint,
    is_encoder_decoder,
    read_encoder_decoder_folder,
)
from almanac.models.gguf_file import read_gguf_file
from almanac.models.hub_folder import read_hub_folder
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.nn.stack import Decoder
from almanac.nn.stored.blocks import BlockWeight
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.gguf import from_gguf_metadata
from almanac.tokenizers.tokenizer import Tokenizer

MANIFEST = "almanac.json"
MANIFEST_VERSION = 1
_READ = (MANIFEST, "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def load(
    source: str | Path,
    *,
    packed: bool = True,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    download: bool | None = None,
    report: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Loads a model.

    Args:
        source: an alias (``smollm2-135m-instruct``), a model folder, a ``.gguf`` file, or a hub id ``owner/name``.
        packed: keep GGUF's quantized weights packed; False expands them to ``dtype``.
        dtype: of dense weights; None: as stored in a folder of ours, float32 from any other source.
        revision: the pinned commit of a hub id.
        download: whether fetching is allowed; by default yes for aliases (pinned by digest), no for hub ids.
        report: told in a line what is being fetched.

    Raises:
        NotFoundError: no such thing, or not cached and not allowed to fetch.
        FileFormatError, UnsafeFileError, IntegrityError, ArchitectureError: nothing is half-loaded.
        RequestError: packed weights together with a dtype that they do not compute in.
    """
    path = _locate(str(source), revision, download, report)
    if path.is_dir():
        return load_folder(path, dtype=dtype)
    if path.suffix.lower() == ".gguf":
        return load_gguf(path, packed=packed, dtype=dtype)
    refuse_name(path)
    head, _ = read_at_most(path, 4096)
    if head.startswith(b"GGUF"):
        return load_gguf(path, packed=packed, dtype=dtype)
    refuse_content(path, head)
    raise UnsafeFileError(f"{path} is no model file that is read here", remedy="Give a model folder or a .gguf file.")


def load_gguf(path: Path, *, packed: bool = True, dtype: torch.dtype | None = None) -> LanguageModel:
    """A GGUF file with the tokenizer and the template inside it."""
    checkpoint, file = read_gguf_file(path)
    tokenizer = from_gguf_metadata(file.metadata)
    plan, tensors = _packed(checkpoint) if packed else (Plan(), _dense(checkpoint))
    if plan.techniques and dtype not in (None, torch.float32):
        raise RequestError(f"Packed weights compute in float32, not {dtype}", remedy="Say packed=False as well.")
    lm = LanguageModel(
        network=_network(path, checkpoint.spec, plan, _cast(tensors, dtype or torch.float32)),
        spec=checkpoint.spec,
        tokenizer=tokenizer,
        template=_template(tokenizer),
        plan=plan,
        family=checkpoint.family.model_type,
        provenance=_provenance(path, "gguf", checkpoint),
    )
    return _fitting(lm)


def load_folder(path: Path, *, dtype: torch.dtype | None = None) -> LanguageModel:
    """A folder: ours (spec and plan in almanac.json) or the hub's."""
    for name in _READ:
        safe_member(path, name)
    if (path / MANIFEST).is_file():
        return _fitting(_load_own(path, dtype))
    checkpoint = _read_hub(path)
    tokenizer = Tokenizer.from_json_file(path)
    lm = LanguageModel(
        network=_network(path, checkpoint.spec, Plan(), _cast(_dense(checkpoint), dtype or torch.float32)),
        spec=checkpoint.spec,
        tokenizer=tokenizer,
        template=_template(tokenizer),
        family=checkpoint.family.model_type,
        provenance=_provenance(path, "hf", checkpoint),
    )
    return _fitting(lm)


def read_manifest(path: Path) -> dict[str, Any]:
    """almanac.json of a model folder. Raises FileFormatError if it is none of ours or of a later version."""
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("version") != MANIFEST_VERSION:
        raise FileFormatError(
            f"{path / MANIFEST} is not of version {MANIFEST_VERSION}", remedy="Update almanac, or save the model again."
        )
    kinds = {"layout": str, "family": str | None, "spec": dict, "plan": dict, "provenance": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    if wrong or manifest["layout"] not in ("hf", "almanac"):
        raise FileFormatError(
            f"{path / MANIFEST} has no valid {wrong[0] if wrong else 'layout'}", remedy="Save the model again."
        )
    return manifest


def _load_own(path: Path, dtype: torch.dtype | None) -> LanguageModel:
    manifest = read_manifest(path)
    with describing(path / MANIFEST):
        spec, plan = Spec.from_dict(manifest["spec"]), Plan.from_dict(manifest["plan"])
    if not isinstance(spec, Decoder.Spec | EncoderDecoder.Spec):
        raise FileFormatError(
            f"{path / MANIFEST} describes a {spec.kind()}, no language model", remedy="Open it with what has made it."
        )
    if manifest["layout"] == "hf":
        checkpoint = _read_hub(path)
        if checkpoint.spec != spec:
            raise FileFormatError(
                f"config.json and {MANIFEST} of {path} describe different models",
                remedy="One of them was changed; restore the folder from its source.",
            )
        tensors = _dense(checkpoint)
    else:
        source = read_sharded(path)
        tensors = {name: source[name] for name in source}
    tokenizer = Tokenizer.from_json_file(path)
    return LanguageModel(
        network=_network(path, spec, plan, _cast(tensors, dtype) if dtype is not None else tensors),
        spec=spec,
        tokenizer=tokenizer,
        template=_template(tokenizer),
        plan=plan,
        family=manifest["family"],
        provenance=manifest["provenance"],
    )


def _read_hub(path: Path) -> ForeignCheckpoint | EncoderDecoderCheckpoint:
    return read_encoder_decoder_folder(path) if is_encoder_decoder(path) else read_hub_folder(path)


def _network(
    path: Path, spec: Decoder.Spec | EncoderDecoder.Spec, plan: Plan, tensors: dict[str, Tensor]
) -> Decoder | EncoderDecoder:
    stacks = (spec,) if isinstance(spec, Decoder.Spec) else (spec.encoder, spec.decoder)
    layers = sum(len(stack.layers) for stack in stacks)
    with describing(path):
        if layers > len(tensors):  # before any is built: a lie about their number must not cost time
            raise FileFormatError(
                f"{path}: {layers:,} layers are declared and {len(tensors):,} tensors given",
                remedy="The configuration and the weights belong to different models; fetch both from one place.",
            )
        network = assemble(spec, plan, tensors)
    assert isinstance(network, Decoder | EncoderDecoder)
    return network


def _fitting(lm: LanguageModel) -> LanguageModel:
    """The model, if its tokenizer fits its embedding."""
    if lm.tokenizer.vocab_size > lm.spec.embed.vocab_size:
        raise FileFormatError(
            f"The tokenizer makes ids up to {lm.tokenizer.vocab_size - 1}, "
            f"the embedding holds {lm.spec.embed.vocab_size}",
            remedy="Tokenizer and weights belong to different models; fetch both from one place.",
        )
    return lm


def _provenance(path: Path, format: str, checkpoint: ForeignCheckpoint | EncoderDecoderCheckpoint) -> dict[str, Any]:
    provenance: dict[str, Any] = {"source": path.name, "format": format}
    if checkpoint.not_understood:
        provenance["not_understood"] = {name: repr(value)[:200] for name, value in checkpoint.not_understood.items()}
    return provenance


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


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Dense tensors in ``dtype``; codes stay."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _dense(checkpoint: ForeignCheckpoint | EncoderDecoderCheckpoint) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, Packed):
            out[name] = BlockWeight(tensor.blocks, format=format_named(tensor.format), shape=tensor.shape).dense()
        else:
            out[name] = tensor
    return out


def _template(tokenizer: Tokenizer) -> ChatTemplate | None:
    return ChatTemplate.of(tokenizer) if tokenizer.chat_template else None


def _locate(source: str, revision: str | None, download: bool | None, report: Callable[[str], None] | None) -> Path:
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError):  # a name too long for a file, or the home of nobody
        path = Path()
    if source in PACKAGES:
        return alias_path(source, download=download is not False, report=report)
    if HUB_ID.fullmatch(source) and not source.startswith(".") and path.suffix.lower() != ".gguf":
        return hub_path(source, revision=revision, download=bool(download))
    raise NotFoundError(
        f"There is no model {quoted(source, limit=200)}",
        remedy=f"Give a folder, a .gguf file, a hub id owner/name, or an alias ({', '.join(PACKAGES)}).",
    )
