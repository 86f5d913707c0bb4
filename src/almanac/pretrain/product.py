"""What a pre-training run leaves: a language model in a model folder, or an encoder with its head as the hub knows it.

Either is read back and held against the network in memory before it takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from almanac.core.errors import ParityError
from almanac.core.spec import Spec
from almanac.core.technique import Plan, assemble
from almanac.files.staging import move_into_place, staging
from almanac.files.store import write_json
from almanac.language_model.encoder import TextEncoder, load_encoder
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.models.encoder_folder import read_task_folder, write_task_folder
from almanac.models.hub_folder import family_of
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.nn.stack import Decoder
from almanac.nn.task_model import TaskModel
from almanac.tokenizers.tokenizer import Tokenizer

PRETRAINING = "pretraining.json"


def language_model(network: nn.Module, spec: Spec, tokenizer: Tokenizer) -> LanguageModel | None:
    """The network as a language model; None for one that writes nothing."""
    if isinstance(network, Decoder) and isinstance(spec, Decoder.Spec):
        family = family_of(spec, None)
        return LanguageModel(network, spec, tokenizer, family=family[0].model_type if family else None)
    if isinstance(network, EncoderDecoder) and isinstance(spec, EncoderDecoder.Spec):
        return LanguageModel(network, spec, tokenizer)
    return None


def save(network: nn.Module, spec: Spec, tokenizer: Tokenizer, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the folder of what was trained; ``facts`` tell how.

    Raises ParityError where what is read back is not the network; an older folder then stays.
    """
    lm = language_model(network, spec, tokenizer)
    if lm is not None:
        lm.record("pretrain", facts)
        lm.save(folder)
        return
    assert isinstance(network, TaskModel) and isinstance(spec, TaskModel.Spec)
    with staging(folder) as scratch:
        special = {"pad_token_id": tokenizer.special.pad} if tokenizer.special.pad is not None else {}
        tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}
        write_task_folder(scratch, spec, tensors, special=special)
        tokenizer.save(scratch)
        write_json(scratch / PRETRAINING, {"step": "pretrain", "details": dict(facts)})
        _require_same(scratch, network, spec)
        move_into_place(scratch, folder)


def read(folder: Path, spec: Spec) -> LanguageModel | TextEncoder:
    """What `save` has written: an encoder without its head, for its vectors."""
    return load_encoder(folder) if isinstance(spec, TaskModel.Spec) else load(folder)


def _require_same(folder: Path, network: nn.Module, spec: TaskModel.Spec) -> None:
    found = read_task_folder(folder)
    again = assemble(found.spec, Plan(), found.tensors)
    dice = torch.Generator().manual_seed(0)
    time = min(16, spec.encoder.context_length)
    rows = torch.randint(spec.encoder.embed.vocab_size, (2, time), generator=dice)
    before = network.training
    network.eval()
    again.eval()
    with torch.inference_mode():
        same = torch.equal(network(rows), again(rows))
    network.train(before)
    if found.spec != spec or not same:
        raise ParityError(
            "What was written is not the network that was trained", remedy="Report this; the run's state is kept."
        )
