"""Masked tokens (`objectives.masked`): an encoder that reads both ways and tells the tokens that were hidden from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from almanac.core.errors import RequestError
from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.language_model.model import LanguageModel
from almanac.models.bert import read as read_bert
from almanac.models.bert import read_masked
from almanac.models.encoder_task import encoder_tasks
from almanac.models.family import Fields
from almanac.nn.encoder import Encoder
from almanac.nn.task_heads import MaskedHead
from almanac.nn.task_model import TaskModel
from almanac.pretrain.objectives.marks import continuations, control_ids, shown_ids, special_ids
from almanac.pretrain.objectives.objective import SEED, Objective, Shown, require_room
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import ENCODER, Controls
from almanac.train.criteria.corrupted import Corruption, Place
from almanac.train.criteria.masked import Masked as MaskedCriterion
from almanac.train.criteria.masked import MaskedWindows
from almanac.train.criterion import Criterion

MASK = "[MASK]"


@dataclass(frozen=True, kw_only=True)
class Masked(Objective):
    """BERT's objective, with masks drawn anew in every epoch (Liu 2019, arXiv 1907.11692). ``whole_words``: all tokens of a
    word are hidden or none."""

    whole_words: bool = False

    @property
    def controls(self) -> Controls:
        return ENCODER

    def spec(self, tokenizer: Tokenizer, *, time: int) -> TaskModel.Spec:
        fields = Fields(default_config(tokenizer.vocab_size, time=time))
        encoder = read_bert(fields)
        return TaskModel.Spec(encoder=encoder, head=read_masked(fields, encoder))

    def shaped(self, given: Spec) -> Spec:
        return with_head(given, MaskedHead.Spec)

    def require(self, spec: Spec, tokenizer: Tokenizer, *, time: int) -> None:
        require_encoder(spec, tokenizer, time=time)

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption:
        (mask,) = control_ids(tokenizer, [MASK])
        return MaskedWindows(
            mask_id=mask,
            vocab_size=tokenizer.vocab_size,
            special=special_ids(tokenizer),
            continues=continuations(tokenizer) if self.whole_words else None,
        )

    @property
    def criterion(self) -> Criterion:
        return MaskedCriterion()

    def sample(self, model: LanguageModel | nn.Module, tokenizer: Tokenizer, shown: Shown) -> str:
        """A piece of held-out text in which the hidden tokens, between brackets, are what the model takes them for."""
        assert isinstance(model, nn.Module)
        batch: Any = self.corruption(tokenizer, time=shown.rows.tokens.shape[1]).batch(
            shown.rows, [Place(SEED, shown.number, 0)]
        )
        before = model.training
        model.eval()
        with torch.inference_mode():
            logits = model(batch.corrupted, Context(batch.rows.positions, batch.rows.segments))
        model.train(before)
        guesses, chosen, text = logits[0].argmax(-1), batch.chosen[0].tolist(), batch.rows.tokens[0].tolist()
        parts = [
            f"[{shown_ids(tokenizer, [int(guesses[at])]).strip()}]" if chosen[at] else shown_ids(tokenizer, [id])
            for at, id in enumerate(text[: shown.max_tokens])
        ]
        return "".join(parts)


def default_config(vocab_size: int, *, time: int) -> dict[str, Any]:
    """A small BERT (1.8 million parameters beside its tables)."""
    return {
        "vocab_size": vocab_size, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6,
        "intermediate_size": 768, "max_position_embeddings": time,
    }  # fmt: skip


def with_head(given: Spec, head: type[Spec]) -> TaskModel.Spec:
    """An encoder with the head that the first family has for it which can express both.

    Raises RequestError for what is no encoder, one with another head, or one that no family has such a head for.
    """
    if isinstance(given, TaskModel.Spec) and isinstance(given.head, head):
        return given
    found = _known(given, head) if isinstance(given, Encoder.Spec) else None
    if found is not None:
        return found
    raise RequestError(
        f"{given.kind()} is no encoder that is known with a {head.kind()}",
        remedy="Give the config.json of an encoder, or another objective.",
    )


def _known(encoder: Encoder.Spec, head: type[Spec]) -> TaskModel.Spec | None:
    for tasks in encoder_tasks():
        config = tasks.family.write(encoder)
        if config is None or tasks.family.read(Fields(config)) != encoder:
            continue
        for task in tasks.tasks:
            if task.head is head:
                return TaskModel.Spec(encoder=encoder, head=task.read(Fields(config), encoder))
    return None


def require_encoder(spec: Spec, tokenizer: Tokenizer, *, time: int) -> None:
    """Raises RequestError as `require_room`."""
    assert isinstance(spec, TaskModel.Spec)
    encoder = spec.encoder
    require_room(encoder.embed.vocab_size, tokenizer, lengths=[(encoder.context_length, time)])
