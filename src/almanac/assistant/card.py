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
    ("declines_unanswerable", "Declines what the passages do not tell"),
    ("declines_answerable", "Declines what they do tell (less is better)"),
)
LIMITS = (
    "A small model: it finds and repeats what passages say; it does not reason over them.",
    "Questions for the figures are made from the documents by rule; real questions are worded more freely.",
    "Questions and answers in English; documents in other languages are indexed, not trained on.",
    "Not for decisions about people, health, law or money without a person who checks.",
)


def write(path: Path, provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> None:
    """Writes card.md."""
    write_atomic(path, render(provenance, evaluations).encode())


def render(provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    index = provenance["index"]
    lines = [
        "# Card of this assistant",
        "",
        f"Answers questions about {index['documents']} documents ({index['passages']} passages) with citations, or says",
        "that they do not tell. Made by `almanac build`; you are talking to a machine.",
        "",
        *_sources(provenance, evaluations),
        *_quality(evaluations),
        *_run(provenance, evaluations),
        "## Limits",
        "",
        *(f"- {limit}" for limit in LIMITS),
        "",
    ]
    return "\n".join(lines)


def _sources(provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> list[str]:
    settings, index, examples = provenance["settings"], provenance["index"], provenance["examples"]
    megabytes = evaluations["after"]["model_bytes"] / 1e6
    cleaning = provenance["cleaning"]
    removed = ", ".join(f"{count} {what}" for what, count in sorted(cleaning.get("counts", {}).items()) if count)
    return [
        "## Made from",
        "",
        f"- Base model: `{settings.get('model', 'smollm2-135m-instruct')}`",
        f"- Starter adapter: {provenance['adapt']['starter'] or 'none'}",
        f"- Passages found by words{' and by meaning (`' + index['encoder'] + '`)' if index['encoder'] else ' alone'}",
        f"- Documents: {index['documents']} in the index, {index['skipped']} skipped; digests in `provenance.json`",
        f"- Cleaning: {removed or 'nothing was removed'}; personal data: {settings.get('policy', 'keep')}",
        f"- Training: {examples['train']} questions made from the documents without a model; "
        f"{examples['held_out']} questions from other documents, set aside before, for the figures below",
        f"- Compression: {settings.get('compression', 'int8')}, {megabytes:.0f} MB of weights",
        "",
    ]


def _quality(evaluations: Mapping[str, Any]) -> list[str]:
    parts = [("base model", evaluations["before"]), ("with starter", evaluations["starter"])]
    columns = [(name, part) for name, part in [*parts, ("after training", evaluations["after"])] if part]
    lines = ["## How good, before and after", "", "Means with 95 % bootstrap intervals.", ""]
    for kind, title in (
        ("assistant", "What the user is shown, after the check that every answer stands in a cited passage:"),
        ("model", "The text as the model wrote it:"),
    ):
        lines += [title, "", f"| | {' | '.join(name for name, _ in columns)} |", f"|---|{'---|' * len(columns)}"]
        lines += [f"| {label} | {' | '.join(cell(part[kind][key]) for _, part in columns)} |" for key, label in ROWS]
        lines.append("")
    lines += [
        f"Perplexity of the reference answers: {', '.join(f'{name} {number(p)}' for name, p in _perplexities(columns))}.",
        "",
        "| Retrieval of the right passage | |",
        "|---|---|",
    ]
    return [*lines, *(f"| {name} | {cell(value)} |" for name, value in evaluations["after"]["retrieval"].items()), ""]


def _perplexities(columns: list[tuple[str, Any]]) -> list[tuple[str, float | None]]:
    return [(name, part["reference_perplexity"]) for name, part in columns]


def _run(provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> list[str]:
    adapt, after = provenance["adapt"], evaluations["after"]
    forecast, measured = adapt["forecast"] or {}, adapt["measured"] or {}
    rows = (
        ("time of training, s", forecast.get("seconds"), measured.get("seconds"), 1.0),
        ("peak memory, GB", forecast.get("peak_bytes"), measured.get("peak_bytes"), 1e9),
        ("energy of training, Wh", *(part.get("energy", {}).get("watt_hours") for part in (forecast, measured)), 1.0),
    )
    lines = [
        "## The run",
        "",
        "| | forecast | measured |",
        "|---|---|---|",
        *(f"| {name} | {number(_over(a, unit))} | {number(_over(b, unit))} |" for name, a, b, unit in rows),
        "",
        f"Energy is {measured.get('energy', {}).get('method', 'not known')}.",
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
    return [*lines, ""]


def cell(value: Mapping[str, float] | None) -> str:
    """A mean with its interval."""
    return "-" if value is None else f"{value['mean']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def number(value: float | None) -> str:
    """A number in three digits."""
    return "-" if value is None else f"{value:.3g}"


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
