"""The linear recurrence h_t = a_t h_{t-1} + u_t over a whole sequence, forwards and backwards.

Blelloch 1990's two levels (CMU-CS-90-190, section 1.4): the sequence is cut into chunks that are scanned side by side from
zero, the states at their ends are carried through, and each chunk adds what reached it, damped by the product of its
decays. Only products of decays occur, never their quotients, so nothing overflows for |a| <= 1. The gradient is the same
recurrence run backwards: g_t = dL/dh_t + conj(a_{t+1}) g_{t+1}, dL/du_t = g_t, dL/da_t = g_t conj(h_{t-1}).

Legend: t time, first; ... anything that recurs independently (batch, channels, states), real or complex.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDE = 8192  # elements of one step from which one step at a time is as fast as chunks side by side


def scan(decay: Tensor, inflow: Tensor, initial: Tensor, *, chunk: int | None = None) -> Tensor:
    """All states of h_t = decay_t h_{t-1} + inflow_t; h_0 follows ``initial``.

    Shapes: decay, inflow [t, ...]; initial [...] -> [t, ...]. ``chunk`` is how many tokens are scanned one after the
    other: 1 up to t; by default what is fastest for the size.
    """
    if chunk is None:
        chunk = len(inflow) if initial.numel() >= WIDE else math.isqrt(len(inflow)) + 1
    if torch.compiler.is_compiling():  # which differentiates the unrolled steps itself
        return recur(decay, inflow, initial, chunk)
    return _Scan.apply(decay, inflow, initial, chunk)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


class _Scan(torch.autograd.Function):
    """Saves the states only, not one node of the graph per token."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inflow: Tensor, initial: Tensor, chunk: int) -> Tensor:
        states = recur(decay, inflow, initial, chunk)
        ctx.save_for_backward(decay, initial, states)
        ctx.chunk = chunk
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        decay, initial, states = ctx.saved_tensors
        reached = _backwards(decay, grads[0], ctx.chunk)
        of_decay = torch.empty_like(decay)
        torch.mul(reached[0], initial.conj(), out=of_decay[0])
        torch.mul(reached[1:], states[:-1].conj(), out=of_decay[1:])
        return of_decay, reached, decay[0].conj() * reached[0], None


def recur(decay: Tensor, inflow: Tensor, initial: Tensor, chunk: int) -> Tensor:
    """`scan` without a gradient of its own."""
    time = len(inflow)
    chunk = max(1, min(chunk, time))
    count = -(-time // chunk)
    if count == 1:
        return _steps(decay.unsqueeze(0), inflow.unsqueeze(0), initial.unsqueeze(0))[0]
    if missing := count * chunk - time:
        decay = torch.cat([decay, torch.ones_like(decay[:1]).expand(missing, *decay.shape[1:])])
        inflow = torch.cat([inflow, torch.zeros_like(inflow[:1]).expand(missing, *inflow.shape[1:])])
    decay, inflow = decay.unflatten(0, (count, chunk)), inflow.unflatten(0, (count, chunk))
    apart = _steps(decay, inflow, torch.zeros_like(inflow[:, 0]))  # each chunk from zero
    damping = decay.cumprod(1)
    ends = _steps(damping[None, :, -1], apart[None, :, -1], initial.unsqueeze(0))[0]
    entering = torch.cat([initial.unsqueeze(0), ends[:-1]])
    return torch.addcmul(apart, damping, entering.unsqueeze(1)).flatten(0, 1)[:time]


def _backwards(decay: Tensor, inflow: Tensor, chunk: int) -> Tensor:
    """g_t = inflow_t + conj(decay_{t+1}) g_{t+1}, all of them."""
    if chunk < len(inflow):
        following = torch.cat([torch.zeros_like(decay[:1]), decay[1:].flip(0)]).conj().resolve_conj()
        return recur(following, inflow.flip(0), torch.zeros_like(inflow[0]), chunk).flip(0)
    reached = inflow.clone(memory_format=torch.contiguous_format)
    for time in range(len(inflow) - 2, -1, -1):
        reached[time].addcmul_(decay[time + 1].conj(), reached[time + 1])
    return reached


def _steps(decay: Tensor, inflow: Tensor, initial: Tensor) -> Tensor:
    """Chunks side by side, one token after the other: decay, inflow [chunks, time, ...]; initial [chunks, ...]."""
    if torch.compiler.is_compiling():
        return _unrolled(decay, inflow, initial)
    states, previous = torch.empty_like(inflow), initial
    for time in range(inflow.shape[1]):
        previous = torch.addcmul(inflow[:, time], decay[:, time], previous, out=states[:, time])
    return states


def _unrolled(decay: Tensor, inflow: Tensor, initial: Tensor) -> Tensor:
    """`_steps` without writing in place."""
    states: list[Tensor] = []
    previous = initial
    for time in range(inflow.shape[1]):
        previous = torch.addcmul(inflow[:, time], decay[:, time], previous)
        states.append(previous)
    return torch.stack(states, dim=1)


def starts(segments: Tensor | None) -> Tensor | None:
    """bool [batch, time]: where a packed sequence begins inside the row; segments int64 [batch, time], each contiguous.

    The first token of a row continues whatever state it was given, so it is no start.
    """
    if segments is None:
        return None
    first = torch.zeros_like(segments[:, :1], dtype=torch.bool)
    return torch.cat([first, segments[:, 1:] != segments[:, :-1]], dim=1)
