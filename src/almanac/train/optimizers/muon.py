"""Muon: the momentum of a hidden matrix is replaced by the nearest matrix whose singular values are all about 1.

Jordan 2024, "Muon: an optimizer for hidden layers in neural networks" (a note, no paper); scaling and decay from Liu 2025,
arXiv 2502.16982. Steps of a matrix n × m with gradient g:

    B ← μ B + (1 - μ) g;    u = (1 - μ) g + μ B;    O = newton_schulz(u);    θ ← θ - η (0.2 √max(n, m) · O + λ θ)

Newton and Schulz's iteration X ← a X + (b A + c A²) X with A = X Xᵀ leaves singular vectors and maps each singular value s by
a s + b s³ + c s⁵, five times; the coefficients are made for speed: what was not tiny ends between about 0.7 and 1.2.
Scaled by 0.2 √max(n, m) the update has the size of AdamW's (Liu 2025, section 2.2), so that both go by one rate and one
schedule. Vectors, embeddings and heads have no such geometry: they go by AdamW. Deviation: the iteration runs in float32
where the original has bfloat16.

Legend: B momentum, μ its share, η rate, λ decay, O orthogonalised update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.errors import SelectionError
from almanac.core.pattern import matches
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.optimizer import Optimizer, PerParameter, State, decaying, require_rates

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0 among those that keep [0, 1] within about [0.7, 1.2]
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """``hidden``: which parameters, by path, are hidden matrices (two dimensions, or a stack of them); ``others``: how the
    rest moves, with ``weight_decay`` of its own."""

    hidden: str = "**.layers.**"
    momentum: float = 0.95
    weight_decay: float = 0.0
    others: AdamW = AdamW()

    def __post_init__(self) -> None:
        require_rates(momentum=self.momentum)

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Raises SelectionError if no matrix is called as ``hidden`` says."""
        chosen = self._chosen(parameters)
        if not chosen:
            raise SelectionError(
                f"No matrix among the parameters matches {self.hidden!r}",
                remedy=f"Name the hidden layers; parameters here are {', '.join(list(parameters)[:3])}, ...",
            )
        ours = {id(parameter) for parameter in chosen}
        rest = [parameter for parameter in parameters.values() if id(parameter) not in ours]
        hidden = {"params": chosen, "weight_decay": self.weight_decay, "update": self.update}
        return PerParameter([hidden, *decaying(rest, self.others.weight_decay, update=self.update_others)])

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        twice = sum(2 * parameter.nbytes for parameter in parameters.values())
        return twice - sum(parameter.nbytes for parameter in self._chosen(parameters))

    def _chosen(self, parameters: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
        return [p for name, p in parameters.items() if _is_matrix(p) and matches(self.hidden, name)]

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Mapping[str, Any]) -> None:
        """One step of a hidden matrix."""
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - self.momentum)
        direction = newton_schulz(gradient.lerp(momentum, self.momentum))
        size = 0.2 * max(parameter.shape[-2:]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * size)

    def update_others(self, parameter: Tensor, gradient: Tensor, state: State, group: Mapping[str, Any]) -> None:
        """One step of AdamW."""
        if not state:
            state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        state["step"] += 1
        direction = self.others.direction(gradient, state["first"], state["second"], state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])


def _is_matrix(parameter: Tensor) -> bool:
    """Two sides to speak of, or a stack of such; the kernel of a depthwise convolution has but one."""
    return parameter.dim() >= 2 and min(parameter.shape[-2:]) > 1


def newton_schulz(matrix: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """[..., n, m] -> the same with its singular values mapped towards 1; in float32 or wider. A matrix of 0 stays 0."""
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    tall = wide.shape[-2] > wide.shape[-1]
    x = wide.mT if tall else wide
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # no singular value above 1
    a, b, c = COEFFICIENTS
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)
