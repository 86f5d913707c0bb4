"""Replaced-token detection (`objectives.replaced_token`): an encoder that tells which tokens a small generator has put in.

The generator learns beside it and is thrown away (Clark 2020, arXiv 2003.10555). It is a copy of the encoder's shape with
one half of its layers, and shares its tables of tokens and positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.language_model.model import LanguageModel
from almanac.models.electra import FAMILY, read_replaced
from almanac.models.electra import read as read_electra
from almanac.models.encoder_task import tasks_of
from almanac.models.family import Fields
from almanac.nn.task_heads import ReplacedHead
from almanac.nn.task_model import TaskModel
from almanac.pretrain.objectives.marks import control_ids, shown_ids, special_ids
from almanac.pretrain.objectives.masked import MASK, default_config, require_encoder, with_head
from almanac.pretrain.objectives.objective import SEED, Objective, Shown
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import ENCODER, Controls
from almanac.train.criteria.corrupted import Corruption, Place
from almanac.train.criteria.replaced_token import GeneratorAndJudge, JudgedWindows
from almanac.train.criteria.replaced_token import ReplacedToken as ReplacedTokenCriterion
from almanac.train.criterion import Criterion


@dataclass(frozen=True, kw_only=True)
class ReplacedToken(Objective):
    """ELECTRA's objective."""

    @property
    def controls(self) -> Controls:
        return ENCODER

    def spec(self, tokenizer: Tokenizer, *, time: int) -> TaskModel.Spec:
        config = default_config(tokenizer.vocab_size, time=time)
        fields = Fields(config | {"embedding_size": config["hidden_size"]})
        encoder = read_electra(fields)
        return TaskModel.Spec(encoder=encoder, head=read_replaced(fields, encoder))

    def shaped(self, given: Spec) -> Spec:
        return with_head(given, ReplacedHead.Spec)

    def require(self, spec: Spec, tokenizer: Tokenizer, *, time: int) -> None:
        require_encoder(spec, tokenizer, time=time)

    def trained(self, spec: Spec, tokenizer: Tokenizer) -> GeneratorAndJudge.Spec:
        assert isinstance(spec, TaskModel.Spec)
        layers = spec.encoder.layers
        half = spec.encoder.with_(layers=layers[: max(1, len(layers) // 2)])
        # its head is read as ELECTRA's own generators are, from the fields that its width decides
        fields = Fields({"vocab_size": half.embed.vocab_size, "embedding_size": half.embed.hidden})
        head = tasks_of(FAMILY).named("ElectraForMaskedLM").read(fields, half)
        return GeneratorAndJudge.Spec(judge=spec, generator=TaskModel.Spec(encoder=half, head=head))

    def kept(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, GeneratorAndJudge)
        return network.judge

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption:
        (mask,) = control_ids(tokenizer, [MASK])
        return JudgedWindows(mask_id=mask, vocab_size=tokenizer.vocab_size, special=special_ids(tokenizer))

    @property
    def criterion(self) -> Criterion:
        return ReplacedTokenCriterion()

    def sample(self, model: LanguageModel | nn.Module, tokenizer: Tokenizer, shown: Shown) -> str:
        """Held-out text with the generator's tokens between brackets, an exclamation mark after those that were noticed,
        and a question mark after tokens of the text that were taken for such."""
        assert isinstance(model, GeneratorAndJudge)
        batch: Any = self.corruption(tokenizer, time=shown.rows.tokens.shape[1]).batch(
            shown.rows, [Place(SEED, shown.number, 0)]
        )
        before = model.training
        model.eval()
        with torch.inference_mode():
            rows = batch.given.rows
            context = Context(rows.positions, rows.segments)
            filled = ReplacedTokenCriterion().filled(batch, model.generator(batch.given.corrupted, context))
            suspected = (model.judge(filled, context) > 0) & batch.scored
        model.train(before)
        parts = []
        for at, id in enumerate(filled[0].tolist()[: shown.max_tokens]):
            text, noticed = shown_ids(tokenizer, [id]), bool(suspected[0, at])
            if id != int(shown.rows.tokens[0, at]):
                parts.append(f"[{text.strip()}{'!' if noticed else ''}]")
            else:
                parts.append(f"{text}{'?' if noticed else ''}")
        return "".join(parts)
