"""Indexing text: almanac's encoder and flat index against sentence-transformers and FAISS, same weights, same texts.

    python benchmarks/embed.py [--texts 200] [--words 85] [--pairs 3] [--threads 1] [--folder DOCS] [--output FILE]

Each side runs in a process of its own, in turn, `--pairs` times: load the encoder, embed all texts once to warm up a few,
then once on the clock, put the vectors into an exact index and answer every tenth text as a query. Medians are printed,
as figures and as ratios, on the wall's clock and on the processor's (which other work on the machine disturbs less), with
peak memory. The last pair's vectors and answers are held against each other. The peer needs the packages
sentence-transformers and faiss-cpu.
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
from pathlib import Path
from typing import Any

ALIAS = "all-minilm-l6-v2"
ENGINES = ("almanac", "sentence-transformers + FAISS")
MAX_TOKENS, BATCH_TEXTS, WARM_TEXTS, NEIGHBOURS = 256, 32, 16, 10
TIMEOUT_SECONDS = 900


def main() -> None:
    """Runs the children and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--words", type=int, default=85, help="words of a text; 85 are about 127 tokens")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="a folder of Markdown; by default this repository's own documents and sources")
    parser.add_argument("--output", help="where to write the figures as JSON")
    parser.add_argument("--child", choices=ENGINES)
    parser.add_argument("--scratch", help="where a child finds its texts and leaves its vectors")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](Path(options.scratch), options.threads)))
        return
    from almanac.files.hub import alias_path

    alias_path(ALIAS, download=True)
    results: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as scratch:
        texts = passages(Path(options.folder) if options.folder else None, options.texts, options.words)
        (Path(scratch) / "texts.json").write_text(json.dumps(texts))
        for pair in range(options.pairs):
            for engine in ENGINES if pair % 2 == 0 else ENGINES[::-1]:
                results[engine].append(run_child(engine, scratch, options.threads))
                print(f"# {pair + 1}/{options.pairs} {engine}: {results[engine][-1]}", file=sys.stderr, flush=True)
        report(results, agreement(Path(scratch)), len(texts), options)


def passages(folder: Path | None, count: int, words: int) -> list[str]:
    """``count`` runs of about ``words`` words; lengths vary by a third, as those of real chunks do."""
    root = Path(__file__).parents[1]
    files = sorted(folder.rglob("*.md")) if folder else sorted([*root.glob("docs/**/*.md"), *root.glob("src/**/*.py")])
    every = [word for path in files for word in path.read_text(encoding="utf-8").split()]
    out: list[str] = []
    start = 0
    while len(out) < count and start < len(every):
        size = words + (7919 * len(out)) % (2 * words // 3) - words // 3
        out.append(" ".join(every[start : start + size]))
        start += size
    if len(out) < count:
        raise SystemExit(f"{len(out)} texts of {count}: give --folder with more text, or fewer --texts")
    return out


def run_child(engine: str, scratch: str, threads: int) -> dict[str, float]:
    """One measurement in a fresh process; ``{"error": ...}`` where it cannot run."""
    command = [
        sys.executable, __file__, "--child", engine, "--scratch", scratch, "--threads", str(threads)
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=False
    )
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:200]}  # type: ignore[dict-item]
    return json.loads(done.stdout.strip().splitlines()[-1])


class Clock:
    """Seconds of named parts, by the wall and by the processor."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """Ends the part ``name`` and begins the next."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.figures[name], self.figures[f"{name}_cpu"] = wall - self.wall, cpu - self.cpu
        self.wall, self.cpu = wall, cpu


def almanac_child(scratch: Path, threads: int) -> dict[str, float]:
    """Our side."""
    clock = Clock()
    import numpy as np
    import torch

    from almanac.language_model.encoder import load_encoder
    from almanac.retrieve.index.flat import FlatVectors

    torch.set_num_threads(threads)
    texts = json.loads((scratch / "texts.json").read_text())
    encoder = load_encoder(ALIAS)
    clock.lap("load")
    encoder.embed(texts[:WARM_TEXTS])
    clock.lap("warm")
    vectors = encoder.embed(texts)
    clock.lap("embed")
    index = FlatVectors(vectors)
    clock.lap("index")
    near = np.array([index.search(query, NEIGHBOURS)[0] for query in vectors[::10]])
    clock.lap("query")
    tokens = sum(min(encoder.count_tokens(text), encoder.max_tokens) for text in texts)
    return finish(scratch, 0, vectors, near) | clock.figures | {"tokens": tokens}


def peer_child(scratch: Path, threads: int) -> dict[str, float]:
    """sentence-transformers as its publisher sets it up, and FAISS's exact index."""
    clock = Clock()
    import faiss
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from almanac.files.hub import alias_path

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    texts = json.loads((scratch / "texts.json").read_text())
    network = Transformer(str(alias_path(ALIAS, download=False)), max_seq_length=MAX_TOKENS)
    pooling = Pooling(network.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[network, pooling, Normalize()], device="cpu")
    clock.lap("load")
    model.encode(texts[:WARM_TEXTS], show_progress_bar=False)
    clock.lap("warm")
    vectors = model.encode(texts, batch_size=BATCH_TEXTS, show_progress_bar=False)
    clock.lap("embed")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    clock.lap("index")
    _, near = index.search(vectors[::10], NEIGHBOURS)
    clock.lap("query")
    return finish(scratch, 1, vectors, near) | clock.figures


CHILDREN = {ENGINES[0]: almanac_child, ENGINES[1]: peer_child}


def finish(scratch: Path, side: int, vectors: Any, near: Any) -> dict[str, float]:
    """Leaves vectors and answers for the comparison; gives peak memory."""
    peak = peak_mib()
    content = {"vectors": vectors.astype(float).tolist(), "near": near.tolist()}
    (scratch / f"answers{side}.json").write_text(json.dumps(content))
    return {"peak_mib": peak}


def peak_mib() -> float:
    """Peak resident memory of this process, MiB (getrusage would report the parent's, inherited through fork)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def agreement(scratch: Path) -> tuple[float, float] | None:
    """(least cosine of the two sides' vectors, share of equal neighbours), or None where a side did not run."""
    import numpy as np

    paths = [scratch / f"answers{side}.json" for side in range(len(ENGINES))]
    if not all(path.is_file() for path in paths):
        return None
    ours, theirs = (json.loads(path.read_text()) for path in paths)
    cosine = (np.array(ours["vectors"]) * np.array(theirs["vectors"])).sum(1).min()
    pairs = zip(ours["near"], theirs["near"], strict=True)
    return float(cosine), statistics.mean(len(set(a) & set(b)) / NEIGHBOURS for a, b in pairs)


def report(
    results: dict[str, list[dict[str, float]]], agreed: tuple[float, float] | None, count: int, options: Any
) -> None:
    """The table, the ratios, and the figures as JSON where asked."""
    medians: dict[str, dict[str, float]] = {}
    print(f"\n{count} texts, {options.threads} thread(s), medians of {options.pairs} pairs\n")
    print("| engine | embed texts/s | per second of processor | index all, s | load s | peak MiB |")
    print("|---|---|---|---|---|---|")
    for engine, runs in results.items():
        good = [run for run in runs if "error" not in run]
        if not good:
            print(f"| {engine} | not run: {runs[0]['error']} | | | | |")
            continue
        row = {name: statistics.median(run[name] for run in good) for name in good[0]}
        row["indexing"] = statistics.median(run["embed"] + run["index"] for run in good)
        row["indexing_cpu"] = statistics.median(run["embed_cpu"] + run["index_cpu"] for run in good)
        medians[engine] = row
        cells = [f"{count / row['embed']:.1f}", f"{count / row['embed_cpu']:.1f}", f"{row['indexing']:.2f}"]
        print(f"| {engine} | {' | '.join(cells)} | {row['load']:.1f} | {row['peak_mib']:.0f} |")
    if len(medians) == len(ENGINES) and agreed is not None:
        ours, theirs = (medians[engine] for engine in ENGINES)
        print(f"\n{ours['tokens'] / count:.0f} tokens a text; least cosine 1 - {1 - agreed[0]:.1e}, "
              f"{agreed[1]:.1%} of {NEIGHBOURS} neighbours equal")  # fmt: skip
        print(f"indexing, {ENGINES[1]} / almanac: {theirs['indexing'] / ours['indexing']:.2f} on the wall's clock, "
              f"{theirs['indexing_cpu'] / ours['indexing_cpu']:.2f} on the processor's; "
              f"peak memory almanac / peer {ours['peak_mib'] / theirs['peak_mib']:.2f}")  # fmt: skip
    if options.output:
        figures = {"threads": options.threads, "texts": count, "medians": medians, "runs": results, "agreed": agreed}
        Path(options.output).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
