"""What every causal mixer is put through: pieces, packing, leaks, states that fork, trim, select and join."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from almanac.core.spec import Spec
from almanac.core.state import Context, Mixer, State
from almanac.core.technique import initialise

HIDDEN, TIME = 24, 23


def built(spec: Spec, *, seed: int = 0) -> Mixer:
    """The mixer in float64 with every parameter random."""
    layer = initialise(spec.build(), seed=seed).double().eval()
    for number, parameter in enumerate(layer.parameters()):
        noise = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(seed + number), dtype=torch.float64
        )
        with torch.no_grad():
            parameter += 0.4 * noise
    assert isinstance(layer, Mixer)
    return layer


def numbers(rows: int = 2, time: int = TIME, *, seed: int = 9) -> Tensor:
    return torch.randn(rows, time, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(layer: nn.Module, x: Tensor, **more: Tensor) -> Tensor:
    """One call without a state."""
    y, state = layer(x, Context(positions=torch.arange(x.shape[1]).expand(x.shape[:2]), **more), None)
    assert state is None
    return y


def going_on(layer: Mixer, x: Tensor, state: State, pieces: tuple[int, ...]) -> tuple[Tensor, State]:
    """``x`` in pieces, after what the state's rows have seen."""
    outputs, start = [], 0
    for time in pieces:
        positions = torch.tensor(state.lengths)[:, None] + torch.arange(time)
        y, state = layer(x[:, start : start + time], Context(positions=positions), state)
        outputs.append(y)
        start += time
    return torch.cat(outputs, 1), state


def flops(call: Callable[[], object]) -> int:
    """Of matrix products, attention's among them, which fused kernels of the processor would hide."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    return counter.get_total_flops()


def splits(time: int, count: int, seed: int) -> tuple[int, ...]:
    """Random pieces of ``time``."""
    cuts = sorted(random.Random(seed).sample(range(1, time), count - 1))
    return tuple(b - a for a, b in itertools.pairwise([0, *cuts, time]))


def check_pieces(layer: Mixer, *, time: int = TIME) -> None:
    """However the text is cut, the outputs are those of the whole."""
    x = numbers(time=time)
    expected = whole(layer, x)
    for pieces in ((time,), (1,) * time, splits(time, 3, 0), splits(time, 5, 1), splits(time, 8, 2)):
        found, state = going_on(layer, x, layer.init_state(2, 4), pieces)
        assert state.lengths == [time, time]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def check_packed(layer: Mixer) -> None:
    """Packed texts are read alone; what comes after one's end, padding included, changes nothing."""
    x, cuts = numbers(), ((0, 7, 8, 23), (0, 12, 17, 23))
    segments = torch.tensor([[0] * 7 + [1] + [2] * 15, [5] * 12 + [6] * 5 + [-1] * 6])
    positions = torch.tensor([[p for a, b in itertools.pairwise(cut) for p in range(b - a)] for cut in cuts])
    y, _ = layer(x, Context(positions=positions, segments=segments), None)
    assert torch.isfinite(y).all()
    for row, cut in enumerate(cuts):
        for a, b in itertools.pairwise(cut):
            alone = whole(layer, x[row : row + 1, a:b])[0]
            torch.testing.assert_close(y[row, a:b], alone, rtol=1e-8, atol=1e-9)


def check_leaks(layer: Mixer) -> None:
    """No token changes an output before its own, and each changes its own."""
    x = numbers(1)
    before = whole(layer, x)
    for place in (1, 8, 16, TIME - 1):
        changed = x.clone()
        changed[0, place] += 1
        after = whole(layer, changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-11, atol=1e-12)
        assert (after[:, place] - before[:, place]).abs().max() > 1e-6


def check_rows(layer: Mixer, *, trims: bool = True) -> None:
    """Rows of different lengths come, go, fork and are trimmed, and go on as if alone."""
    x, tail = numbers(3), numbers(3, 6, seed=4)
    states = [going_on(layer, x[i : i + 1, :n], layer.init_state(1, 8), (n,))[1] for i, n in enumerate((5, 20, 12))]
    joined = states[0].join(states[1:]).select([2, 0, 1])
    assert joined.lengths == [12, 5, 20] and joined.nbytes > 0
    past = [x[2, :12], x[0, :5], x[1, :20]]
    fork = joined.fork()
    found, _ = going_on(layer, tail, joined, (1, 5))
    again, _ = going_on(layer, tail.flip(1), fork, (4, 2))
    for row, own in enumerate(past):
        for got, more in ((found, tail), (again, tail.flip(1))):
            expected = whole(layer, torch.cat([own, more[row]])[None])[0, len(own) :]
            torch.testing.assert_close(got[row], expected, rtol=1e-8, atol=1e-9)
    if trims:
        _, state = going_on(layer, x, layer.init_state(3, 2), (TIME,))
        state.trim([TIME, 9, 0])
        found, _ = going_on(layer, tail, state, (2, 4))
        for row, kept in enumerate((TIME, 9, 0)):
            expected = whole(layer, torch.cat([x[row, :kept], tail[row]])[None])[0, kept:]
            torch.testing.assert_close(found[row], expected, rtol=1e-8, atol=1e-9)


def check_compiles(layer: Mixer) -> None:
    """One graph, also with segments, and with a future that is kept out."""
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, segments = numbers(), torch.tensor([[0] * 9 + [1] * 14] * 2)
    positions = torch.tensor([[*range(9), *range(14)]] * 2)
    torch.testing.assert_close(whole(compiled, x), whole(layer, x), rtol=1e-9, atol=1e-10)
    found, _ = compiled(x, Context(positions=positions, segments=segments), None)
    expected, _ = layer(x, Context(positions=positions, segments=segments), None)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def check_builds(spec: Spec) -> None:
    """On meta, from JSON, and in other precisions."""
    assert type(spec).from_dict(spec.to_dict()) == spec
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in spec.build().parameters())
    layer, x = built(spec), numbers()
    expected = whole(layer, x)
    single = whole(layer.float(), x.float())
    assert single.dtype == torch.float32
    assert (single.double() - expected).abs().max() < 1e-4 * max(1.0, float(expected.detach().abs().max()))
    half = whole(layer.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()
