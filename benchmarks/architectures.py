"""Time and memory against length, for every mixer: one layer, the forward pass over a text, and one more token after it.

    python benchmarks/architectures.py [--lengths 256 512 1024] [--hidden 128] [--mixers full mamba] [--output file]

Costs are fitted as length^exponent over the longer half of the lengths: about 1 where a mixer is linear, 2 where it sees all
pairs (less while its maps outweigh them). Decode is the time of one token and the bytes of state after the longest text; a
mixer of fixed memory has a state whose exponent is 0. Peak is the most bytes of tensors that a pass holds at once, counted
(what a fused kernel takes within is not). Times are of this machine and of what else runs on it: medians of a few, with the
exponent of matrix products, which torch counts and which does not waver, beside them. The default takes about a minute; up to
32768 tokens: --lengths 256 1024 4096 16384 32768.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from almanac.core.spec import Spec
from almanac.core.state import Context, Mixer
from almanac.core.technique import initialise

HEADS = 4
MIXERS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("nn.attention.full.attention", {"num_heads": HEADS}),
    "grouped": ("nn.attention.full.attention", {"num_heads": HEADS, "num_kv_heads": 1}),
    "window": ("nn.attention.full.attention", {"num_heads": HEADS, "mask": "window"}),
    "linear": ("nn.attention.linear.linear_attention", {"num_heads": HEADS}),
    "gated linear": ("nn.attention.gated_linear.gated_linear", {"num_heads": HEADS}),
    "sparse": ("nn.attention.sparse.sparse_attention", {"num_heads": HEADS, "mask": "bigbird"}),
    "multiscale": ("nn.attention.multiscale.multiscale", {"num_heads": HEADS, "scales": (1, 4, 16, 64), "window": 16}),
    "retnet": ("nn.recurrent.retnet.retention", {"num_heads": HEADS}),
    "gated delta": ("nn.recurrent.delta.gated_delta", {"num_heads": HEADS, "head_dim": "hidden / heads"}),
    "mamba": ("nn.recurrent.mamba.mamba", {}),
    "mamba2": ("nn.recurrent.mamba2.mamba2", {"num_heads": HEADS, "head_dim": "2 hidden / heads", "num_states": 32}),
    "rwkv4": ("nn.recurrent.rwkv4.rwkv4", {}),
    "rwkv6": ("nn.recurrent.rwkv6.rwkv6", {"num_heads": HEADS}),
    "rwkv7": ("nn.recurrent.rwkv7.rwkv7", {"num_heads": HEADS, "first": True}),
    "s4": ("nn.recurrent.s4.s4", {}),
    "s4d": ("nn.recurrent.s4d.s4d", {}),
    "lstm": ("nn.recurrent.lstm.lstm", {}),
    "gru": ("nn.recurrent.gru.gru", {}),
    "spiking": ("nn.frontier.spiking.spiking_tokens", {}),
    "quantum": ("nn.frontier.quantum.quantum_attention", {"num_heads": HEADS, "num_qubits": 4}),
}
"""name -> the function that makes its spec from the width, and what else it is given; one that is not there is told so."""

LENGTHS = (256, 512, 1024)
WINDOW = 128
REPEATS = 3
DECODED = 8  # tokens that the time of one is taken from
MOST_SECONDS = 20.0  # of one length, after which longer ones of a mixer are left out


@dataclass
class Row:
    """One mixer: seconds, bytes and operations by length; ``state`` and ``token`` are after each length."""

    name: str
    seconds: dict[int, float]
    peak: dict[int, int]
    operations: dict[int, float]
    token: dict[int, float]
    state: dict[int, int]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--mixers", nargs="+", choices=list(MIXERS), default=list(MIXERS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.mixers:
        try:
            spec = spec_of(name, options.hidden)
        except (ModuleNotFoundError, AttributeError, TypeError) as error:
            print(f"{name}: not here ({error})", flush=True)
            continue
        rows.append(measured(name, spec, sorted(options.lengths), hidden=options.hidden, repeats=options.repeats))
        print(line(rows[-1]), flush=True)
    print(f"\none layer, hidden {options.hidden}, one text, {options.threads} thread(s)\n\n{table(rows)}")
    if options.output:
        options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def spec_of(name: str, hidden: int) -> Spec:
    """The spec of a mixer; raises what says that there is no such function, or that it takes other sizes."""
    place, given = MIXERS[name]
    module, _, function = place.rpartition(".")
    sizes = {"hidden / heads": hidden // HEADS, "2 hidden / heads": 2 * hidden // HEADS}
    arguments = {key: sizes.get(value, value) if isinstance(value, str) else value for key, value in given.items()}
    if arguments.get("mask") == "window":
        from almanac.nn.attention.masks import SlidingWindow

        arguments["mask"] = SlidingWindow(size=WINDOW)
    if arguments.get("mask") == "bigbird":
        patterns = importlib.import_module("almanac.nn.attention.patterns")
        arguments["mask"] = patterns.BigBird(block=WINDOW // 2)
    return getattr(importlib.import_module(f"almanac.{module}"), function)(hidden, **arguments)


def measured(name: str, spec: Spec, lengths: list[int], *, hidden: int, repeats: int) -> Row:
    """All figures of a mixer; lengths after one that takes too long are left out."""
    layer = initialise(spec.build(), seed=0).eval()
    assert isinstance(layer, Mixer)
    row = Row(name, {}, {}, {}, {}, {})
    for length in lengths:
        x = torch.randn(1, length, hidden, generator=torch.Generator().manual_seed(0))
        context = Context(positions=torch.arange(length).unsqueeze(0))

        def call(x: torch.Tensor = x, context: Context = context) -> None:
            layer(x, fresh(context), None)

        with torch.no_grad():
            row.operations[length] = operations(call)
            row.peak[length] = peak_bytes(call)
            row.seconds[length] = timed(call, repeats if row.operations[length] < 1e10 else 1)
            row.token[length], row.state[length] = decoding(layer, x, context)
        if row.seconds[length] > MOST_SECONDS:
            break
    return row


def fresh(context: Context) -> Context:
    """The same without what a pass before has left in its memo."""
    return Context(positions=context.positions)


def decoding(layer: Mixer, x: torch.Tensor, context: Context) -> tuple[float, int]:
    """Seconds of a token after the text, and the bytes of state."""
    length = x.shape[1]
    _, state = layer(x, fresh(context), layer.init_state(1, length + DECODED))
    seconds = []
    for step in range(DECODED):
        start = time.perf_counter()
        _, state = layer(x[:, -1:], Context(positions=torch.tensor([[length + step]])), state)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), state.nbytes


def timed(call: Callable[[], None], repeats: int) -> float:
    """Median seconds; the first call warms up."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def operations(call: Callable[[], None]) -> float:
    """Matrix products and attention, as torch counts them; its fused attention on a processor is counted written out."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return float(counter.get_total_flops())


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and the most there were at once; what a kernel takes within is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, int] = {}  # storage -> tensors on it
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, tuple | list) else [made]:
            if isinstance(item, torch.Tensor):
                self.hold(item)
        return made

    def hold(self, tensor: torch.Tensor) -> None:
        """Counts a tensor until it is gone."""
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self.owners:
            self.now += nbytes
            self.most = max(self.most, self.now)
        self.owners[key] = self.owners.get(key, 0) + 1
        weakref.finalize(tensor, self.release, key, nbytes)

    def release(self, key: int, nbytes: int) -> None:
        """One tensor less on a storage."""
        self.owners[key] -= 1
        if not self.owners[key]:
            del self.owners[key]
            self.now -= nbytes


def peak_bytes(call: Callable[[], None]) -> int:
    """The most bytes of tensors alive at once that ``call`` made."""
    with Live() as live:
        call()
    return live.most


def exponent(figures: dict[int, float] | dict[int, int]) -> float:
    """b of length^b, by least squares over the longer half of the lengths (two at least); nan where it cannot be told."""
    points = sorted((length, value) for length, value in figures.items() if value > 0)
    points = points[-max(2, (len(points) + 1) // 2) :]
    if len(points) < 2:
        return math.nan
    xs, ys = [math.log(length) for length, _ in points], [math.log(value) for _, value in points]
    mean_x, mean_y = statistics.mean(xs), statistics.mean(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def line(row: Row) -> str:
    """One mixer as it is done."""
    times = ", ".join(f"{length}: {seconds * 1e3:.1f} ms" for length, seconds in row.seconds.items())
    return f"{row.name}: {times}"


def table(rows: list[Row]) -> str:
    """Markdown: the longest length, and exponents."""
    header = ["mixer", "tokens", "pass ms", "exponent", "of operations", "peak MB", "exponent of peak", "token ms"]
    header += ["state kB", "exponent of state"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        length = max(row.seconds)
        cells = [
            row.name,
            length,
            f"{row.seconds[length] * 1e3:.1f}",
            f"{exponent(row.seconds):.2f}",
            f"{exponent(row.operations):.2f}",
            f"{row.peak[length] / 1e6:.1f}",
            f"{exponent(row.peak):.2f}",
            f"{row.token[length] * 1e3:.2f}",
            f"{row.state[length] / 1e3:.1f}",
            f"{abs(exponent(row.state)):.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
