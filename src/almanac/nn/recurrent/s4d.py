"""S4D: a bank of damped oscillators per channel, the same at every token; a convolution while training, a recurrence after.

Gu 2022, arXiv 2206.11893: a diagonal complex state matrix with S4D-Lin initialisation (equation 9), A_n = -1/2 + iπn,
discretised by zero-order hold (equation 4), B = 1:

    Ā = exp(ΔA),   B̄ = (Ā - 1)/A,   h_t = Ā h_{t-1} + B̄ u_t,   y_t = 2 Re(C h_t) + D u_t
    y = K * u + D u   with the kernel   K_l = 2 Re(sum_n C_n B̄_n Ā_n^l)

The convolution is a product of Fourier transforms padded to twice the length, for otherwise the end would wrap round into
the beginning. After it come GELU and a linear map, as in S4. We deviate in leaving out S4's GLU and dropout, and in spacing
the steps evenly in log over the channels at the start where the authors draw them from the same range.

Legend: b batch, t time, h hidden = channels, n conjugate pairs of states per channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.spec import Normal
from almanac.core.state import Context, Mixer, State
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import log_spaced, wide
from almanac.nn.recurrent.scan import scan, starts
from almanac.nn.recurrent.state import RecurrentState


class S4D(Mixer):
    """x [b, t, h] -> [b, t, h]; the state is h [h, n] of each row, complex as pairs [h, n, 2]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        c: Learned.Spec  # [h, n, 2]
        out: Linear.Spec

        def __post_init__(self) -> None:
            if len(self.c.size) != 3 or self.c.size[2] != 2 or self.c.size[0] != self.out.in_features:
                raise ShapeError(
                    f"C of size {self.c.size} before a map of {self.out.in_features} channels",
                    remedy="Give C the size [channels, states, 2].",
                )

        def build(self) -> S4D:
            return S4D(self)

    def __init__(self, spec: S4D.Spec) -> None:
        super().__init__()
        self.c, self.out = spec.c.build(), spec.out.build()
        self.channels, self.num_states, _ = spec.c.size
        self.log_step = nn.Parameter(log_spaced(self.channels).log())
        self.log_damping = nn.Parameter(torch.full((self.channels, self.num_states), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(float(self.num_states)).repeat(self.channels, 1))
        self.skip = nn.Parameter(torch.ones(self.channels))  # D

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.channels, self.num_states, 2))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        u = wide(x)
        given = state if isinstance(state, RecurrentState) else None
        log_step, log_damping, frequency = (wide(item) for item in (self.log_step, self.log_damping, self.frequency))
        log_kept, inward = discretise(torch.exp(log_step), log_damping, frequency)
        outward = torch.view_as_complex(self.c().to(u.dtype))
        memory = torch.view_as_complex(given.parts[0].to(u)) if given is not None else None
        if context.segments is None and x.shape[1] > 1:
            y, memory = convolve(u, log_kept, inward, outward, memory=memory)
        else:
            y, memory = recurrent(u, log_kept, inward, outward, memory=memory, begins=starts(context.segments))
        y = F.gelu(y + self.skip * u).to(x.dtype)
        return self.out(y), given.after((torch.view_as_real(memory),), x.shape[1]) if given is not None else None


def discretise(step: Tensor, log_damping: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold: step [h]; A's parts [h, n] -> (ΔA, B̄ = (exp(ΔA) - 1)/A), complex [h, n]."""
    a = torch.complex(-torch.exp(log_damping), frequency)
    scaled = step.unsqueeze(-1) * a
    return scaled, (torch.exp(scaled) - 1) / a


def kernel(log_kept: Tensor, weight: Tensor, time: int) -> Tensor:
    """K_l = 2 Re(sum_n weight_n exp(l ΔA_n)) for l < time; log_kept complex [h, n], weight [..., h, n] -> [..., h, time]."""
    far, near = _powers(log_kept, time)
    return 2 * ((weight.unsqueeze(-2) * far) @ near.transpose(-1, -2)).real.flatten(-2)[..., :time]


def _powers(log_kept: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """exp(j p ΔA) [h, j, n] and exp(i ΔA) [h, p, n], whose products are all powers below ``time`` at least: l = j p + i.

    O(sqrt(time)) numbers a channel, where all powers written out would be as many as the states of the whole text.
    """
    size = math.isqrt(time - 1) + 1
    near = torch.arange(size, device=log_kept.device, dtype=log_kept.real.dtype).unsqueeze(-1)
    far = size * near[: -(-time // size)]
    return torch.exp(log_kept.unsqueeze(-2) * far), torch.exp(log_kept.unsqueeze(-2) * near)


def convolve(
    u: Tensor, log_kept: Tensor, inward: Tensor, outward: Tensor, *, memory: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """All outputs at once; with a memory (complex [b, h, n]) the tokens continue it, and it is brought up to date.

    Shapes: u [b, t, h]; log_kept, inward (B̄), outward (C) complex [h, n] -> y [b, t, h].
    """
    time = u.shape[1]
    y = long_convolution(u, kernel(log_kept, inward * outward, time))
    if memory is None:
        return y, None
    kept = torch.exp(log_kept)
    y = y + kernel(log_kept, memory * outward * kept, time).transpose(1, 2)
    far, near = _powers(log_kept, time)
    back = F.pad(u.transpose(1, 2).flip(-1), (0, far.shape[1] * near.shape[1] - time))  # the last token first
    sums = back.unflatten(-1, (far.shape[1], -1)).to(near.dtype) @ near  # [b, h, j, n]
    return y, memory * torch.exp(log_kept * time) + (sums * far).sum(-2) * inward


def long_convolution(u: Tensor, response: Tensor) -> Tensor:
    """Causal convolution by Fourier transforms padded with zeros; u [b, t, h], response [h, t] -> [b, t, h]."""
    time = u.shape[1]
    size = 2 * time
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=size) * torch.fft.rfft(response, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :time].transpose(1, 2)


def recurrent(
    u: Tensor,
    log_kept: Tensor,
    inward: Tensor,
    outward: Tensor,
    *,
    memory: Tensor | None,
    begins: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same one token after the other: u [b, t, h] -> (y [b, t, h], memory complex [b, h, n])."""
    inflow = u.transpose(0, 1).unsqueeze(-1) * inward  # [t, b, h, n]
    kept = torch.exp(log_kept).expand_as(inflow)
    if begins is not None:
        kept = kept.masked_fill(begins.t()[:, :, None, None], 0.0)
    states = scan(kept, inflow, torch.zeros_like(inflow[0]) if memory is None else memory)
    return 2 * (states * outward).sum(-1).real.transpose(0, 1), states[-1]


def s4d(hidden: int, *, num_states: int = 32) -> S4D.Spec:
    """The spec of a layer of ``hidden`` channels with ``num_states`` conjugate pairs each."""
    return S4D.Spec(
        c=Learned.Spec(size=(hidden, num_states, 2), axes=("ffn", "state", "none"), initialiser=Normal(std=0.5**0.5)),
        out=Linear.Spec(in_features=hidden, out_features=hidden, bias=True, axes=("embed", "ffn")),
    )
