"""The page of a scaling sweep: what was forecast, what came, the law's curves through the runs, and the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from almanac.evaluate.scaling_law import Fitted
from almanac.files.html_page import page, section, table
from almanac.files.store import write_atomic
from almanac.files.svg import Curve, curves

LIMITS = (
    "The law is of this text, this tokenizer, this architecture and these learning rates; none of them was tuned by size.",
    "One run for each point: a run with another seed would differ a little, which the intervals know only through the "
    "scatter of the runs about the law.",
    "Far outside the runs it is a bet. The loss is on held-out text of the same corpus and says nothing of ability.",
)


def write(folder: Path, facts: Mapping[str, Any], law: Fitted) -> None:
    """Writes report.html."""
    write_atomic(folder / "report.html", html(facts, law).encode())


def figures(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is told first."""
    forecast, verdict, law = facts["forecast"], facts["verdict"], facts["law"]
    rows = [
        ("runs", f"{len(facts['runs'])}, {facts['seconds'] / 60:.1f} minutes in all"),
        ("held back", f"{forecast['parameters']:,} parameters, {forecast['tokens']:,} tokens"),
    ]
    for name, form in forecast["forms"].items():
        came = verdict["forms"][name]
        landed = "landed inside" if came["inside"] else "MISSED"
        rows.append(
            (
                f"forecast by {name}'s form",
                f"{form['loss']:.4f} ({form['low']:.4f} to {form['high']:.4f}); came {verdict['found']:.4f}, "
                f"{came['off']:+.2%}: {landed}",
            )
        )
    for name, (low, high) in law["intervals"].items():
        rows.append((f"law of all runs: {name}", f"{law[name]:.4g} ({low:.4g} to {high:.4g})"))
    return rows


def html(facts: Mapping[str, Any], law: Fitted) -> str:
    """The page."""
    runs: Sequence[Mapping[str, Any]] = facts["runs"]
    header = ("run", "width", "layers", "parameters", "tokens", "times read", "loss", "law", "off", "seconds")
    rows = [
        (
            run["name"], run["hidden"], run["layers"], f"{run['parameters']:,}", f"{run['tokens']:,}",
            f"{run['tokens'] / run['unique']:.2f}", f"{run['loss']:.4f}",
            f"{law.law.loss(run['parameters'], run['tokens']):.4f}",
            f"{run['loss'] / law.law.loss(run['parameters'], run['tokens']) - 1:+.2%}", f"{run['seconds']:.0f}",
        )
        for run in runs
    ]  # fmt: skip
    body = [
        '<h1>Scaling sweep</h1><p class="lead">A law from small runs, tried on the largest one before it was run.</p>',
        section("Forecast and what came", table(("figure", "value"), figures(facts))),
        section(
            "Loss on held-out text by tokens, one curve for each size; the upright bar is the forecast",
            _curves(facts, law),
        ),
        section("The runs", table(header, rows)),
        section("Limits", "<ul>" + "".join(f"<li>{escape(limit)}</li>" for limit in LIMITS) + "</ul>"),
    ]
    return page("Scaling sweep", body)


def _curves(facts: Mapping[str, Any], law: Fitted) -> str:
    runs, forecast = facts["runs"], facts["forecast"]
    low, high = law.spans()["tokens"]
    along = np.geomspace(low, high, 40)
    found = []
    for parameters in sorted({run["parameters"] for run in runs}):
        points = [(run["tokens"], run["loss"]) for run in runs if run["parameters"] == parameters]
        line = [(float(tokens), law.law.loss(parameters, float(tokens))) for tokens in along]
        found.append(Curve(f"{parameters:,}", line, points))
    first = next(iter(forecast["forms"].values()))
    return curves(found, x="tokens", y="loss", spans=[(forecast["tokens"], first["low"], first["high"])])
