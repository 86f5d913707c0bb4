"""How a build grows: seconds of each stage and peak memory for 10, 100 and 1,000 pages, with the exponent of growth.

    python benchmarks/build.py [--pages 10 100 1000] [--starter] [--words-only]

Pages are made here: headings and sentences of drawn words, about 350 words a page, no two alike. Training is held at two
steps and four questions, for neither depends on the number of pages. Each size runs in a process of its own, so that its
peak memory is its own. The exponent is the slope of log seconds over log pages between the two largest sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

SYLLABLES = (
    "ba de ki lo mu na pe ri so tu va we xi yo zu cha dor fen gal hin jor kel lum nor pra qui ros sel tan ver".split()
)
VERBS = "keeps holds turns feeds cools lifts guides closes drives cleans".split()
SECTIONS, SENTENCES = 4, 7


def words(count: int, seed: int) -> list[str]:
    """Drawn words, each once."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3))))] = None
    return list(found)


def page(number: int, vocabulary: list[str]) -> str:
    """A page of headings and sentences; frequent words are drawn as often as Zipf's law says."""
    rng = random.Random(number)
    days = number % 89 + 2
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]

    def noun() -> str:
        return rng.choices(vocabulary, weights)[0]

    lines = [f"# The {noun()} {noun()} of hall {number}"]
    for _ in range(SECTIONS):
        lines.append(f"\n## How to clean the {noun()} {noun()}\n")
        sentences = [
            f"The {noun()} {noun()} is a part of the {noun()} that {rng.choice(VERBS)} the {noun()} for {days} days."
            for _ in range(SENTENCES)
        ]
        lines.append(" ".join(sentences))
    return "\n".join(lines) + "\n"


def child(pages: int, work: Path, options: argparse.Namespace) -> None:
    """One build, in this process; prints its figures as JSON."""
    from almanac.assistant.build import build
    from almanac.assistant.settings import BuildSettings
    from almanac.verify.forecast import peak_bytes

    vocabulary = words(4000, seed=0)
    docs = work / "docs"
    docs.mkdir()
    for number in range(pages):
        (docs / f"page-{number:05}.md").write_text(page(number, vocabulary))
    encoder = "" if options.words_only else BuildSettings().encoder
    settings = BuildSettings(steps=2, questions=4, encoder=encoder, starter=options.starter)
    out = build(docs, work / "assistant", settings=settings)
    provenance = json.loads((out / "provenance.json").read_text())
    print(
        json.dumps(
            {
                "pages": pages,
                "passages": provenance["index"]["passages"],
                "seconds": provenance["stage_seconds"],
                "peak_bytes": peak_bytes(),
            }
        )
    )


def main() -> None:
    """Runs every size and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--starter", action="store_true")
    parser.add_argument("--words-only", action="store_true")
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.child is not None:
        with tempfile.TemporaryDirectory() as folder:
            child(options.child, Path(folder), options)
        return
    rows = []
    for pages in options.pages:
        command = [sys.executable, __file__, "--child", str(pages)]
        command += [flag for flag, on in (("--starter", options.starter), ("--words-only", options.words_only)) if on]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{pages} pages done", file=sys.stderr)
    stages = list(rows[-1]["seconds"])
    print("| |" + "".join(f" {row['pages']} pages |" for row in rows) + " exponent |")
    print("|---|" + "---|" * (len(rows) + 1))
    for stage in stages:
        cells = [row["seconds"].get(stage, 0.0) for row in rows]
        print(f"| {stage}, s |" + "".join(f" {cell:.1f} |" for cell in cells) + f" {exponent(rows, cells)} |")
    for name, values in (
        ("passages", [float(row["passages"]) for row in rows]),
        ("peak memory, GB", [row["peak_bytes"] / 1e9 for row in rows]),
    ):
        print(f"| {name} |" + "".join(f" {value:.4g} |" for value in values) + f" {exponent(rows, values)} |")


def exponent(rows: list[dict], values: list[float]) -> str:
    """Slope between the two largest sizes, in logarithms."""
    if len(values) < 2 or min(values[-2:]) <= 0:
        return "-"
    return f"{math.log(values[-1] / values[-2]) / math.log(rows[-1]['pages'] / rows[-2]['pages']):.2f}"


if __name__ == "__main__":
    main()
