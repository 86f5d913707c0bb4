"""AdamW with moments of 8 bits: blocks of numbers are divided by their largest and rounded to 256 uneven steps.

Dettmers 2021, arXiv 2110.02861, sections 1.3, 2.1 and 2.2. The steps are a *dynamic tree*: after the sign, k zeros give the
magnitude 10^-k, a one ends them, and the bits that are left divide [0.1, 1] evenly: fine for large numbers, and small ones
are still told from zero, over seven orders. The second moment is never negative and gives its sign bit to the division.
Each step widens the moments, updates in float32 and rounds them again; the update itself sees unrounded moments.

Deviations: a second moment above zero is never rounded to zero, where dividing by its root would make the update
explode; blocks have 256 numbers (the authors' later release; the paper 2048); tensors below ``smallest`` numbers stay in
32 bits, as theirs do. No kernel of its own: a step costs a few passes over each tensor.

Legend: n numbers of a parameter, k blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.optimizer import Optimizer, PerParameter, State, decaying

MAGNITUDES = 7  # powers of ten that a code spans
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(Optimizer):
    """2 bytes of state a number and 8 a block, against 8 a number."""

    adamw: AdamW = AdamW()
    block: int = 256
    smallest: int = 4096

    def __post_init__(self) -> None:
        if self.block < 1 or self.smallest < 0:
            raise UnsupportedError(
                f"Blocks of {self.block} numbers, tensors from {self.smallest}", remedy="Give 1 or more, and 0 or more."
            )

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return PerParameter(decaying(list(parameters.values()), self.adamw.weight_decay, update=self.update))

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        found = 0
        for count in (parameter.numel() for parameter in parameters.values()):
            found += 2 * (count + 4 * -(-count // self.block)) if count >= self.smallest else 8 * count
        return found

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Mapping[str, Any]) -> None:
        """One step of one parameter."""
        state["step"] = step = state.get("step", 0) + 1
        first = self._moment(state, "first", parameter, signed=True)
        second = self._moment(state, "second", parameter, signed=False)
        direction = self.adamw.direction(gradient.float(), first, second, step)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        if parameter.numel() >= self.smallest:
            state["first"], state["first_scales"] = quantize(first, self.block, signed=True)
            state["second"], state["second_scales"] = quantize(second, self.block, signed=False)

    def _moment(self, state: State, name: str, parameter: Tensor, *, signed: bool) -> Tensor:
        """The moment in float32: the one that is kept, if it is kept so, else one made from its codes."""
        if name not in state:
            state[name] = torch.zeros_like(parameter, dtype=torch.float32)
        kept, scales = state[name], state.get(f"{name}_scales")
        return kept if scales is None else dequantize(kept, scales, parameter.shape, block=self.block, signed=signed)


def quantize(values: Tensor, block: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes uint8 [n], scales float32 [k]) of a tensor of n numbers."""
    flat = values.flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales = blocks.abs().amax(dim=1)
    relative = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    table = code_table(signed=signed, device=values.device)
    codes = torch.bucketize(relative, (table[1:] + table[:-1]) / 2)  # the nearest
    if not signed:
        codes = torch.where(relative > 0, codes.clamp(min=1), codes)
    return codes.flatten()[: len(flat)].to(torch.uint8), scales


def dequantize(codes: Tensor, scales: Tensor, shape: torch.Size, *, block: int, signed: bool) -> Tensor:
    """float32 of ``shape`` from codes [n] and scales [k]."""
    values = code_table(signed=signed, device=codes.device)[codes.int()]
    return (values * scales.repeat_interleave(block)[: len(codes)]).view(shape)


@cache
def code_table(*, signed: bool, device: torch.device = CPU) -> Tensor:
    """float32 [256], ascending: what each code means, in [-1, 1] or [0, 1], 0 and 1 among them."""
    steps = [0.0, 1.0]
    for zeros in range(MAGNITUDES):
        pieces = 2 ** (MAGNITUDES - zeros - int(signed))
        edges = torch.linspace(0.1, 1, pieces + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0**-zeros).tolist()
        steps += middles
        steps += [-middle for middle in middles] if signed else []
    return torch.tensor(sorted(steps), dtype=torch.float64).float().to(device)
