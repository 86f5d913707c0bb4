"""The report: one self-contained HTML page with plots, made from a build's provenance and evaluations.

No script, no request: styles and drawings (SVG) are inside. Everything from documents and models is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from almanac.assistant import plots
from almanac.assistant.card import LIMITS, ROWS, cell, number
from almanac.files.store import write_atomic

MAX_ANSWERS = 40
STYLE = """
:root{color-scheme:light dark;--ink:#1d2230;--soft:#5b6478;--line:#d9dde6;--page:#fbfbfa;--card:#fff;--accent:#2b5fd9;
--second:#c9922e;--third:#8a93a6}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaf0;--soft:#a3abbd;--line:#343b4c;--page:#151922;--card:#1c212d;
--accent:#86a8ff;--second:#e6b65c;--third:#7d879c}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}h1{font-size:1.9rem;margin:0 0 .25rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem}p.lead,.soft{color:var(--soft)}section{background:var(--card);
border:1px solid var(--line);border-radius:12px;padding:.4rem 1.25rem 1.1rem;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.93rem}th,td{text-align:left;padding:.4rem .6rem .4rem 0;
border-bottom:1px solid var(--line);vertical-align:top}th{font-weight:600;color:var(--soft)}.wide{overflow-x:auto}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .soft{fill:var(--soft)}svg .grid{stroke:var(--line)}svg .a{fill:var(--third)}svg .b{fill:var(--second)}
svg .c{fill:var(--accent)}svg .line{fill:none;stroke:var(--accent);stroke-width:2}svg .bar{stroke:var(--ink);stroke-width:1.3}
.no{color:var(--soft);font-style:italic}
"""


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
        _section("How good, before and after", _quality(stages)),
        _section("What found the passages", _table(("measure", "value"), _retrieval(evaluations["after"]))),
        _section("Training", _training(provenance)),
        _section("Forecast and measured", _forecast(provenance["adapt"])),
        _section("Where the time went", plots.bars(_times(provenance["stage_seconds"]), unit="s")),
        _section("Model and memory", _table(("", *(title for title, _ in stages)), _resources(stages))),
        _section("Checks between the steps", _parity(provenance["compress"]["parity"])),
        _section("Documents", _documents(provenance)),
        _section("Questions asked", _answers(evaluations["after"]["answers"])),
        _section("Limits", "<ul>" + "".join(f"<li>{escape(limit)}</li>" for limit in LIMITS) + "</ul>"),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Report: {escape(name)}</title><style>{STYLE}</style></head><body><main>"
        + "".join(body)
        + "</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in header)
    lines = ["<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _quality(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    groups = [(label, [part["assistant"][key] for _, part in stages]) for key, label in ROWS]
    shown = [(label, [cell(part["assistant"][key]) for _, part in stages]) for key, label in ROWS]
    written = [(f"{label} (as written)", [cell(part["model"][key]) for _, part in stages]) for key, label in ROWS]
    questions = stages[-1][1]["questions"]
    note = f"{questions} questions made from documents that were set aside; bars are means, lines 95 % intervals."
    return (
        plots.grouped(groups, [title for title, _ in stages])
        + f'<p class="soft">{note}</p>'
        + _table(("", *(title for title, _ in stages)), [(label, *cells) for label, cells in [*shown, *written]])
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
    return text + plots.line(adapt["losses"], x="step", y="loss") + _table(("checked before", "holds", "found"), checks)


def _forecast(adapt: Mapping[str, Any]) -> str:
    forecast, measured = adapt["forecast"] or {}, adapt["measured"] or {}
    rows = [
        ("seconds", number(forecast.get("seconds")), number(measured.get("seconds"))),
        ("peak memory, GB", number(_giga(forecast.get("peak_bytes"))), number(_giga(measured.get("peak_bytes")))),
        ("energy, Wh", *(number(part.get("energy", {}).get("watt_hours")) for part in (forecast, measured))),
    ]
    method = measured.get("energy", {}).get("method", "not known")
    return _table(("", "forecast", "measured"), rows) + f'<p class="soft">Energy is {escape(method)}.</p>'


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
    return _table(("step", "largest logit difference", "mean KL, nats", "bound", "best token agrees"), rows)


def _documents(provenance: Mapping[str, Any]) -> str:
    counts = provenance["cleaning"].get("counts", {})
    rows = [(name, value) for name, value in sorted(counts.items())]
    skipped = [(name, reason) for name, reason in provenance["skipped"]]
    parts = [_table(("removed or found", "count"), rows) if rows else "<p>Nothing had to be removed.</p>"]
    if skipped:
        parts.append(_table(("skipped", "why"), skipped))
    return "".join(parts)


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    rows = [(a["question"], a["reference"], a["shown"], number(a["confidence"])) for a in answers[:MAX_ANSWERS]]
    return _table(("question", "reference", "shown", "confidence"), rows)


def _times(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in seconds.items() if value > 0]


def _giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9
