"""A prompt whose tokens all see each other, as those of the prefix did in training: the opening of prefix language models."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.generate.engine import Continued, Request
from almanac.nn.attention.full import Attention
from almanac.nn.attention.masks import PrefixLM


@dataclass(frozen=True)
class PrefixPrompt(Continued):
    """The prompt is the prefix (Raffel 2019, arXiv 1910.10683, section 3.2.1). It is read in one call, however long."""

    def context(self, request: Request) -> Context | None:
        length = len(request.tokens)
        return Context(torch.arange(length)[None], prefix=torch.tensor([length]))


def reads_prefixes(spec: Spec) -> bool:
    """Whether attention anywhere in a model has the mask of prefixes."""
    return any(isinstance(item, Attention.Spec) and isinstance(item.mask, PrefixLM) for _, item in spec.walk())
