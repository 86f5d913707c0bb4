"""Prefill, decode, time to first token and peak memory of almanac, transformers and llama.cpp, same weights, one run.

    python benchmarks/decode.py [--threads 1] [--repeats 3] [--engines almanac transformers compiled llama.cpp]

Every engine runs in a process of its own, the engines in turn, `--repeats` times; medians are printed, as figures and as
ratios to transformers, with the share of time spent waiting for a core and the physical limit (bytes of weights read per
token over the measured memory bandwidth). The llama.cpp row needs the package llama-cpp-python, the transformers rows
transformers; rows that cannot run say why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT_TOKENS, NEW_TOKENS, ROWS = 512, 48, 8
ENGINES = ("almanac", "transformers", "compiled", "llama.cpp")
TIMEOUT_SECONDS = 900


def main() -> None:
    """Runs the children and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--child", choices=ENGINES)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--folder", help="dense folder for transformers")
    parser.add_argument("--output", help="where to write the figures as JSON")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dense"
        path = prepare(options.model, folder)
        results: dict[str, list[dict[str, float]]] = {engine: [] for engine in options.engines}
        for repeat in range(options.repeats):
            for engine in options.engines:
                results[engine].append(run_child(engine, path, folder, options.threads))
                print(f"# {repeat + 1}/{options.repeats} {engine}: {results[engine][-1]}", file=sys.stderr, flush=True)
        report(results, path, options)


def prepare(model: str, folder: Path) -> Path:
    """The packed file, and the same weights dense in a folder for transformers."""
    import almanac
    from almanac.files.hub import PACKAGES, alias_path

    path = alias_path(model, download=True) if model in PACKAGES else Path(model)
    almanac.load(path, packed=False).export(folder, format="hf")
    return path


def run_child(engine: str, path: Path, folder: Path, threads: int) -> dict[str, float]:
    """One measurement in a fresh process; ``{"error": ...}`` where it cannot run."""
    command = [sys.executable, __file__, "--child", engine, "--model", str(path), "--folder", str(folder),
               "--threads", str(threads)]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    start = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=False
    )
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:200]}  # type: ignore[dict-item]
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"wall": time.monotonic() - start}


class Meter:
    """Wall and processor time of named parts."""

    def __init__(self, threads: int) -> None:
        self.threads, self.figures = threads, {}
        self.wall = self.cpu = 0.0

    def rate(self, name: str, tokens: int, work: Callable[[], Any]) -> None:
        """Tokens per second of ``work``, and its part in the waiting share."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu
        self.figures[name] = tokens / wall

    def done(self, first_token: float) -> dict[str, float]:
        """All figures; ``waiting`` is the share of time a thread that wanted to run did not."""
        return self.figures | {
            "first_token_seconds": first_token,
            "peak_mib": peak_mib(),
            "waiting": max(0.0, 1 - self.cpu / (self.wall * self.threads)),
        }


def almanac_child(options: argparse.Namespace) -> dict[str, float]:
    start = time.perf_counter()
    import torch

    import almanac
    from almanac.generate.engine import Request

    torch.set_num_threads(options.threads)
    lm = almanac.load(options.model)
    prompt = prompt_ids(lm.network.vocab_size)
    next(iter(lm.stream(prompt[:16], max_tokens=2)))
    first, meter = time.perf_counter() - start, Meter(options.threads)

    def decode(rows: int) -> Callable[[], None]:
        engine = lm.engine()
        for row in range(rows):
            engine.submit(Request(tokens=tuple(prompt[row : row + 16]), max_tokens=NEW_TOKENS + 2 + rows - row))
        while len(engine.running) < rows:
            engine.step()

        def work() -> None:
            for _ in range(NEW_TOKENS):
                engine.step()

        return work

    with torch.inference_mode():
        meter.rate(
            "prefill", PROMPT_TOKENS, lambda: lm.network.hidden(torch.tensor([prompt]), lm.network.init_state(1, 600))
        )
    meter.rate("decode_1", NEW_TOKENS, decode(1))
    meter.rate(f"decode_{ROWS}", NEW_TOKENS * ROWS, decode(ROWS))
    return meter.done(first)


def transformers_child(options: argparse.Namespace, *, compiled: bool = False) -> dict[str, float]:
    start = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    prompt = prompt_ids(model.config.vocab_size)
    forward = torch.compile(model.forward) if compiled else model.forward
    eager = model.forward

    def cache() -> Any:
        return StaticCache(config=model.config, max_cache_len=128) if compiled else DynamicCache(config=model.config)

    def decode(rows: int) -> Callable[[], None]:
        past, tokens = cache(), torch.tensor([prompt[row : row + 16] for row in range(rows)])
        state = {"next": eager(tokens, past_key_values=past, use_cache=True).logits[:, -1:].argmax(-1), "at": 16}

        def step() -> None:
            where = torch.arange(state["at"], state["at"] + 1)
            out = forward(state["next"], past_key_values=past, use_cache=True, position_ids=where[None].expand(rows, 1))
            state["next"], state["at"] = out.logits[:, -1:].argmax(-1), state["at"] + 1

        step()
        step()

        def work() -> None:
            for _ in range(NEW_TOKENS):
                step()

        return work

    with torch.inference_mode():
        eager(torch.tensor([prompt[:16]])).logits[:, -1].argmax(-1)
        first, meter = time.perf_counter() - start, Meter(options.threads)
        past = DynamicCache(config=model.config)
        meter.rate(
            "prefill",
            PROMPT_TOKENS,
            lambda: eager(torch.tensor([prompt]), past_key_values=past, use_cache=True, logits_to_keep=1),
        )
        meter.rate("decode_1", NEW_TOKENS, decode(1))
        meter.rate(f"decode_{ROWS}", NEW_TOKENS * ROWS, decode(ROWS))
    return meter.done(first)


def llama_child(options: argparse.Namespace) -> dict[str, float]:
    start = time.perf_counter()
    from llama_cpp import llama_cpp as native

    quiet = native.llama_log_callback(lambda level, text, data: None)
    native.llama_log_set(quiet, None)
    native.llama_backend_init()
    model = native.llama_model_load_from_file(options.model.encode(), native.llama_model_default_params())
    settings = native.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = (
        1024 * ROWS,
        PROMPT_TOKENS,
        PROMPT_TOKENS,
        ROWS,
    )
    settings.n_threads = settings.n_threads_batch = options.threads
    context = native.llama_init_from_model(model, settings)
    prompt = prompt_ids(native.llama_vocab_n_tokens(native.llama_model_get_vocab(model)))
    batch = native.llama_batch_init(PROMPT_TOKENS, 0, ROWS)

    def feed(tokens: list[list[int]], at: int) -> None:
        batch.n_tokens = 0
        for row, new in enumerate(tokens):
            for offset, token in enumerate(new):
                index = batch.n_tokens
                batch.token[index], batch.pos[index] = token, at + offset
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = offset == len(new) - 1
                batch.n_tokens += 1
        if native.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        native.llama_synchronize(context)

    def clear() -> None:
        native.llama_memory_clear(native.llama_get_memory(context), True)

    def decode(rows: int) -> Callable[[], None]:
        clear()
        feed([prompt[row : row + 16] for row in range(rows)], 0)

        def work() -> None:
            for step in range(NEW_TOKENS):
                feed([[prompt[row + step]] for row in range(rows)], 16 + step)

        return work

    feed([prompt[:16]], 0)
    first, meter = time.perf_counter() - start, Meter(options.threads)
    clear()
    meter.rate("prefill", PROMPT_TOKENS, lambda: feed([prompt], 0))
    meter.rate("decode_1", NEW_TOKENS, decode(1))
    meter.rate(f"decode_{ROWS}", NEW_TOKENS * ROWS, decode(ROWS))
    return meter.done(first)


CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "almanac": almanac_child,
    "transformers": transformers_child,
    "compiled": lambda options: transformers_child(options, compiled=True),
    "llama.cpp": llama_child,
}


def prompt_ids(vocab_size: int) -> list[int]:
    """The same pseudo-random ids for every engine."""
    return [(7919 * index + 1013) % (vocab_size - 100) + 50 for index in range(PROMPT_TOKENS)]


def peak_mib() -> float:
    """Peak resident memory of this process, MiB (getrusage would report the parent's, inherited through fork)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def bandwidth(threads: int) -> float:
    """Bytes per second that a sum over memory far larger than the caches reads."""
    import torch

    torch.set_num_threads(threads)
    data = torch.ones(64 << 20)  # 256 MiB
    best = min(_timed(data) for _ in range(7))
    return data.nbytes / best


def _timed(data: Any) -> float:
    start = time.perf_counter()
    data.sum()
    return time.perf_counter() - start


def report(results: dict[str, list[dict[str, float]]], path: Path, options: argparse.Namespace) -> None:
    """The table, and the figures as JSON where asked."""
    read = bandwidth(options.threads)
    limit = read / path.stat().st_size
    names = ["prefill", "decode_1", f"decode_{ROWS}", "first_token_seconds", "peak_mib", "waiting"]
    medians: dict[str, dict[str, float]] = {}
    errors: dict[str, str] = {}
    for engine, runs in results.items():
        good = [run for run in runs if "error" not in run]
        if good:
            medians[engine] = {name: statistics.median(run[name] for run in good) for name in names}
        else:
            errors[engine] = str(runs[0]["error"])
    print(f"\n{options.threads} thread(s), medians of {options.repeats}; memory read {read / 1e9:.1f} GB/s; packed weights "
          f"{path.stat().st_size / 1e6:.0f} MB: at most {limit:.0f} tokens/s at one row\n")  # fmt: skip
    rates = f"prefill {PROMPT_TOKENS} tok/s | decode x1 tok/s | decode x{ROWS} tok/s"
    print(f"| engine | {rates} | first token s | peak MiB | waiting |")
    print("|---|---|---|---|---|---|---|")
    for engine, row in medians.items():
        cells = [
            f"{row[name]:.0f}" if index < 3 or name == "peak_mib" else f"{row[name]:.2f}"
            for index, name in enumerate(names)
        ]
        print(f"| {engine} | {' | '.join(cells)} |")
    for engine, error in errors.items():
        print(f"| {engine} | not run: {error} | | | | | |")
    for peer in ("transformers", "compiled", "llama.cpp"):
        if peer in medians and "almanac" in medians:
            ours, theirs = medians["almanac"], medians[peer]
            print(f"\nalmanac / {peer}: " + ", ".join(f"{name} {ours[name] / theirs[name]:.2f}" for name in names[:5]))
    if "almanac" in medians:
        print(f"\nalmanac decode x1 reaches {medians['almanac']['decode_1'] / limit:.0%} of the bandwidth limit")
    if options.output:
        figures = {"threads": options.threads, "bandwidth": read, "limit": limit, "medians": medians, "runs": results}
        Path(options.output).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
