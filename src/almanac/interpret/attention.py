"""Attention patterns: which earlier tokens each token looked at, head by head, softmax(q kᵀ / sqrt(d)) of Vaswani 2017,
arXiv 1706.03762, equation 1.

Fast kernels never hold these weights. So the call into the kernel is watched from a wrapper around the mixer, and the
weights are computed a second time from the very queries, keys and mask that the kernel got, whatever positions, windows
or groups of heads went into them. The call itself is not touched: outputs stay equal to the last bit.

Legend: b batch, n query heads, m key-value heads, t queries, l keys, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from almanac.core.errors import UnsupportedError
from almanac.core.site import Around, select
from almanac.core.state import Mixer

NAME = "attention_capture"


@torch.no_grad()
def attention_patterns(network: nn.Module, tokens: Tensor, sites: str = "**.mixer") -> dict[str, Tensor]:
    """The patterns of one forward pass without a state.

    Args:
        network: any model of ours whose ``forward`` takes tokens.
        tokens: int64 [b, t].
        sites: which mixers, as a pattern over their paths.

    Returns:
        Path of the mixer -> its weights, float32 [b, n, t, l]; every row sums to 1. A layer with sinks has one key more, the
        last: what its heads give to nothing.

    Raises:
        SelectionError: the pattern selects no mixer.
        UnsupportedError: a mixer that computes no softmax attention, or more than one.
    """
    with capturing(network, sites) as found:
        network(tokens)
    return dict(found)


@contextmanager
def capturing(network: nn.Module, sites: str = "**.mixer") -> Iterator[Mapping[str, Tensor]]:
    """While it lasts, every forward pass leaves its patterns in the mapping; those of the latest pass stay.

    Raises as `attention_patterns`; also UnsupportedError for a pass with a state, whose rows differ in length.
    """
    chosen = select(network, sites, of=Mixer)
    found: dict[str, Tensor] = {}
    wrapped: list[Mixer] = []
    try:
        for path, mixer in chosen.items():
            mixer.wrap(NAME, _Capture(path, found))
            wrapped.append(mixer)
        yield found
    finally:
        for mixer in wrapped:
            mixer.unwrap(NAME)


def weights(q: Tensor, k: Tensor, *, mask: Tensor | None, is_causal: bool, scale: float | None = None) -> Tensor:
    """softmax(q kᵀ · scale + mask); q [b, n, t, d], k [b, m, l, d] -> float32 [b, n, t, l].

    ``mask`` is bool (True: visible) or numbers to be added, broadcast to [b, n, t, l]; ``scale`` defaults to 1/sqrt(d).
    A query that sees nothing has weights of 0.
    """
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ keys.float().transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        time, length = scores.shape[-2:]
        mask = torch.ones(time, length, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()
    return scores.softmax(dim=-1).nan_to_num(0.0)


class _Capture(Around):
    """Writes the pattern of each call into ``found``."""

    def __init__(self, path: str, found: dict[str, Tensor]) -> None:
        super().__init__()
        self.path, self.found = path, found

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        if any(item is not None for item in inputs[2:]):
            raise UnsupportedError(
                f"{self.path}: a pass with a state has rows of unequal length",
                remedy="Give the whole text in one forward pass, without a state.",
            )
        watched = _Watch()
        with watched:
            output = following(*inputs)
        if len(watched.calls) != 1:
            raise UnsupportedError(
                f"{self.path} computes softmax attention {len(watched.calls)} times in a call, not once",
                remedy="Select the mixers that are attention layers.",
            )
        self.found[self.path] = watched.calls[0]
        return output


class _Watch(TorchFunctionMode):
    """Keeps the pattern of every call of scaled_dot_product_attention and lets it go on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            given |= kwargs
            with torch.no_grad():
                self.calls.append(
                    weights(
                        given["query"].detach(),
                        given["key"].detach(),
                        mask=given.get("attn_mask"),
                        is_causal=given.get("is_causal", False),
                        scale=given.get("scale"),
                    )
                )
        return func(*args, **kwargs)
