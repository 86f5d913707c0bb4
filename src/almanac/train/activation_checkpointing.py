"""Activation checkpointing: what a block computes on the way is not kept for backward but computed again.

Chen 2016, arXiv 1604.06174. A block then costs the memory of its input alone, and a second forward pass in backward: a third
more arithmetic. Selective (Korthikanti 2022, arXiv 2205.05198, section 5): what matrix products and attention return is
kept, being dear to compute, and the rest, which takes as much memory and next to no arithmetic, computed again.

Gradients are the same bits either way: the dice of dropout are put back for the second pass.

    with ActivationCheckpointing(every=2).applied(network): ...
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from almanac.core.errors import UnsupportedError
from almanac.core.site import Around, select
from almanac.core.state import Context, State
from almanac.core.value import Value
from almanac.nn.product import available

NAME = "activation_checkpointing"
NOTHING, PRODUCTS = "nothing", "products"
_OPERATIONS = torch.ops.aten
DEAR = [
    _OPERATIONS.mm.default, _OPERATIONS.addmm.default, _OPERATIONS.bmm.default, _OPERATIONS.convolution.default,
    _OPERATIONS._scaled_dot_product_flash_attention_for_cpu.default,
    _OPERATIONS._scaled_dot_product_flash_attention.default,
    _OPERATIONS._scaled_dot_product_efficient_attention.default,
    *([torch.ops.mkldnn._linear_pointwise.default] if available() else []),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing(Value):
    """Which blocks compute again, and what they keep all the same.

    - ``blocks``: pattern of their paths; ``every``: of those each ``every``-th, from the first
    - ``keep``: "nothing", or "products": what matrix products, convolutions and attention return
    """

    blocks: str = "**.layers.*"
    every: int = 1
    keep: str = NOTHING

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep not in (NOTHING, PRODUCTS):
            raise UnsupportedError(
                f"Activation checkpointing of every {self.every}-th block that keeps {self.keep!r}",
                remedy=f"Give a number from 1, and {NOTHING!r} or {PRODUCTS!r}.",
            )

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Within the block the chosen blocks of ``network`` compute again what backward needs.

        Raises SelectionError if the pattern names no block.
        """
        chosen = list(select(network, self.blocks).values())[:: self.every]
        for site in chosen:
            site.wrap(NAME, _Recomputed(self.keep))
        try:
            yield
        finally:
            for site in chosen:
                site.unwrap(NAME)


class _Recomputed(Around):
    def __init__(self, keep: str) -> None:
        super().__init__()
        self.options: dict[str, Any] = (
            {"context_fn": partial(create_selective_checkpoint_contexts, DEAR)} if keep == PRODUCTS else {}
        )

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        if not torch.is_grad_enabled() or any(isinstance(given, State) for given in inputs):
            return following(*inputs)  # a state is written to: a second pass would write twice
        memos = [dict(given.memo) if isinstance(given, Context) else None for given in inputs]
        is_first = True

        def call(*given: Any) -> Any:
            nonlocal is_first
            if is_first:
                is_first = False
                return following(*given)
            # what the first pass left in the memo, perhaps with its graph, this one must compute as well
            pairs = zip(given, memos, strict=True)
            return following(
                *(each if memo is None else dataclasses.replace(each, memo=dict(memo)) for each, memo in pairs)
            )

        return checkpoint(call, *inputs, use_reentrant=False, **self.options)
