"""Loss by length for every way to tell places apart, from one command, on a laptop.

    python recipes/position_bakeoff.py [--output bakeoff] [--steps 400] [--seeds 1] [--kinds none rope alibi]

A character model of 0.35 M parameters (TINY) learns the docstrings of Python's standard library (TXT) at 64 characters, once
for each way: no positions, sinusoids (Vaswani 2017), a learned table (Devlin 2018), rotary positions (Su 2021) and ALiBi
(Press 2021). Each then predicts the same 32 characters with 64 to 1024 before them. The rotary model is also read, untouched,
with its frequencies scaled for the length: linearly (position interpolation), by a larger base (NTK) and by YaRN, by the
factor length / 64; such scaling is made for a model that goes on learning with it, which these do not.

Weights that all ways share start alike, and so does the data. Written are the figures as JSON, a table as Markdown, and a
drawing as SVG. The verdicts on two of these ways stand in `almanac evidence nn.positions.alibi` and `nn.positions.rope`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, METHOD, Arm, Card, Plot
from almanac.evidence.claim import AtMost, Effect
from almanac.evidence.figure import draw
from almanac.evidence.fixtures import text, tiny
from almanac.evidence.nn.positions.alibi import SCORED, SHORT, nll_of_last, spec
from almanac.evidence.outcome import Outcome
from almanac.nn.positions import rope
from almanac.nn.stack import Decoder

LENGTHS = (64, 128, 256, 512, 1024)
TRAINED = ("none", "sinusoidal", "learned", "rope", "alibi")
SCALINGS: dict[str, Callable[[int], Any]] = {
    "rope, linear": lambda length: rope.Linear(factor=length / SHORT),
    "rope, NTK": lambda length: rope.Ntk(factor=length / SHORT),
    "rope, YaRN": lambda length: rope.Yarn(factor=length / SHORT, original=SHORT),
}
KINDS = (*TRAINED[:4], *SCALINGS, TRAINED[4])
Figures = dict[str, list[dict[int, float]]]
"""kind -> nll by length, one for each seed."""


def main() -> None:
    """Trains, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bakeoff"), help="folder of the three files")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1, help="models of each way")
    parser.add_argument("--stretches", type=int, default=48, help="held-out texts")
    options = parser.parse_args()
    size = tiny.Tiny(time=SHORT, steps=options.steps, context=max(options.lengths))
    started = time.perf_counter()
    found = bakeoff(options.kinds, options.lengths, size, seeds=options.seeds, stretches=options.stretches)
    write(options.output, found, size, seconds=time.perf_counter() - started)
    print(table(found))
    print(f"\nwritten to {options.output}: figures.json, table.md, figure.svg")


def bakeoff(kinds: list[str], lengths: list[int], size: tiny.Tiny, *, seeds: int = 1, stretches: int = 48) -> Figures:
    """The nll (nats a character) of the last characters, by kind, seed and length."""
    texts = text.held_out(rows=stretches, time=max(lengths))
    found: Figures = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for trained in dict.fromkeys(kind.partition(", ")[0] for kind in kinds):
            model = learned(trained, size, seed)
            for kind in kinds:
                if kind == trained or kind.startswith(f"{trained}, "):
                    found[kind].append({n: nll_of_last(_read_as(kind, model, size, n), texts, n) for n in lengths})
                    print(f"seed {seed}, {kind}: {_line(found[kind][-1])}", flush=True)
    return found


def learned(kind: str, size: tiny.Tiny, seed: int) -> Decoder:
    """A trained model; what all kinds have starts alike."""
    shared = initialise(spec("none", size).build(), seed=seed).state_dict()
    model = initialise(spec(kind, size).build(), seed=seed)
    model.load_state_dict(shared, strict=False)
    assert isinstance(model, Decoder)
    tiny.train(model, size, seed=seed)
    return model.eval()


def _read_as(kind: str, model: Decoder, size: tiny.Tiny, length: int) -> Decoder:
    """The model itself, or the rotary one with its frequencies scaled for a length."""
    if kind not in SCALINGS or length <= SHORT:
        return model
    scaled = spec("rope", size).replace("layers.*.mixer.position", scaling=SCALINGS[kind](length)).build()
    scaled.load_state_dict(model.state_dict())
    assert isinstance(scaled, Decoder)
    return scaled.eval()


def write(folder: Path, found: Figures, size: tiny.Tiny, *, seconds: float) -> None:
    """The three files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "what": f"nll of the last {SCORED} characters, nats a character, by length",
        "model": size.to_dict(),
        "text": text.digest(),
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "nll": {kind: [{str(n): nll for n, nll in item.items()} for item in items] for kind, items in found.items()},
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table(found) + "\n", encoding="utf-8")
    (folder / "figure.svg").write_text(drawing(found), encoding="utf-8")


def table(found: Figures) -> str:
    """Means over seeds as Markdown, the best of each length in bold."""
    lengths = sorted(next(iter(found.values()))[0])
    means = {kind: {n: statistics.mean(item[n] for item in items) for n in lengths} for kind, items in found.items()}
    best = {n: min(row[n] for row in means.values()) for n in lengths}
    rows = [["positions", *map(str, lengths)], ["---"] * (len(lengths) + 1)]
    for kind, row in means.items():
        rows.append([kind, *(f"**{row[n]:.3f}**" if row[n] == best[n] else f"{row[n]:.3f}" for n in lengths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def drawing(found: Figures) -> str:
    """The curves, drawn as the figures of the evidence are; every line is a seed."""
    arms = tuple(Arm(name=kind, role=METHOD if kind == "alibi" else BASELINE, what=kind) for kind in found)
    first = arms[0].name
    if not any(arm.role == METHOD for arm in arms):
        arms = (Arm(name=first, role=METHOD, what=first), *arms[1:])
    nothing = AtMost(effect=Effect(metric="rise", arm=first), fail=0.0, expected=0.0, says="")
    card = Card(
        name="position_bakeoff",
        title=f"Loss by length, of models trained at {SHORT}",
        claim="", source="", toy_claim="", scope="", tier="real",
        arms=arms, claims=(nothing,), null=first, mutants=(),
        plot=Plot(metric="nll", lines=True, x="characters read", y=f"nll of the last {SCORED} (nats)", log_x=True),
    )  # fmt: skip
    curves = {
        kind: [Outcome({}, curves={"nll": [(float(n), nll) for n, nll in sorted(item.items())]}) for item in items]
        for kind, items in found.items()
    }
    return draw(card, curves)


def _line(item: dict[int, float]) -> str:
    return ", ".join(f"{length}: {nll:.3f}" for length, nll in item.items())


if __name__ == "__main__":
    main()
