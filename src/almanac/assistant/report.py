"""The report: one self-contained HTML page with plots, made from a build's provenance and evaluations.

No script, no request: styles and drawings (SVG) are inside. Everything from documents and models is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from almanac.assistant.card import LIMITS, ROWS, cell, number
from almanac.files import svg
from almanac.files.html_page import page, section, table
from almanac.files.store import write_atomic

MAX_ANSWERS = 40


def write(path: Path, name: str, provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> None:
    """Writes report.html."""
    write_atomic(path, render(name, provenance, evaluations).encode())


def render(name: str, provenance: Mapping[str, Any], evaluations: Mapping[str, Any]) -> str:
    """The page."""
    index, settings = provenance["index"], provenance["settings"]
    stages = [("base model", evaluations["before"]), ("with starter", evaluations["starter"])]
    stages = [(title, part) for title, part in [*stages, ("after training", evaluations["after"])] if part]
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="lead">An assistant over {index["documents"]} documents and {index["passages"]} passages, on '
        f"{escape(str(settings.get('model', 'smollm2-135m-instruct')))}. You are talking to a machine.</p>",
        section("How good, before and after", _quality(stages)),
        section("What found the passages", table(("measure", "value"), _retrieval(evaluations["after"]))),
        section("Training", _training(provenance)),
        section("Forecast and measured", _forecast(provenance["adapt"])),
        section("Where the time went", svg.bars(_times(provenance["stage_seconds"]), unit="s")),
        section("Model and memory", table(("", *(title for title, _ in stages)), _resources(stages))),
        section("Checks between the steps", _parity(provenance["compress"]["parity"])),
        section("Documents", _documents(provenance)),
        section("Questions asked", _answers(evaluations["after"]["answers"])),
        section("Limits", "<ul>" + "".join(f"<li>{escape(limit)}</li>" for limit in LIMITS) + "</ul>"),
    ]
    return page(f"Report: {name}", body)


def _quality(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    groups = [(label, [part["assistant"][key] for _, part in stages]) for key, label in ROWS]
    shown = [(label, [cell(part["assistant"][key]) for _, part in stages]) for key, label in ROWS]
    written = [(f"{label} (as written)", [cell(part["model"][key]) for _, part in stages]) for key, label in ROWS]
    questions = stages[-1][1]["questions"]
    note = f"{questions} questions made from documents that were set aside; bars are means, lines 95 % intervals."
    return (
        svg.grouped(groups, [title for title, _ in stages])
        + f'<p class="soft">{note}</p>'
        + table(("", *(title for title, _ in stages)), [(label, *cells) for label, cells in [*shown, *written]])
    )


def _retrieval(after: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, cell(value)) for name, value in after["retrieval"].items()]


def _training(provenance: Mapping[str, Any]) -> str:
    adapt = provenance["adapt"]
    text = (
        f"<p>{adapt['examples']} examples, {adapt['steps']} steps; "
        f"{'begun with the starter adapter ' + escape(str(adapt['starter'])) if adapt['starter'] else 'no starter'}.</p>"
    )
    checks = [
        (name, "yes" if found["ok"] else "NO", found["detail"]) for name, found in (adapt["preflight"] or {}).items()
    ]
    return text + svg.line(adapt["losses"], x="step", y="loss") + table(("checked before", "holds", "found"), checks)


def _forecast(adapt: Mapping[str, Any]) -> str:
    forecast, measured = adapt["forecast"] or {}, adapt["measured"] or {}
    rows = [
        ("seconds", number(forecast.get("seconds")), number(measured.get("seconds"))),
        ("peak memory, GB", number(_giga(forecast.get("peak_bytes"))), number(_giga(measured.get("peak_bytes")))),
        ("energy, Wh", *(number(part.get("energy", {}).get("watt_hours")) for part in (forecast, measured))),
    ]
    method = measured.get("energy", {}).get("method", "not known")
    return table(("", "forecast", "measured"), rows) + f'<p class="soft">Energy is {escape(method)}.</p>'


def _resources(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    return [
        ["weights, MB", *(f"{part['model_bytes'] / 1e6:.0f}" for _, part in stages)],
        ["tokens/s, reading and writing", *(f"{part['tokens_per_second']:.0f}" for _, part in stages)],
        ["perplexity of reference answers", *(number(part["reference_perplexity"]) for _, part in stages)],
        ["energy of these questions, Wh", *(f"{part['energy']['watt_hours']:.2f}" for _, part in stages)],
        ["peak memory of the process so far, GB", *(number(_giga(part["peak_bytes"])) for _, part in stages)],
    ]


def _parity(steps: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (s["step"], f"{s['relative']:.1g}", f"{s['mean_kl']:.2g}", f"{s['bound']:.2g}", f"{s['agreement']:.1%}")
        for s in steps
    ]
    return table(("step", "largest logit difference", "mean KL, nats", "bound", "best token agrees"), rows)


def _documents(provenance: Mapping[str, Any]) -> str:
    counts = provenance["cleaning"].get("counts", {})
    rows = [(name, value) for name, value in sorted(counts.items())]
    skipped = [(name, reason) for name, reason in provenance["skipped"]]
    parts = [table(("removed or found", "count"), rows) if rows else "<p>Nothing had to be removed.</p>"]
    if skipped:
        parts.append(table(("skipped", "why"), skipped))
    return "".join(parts)


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    rows = [(a["question"], a["reference"], a["shown"], number(a["confidence"])) for a in answers[:MAX_ANSWERS]]
    return table(("question", "reference", "shown", "confidence"), rows)


def _times(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in seconds.items() if value > 0]


def _giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9
