"""The card: what the assistant is, what it was made from, how good it is and what it must not be used for.

Every line comes from the build's own provenance and evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from almanac.files.store import write_atomic

ROWS = (
    ("answer_f1", "Answer token F1"),
    ("exact_match", "Exact match"),
    ("citation_precision", "Citation precision"),
    ("citation_recall", "Citation recall"),
    ("abstention_accuracy", "Answers or declines rightly"),
    ("declines_unanswerable", "Declines what the passages do not tell"),
)


def write(path: Path, provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> None:
    """Writes card.md."""
    write_atomic(path, render(provenance, evaluations).encode())


def render(provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    settings, before, after = provenance["settings"], evaluations["before"], evaluations["after"]
    index, examples = provenance["index"], provenance["examples"]
    lines = [
        "# Card of this assistant",
        "",
        f"Answers questions about {index['documents']} documents ({index['passages']} passages) with citations, or says",
        "that they do not tell. Made by `almanac build`; you are talking to a machine.",
        "",
        "## Made from",
        "",
        f"- Base model: `{settings.get('model', 'smollm2-135m-instruct')}`",
        f"- Documents: {index['documents']} read, {index['skipped']} skipped; digests in `provenance.json`",
        f"- Training: {examples['train']} questions made from the documents without a model; "
        f"{examples['held_out']} questions from other documents, set aside before, for the figures below",
        f"- Compression: {settings.get('compression', 'int8')}, {after['model_bytes'] / 1e6:.0f} MB of weights",
        "",
        "## How good, before and after",
        "",
        "Means with 95 % bootstrap intervals. *Model*: the text as written. *Assistant*: what is shown after the check",
        "that every answer stands in a cited passage.",
        "",
        "| | model before | model after | assistant before | assistant after |",
        "|---|---|---|---|---|",
    ]
    for key, title in ROWS:
        cells = [_cell(part[kind][key]) for kind in ("model", "assistant") for part in (before, after)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "| Retrieval of the right passage | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in after["retrieval"].items()]
    lines += [
        "",
        f"Speed on the machine of the build: {after['tokens_per_second']:.0f} tokens/s reading and writing together.",
        "",
        "## Checks between the steps",
        "",
        "| step | largest logit difference, share of the largest | mean KL, nats per token | bound | best token agrees |",
        "|---|---|---|---|---|",
    ]
    for step in provenance["compress"]["parity"]:
        cells = f"{step['relative']:.1g} | {step['mean_kl']:.2g} | {step['bound']:.2g} | {step['agreement']:.1%}"
        lines.append(f"| {step['step']} | {cells} |")
    lines += [
        "",
        "## Limits",
        "",
        "- A small model: it finds and repeats what passages say; it does not reason over them.",
        "- Questions for the figures are made from the documents by rule; real questions are worded more freely.",
        "- Retrieval matches words, not meaning; a question in other words than the documents' may find nothing.",
        "- English. Not for decisions about people, health, law or money without a person who checks.",
        "",
    ]
    return "\n".join(lines)


def _cell(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.2f} ({value['low']:.2f}-{value['high']:.2f})"
