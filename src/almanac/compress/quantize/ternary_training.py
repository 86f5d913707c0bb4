"""Training with ternary weights: every forward pass sees the rounded weights, every update moves the float ones below.

BitNet b1.58 (Ma 2024, arXiv 2402.17764) trains this way from the first step. The rounding has gradient zero almost
everywhere, so the straight-through estimator takes the gradient to the rounded weight for that to the *latent* float
weight (Bengio 2013, arXiv 1308.3432, section 4):

    y = x T(L)ᵀ,   dloss/dL := dloss/dT(L),   L = W at the start

with T from :mod:`almanac.compress.quantize.ternary`; s is treated as a constant and clipped weights keep their gradient,
as in the authors' code. We deviate in leaving activations in float and the blocks as they are (no extra norm before
each map). The latent weights lie beside the model's own, which ``detach`` gives back; ``fold`` puts T(L) in their place,
bit for bit what training saw, and ``Ternary`` then stores it without any change. As with every technique that trains,
all else is frozen; for training from scratch let it learn again: ``model.requires_grad_(True)``.

Legend: x [..., in]; W, L, T(L) [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.compress.quantize import ternary
from almanac.core.errors import SelectionError, UnsupportedError
from almanac.core.site import AROUND, Around, Leaf
from almanac.core.technique import Attachment
from almanac.core.weight import StoredWeight
from almanac.nn.channel.moe.experts import biased
from almanac.nn.linear_maps import LinearMap, linear_maps, through
from almanac.nn.product import linear

NAME = "ternary"


@dataclass(frozen=True, kw_only=True)
class TernaryTraining(Attachment):
    """The selected linear maps compute with ternary weights and learn through the rounding."""

    identity_at_start = False
    folds = True
    trains = True

    targets: str = "layers.**"

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        sites = linear_maps(model, self.targets)
        if any(site.chain for site in sites.values()):
            raise SelectionError(
                "Ternary training computes the map itself and must come first",
                remedy="Detach or fold what is attached to these maps, and attach it again afterwards.",
            )
        model.requires_grad_(False)
        for site in sites.values():
            site.wrap(NAME, Rounded(site))
        for wrapper in (w for module in model.modules() if isinstance(module, Leaf) for w in module.chain):
            wrapper.requires_grad_(True)

    def detach(self, model: nn.Module) -> None:
        for site in linear_maps(model, self.targets).values():
            site.unwrap(NAME)
        if not any(AROUND in name.split(".") for name, _ in model.named_modules()):
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())

    def fold(self, model: nn.Module) -> None:
        sites = linear_maps(model, self.targets)
        if any(isinstance(site.weight, StoredWeight) for site in sites.values()):
            raise UnsupportedError(
                "Ternary weights cannot be folded into a quantized weight without loss",
                remedy="Expand the weights first (LanguageModel.fold does), fold, and store them again.",
            )
        for site in sites.values():
            wrapper = site.wrapper(NAME)
            if isinstance(wrapper, Rounded):  # a new tensor: the old one may belong to whoever gave it
                site.set_weight(nn.Parameter(straight_through(wrapper.latent).detach().to(site.dense_weight().dtype)))
        self.detach(model)


class Rounded(Around):
    """y = x T(L)ᵀ + b in place of the call that follows, which is the linear map itself."""

    def __init__(self, site: LinearMap) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.empty(site.shape, device=next(site.parameters()).device))
        self.site = (site,)  # in a tuple, so that it does not become a child of its own child
        if not self.latent.is_meta:
            with torch.no_grad():
                self.latent.copy_(site.dense_weight())

    def forward(self, following: Callable[..., Tensor], x: Tensor, *ends: Tensor) -> Tensor:
        weight, bias = straight_through(self.latent).to(x.dtype), self.site[0].bias
        return biased(through(x, weight, *ends), bias, *ends) if ends else linear(x, weight, bias)


def straight_through(latent: Tensor) -> Tensor:
    """T(L) [out, in] exactly, with the gradient of the identity."""
    digits, scale = ternary.quantize(latent)
    return digits * scale + (latent - latent.detach())  # the bracket is 0, and carries the gradient
