"""S4: states that remember by Legendre polynomials, through a matrix that is diagonal but for one outer product.

Gu 2021, arXiv 2111.00396. A = Λ - P P* is HiPPO-LegS in its normal basis (theorem 1; P, Λ as in appendix B.1.2 with the
parametrisation Λ - P P* of Goel 2022, arXiv 2202.09729, section 4.2, which keeps A stable), discretised bilinearly:

    Ā = (I - Δ/2 A)⁻¹ (I + Δ/2 A),   B̄ = (I - Δ/2 A)⁻¹ Δ B,   h_t = Ā h_{t-1} + B̄ u_t,   y_t = 2 Re(C h_t) + D u_t

While training y is a convolution with K_l = 2 Re(C Ā^l B̄), l < L, whose Fourier transform is a rational function of four
Cauchy kernels (theorem 3); with a state, or on packed rows, the recurrence runs one token after the other, in O(states) each
by Woodbury's identity. Then GELU and a linear map. Eigenvalues come in conjugate pairs, of which one half is kept. We
deviate in learning C itself where the authors learn C (I - Ā^L), so that the layer is the same for every length; in clearing
the kernels of their pole at ω = -1; in leaving out the GLU and dropout; in spacing the first steps evenly in log.

Legend: b batch, t time = L, h hidden = channels, n conjugate pairs of states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.spec import Constant, Initialiser, Normal
from almanac.core.state import Context, Mixer, State
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import log_spaced, wide
from almanac.nn.recurrent.s4d import long_convolution
from almanac.nn.recurrent.scan import starts
from almanac.nn.recurrent.state import RecurrentState

PIECE = 1 << 19  # quotients of the Cauchy kernels written out at once


@dataclass(frozen=True, kw_only=True)
class Hippo(Initialiser):
    """One part of HiPPO-LegS in its normal basis, for every channel: ``log_damping``, ``frequency``, ``p`` or ``b``."""

    part: str

    def __post_init__(self) -> None:
        if self.part not in ("log_damping", "frequency", "p", "b"):
            raise ShapeError(f"HiPPO has no part {self.part!r}", remedy="Name log_damping, frequency, p or b.")

    def fill(self, tensor: Tensor, generator: torch.Generator | None = None) -> None:
        eigenvalues, p, b = hippo(tensor.shape[1])
        values = {
            "log_damping": (-eigenvalues.real).log().unsqueeze(-1),
            "frequency": eigenvalues.imag.unsqueeze(-1),
            "p": torch.view_as_real(p),
            "b": torch.view_as_real(b),
        }
        with torch.no_grad():
            tensor.copy_(values[self.part].expand_as(tensor))


@dataclass(frozen=True, kw_only=True)
class LogSteps(Initialiser):
    """exp of it is spaced evenly in log over the channels."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            tensor.copy_(log_spaced(tensor.shape[-1]).log())


def hippo(pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Λ (imaginary part > 0), P and B of HiPPO-LegS with 2 ``pairs`` states, complex128 [n] each: A = V (Λ - P P*) V*."""
    size = 2 * pairs
    order = torch.arange(size, dtype=torch.float64)
    root = torch.sqrt(2 * order + 1)
    legs = -(torch.outer(root, root).tril(-1) + torch.diag(order + 1))
    p = torch.sqrt(order + 0.5)
    skew = legs + torch.outer(p, p)  # normal: -1/2 on the diagonal, antisymmetric off it
    frequency, basis = torch.linalg.eigh((skew + 0.5 * torch.eye(size)) * -1j)
    kept = frequency > 0
    inverse = basis[:, kept].conj().T
    damping = torch.full((pairs,), -0.5, dtype=torch.float64)
    return torch.complex(damping, frequency[kept]), inverse @ p.to(basis.dtype), inverse @ root.to(basis.dtype)


class S4(Mixer):
    """x [b, t, h] -> [b, t, h]; the state is h [h, n] of each row, complex as pairs [h, n, 2]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        log_damping: Learned.Spec  # log of -Re Λ, [h, n, 1]
        frequency: Learned.Spec  # Im Λ, [h, n, 1]
        p: Learned.Spec  # [h, n, 2]
        b: Learned.Spec  # [h, n, 2]
        c: Learned.Spec  # [h, n, 2]
        log_step: Learned.Spec  # [h]
        skip: Learned.Spec  # D [h]
        out: Linear.Spec

        def __post_init__(self) -> None:
            channels, pairs = self.out.in_features, self.c.size[1] if len(self.c.size) == 3 else 0
            for name, part, width in (
                ("log_damping", self.log_damping, 1),
                ("frequency", self.frequency, 1),
                ("p", self.p, 2),
                ("b", self.b, 2),
                ("c", self.c, 2),
            ):
                if part.size != (channels, pairs, width) or pairs < 1:
                    raise ShapeError(
                        f"{name!r} of size {part.size} before a map of {channels} channels",
                        remedy=f"Give it the size [channels, pairs of states, {width}].",
                    )
            if self.log_step.size != (channels,) or self.skip.size != (channels,):
                raise ShapeError("Steps or skips of another number of channels", remedy=f"Give {channels} of each.")

        def build(self) -> S4:
            return S4(self)

    def __init__(self, spec: S4.Spec) -> None:
        super().__init__()
        self.log_damping, self.frequency = spec.log_damping.build(), spec.frequency.build()
        self.p, self.b, self.c = spec.p.build(), spec.b.build(), spec.c.build()
        self.log_step, self.skip, self.out = spec.log_step.build(), spec.skip.build(), spec.out.build()
        self.channels, self.pairs, _ = spec.c.size

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.channels, self.pairs, 2))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        u = wide(x)
        given = state if isinstance(state, RecurrentState) else None
        damping = -torch.exp(wide(self.log_damping().squeeze(-1)))
        system = System(
            a=torch.complex(damping, wide(self.frequency().squeeze(-1))),
            p=torch.view_as_complex(self.p().to(u.dtype)),
            b=torch.view_as_complex(self.b().to(u.dtype)),
            c=torch.view_as_complex(self.c().to(u.dtype)),
            step=torch.exp(wide(self.log_step())),
        )
        if given is None and context.segments is None:
            y, memory = long_convolution(u, kernel(system, x.shape[1])), None
        else:
            memory = None if given is None else torch.view_as_complex(given.parts[0].to(u))
            y, memory = recurrent(u, system, memory=memory, begins=starts(context.segments))
        y = self.out(F.gelu(y + self.skip() * u).to(x.dtype))
        if given is None or memory is None:
            return y, None
        return y, given.after((torch.view_as_real(memory),), x.shape[1])


@dataclass(frozen=True)
class System:
    """Λ, P, B, C complex [h, n] (one half of each conjugate pair) and Δ [h]."""

    a: Tensor
    p: Tensor
    b: Tensor
    c: Tensor
    step: Tensor


def both(x: Tensor) -> Tensor:
    """The sum over states and their conjugates: 2 Re of the sum over the last axis."""
    return 2 * x.sum(-1).real


def advance(x: Tensor, system: System) -> Tensor:
    """Ā x for states x complex [..., h, n]: (2/Δ - A)⁻¹ (2/Δ + A) x."""
    rate = (2 / system.step).unsqueeze(-1)
    pushed = (rate + system.a) * x - system.p * both(system.p.conj() * x).unsqueeze(-1)
    return resolve(pushed, system)


def resolve(x: Tensor, system: System) -> Tensor:
    """(2/Δ - A)⁻¹ x by Woodbury's identity, A = Λ - P P*."""
    inverse = 1 / ((2 / system.step).unsqueeze(-1) - system.a)
    spread = inverse * system.p
    share = both(system.p.conj() * inverse * x) / (1 + both(system.p.conj() * spread))
    return inverse * x - spread * share.unsqueeze(-1)


def recurrent(
    u: Tensor, system: System, *, memory: Tensor | None, begins: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token after the other: u [b, t, h], memory complex [b, h, n] -> (y [b, t, h], memory)."""
    inward = 2 * resolve(system.b, system)  # B̄
    if memory is None:
        memory = torch.zeros(u.shape[0], *inward.shape, dtype=inward.dtype, device=u.device)
    outputs: list[Tensor] = []
    for time in range(u.shape[1]):
        if begins is not None:
            memory = memory * ~begins[:, time, None, None]
        memory = advance(memory, system) + u[:, time, :, None] * inward
        outputs.append(both(memory * system.c))
    return torch.stack(outputs, dim=1), memory


def kernel(system: System, length: int) -> Tensor:
    """K [h, L]: the generating function of theorem 3 at the L-th roots of unity, transformed back."""
    ended = system.c - power_from_left(system, length)  # C (I - Ā^L)
    angle = -2 * math.pi / length * torch.arange(length // 2 + 1, device=system.step.device, dtype=system.step.dtype)
    root = torch.polar(torch.ones_like(angle), angle)  # ω
    q, p, lift = system.p.conj(), system.p, 1 + root
    products = torch.stack([ended * system.b, ended * p, q * system.b, q * p], dim=1)  # [h, 4, n]
    size = root.shape[0] if torch.compiler.is_compiling() else max(1, PIECE // system.a.numel())
    sums = [_of_piece(products, system.a, 2 / system.step, part) for part in root.split(size)]
    out_in, out_p, p_in, p_p = torch.cat(sums, dim=-1).unbind(1)
    spectrum = out_in - lift * out_p * p_in / (1 + lift * p_p)
    return torch.fft.irfft(2 * spectrum, n=length)


def _of_piece(products: Tensor, a: Tensor, rate: Tensor, root: Tensor) -> Tensor:
    """`cauchy`, whose quotients are not kept for the gradient but computed again."""
    if torch.compiler.is_compiling():
        return cauchy(products, a, rate, root)
    return checkpoint(cauchy, products, a, rate, root, use_reentrant=False, preserve_rng_state=False)


def cauchy(products: Tensor, a: Tensor, rate: Tensor, root: Tensor) -> Tensor:
    """sum over all states of x y / ((2/Δ)(1 - ω) - λ (1 + ω)): the paper's kernel over (1 + ω).

    Shapes: products x y complex [h, 4, n], a (λ) complex [h, n], rate (2/Δ) [h], root (ω) complex [f] -> [h, 4, f].
    """
    near, far = rate[:, None, None] * (1 - root), 1 + root
    first, second = 1 / (near - a.unsqueeze(-1) * far), 1 / (near - a.conj().unsqueeze(-1) * far)  # [h, n, f]
    return products @ first + products.conj() @ second


def power_from_left(system: System, length: int) -> Tensor:
    """C Ā^L: [h, n], by squaring Ā written out over both halves of the pairs."""
    pairs = system.a.shape[-1]
    unit = torch.eye(pairs, dtype=system.a.dtype, device=system.step.device)
    # columns of Ā acting on real and on imaginary states, which together span the conjugate-symmetric ones
    columns = torch.cat([unit, 1j * unit]).unsqueeze(1).expand(-1, system.a.shape[0], -1)
    moved = advance(columns, system)  # [2 n, h, n]
    matrix = torch.cat([moved.real, moved.imag], dim=-1).permute(1, 2, 0)  # [h, 2 n, 2 n] on (Re, Im)
    row = torch.cat([system.c.real, -system.c.imag], dim=-1).unsqueeze(1)  # Re(C x) = row · (Re x, Im x)
    row = (row @ torch.linalg.matrix_power(matrix, length)).squeeze(1)
    return torch.complex(row[:, :pairs], -row[:, pairs:])


def s4(hidden: int, *, num_states: int = 32) -> S4.Spec:
    """The spec of a layer of ``hidden`` channels with ``num_states`` conjugate pairs each."""

    def learned(width: int, initialiser: Initialiser) -> Learned.Spec:
        return Learned.Spec(size=(hidden, num_states, width), axes=("ffn", "state", "none"), initialiser=initialiser)

    return S4.Spec(
        log_damping=learned(1, Hippo(part="log_damping")),
        frequency=learned(1, Hippo(part="frequency")),
        p=learned(2, Hippo(part="p")),
        b=learned(2, Hippo(part="b")),
        c=learned(2, Normal(std=0.5**0.5)),
        log_step=Learned.Spec(size=(hidden,), axes=("ffn",), initialiser=LogSteps()),
        skip=Learned.Spec(size=(hidden,), axes=("ffn",), initialiser=Constant(value=1.0)),
        out=Linear.Spec(in_features=hidden, out_features=hidden, bias=True, axes=("embed", "ffn")),
    )
