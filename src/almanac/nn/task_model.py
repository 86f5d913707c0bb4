"""An encoder with a head: the whole of a network for one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from almanac.core import spec
from almanac.core.state import Context
from almanac.nn.encoder import Encoder


class TaskModel(nn.Module):
    """tokens int64 [batch, time] -> what the head gives."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        encoder: Encoder.Spec
        head: spec.Spec

        def build(self) -> TaskModel:
            return TaskModel(self)

    def __init__(self, spec: TaskModel.Spec) -> None:
        super().__init__()
        self.encoder, self.head = spec.encoder.build(), spec.head.build()

    def forward(self, tokens: Tensor, context: Context | None = None, token_types: Tensor | None = None) -> Any:
        """What the head gives for every row; arguments and errors as of :class:`Encoder`."""
        hidden = self.encoder(tokens, context, token_types)
        own = context.segments >= 0 if context is not None and context.segments is not None else None
        return self.head(hidden, self.encoder.embed, own)
