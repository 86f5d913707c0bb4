"""Finding passages: time per query, opening, adding one document, disk and memory, as the number of chunks grows.

    python benchmarks/retrieval.py [--sizes 1000 10000 100000] [--queries 200] [--repeats 3] [--output FILE]

Chunks are synthetic: text of words drawn by Zipf's law (about 90 words of 50,000), vectors at random on the unit
sphere (384 numbers), 20 chunks a document. Every size runs in a process of its own, `--repeats` times, with one thread;
medians are printed. Peers on the same chunks in the same process: FAISS `IndexFlatIP` for exact vector search and bm25s
for BM25, as ratios of median processor time, which other work on the machine disturbs least (below 1: almanac is
faster). The exponent is the slope of log time over log size between the two largest sizes: 1 is linear. The physical
limit of exact vector search stands beside it: the bytes of all vectors over the measured speed of reading memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DIM, WORDS, PER_DOCUMENT, VOCABULARY, K = 384, 90, 20, 50_000, 10
TIMEOUT_SECONDS = 1800


def main() -> None:
    """Runs the children and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="where to write the figures as JSON")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.queries)))
        return
    results: dict[int, dict[str, float]] = {}
    for size in sorted(options.sizes):
        runs = [run_child(size, options.queries) for _ in range(options.repeats)]
        results[size] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(f"# {size} chunks done", file=sys.stderr, flush=True)
    report(results)
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


def run_child(size: int, queries: int) -> dict[str, float]:
    """One measurement in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--child", str(size), "--queries", str(queries)]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


class Corpus:
    """Synthetic documents, made from a seed; also the embedder of them, a text's vector being drawn from its number."""

    dim, digest = DIM, "synthetic"

    def __init__(self) -> None:
        import numpy as np

        self._rng = np.random.default_rng(0)
        shares = 1 / np.arange(1, VOCABULARY + 1)
        self._edges = np.cumsum(shares / shares.sum())
        self._words = np.array([f"w{number:x}q" for number in range(VOCABULARY)])

    def text(self, words: int = WORDS) -> str:
        """Words by Zipf's law."""
        import numpy as np

        return " ".join(self._words[np.searchsorted(self._edges, self._rng.random(words)).clip(0, VOCABULARY - 1)])

    def embed(self, texts: Sequence[str]) -> Any:
        """Random unit vectors."""
        import numpy as np

        made = self._rng.standard_normal((len(texts), DIM), dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def document(self, name: str, chunks: int) -> tuple[Any, list[Any]]:
        """A document and its chunks."""
        from almanac.retrieve.chunk.chunk import Chunk
        from almanac.retrieve.read.document import Document, Section

        texts = [self.text() for _ in range(chunks)]
        joined = "\n\n".join(texts)
        pieces, start = [], 0
        for number, text in enumerate(texts):
            pieces.append(Chunk(f"{name}-{number}", name, name, (), text, start, start + len(text)))
            start += len(text) + 2
        return Document(name, name, (Section((), 0, joined, 0, len(joined)),), name), pieces


def measure(size: int, queries: int) -> dict[str, float]:
    """All figures of one size; seconds, bytes and ratios."""
    from almanac.retrieve.index.store import DocumentIndex

    corpus, figures = Corpus(), {}
    asked = [corpus.text(8) for _ in range(queries)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "index"
        index = DocumentIndex.create(folder, embedder=corpus)
        documents = math.ceil(size / PER_DOCUMENT)
        start = time.perf_counter()
        for first in range(0, documents, 1000):
            group = range(first, min(first + 1000, documents))
            index.add([corpus.document(f"{number:06}.md", min(PER_DOCUMENT, size)) for number in group])
        figures["build seconds"] = time.perf_counter() - start
        figures["disk bytes per chunk"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / len(index)
        del index
        start = time.process_time()
        index, figures["open seconds"] = timed(lambda: DocumentIndex.open(folder, embedder=corpus))
        figures["open CPU seconds"] = time.process_time() - start
        figures["open peak MiB"] = peak_mib()
        new = corpus.document("000001a.md", PER_DOCUMENT)
        start = time.process_time()
        _, figures["add one document seconds"] = timed(lambda: index.add([new]))
        figures["add one document CPU seconds"] = time.process_time() - start
        _, figures["remove one document seconds"] = timed(lambda: index.remove(["000001a.md"]))
        for mode in ("lexical", "dense", "fused"):
            spread(figures, mode, asked, lambda query, mode=mode: index.search(query, K, mode=mode))
        spread(figures, "fused, 1 per document", asked, lambda query: index.search(query, K, per_document=1))
        figures["peak MiB"] = peak_mib()
        figures["read limit seconds"] = index._snapshot.vectors.matrix.nbytes / reading_speed()
        peers(figures, index, corpus, asked)
    return figures


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` gives, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def spread(figures: dict[str, float], name: str, asked: Sequence[str], search: Callable[[str], Any]) -> None:
    """p50 and p99 of ``search`` in seconds, and p50 of processor time, after a tenth of the queries as warm-up."""
    for query in asked[: max(1, len(asked) // 10)]:
        search(query)
    seconds, processor = [], []
    for query in asked:
        start = time.process_time()
        seconds.append(timed(lambda query=query: search(query))[1])
        processor.append(time.process_time() - start)
    seconds.sort()
    figures[f"{name} CPU p50 seconds"] = statistics.median(processor)
    figures[f"{name} p50 seconds"] = statistics.median(seconds)
    figures[f"{name} p99 seconds"] = seconds[min(len(seconds) - 1, math.ceil(0.99 * len(seconds)) - 1)]


def peers(figures: dict[str, float], index: Any, corpus: Corpus, asked: Sequence[str]) -> None:
    """The same searches by FAISS and bm25s, where they are installed."""
    from almanac.retrieve.lexical import chunk_terms, query_terms

    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        flat = faiss.IndexFlatIP(DIM)
        flat.add(index._snapshot.vectors.matrix)
        spread(figures, "FAISS flat", asked, lambda query: flat.search(corpus.embed([query]), K))
        figures["dense / FAISS"] = figures["dense CPU p50 seconds"] / figures["FAISS flat CPU p50 seconds"]
    if importlib.util.find_spec("bm25s"):
        import bm25s

        found = [chunk_terms(chunk, 2) for chunk in index.chunks]
        scorer = bm25s.BM25(k1=1.2, b=0.5, method="lucene", dtype="float32", backend="numpy", csc_backend="numpy")
        _, figures["bm25s build seconds"] = timed(lambda: scorer.index(found, show_progress=False))

        def search(query: str) -> Any:
            return scorer.retrieve([query_terms(query)], k=K, show_progress=False, n_threads=0)

        spread(figures, "bm25s", asked, search)
        figures["lexical / bm25s"] = figures["lexical CPU p50 seconds"] / figures["bm25s CPU p50 seconds"]


def reading_speed() -> float:
    """Bytes per second at which one thread adds up a large array."""
    import numpy as np

    large = np.ones(1 << 25, np.float32)
    return large.nbytes / min(timed(large.sum)[1] for _ in range(5))


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(results: dict[int, dict[str, float]]) -> None:
    """A table: a row per figure, a column per size, and the growth between the two largest."""
    sizes = list(results)
    names = dict.fromkeys(name for figures in results.values() for name in figures)
    print("".join([f"{'':34}", *(f"{size:>12,}" for size in sizes), f"{'exponent':>10}"]))
    for name in names:
        values = [results[size].get(name, math.nan) for size in sizes]
        shown = [f"{1000 * v:12.2f}" if "seconds" in name else f"{v:12.2f}" for v in values]
        growth = ""
        if len(sizes) > 1 and "/" not in name and values[-1] > 0 and values[-2] > 0:
            growth = f"{math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]):10.2f}"
        print(f"{name.replace('seconds', 'ms'):34}" + "".join(shown) + growth)


if __name__ == "__main__":
    main()
