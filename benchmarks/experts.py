"""A mixture of experts by the grouped product, by a loop over experts, and by transformers' block: time and memory.

    python benchmarks/experts.py [--tokens 1 64 512] [--hidden 256] [--inner 512] [--experts 8] [--chosen 2] [--pairs 15]

All three hold the same numbers and agree to 1e-4 before any is timed. The loop is what one writes first: for each expert the
tokens that chose it, its three maps, and their answers added where they belong; transformers' runs its own default. Times are
medians, ratios medians over pairs run one right after the other, memory what a child process that runs one of them alone has
at its peak above what it had before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.technique import initialise
from almanac.nn.channel.moe.mixture import Mixture, gated_experts
from almanac.nn.channel.moe.routing import SoftmaxTop

KINDS = ("grouped", "loop", "transformers")
TOLERANCE = 1e-4
Call = Callable[[Tensor], Tensor]


def main() -> None:
    """Prints a table: a row for each number of tokens, forward alone and with backward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--chosen", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(peak_bytes(options)))
        return
    ours, calls = build(options)
    print(f"{options.experts} experts, {options.chosen} a token, hidden {options.hidden}, inner {options.inner}")
    print(f"{'tokens':>7} {'pass':>9} {'grouped ms':>11} {'loop':>7} {'transformers':>13}   (times as long)")
    for tokens in options.tokens:
        x = torch.randn(1, tokens, options.hidden, generator=torch.Generator().manual_seed(tokens))
        agree(calls, x)
        for name, measured in (("forward", forward), ("backward", backward)):
            runs = {kind: partial(measured, call, x, ours) for kind, call in calls.items()}
            base = statistics.median(seconds(runs["grouped"]) for _ in range(options.pairs))
            ratios = [f"{ratio(runs['grouped'], runs[kind], options.pairs):.2f}" for kind in calls if kind != "grouped"]
            print(
                f"{tokens:>7} {name:>9} {1000 * base:>11.3f} {ratios[0]:>7} {ratios[-1] if ratios[1:] else 'absent':>13}"
            )
    for kind in calls:
        command = [sys.executable, *sys.argv, "--peak", kind]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"peak above rest, {max(options.tokens)} tokens, forward and backward, {kind}: {found / 2**20:.1f} MB")


def build(options: argparse.Namespace) -> tuple[Mixture, dict[str, Call]]:
    """Our mixture, and the three ways to compute it, on the same numbers."""
    spec = gated_experts(options.hidden, options.inner, num_experts=options.experts, num_chosen=options.chosen)
    ours = initialise(spec.replace("router", rule=SoftmaxTop(normalise=True)).build(), seed=0)
    assert isinstance(ours, Mixture)
    calls: dict[str, Call] = {"grouped": ours, "loop": lambda x: loop(ours, x)}
    if (block := theirs(ours, options)) is not None:
        calls["transformers"] = block
    return ours, calls


def theirs(ours: Mixture, options: argparse.Namespace) -> Call | None:
    """transformers' Mixtral block with our numbers, or None without transformers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import MixtralConfig
            from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    except ImportError:
        return None
    config = MixtralConfig(
        hidden_size=options.hidden,
        intermediate_size=options.inner,
        num_local_experts=options.experts,
        num_experts_per_tok=options.chosen,
    )
    config._experts_implementation = "grouped_mm"  # what they choose for a whole model
    block: Any = MixtralSparseMoeBlock(config)
    gate, up, down = (leaf.dense_weight().detach() for leaf in (ours.experts.gate, ours.experts.up, ours.experts.down))
    with torch.no_grad():
        block.experts.gate_up_proj.copy_(torch.cat([gate, up], dim=1))
        block.experts.down_proj.copy_(down)
        block.gate.weight.copy_(ours.router.projection.dense_weight())
    return block


def loop(ours: Mixture, x: Tensor) -> Tensor:
    """The naive form."""
    routing, flat = ours.router(x), x.flatten(0, -2)
    experts, weights = routing.experts.flatten(0, -2), routing.weights.flatten(0, -2)
    gate, up, down = (leaf.dense_weight() for leaf in (ours.experts.gate, ours.experts.up, ours.experts.down))
    out = torch.zeros_like(flat)
    for expert in range(ours.router.num_experts):
        rows, place = torch.where(experts == expert)
        read = flat[rows]
        said = F.linear(F.silu(F.linear(read, gate[expert])) * F.linear(read, up[expert]), down[expert])
        out = out.index_add(0, rows, said * weights[rows, place, None])
    return out.view(x.shape)


def agree(calls: dict[str, Call], x: Tensor) -> None:
    """Stops where two ways disagree."""
    with torch.no_grad():
        outputs = {kind: call(x) for kind, call in calls.items()}
    for kind, output in outputs.items():
        worst = float((output - outputs["grouped"]).abs().max())
        if worst > TOLERANCE:
            raise SystemExit(f"{kind} differs by {worst:.2g}")


def forward(call: Call, x: Tensor, ours: Mixture) -> None:
    """One pass without gradient."""
    with torch.no_grad():
        call(x)


def backward(call: Call, x: Tensor, ours: Mixture) -> None:
    """One pass there and back."""
    call(x).sum().backward()
    ours.zero_grad(set_to_none=True)


def seconds(run: Callable[[], None]) -> float:
    """Of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratio(base: Callable[[], None], other: Callable[[], None], pairs: int) -> float:
    """How many times as long the other takes: the median over pairs, after one that is not counted."""
    found = [(seconds(base), seconds(other)) for _ in range(pairs + 1)]
    return statistics.median(second / first for first, second in found[1:])


def peak_bytes(options: argparse.Namespace) -> int:
    """What this process grew by at its peak, running one way alone on the most tokens."""
    ours, calls = build(options)
    x = torch.randn(1, max(options.tokens), options.hidden)
    for kind in [name for name in calls if name != options.peak]:
        del calls[kind]
    reset = Path("/proc/self/clear_refs")  # what was needed to make the weights is not to count
    if reset.exists():
        reset.write_text("5")
    before = resident("VmRSS")
    for _ in range(3):
        backward(calls[options.peak], x, ours)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of memory that this process holds now (``VmRSS``) or held at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
