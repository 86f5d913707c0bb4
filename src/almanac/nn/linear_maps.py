"""The linear maps of a model: those of one matrix, and those of one matrix per expert.

Whatever works on matrices asks here which there are, and never which model they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.errors import SelectionError
from almanac.core.site import Leaf, select
from almanac.nn.channel.moe.experts import Experts
from almanac.nn.channel.moe.grouped import grouped_product
from almanac.nn.linear import Linear

LinearMap = Linear | Experts


def linear_maps(model: nn.Module, pattern: str) -> dict[str, LinearMap]:
    """The linear maps whose path matches. Raises SelectionError if there is none."""
    found = {path: leaf for path, leaf in select(model, pattern, of=Leaf).items() if isinstance(leaf, LinearMap)}
    if not found:
        raise SelectionError(f"{pattern!r} selects no linear map", remedy="Choose others, such as 'layers.**'.")
    return found


def matrices(maps: Mapping[str, LinearMap]) -> dict[str, dict[str, Tensor]]:
    """Path of each map -> its matrices [out, in] by name: its path, and for experts the path and their number."""
    return {path: _named(path, leaf.dense_weight(), many=isinstance(leaf, Experts)) for path, leaf in maps.items()}


def through(x: Tensor, weight: Tensor, *ends: Tensor) -> Tensor:
    """x Wᵀ for x [..., in], weight [out, in]; with ``ends`` [experts] for x [n, in] sorted, weight [experts, out, in]."""
    return grouped_product(x, weight, *ends) if ends else F.linear(x, weight)


def _named(path: str, weight: Tensor, *, many: bool) -> dict[str, Tensor]:
    return {f"{path}.{index}": matrix for index, matrix in enumerate(weight)} if many else {path: weight}
