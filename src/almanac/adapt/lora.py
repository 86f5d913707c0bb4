"""LoRA: the change of a weight is learned as a product of two thin matrices, beside the frozen weight.

Hu 2021, arXiv 2106.09685, equation 3: h = W x + (alpha / rank) B A x, with A random and B zero at the start: training
begins at the base model. Over a 4-bit base this is QLoRA (Dettmers 2023, arXiv 2305.14314); the base's
format is not this file's business. We deviate from LoRA's paper in adapting every linear map by default, as QLoRA
found best. Experts get an update each.

Legend: x [..., in]; A [rank, in]; B [out, rank]; W [out, in]; of e experts A [e, rank, in], B [e, out, rank], W [e, out, in].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.errors import SelectionError, ShapeError, UnsupportedError
from almanac.core.site import AROUND, Around, Leaf
from almanac.core.technique import Attachment
from almanac.core.weight import StoredWeight
from almanac.nn.linear_maps import linear_maps, through


@dataclass(frozen=True, kw_only=True)
class Lora(Attachment):
    """A low-rank update beside each selected linear map; several may be attached under different names."""

    identity_at_start = True
    folds = True
    trains = True

    rank: int = 8
    alpha: float = 16.0
    targets: str = "layers.**"
    name: str = "lora"
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ShapeError(f"A rank of {self.rank}", remedy="Give a whole number from 1.")
        if not 0 <= self.dropout < 1:
            raise UnsupportedError(f"A dropout of {self.dropout}", remedy="Give a number from 0 to below 1.")

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        sites = linear_maps(model, self.targets)
        if any(site.wrapper(self.name) is not None for site in sites.values()):
            raise SelectionError(f"{self.name!r} is already attached", remedy="Detach it first or choose another name.")
        model.requires_grad_(False)
        device = next(model.parameters()).device  # for sites that hold no tensor of their own
        for path, site in sites.items():
            held = next(site.parameters(), None)
            wrapper = LowRank(site.shape, self).to(device if held is None else held.device)
            if not wrapper.a.is_meta:
                wrapper.initialise(seed_of(self.seed, f"{path}.{self.name}"))
            site.wrap(self.name, wrapper)
        for wrapper in (w for module in model.modules() if isinstance(module, Leaf) for w in module.chain):
            wrapper.requires_grad_(True)

    def detach(self, model: nn.Module) -> None:
        for site in linear_maps(model, self.targets).values():
            site.unwrap(self.name)
        if not any(AROUND in name.split(".") for name, _ in model.named_modules()):
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())

    def fold(self, model: nn.Module) -> None:
        sites = linear_maps(model, self.targets)
        if any(isinstance(site.weight, StoredWeight) for site in sites.values()):
            raise UnsupportedError(
                "An update cannot be folded into a quantized weight without loss",
                remedy="Expand the weights first (LanguageModel.fold does), fold, and quantize again.",
            )
        for site in sites.values():
            wrapper = site.wrapper(self.name)
            if isinstance(wrapper, LowRank):
                weight = site.dense_weight()
                with torch.no_grad():  # a new tensor: the old one may belong to whoever gave it
                    folded = weight + wrapper.update().to(weight.dtype)
                site.set_weight(nn.Parameter(folded, requires_grad=weight.requires_grad))
        self.detach(model)


class LowRank(Around):
    """y = following(x) + (alpha / rank) · x Aᵀ Bᵀ."""

    def __init__(self, shape: torch.Size, technique: Lora) -> None:
        super().__init__()
        self.scaling = technique.alpha / technique.rank
        self.dropout = technique.dropout
        self.a = nn.Parameter(torch.empty(*shape[:-2], technique.rank, shape[-1]))
        self.b = nn.Parameter(torch.zeros(*shape[:-1], technique.rank))

    def initialise(self, seed: int) -> None:
        """A uniform within ±1/sqrt(in) (the linear layer's own default), B zero."""
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(self.a.shape[-1])
        with torch.no_grad():
            self.a.uniform_(-bound, bound, generator=generator)
            self.b.zero_()

    def forward(self, following: Callable[..., Tensor], x: Tensor, *ends: Tensor) -> Tensor:
        y = following(x, *ends)
        inner = (F.dropout(x, self.dropout, self.training) if self.dropout else x).to(self.a.dtype)
        return torch.add(y, through(through(inner, self.a, *ends), self.b, *ends).to(y.dtype), alpha=self.scaling)

    def update(self) -> Tensor:
        """The change of the weight, (alpha / rank) B A, of the weight's shape."""
        return self.scaling * (self.b @ self.a)


def seed_of(seed: int, path: str) -> int:
    """A seed of its own for every site, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:7], "big")
