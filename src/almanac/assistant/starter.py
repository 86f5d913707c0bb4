"""The starter: an adapter that comes with Almanac and has learned to answer from passages, to cite and to decline.

A build on the model it was made for begins with it and goes on from there on the documents. ``recipes/starter_adapter.py``
makes it; ``starter_adapter/CARD.md`` says from what. It fits any weight format of its base: the base is known by its shape
and its norm weights, which no format quantizes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from almanac.adapt.lora import Lora
from almanac.assistant.confidence import Confidence
from almanac.core.errors import IntegrityError, ShapeError
from almanac.files.safetensors import open_safetensors, write_safetensors
from almanac.files.store import sha256_file, write_json
from almanac.files.strict_json import read_json
from almanac.language_model.model import LanguageModel

FOLDER = Path(__file__).parent / "starter_adapter"
WEIGHTS, MANIFEST = "adapter.safetensors", "adapter.json"


@dataclass(frozen=True)
class Starter:
    """An adapter that was found: where it lies and what is known of it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def technique(self) -> Lora:
        """The adapter's shape."""
        return Lora.from_dict(self.manifest["technique"])

    @property
    def confidence(self) -> Confidence | None:
        """The weights that decide when to decline, if they were fitted."""
        found = self.manifest.get("confidence")
        return Confidence.from_dict(found) if found else None

    def attach(self, lm: LanguageModel) -> LanguageModel:
        """Puts the adapter beside the weights of ``lm``, ready to be trained on; returns ``lm``.

        Raises:
            IntegrityError: the file is not the one that the manifest names.
            ShapeError: it does not fit this model.
        """
        path = self.folder / WEIGHTS
        if sha256_file(path) != self.manifest["sha256"]:
            raise IntegrityError(f"{path} is damaged", remedy="Install Almanac again.")
        lm.attach(self.technique)
        own = learned(lm.network)
        tensors = open_safetensors(path)
        if set(own) != set(tensors) or any(own[name].shape != tensors[name].shape for name in own):
            lm.detach(self.technique)
            raise ShapeError(f"{path} does not fit this model", remedy="Build with starter=False.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name].to(parameter.dtype))
        lm.record("starter", {"sha256": self.manifest["sha256"], "name": self.manifest["name"]})
        return lm


def find(lm: LanguageModel, folder: Path = FOLDER) -> Starter | None:
    """The starter for this model, or None where there is none."""
    if not (folder / MANIFEST).is_file() or not (folder / WEIGHTS).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("base") != fingerprint(lm):
        return None
    return Starter(folder, manifest)


def write(lm: LanguageModel, folder: Path, *, technique: Lora, details: dict[str, Any]) -> None:
    """Writes the adapter of ``lm`` as a starter: float16, with what it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().half() for name, parameter in learned(lm.network).items()}
    write_safetensors(folder / WEIGHTS, tensors)
    manifest = {"base": fingerprint(lm), "technique": technique.to_dict(), "sha256": sha256_file(folder / WEIGHTS)}
    write_json(folder / MANIFEST, manifest | details)


def learned(network: nn.Module) -> dict[str, Tensor]:
    """What is trainable, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def fingerprint(lm: LanguageModel) -> str:
    """SHA-256 of a model's identity: its vocabulary, depth and norm weights, the same in every weight format."""
    digest = hashlib.sha256(f"{lm.network.vocab_size} {len(lm.network.layers)}".encode())
    for name, parameter in sorted(lm.network.named_parameters()):
        if "norm" in name.split(".")[-2] and parameter.dim() == 1:
            digest.update(name.encode())
            digest.update(parameter.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
