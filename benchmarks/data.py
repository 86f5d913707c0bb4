"""Preparing text: tokenizer and filters in MB/s, near copies found against datasketch, rensa and the slow way, memory on 10x.

    python benchmarks/data.py [--megabytes 4] [--documents 2000] [--small 1.5] [--output FILE]

- tokenizer: byte-level BPE of 8,000 tokens on made-up text, our face and the `tokenizers` library called
  directly, alternately
- filters: each rule on documents of 5 kB
- near copies: documents in pairs with a planted share of edited words; recall of pairs whose exact Jaccard similarity is at
  least the threshold, precision of what was reported, documents a second (shingling included). The peers get our shingles,
  as hashes in words, their own signatures and their own index; 128 permutations, threshold 0.8
- memory: peak RSS of `almanac.curate` in a process of its own on a corpus and on one ten times its size

datasketch and rensa are left out where they are not installed. Times are CPU seconds of this process, one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

THRESHOLD, SIGNATURE = 0.8, 128
Pairs = set[tuple[int, int]]


def main() -> None:
    """Runs the parts and prints what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--small", type=float, default=1.5, help="MB of the smaller corpus whose memory is measured")
    parser.add_argument("--output", help="where to write the figures as JSON")
    parser.add_argument("--child", help="a folder with a corpus: prepare it and print the peak memory")
    options = parser.parse_args()
    if options.child:
        child(Path(options.child))
        return
    text = "\n".join(prose(seed, 60) for seed in range(int(options.megabytes * 1e6 / 5000)))
    results: dict[str, Any] = {"tokenizer MB/s": tokenizer(text), "filters MB/s": filters(text)}
    print(json.dumps(results), file=sys.stderr, flush=True)
    results["near copies"] = near(options.documents)
    print(json.dumps(results["near copies"]), file=sys.stderr, flush=True)
    results["memory"] = memory(max(1, round(options.small * 1e6 / 3 / 4900)))
    print(json.dumps(results, indent=2))
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


def prose(seed: int, sentences: int) -> str:
    """English-like lines of invented words, about 80 bytes each."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bcdfglmnprstv" for b in "aeiou"]
    made = []
    for _ in range(sentences):
        words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(10)]
        made.append(f"The {' '.join(words[:5])} of {' '.join(words[5:7])} and {' '.join(words[7:])}.")
    return "\n".join(made)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def tokenizer(text: str) -> dict[str, float]:
    """Encoding, ours and the library's, each the median of five runs."""
    from tokenizers import Tokenizer as Library

    from almanac.tokenizers.train.byte_bpe import ByteBpe
    from almanac.tokenizers.train.corpus import Corpus
    from almanac.tokenizers.train.run import train

    with tempfile.TemporaryDirectory() as folder:
        train(Corpus.of_texts([text[:1_000_000]]), ByteBpe(vocab_size=8000)).save(Path(folder))
        from almanac.tokenizers.tokenizer import Tokenizer

        ours = Tokenizer.from_json_file(Path(folder))
        library = Library.from_file(str(Path(folder) / "tokenizer.json"))
    pieces = [text[start : start + 8192] for start in range(0, len(text), 8192)]
    assert ours.encode(pieces[0], add_special_tokens=False, allow_special=False) == library.encode(pieces[0]).ids

    def run_ours() -> None:
        for piece in pieces:
            ours.encode(piece, add_special_tokens=False, allow_special=False)

    def run_library() -> None:
        for piece in pieces:
            _ = library.encode(piece, add_special_tokens=False).ids

    found: dict[str, list[float]] = {"almanac": [], "tokenizers": []}
    for _ in range(5):
        found["almanac"].append(len(text) / 1e6 / seconds(run_ours))
        found["tokenizers"].append(len(text) / 1e6 / seconds(run_library))
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def filters(text: str) -> dict[str, float]:
    """Each rule on documents of 5 kB."""
    from almanac.data.filters.c4 import C4
    from almanac.data.filters.fineweb import FineWeb
    from almanac.data.filters.gopher import GopherQuality
    from almanac.data.filters.gopher_repetition import GopherRepetition
    from almanac.data.filters.language_is import LanguageIs
    from almanac.data.filters.ngram import train
    from almanac.data.filters.personal_data import PersonalDataPolicy
    from almanac.data.filters.readable import Readable
    from almanac.data.sources.document import Document

    documents = [Document(str(start), text[start : start + 5000]) for start in range(0, len(text), 5000)]
    rules = (
        Readable(),
        GopherQuality(),
        GopherRepetition(),
        C4(),
        FineWeb(),
        PersonalDataPolicy(),
        LanguageIs(codes=("en",)),
    )
    found = {}
    for rule in rules:
        spent = seconds(lambda rule=rule: [rule.judge(document) for document in documents])
        found[rule.kind().rpartition(".")[2]] = round(len(text) / 1e6 / spent, 1)
    model = train([text[:1_000_000]])
    spent = seconds(lambda: [model.perplexity(document.text) for document in documents])
    return found | {"n-gram perplexity": round(len(text) / 1e6 / spent, 1)}


def planted(count: int) -> list[str]:
    """Pairs of documents of 200 words, the second with 0 to 12 % of its words changed."""
    rng = random.Random(0)
    made: list[str] = []
    while len(made) < count:
        words = [f"w{rng.randrange(50_000)}" for _ in range(200)]
        other = list(words)
        for place in rng.sample(range(200), rng.randrange(0, 25)):
            other[place] = f"x{rng.randrange(50_000)}"
        made += [" ".join(words), " ".join(other)]
    return made


def near(count: int) -> dict[str, Any]:
    """Recall, precision and speed of ours on disk, and of the peers that are there."""
    from almanac.data.dedup.near import jaccard, shingles

    texts = planted(count)
    sets = [shingles(text) for text in texts]
    true = {(n, n + 1) for n in range(0, len(texts) - 1, 2) if jaccard(sets[n], sets[n + 1]) >= THRESHOLD}
    found: dict[str, Any] = {"documents": len(texts), "true pairs": len(true)}
    for name, run in (("almanac", ours), ("datasketch", by_datasketch), ("rensa", by_rensa)):
        pairs: Pairs = set()
        try:
            spent = seconds(lambda run=run, pairs=pairs: pairs.update(run(texts)))
        except ImportError:
            found[name] = "not installed"
            continue
        found[name] = {
            "documents/s": round(len(texts) / spent), "recall": round(len(pairs & true) / len(true), 4),
            "precision": round(len(pairs & true) / max(1, len(pairs)), 4),
        }  # fmt: skip
    return found


def ours(texts: list[str]) -> Pairs:
    """Signatures, bands and the exact check over files."""
    from almanac.data.dedup import near_on_disk
    from almanac.data.dedup.near import NearDuplicates

    chosen = NearDuplicates(threshold=THRESHOLD, signature=SIGNATURE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = near_on_disk.write_signatures(texts, folder, settings=chosen)
        pairs = near_on_disk.write_candidates(folder, count, settings=chosen)
        found = near_on_disk.near_copies(folder, pairs, count, settings=chosen)
        return {(int(first), place) for place, first in enumerate(found.original) if first >= 0}


def items_of(text: str) -> Iterable[list[str]]:
    """Shingles of five words, as the peers take them."""
    words = text.split()
    yield list({" ".join(words[start : start + 5]) for start in range(max(1, len(words) - 4))})


def by_datasketch(texts: list[str]) -> Pairs:
    """datasketch's MinHashLSH, each text a query before it is added."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=SIGNATURE)
    found: Pairs = set()
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=SIGNATURE)
        for items in items_of(text):
            signature.update_batch([item.encode() for item in items])
        found.update((int(other), number) for other in index.query(signature))
        index.insert(str(number), signature)
    return found


def by_rensa(texts: list[str]) -> Pairs:
    """rensa's RMinHashLSH with its check of the whole signature."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=SIGNATURE, num_bands=16)
    signatures, found = [], set[tuple[int, int]]()
    for number, text in enumerate(texts):
        signature = RMinHash(num_perm=SIGNATURE, seed=1)
        for items in items_of(text):
            signature.update(items)
        for other in index.query(signature):
            if signature.jaccard(signatures[other]) >= THRESHOLD:
                found.add((int(other), number))
        index.insert(number, signature)
        signatures.append(signature)
    return found


def memory(documents: int) -> dict[str, Any]:
    """Peak RSS, MB, of preparing a corpus of 3 files and one of 30, copies and repeated substrings looked for."""
    found: dict[str, Any] = {}
    for name, files in (("1x", 3), ("10x", 30)):
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw"
            raw.mkdir()
            nbytes = 0
            for number in range(files):
                lines = [json.dumps({"text": prose(number * 1000 + n, 60)}) for n in range(documents)]
                nbytes += (raw / f"{number:03}.jsonl").write_text("\n".join(lines))
            done = subprocess.run(
                [sys.executable, __file__, "--child", folder], capture_output=True, text=True, check=True
            )
            found[name] = {"MB of text": round(nbytes / 1e6, 1)} | json.loads(done.stdout)
    found["peak ratio"] = round(found["10x"]["peak MB"] / found["1x"]["peak MB"], 3)
    return found


def child(folder: Path) -> None:
    """Prepares ``raw`` below the folder, with small parts, so that what grows would show at this size."""
    from almanac.curate.recipe import Recipe
    from almanac.curate.run import curate
    from almanac.data.dedup import partitions
    from almanac.data.dedup.substring import RepeatedSubstrings

    partitions.PART_BYTES, partitions.HELD_BYTES = 2 << 20, 2 << 20
    spent = seconds(lambda: curate([folder / "raw"], folder / "out", recipe=Recipe(substring=RepeatedSubstrings())))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak MB": round(peak), "seconds": round(spent, 1)}))


if __name__ == "__main__":
    main()
