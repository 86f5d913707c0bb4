"""Training with products in 8 bits: inputs and weights in E4M3, gradients in E5M2, each tensor with a scale of its own.

Micikevicius 2022, arXiv 2209.05433, section 3 (formats); scales are taken from each tensor as it comes, max |x| / largest
code, instead of from its past. For y = x Wᵀ with codes q and scales s:

    y = s_x s_w · q(x) q(W)ᵀ;    dx = s_g s_w · q(g) q(W);    dW = s_g s_x · q(g)ᵀ q(x)

Three products of a linear map run on the tensor cores for 8 bits; sums are float32, results bfloat16, and backward keeps
codes instead of inputs. Everything else runs as under `BFloat16`. Maps to a vocabulary stay in 16 bits, where small
differences of logits matter, and so do maps whose sides are no multiples of 16 or that hold a stored weight.

Legend: n rows, i inputs, o outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from almanac.core.errors import UnsupportedError
from almanac.core.site import Around, Leaf, select
from almanac.nn.linear import Linear
from almanac.train.precision import LossScale, Precision, device_of

NAME, SIDE = "float8", 16
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass(frozen=True, kw_only=True)
class Float8(Precision):
    """For devices with products in 8 bits: NVIDIA's of capability 8.9 or newer."""

    def prepared(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return _prepared(network)

    def forward(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device_of(network).type, dtype=torch.bfloat16)

    def loss_scale(self) -> LossScale:
        return LossScale()


@contextlib.contextmanager
def _prepared(network: nn.Module) -> Iterator[None]:
    require_float8(device_of(network))
    with float8_maps(network):
        yield


def require_float8(device: torch.device) -> None:
    """Raises UnsupportedError unless products in 8 bits run on ``device`` in hardware."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UnsupportedError(
            f"{device} has no products in 8 bits", remedy="Train in BFloat16, or on a GPU of capability 8.9 or newer."
        )


@contextlib.contextmanager
def float8_maps(network: nn.Module) -> Iterator[list[str]]:
    """Within the block the linear maps of ``network`` that can do so run in 8 bits; gives their paths."""
    maps = {path: leaf for path, leaf in select(network, "**", of=Linear).items() if fits(leaf)}
    try:
        for leaf in maps.values():
            leaf.wrap(NAME, _InFloat8())
        yield list(maps)
    finally:
        for leaf in maps.values():
            if leaf.wrapper(NAME) is not None:
                leaf.unwrap(NAME)


def fits(leaf: Leaf) -> bool:
    """Whether a map runs in 8 bits."""
    whole = all(side % SIDE == 0 for side in leaf.shape)
    return isinstance(leaf.weight, nn.Parameter) and whole and "vocab" not in leaf.axes


class _InFloat8(Around):
    """Within this call ``F.linear`` is ours. A wrapper, and not a mode of the run, since checkpoints compute it again."""

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        with _Linears():
            return following(*inputs)


class _Linears(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function is F.linear and not options and all(side % SIDE == 0 for side in arguments[1].shape):
            return float8_linear(*arguments)
        return function(*arguments, **(options or {}))


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., i], weight [o, i], bias [o] -> bfloat16 [..., o]; i and o multiples of 16."""
    y: Tensor = _Product.apply(x.flatten(0, -2), weight)  # pyright: ignore[reportAssignmentType]
    y = y if bias is None else y + bias.to(y.dtype)
    return y.unflatten(0, x.shape[:-1])


class _Product(torch.autograd.Function):
    """x [n, i], weight [o, i] -> [n, o]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows = F.pad(x, (0, 0, 0, -len(x) % SIDE))  # n is a side of the product for dW
        given, held = to_float8(rows, FORWARD), to_float8(weight, FORWARD)
        ctx.save_for_backward(*given, *held)
        ctx.rows, ctx.dtypes = len(x), (x.dtype, weight.dtype)
        return _multiplied(given, (held[0].t(), held[1]))[: len(x)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        rows = F.pad(grads[0], (0, 0, 0, -ctx.rows % SIDE))
        codes, scale = to_float8(rows, BACKWARD)
        to_x = _multiplied((codes, scale), (_by_columns(weight), weight_scale))[: ctx.rows]
        to_weight = _multiplied((codes.t().contiguous(), scale), (_by_columns(x), x_scale))
        return to_x.to(ctx.dtypes[0]), to_weight.to(ctx.dtypes[1])


def to_float8(values: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """(codes, scale float32): codes times scale are the values, rounded; the largest becomes the largest code."""
    largest = torch.finfo(kind).max
    scale = (values.detach().abs().amax().float() / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return (values.float() / scale).clamp(-largest, largest).to(kind), scale


def _multiplied(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """[a, b] by rows times [b, c] by columns, in bfloat16."""
    product: Tensor = torch._scaled_mm(left[0], right[0], scale_a=left[1], scale_b=right[1], out_dtype=torch.bfloat16)
    return product


def _by_columns(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous().t()
