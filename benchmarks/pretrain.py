"""Pre-training a small GPT-2: almanac's `train()`, transformers' Trainer and a plain loop, in turn, in one run.

    python benchmarks/pretrain.py [--text FILE] [--model 10m] [--threads 1] [--rounds 5] [--steps 4]
    python benchmarks/pretrain.py --quality [--model small] [--seeds 2] [--steps 200]
    python benchmarks/pretrain.py --nanogpt [--text tinyshakespeare.txt]

Every contender is a process of its own that waits after `--steps` steps until its turn comes again; between their turns a
fourth measures how fast the machine multiplies large float32 matrices, by the faster of torch's BLAS and oneDNN, which is
called the peak. All train the same shape on the same windows with AdamW, clipping and the same rates. Printed are medians
over rounds, of figures and of ratios within a round: tokens per second of wall time and of processor time, the share of the
peak, the peak of resident memory, and its growth since the model was made. FLOPs of a token: 6 N, positions not counted among
the N parameters, and 6 layers * time * width for the scores and what they weigh, of which a causal mask leaves half.

`--quality`: the loss on held-out text after the same steps from each contender's own initial weights, by seed. `--nanogpt`:
the run on one processor that nanoGPT documents (characters, 4 layers, 4 heads, 128 wide, 64 characters, 12 rows, 2000 steps;
val loss 1.88), with `train()`. The text is divided 9 to 1; without one, text is generated, and that is said.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pretrain_contenders import TRAIN, Shape, Text
from torch import Tensor

MODELS = {  # layers, heads, width, time, vocabulary, rows of a step
    "10m": (6, 6, 384, 256, 2048, 8),
    "small": (4, 4, 128, 128, 1024, 16),
    "nanogpt": (4, 4, 128, 65, 0, 12),  # 64 characters and the one after them
}
CONTENDERS = ("almanac", "trainer", "plain")
WARMING_STEPS = 2
DEFAULT_TEXT = Path(__file__).parents[2] / "shared" / "data" / "text" / "tinyshakespeare.txt"


class Gate:
    """Called after every step of a child: times `steps` of them, says so, and waits for its next turn."""

    def __init__(self, tokens: int, steps: int, measured: bool) -> None:
        self.tokens, self.steps, self.done, self.measured = tokens, steps, -WARMING_STEPS, measured
        self.start = (0.0, 0.0)
        self.memory = memory_mib("VmRSS")  # with the libraries and the model, before the first step

    def __call__(self) -> None:
        self.done += 1
        if not self.measured or self.done < 0:
            return
        if self.done and self.done % self.steps == 0:
            wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
            count, peak = self.tokens * self.steps, memory_mib("VmHWM")
            tell({"wall": count / wall, "cpu": count / cpu, "peak": peak, "growth": peak - self.memory})
        if self.done % self.steps == 0:
            if self.done == 0:
                tell({"ready": True})
            sys.stdin.readline()
            self.start = time.perf_counter(), time.process_time()


def peak_child(steps: int) -> None:
    """FLOPs a second of large products, per second of processor time, one line a turn."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    ways: dict[str, Callable[[], Tensor]] = {"blas": lambda: left @ right}
    if torch.backends.mkldnn.is_available():
        ways["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "none")
    tell({"ready": True})
    while sys.stdin.readline():
        found = {}
        for name, way in ways.items():
            way()
            begun = time.process_time()
            for _ in range(max(4, steps)):
                way()
            found[name] = max(4, steps) * 2 * 2048**3 / (time.process_time() - begun)
        tell(found)


def child(options: argparse.Namespace) -> None:
    """One contender in a process of its own."""
    torch.set_num_threads(options.threads)
    if options.child == "peak":
        peak_child(options.steps)
        return
    shape = Shape(*json.loads(options.shape))
    ids = torch.from_numpy(np.fromfile(options.ids, dtype=np.uint16).astype(np.int64))
    cut = len(ids) * 9 // 10
    steps = options.steps if options.quality else WARMING_STEPS + options.rounds * options.steps
    logits = TRAIN[options.child](
        shape, Text(ids[:cut]), steps, options.seed,
        lambda: Gate(shape.rows * shape.time, options.steps, not options.quality),
    )  # fmt: skip
    if options.quality:
        tell({"loss": held_out(logits, Text(ids[cut:]), shape.time)})


@torch.no_grad()
def held_out(logits: Callable[[Tensor], Tensor], text: Text, time: int) -> float:
    """Mean nats of a token over all windows of the held-out text."""
    starts = range(0, text.num_tokens - time, time - 1)
    rows = torch.stack([text.read(start, time) for start in starts])
    losses = [
        F.cross_entropy(logits(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        for part in rows.split(16)
    ]
    return sum(losses) / (rows.shape[0] * (time - 1))


def throughput(shape: Shape, ids: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of turns -> figures and ratios."""
    children = {name: start(name, shape, ids, options) for name in (*CONTENDERS, "peak")}
    for process in children.values():
        hear(process)
    rounds: list[dict[str, Any]] = []
    for count in range(options.rounds):
        order = list(children)
        random.Random(count).shuffle(order)
        found = {}
        for name in order:
            print("go", file=children[name].stdin, flush=True)
            found[name] = hear(children[name])
        rounds.append(found)
        print(f"# round {count + 1} of {options.rounds}: {found}", file=sys.stderr, flush=True)
    for process in children.values():
        process.communicate("", timeout=600)
    peaks = [max(found["peak"].values()) for found in rounds]
    table = {
        name: {
            key: statistics.median(found[name][key] for found in rounds) for key in ("wall", "cpu", "peak", "growth")
        }
        | {
            "of_peak": statistics.median(
                found[name]["cpu"] * shape.token_flops / peak for found, peak in zip(rounds, peaks, strict=True)
            )
        }
        for name in CONTENDERS
    }
    ratios = {
        f"{kind} over {peer}": [found["almanac"][kind] / found[peer][kind] for found in rounds]
        for peer in CONTENDERS[1:]
        for kind in ("cpu", "wall")
    }
    blas = {way: statistics.median(found["peak"][way] for found in rounds) for way in rounds[0]["peak"]}
    print(f"{shape.parameters:,} parameters, {shape.token_flops / 1e6:.1f} MFLOP a token, {options.threads} thread(s), "
          f"{options.rounds} rounds of {options.steps} steps; GFLOP/s of products: "
          + ", ".join(f"{way} {rate / 1e9:.0f}" for way, rate in blas.items()))  # fmt: skip
    print(
        "| contender | tokens/s wall | per CPU second | of the peak | peak MiB | growth MiB |\n|---|---|---|---|---|---|"
    )
    for name, row in table.items():
        print(f"| {name} | {row['wall']:.0f} | {row['cpu']:.0f} | {row['of_peak']:.0%} | {row['peak']:.0f} | "
              f"{row['growth']:.0f} |")  # fmt: skip
    for name, values in ratios.items():
        print(f"almanac, {name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    return {"table": table, "ratios": ratios, "products": blas, "rounds": rounds}


def quality(shape: Shape, ids: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out loss of every contender and seed."""
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for seed in range(options.seeds):
        for name in CONTENDERS:
            process = start(name, shape, ids, options, seed)
            found[name].append(hear(process)["loss"])
            process.communicate("", timeout=600)
    for name, losses in found.items():
        print(f"{name}: {statistics.mean(losses):.4f} nats ({', '.join(f'{loss:.4f}' for loss in losses)})")
    return {"loss": found}


def nanogpt(shape: Shape, ids: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The documented run, by `train()` alone."""
    options.quality, options.steps = True, 2000
    process = start("almanac", shape, ids, options)
    loss = hear(process)["loss"]
    process.communicate("", timeout=600)
    print(f"nanoGPT's run of 2000 steps on one processor: val loss {loss:.4f}; its README says 1.88")
    return {"loss": loss}


def start(name: str, shape: Shape, ids: Path, options: argparse.Namespace, seed: int = 0) -> subprocess.Popen[str]:
    """A contender's process."""
    numbers = json.dumps(list(vars(shape).values()))
    command = [sys.executable, __file__, "--child", name, "--shape", numbers, "--ids", str(ids), "--seed", str(seed)]
    command += ["--threads", str(options.threads), "--rounds", str(options.rounds), "--steps", str(options.steps)]
    command += ["--quality"] if options.quality else []
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of figures; what else a library prints is passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"figures"'):
            return json.loads(line)["figures"]
    raise SystemExit("a contender ended early; what it said stands above")


def tell(figures: dict[str, Any]) -> None:
    print(json.dumps({"figures": figures}), flush=True)


def memory_mib(field: str) -> float:
    """A line of this process's status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Shape, Path]:
    """The text as ids in a file, and the shape that goes with their vocabulary."""
    from almanac.tokenizers.train.byte_bpe import ByteBpe
    from almanac.tokenizers.train.corpus import Corpus
    from almanac.tokenizers.train.run import train

    shape = Shape(*MODELS["nanogpt" if options.nanogpt else options.model])
    if options.text.exists():
        text = options.text.read_text(encoding="utf-8")
    else:
        dice = random.Random(0)
        words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(1, 9))) for _ in range(4000)]
        text = " ".join(dice.choices(words, weights=[1 / (rank + 1) for rank in range(4000)], k=250_000))
        print(f"{options.text} is not there: the text is generated")
    if options.nanogpt:
        letters = sorted(set(text))
        ids = [letters.index(letter) for letter in text]
        shape = Shape(*(value or len(letters) for value in vars(shape).values()))
    else:
        lines = text.splitlines(keepends=True)
        trained = train(Corpus.of_texts(lines[: len(lines) * 9 // 10]), ByteBpe(vocab_size=shape.vocab_size))
        trained.save(folder)
        from almanac.tokenizers.tokenizer import Tokenizer

        ids = Tokenizer.from_json_file(folder).encode(text, add_special_tokens=False, allow_special=False)
    path = folder / "ids.bin"
    np.array(ids, dtype=np.uint16).tofile(path)
    return shape, path


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--model", choices=("10m", "small"), default="10m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a turn (4); with --quality, of the run (200)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--nanogpt", action="store_true")
    parser.add_argument("--output", help="where to write the figures as JSON")
    for hidden in ("--child", "--shape", "--ids"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (200 if options.quality else 4)
    if options.child:
        child(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        shape, ids = prepare(options, Path(folder))
        work = nanogpt if options.nanogpt else quality if options.quality else throughput
        found = work(shape, ids, options)
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
