"""SmoothQuant: activations are made easy to round by handing the size of their large channels over to the weights.

Xiao 2022, arXiv 2211.10438, equations 3-4: y = (x diag(s)⁻¹)(diag(s) Wᵀ) with s_j = max|x_j|^α / max|W_·j|^(1-α), and the
smoothed activations rounded, here per token (the paper's O1) and symmetrically:

    x̂ = step · round(x / (s · step)),   step = max_j |x_j / s_j| / (2^(bits-1) - 1)

Rounding is simulated: the product is still one of floats. The weights' own rounding is another step of the plan, and must
come after this one: ``Smooth(), RoundToNearest(grid=Grid(bits=8, group_size=0, symmetric=True))`` is W8A8. We deviate in
dividing by s at the map itself instead of folding it into the norm before it, so that any map can be smoothed.

Legend: x [..., in]; W [out, in]; s [in].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from almanac.compress.calibrate import Inputs, batches, observe
from almanac.core.errors import UnsupportedError
from almanac.core.site import Around
from almanac.core.technique import Attachment
from almanac.core.weight import StoredWeight
from almanac.nn.linear_maps import linear_maps, matrices

NAME = "smooth"
FLOOR = 1e-5
BOUNDS = {8: 0.05, 7: 0.1, 6: 0.3, 5: 1.0, 4: 3.0, 3: 5.0, 2: 10.0}  # mean KL divergence, nats per token


@dataclass(frozen=True, kw_only=True)
class Smooth(Attachment):
    """Rounds what the selected linear maps are fed, after smoothing it by ``alpha``. Wants calibration text.

    A dense weight is scaled; one that is stored already stays as it was rounded, and the smoothed input is scaled back for
    it. With ``bits`` 0 nothing is rounded, and nothing changes.
    """

    identity_at_start = False
    folds = False
    trains = False
    rounds_activations = True

    alpha: float = 0.5
    bits: int = 8
    targets: str = "layers.**"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UnsupportedError(f"A migration of {self.alpha}", remedy="Give a number from 0 to 1.")
        if self.bits and not 2 <= self.bits <= 8:
            raise UnsupportedError(f"Activations of {self.bits} bits", remedy="Give 2 to 8, or 0 for none.")

    def loss_bound(self) -> float:
        return BOUNDS.get(self.bits, 0.001)

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        sites = linear_maps(model, self.targets)
        if next(model.parameters()).is_meta:
            found = {path: torch.empty(site.shape[-1], device="meta") for path, site in sites.items()}
        else:
            seen = observe(model, sites, batches(model, calibration))
            found = {path: _shared(named, seen, self.alpha) for path, named in matrices(sites).items()}
        for path, site in sites.items():
            scale, weight = found[path], site.weight
            if isinstance(weight, StoredWeight):
                site.wrap(NAME, Rounded(scale, scale.clone(), self.bits))
            else:
                site.wrap(NAME, Rounded(scale, torch.ones_like(scale), self.bits))
                site.set_weight(nn.Parameter(weight.detach() * scale, requires_grad=weight.requires_grad))


def _shared(named: Mapping[str, Tensor], seen: Mapping[str, Inputs], alpha: float) -> Tensor:
    """s [in] of a map; experts share theirs, since they read the same channels."""
    largest = torch.stack([seen[name].largest for name in named]).amax(dim=0)
    return scales(largest, torch.cat(list(named.values())), alpha)


def scales(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s [in] from max |x| [in] and W [out, in]."""
    columns = weight.detach().float().abs().amax(dim=0).clamp(min=FLOOR)
    return largest.clamp(min=FLOOR).pow(alpha) / columns.pow(1 - alpha)


def round_activations(x: Tensor, bits: int) -> Tensor:
    """x [..., n] on a symmetric grid of its own for each [n]; the gradient goes straight through."""
    levels = 2 ** (bits - 1) - 1
    step = x.detach().abs().amax(dim=-1, keepdim=True) / levels
    divisor = torch.where(step > 0, step, 1.0)
    return x + ((x / divisor).round() * step - x).detach()


class Rounded(Around):
    """y = following(round(x / s) · after); ``scale`` float32 [in] is s, ``after`` s or ones. Neither is trained."""

    def __init__(self, scale: Tensor, after: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.after = nn.Parameter(after, requires_grad=False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stays frozen, also where others let all wrappers of a map train."""
        return super().requires_grad_(False)

    def forward(self, following: Callable[..., Tensor], x: Tensor, *ends: Tensor) -> Tensor:
        smoothed = x / self.scale.to(x.dtype)
        rounded = round_activations(smoothed, self.bits) if self.bits else smoothed
        return following(rounded * self.after.to(x.dtype), *ends)
