"""Saving: a model folder is written beside its place, read back, held against the model in memory, and only then moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.files.safetensors import write_safetensors
from almanac.files.staging import move_into_place, staging
from almanac.files.store import write_atomic, write_json
from almanac.language_model.load import MANIFEST, MANIFEST_VERSION, load_folder
from almanac.models.encoder_decoder_family import hub_form
from almanac.models.hub_folder import config_text, family_of, hub_config, hub_names
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.verify import certificate as certificates
from almanac.verify.parity import require_equal
from almanac.verify.probes import divergence, probe_ids, probe_logits

if TYPE_CHECKING:
    from almanac.language_model.model import LanguageModel


def save(lm: LanguageModel, folder: Path) -> Path:
    """Writes the folder of a model: weights, configuration, tokenizer, almanac.json and certificate.json.

    A model with an empty plan whose family the hub knows is written under the hub's names, loadable by transformers; any
    other under ours, and marked so that no one takes it for something else.

    Raises:
        ParityError: what was read back is not the model; nothing is left behind and an older folder stays.
        UnsupportedError: something that is no model folder lies there; it would be lost.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UnsupportedError(
            f"{folder} exists and is no model folder of almanac", remedy="Name another place, or remove it yourself."
        )
    with staging(folder) as scratch:
        write_folder(lm, scratch)
        seal(lm, scratch)
        move_into_place(scratch, folder)
    return folder


def write_folder(lm: LanguageModel, folder: Path) -> None:
    """All files but the certificate."""
    tensors = {name: parameter.detach() for name, parameter in lm.network.named_parameters()}
    known = None if lm.plan.techniques else _known(lm, tensors)
    if known is not None:
        family, config, theirs = known
        write_safetensors(folder / "model.safetensors", theirs)
    else:
        family, config = (
            lm.family,
            {
                "model_type": lm.family or "almanac",
                "quantization_config": {"quant_method": "almanac"},
            },
        )
        write_safetensors(folder / "model.safetensors", tensors)
    write_atomic(folder / "config.json", config_text(config).encode())
    lm.tokenizer.save(folder)
    manifest: dict[str, Any] = {
        "version": MANIFEST_VERSION,
        "layout": "hf" if known is not None else "almanac",
        "family": family,
        "spec": lm.spec.to_dict(),
        "plan": lm.plan.to_dict(),
        "provenance": lm.provenance,
    }
    write_json(folder / MANIFEST, manifest)


def _known(lm: LanguageModel, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
    """The family that the hub knows the model by, its config.json and its tensors; None if there is none."""
    dtype, special = _dtype(tensors), _special(lm)
    if isinstance(lm.spec, EncoderDecoder.Spec):
        return hub_form(lm.spec, tensors, preferred=lm.family, special=special)
    found = family_of(lm.spec, lm.family)
    if found is None:
        return None
    family, written = found
    config = hub_config(family, written, dtype=dtype, special=special)
    return family.model_type, config, hub_names(family, lm.spec, tensors)


def seal(lm: LanguageModel, folder: Path) -> None:
    """Reads the folder back, compares it with the model in memory, and writes the certificate."""
    rows = probe_ids(lm)
    again = load_folder(folder)
    require_equal(divergence(probe_logits(lm, rows), probe_logits(again, rows)), "saving")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    sealed = certificates.certify(lm, files=files, steps=lm.provenance.get("parity", []))
    certificates.check(sealed, again)
    certificates.check_digests(sealed, again)
    certificates.write(sealed, folder / certificates.NAME)


def _dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    return next(iter(tensors.values())).dtype


def _special(lm: LanguageModel) -> dict[str, int | None]:
    special = lm.tokenizer.special
    return {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
