"""Time and memory against length, for every mixer: one layer, the forward pass over a text, and one more token after it.

    python benchmarks/architectures.py [--lengths 256 512 1024] [--hidden 128] [--mixers full mamba] [--output file]

Costs are fitted as length^exponent over the longer half of the lengths: about 1 where a mixer is linear, 2 where it sees all
pairs (less while its maps outweigh them). Decode is the time of one token and the bytes of state after the longest text; a
mixer of fixed memory has a state whose exponent is 0. Peak is the most bytes of tensors that a pass holds at once, counted
(what a fused kernel takes within is not); resident is by how much the process grew in all, the kernels' own memory included.
Operations are matrix products and attention, counted as they run (a fused attention as if no pair were left out), never
extrapolated. Times are of this machine and of what else runs on it: medians of a few.

Every mixer runs in a process of its own with so much memory and so many seconds; one that fails is a row that says so, with
the figures of the lengths it did. The default takes about a minute and a half; up to 32768 tokens, a quarter of an hour:
--lengths 256 1024 4096 16384 32768.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
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
GIGABYTES = 8.0  # a mixer's process may take beside what it begins with
MOST_SECONDS = 900.0  # of a mixer, all lengths together


@dataclass
class Row:
    """One mixer: seconds, bytes and operations by length; ``state`` and ``token`` are after each length.

    ``failure``: why longer texts have no figures.
    """

    name: str
    seconds: dict[int, float] = field(default_factory=dict)
    peak: dict[int, int] = field(default_factory=dict)
    resident: dict[int, int] = field(default_factory=dict)
    operations: dict[int, float] = field(default_factory=dict)
    token: dict[int, float] = field(default_factory=dict)
    state: dict[int, int] = field(default_factory=dict)
    failure: str = ""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--mixers", nargs="+", choices=list(MIXERS), default=list(MIXERS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="of memory for each mixer's process")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="for each mixer, all lengths together")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in a mixer's own process
    options = parser.parse_args()
    if options.here:
        measure_here(options)
        return
    rows = []
    for name in options.mixers:
        rows.append(measured(name, options))
        print(line(rows[-1]), flush=True)
    print(f"\none layer, hidden {options.hidden}, one text, {options.threads} thread(s)\n\n{table(rows)}")
    if options.output:
        options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def measured(name: str, options: argparse.Namespace) -> Row:
    """A mixer's figures, from a process of its own: what it wrote before it ended, and why it did."""
    sizes = ["--hidden", str(options.hidden), "--repeats", str(options.repeats), "--threads", str(options.threads)]
    sizes += ["--gigabytes", str(options.gigabytes), "--lengths", *map(str, sorted(options.lengths))]
    command = [sys.executable, str(Path(__file__).resolve()), "--here", "--mixers", name, *sizes]
    row = Row(name)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        late = threading.Event()
        timer = threading.Timer(options.seconds, lambda: (late.set(), process.kill()))
        timer.start()
        complaints: list[str] = []
        reader = threading.Thread(target=lambda: complaints.extend(process.stderr or ()))
        reader.start()
        for text in process.stdout:
            found = json.loads(text)
            length = found.pop("length")
            for figure, value in found.items():
                getattr(row, figure)[length] = value
        status = process.wait()
        timer.cancel()
        reader.join()
    if late.is_set():
        row.failure = f"over {options.seconds:.0f} seconds"
    elif status:
        row.failure = complaints[-1].strip()[:120] if complaints else f"ended by signal {-status}"
    if row.failure:
        row.failure = f"{min(set(options.lengths) - set(row.seconds))} tokens: {row.failure}"
    return row


def measure_here(options: argparse.Namespace) -> None:
    """Writes the figures of the one mixer, a line of JSON for each length as it is done."""
    torch.set_num_threads(options.threads)
    (name,) = options.mixers
    spec = spec_of(name, options.hidden)
    bound_memory(options.gigabytes)
    begun = resident_bytes()
    for found in figures(spec, options.lengths, hidden=options.hidden, repeats=options.repeats):
        print(json.dumps({**found, "resident": resident_bytes() - begun}), flush=True)


def bound_memory(gigabytes: float) -> None:
    """Lets this process take so much more; an allocation beyond is an error of torch, not the end of the machine."""
    try:
        import resource

        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + int(gigabytes * 2**30),) * 2)
    except (ImportError, OSError, ValueError) as error:
        print(f"memory is not bounded here: {error}", file=sys.stderr)


def resident_bytes() -> int:
    """The most memory that this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


def figures(spec: Spec, lengths: list[int], *, hidden: int, repeats: int) -> Iterator[dict[str, Any]]:
    """All figures of a mixer, length by length."""
    layer = initialise(spec.build(), seed=0).eval()
    assert isinstance(layer, Mixer)
    for length in lengths:
        x = torch.randn(1, length, hidden, generator=torch.Generator().manual_seed(0))
        context = Context(positions=torch.arange(length).unsqueeze(0))

        def call(x: torch.Tensor = x, context: Context = context) -> None:
            layer(x, fresh(context), None)

        with torch.no_grad():
            operations, peak = counted(call)
            seconds = timed(call, repeats if operations < 1e10 else 1)
            token, state = decoding(layer, x, context)
        found: dict[str, Any] = {"length": length, "seconds": seconds, "peak": peak, "operations": operations}
        yield {**found, "token": token, "state": state}


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


def counted(call: Callable[[], None]) -> tuple[float, int]:
    """Multiplications and additions of matrix products and attention, and the most bytes of tensors alive at once."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={fused: attention_operations})
    with counter, Live() as live:
        call()
    return float(counter.get_total_flops()), live.most


def attention_operations(q: list[int], k: list[int], v: list[int], *_: Any, **__: Any) -> int:
    """Of a fused attention, from the shapes [b, n, t, d], [b, m, l, d], [b, m, l, e]: torch counts none on a processor."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


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
    times = [f"{length}: {seconds * 1e3:.1f} ms" for length, seconds in row.seconds.items()]
    return f"{row.name}: {', '.join(times + [row.failure] * bool(row.failure))}"


def table(rows: list[Row]) -> str:
    """Markdown: the longest length, and exponents."""
    header = ["mixer", "tokens", "pass ms", "exponent", "operations", "exponent", "peak MB", "exponent", "resident MB"]
    header += ["token ms", "state kB", "exponent", "longer"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = [row.name, *["-"] * (len(header) - 2), row.failure or "all done"]
        if row.seconds:
            length = max(row.seconds)
            cells[1:-1] = [
                str(length),
                f"{row.seconds[length] * 1e3:.1f}",
                f"{exponent(row.seconds):.2f}",
                f"{row.operations[length]:.3g}",
                f"{exponent(row.operations):.2f}",
                f"{row.peak[length] / 1e6:.1f}",
                f"{exponent(row.peak):.2f}",
                f"{row.resident[length] / 1e6:.0f}",
                f"{row.token[length] * 1e3:.2f}",
                f"{row.state[length] / 1e3:.1f}",
                f"{abs(exponent(row.state)):.2f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
