"""What a pre-training run leaves to read: a page with curves and samples by step, and a card; all from its own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from almanac.files import svg
from almanac.files.html_page import page, section, table
from almanac.files.store import write_atomic

SHOWN = 12  # samples in the gallery
CURVES = (
    ("Loss on held-out text, nats a target", "loss", "loss"),
    ("Bits a byte", "bits_per_byte", "bits a byte"),
    ("Share of targets that were the likeliest", "accuracy", "share"),
    ("Share of sampled words that the corpus has", "known_words", "share"),
)
WRITES = (
    "It continues text in the manner of its corpus. It knows nothing else, follows no instruction and may repeat what it "
    "read word for word."
)
OTHERS = "It was trained for its objective alone and follows no instruction. What else it is good for was not measured."
LIMITS = (
    "Personal data, errors and prejudices of the corpus are in the model; nothing was filtered but exact copies.",
    "Its loss is on held-out text of the same corpus and says nothing of other text.",
)


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes report.html and card.md."""
    write_atomic(folder / "report.html", html(facts).encode())
    write_atomic(folder / "card.md", card(facts).encode())


def figures(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is told first, on the page and on the card."""
    tokens, train, kept = facts["tokens"], facts["train"], kept_of(facts)
    corpus, resources = tokens["corpus"], train["resources"] or {}
    energy = resources.get("energy", {})
    return [
        (
            "documents",
            f"{corpus['documents']:,} ({corpus['copies']:,} exact copies and {corpus['empty']:,} empty left out)",
        ),
        ("text", f"{corpus['bytes'] / 1e6:.2f} MB"),
        ("tokens to train on", f"{tokens['training']['tokens']:,} (seen {train['epochs']:.1f} times)"),
        ("tokens held out", f"{tokens['held-out']['tokens']:,}"),
        ("vocabulary", f"{facts['tokenizer']['vocab_size']:,}"),
        ("parameters", f"{train['parameters']:,}"),
        ("steps", f"{train['steps']:,} ({train['skipped']:,} skipped){_early(train)}"),
        *_quality(kept),
        ("seconds of training", _number(resources.get("seconds"))),
        ("peak memory, GB", _number((resources.get("peak_bytes") or 0) / 1e9)),
        ("energy, Wh", f"{_number(energy.get('watt_hours'))} ({energy.get('method', 'not known')})"),
    ]


def kept_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured of the weights that were kept."""
    train = facts["train"]
    return next(item for item in reversed(train["measured"]) if item["step"] == train["kept"])


def limits(facts: Mapping[str, Any]) -> list[str]:
    """What the model is not for."""
    return [WRITES if "known_words" in kept_of(facts) else OTHERS, *LIMITS]


def _early(train: Mapping[str, Any]) -> str:
    if train["kept"] == train["planned"]:
        return ""
    return f"; ended at no lower loss, of {train['planned']:,} planned; kept are those of step {train['kept']:,}"


def _quality(kept: Mapping[str, Any]) -> list[tuple[str, str]]:
    bits = "" if kept["bits_per_byte"] is None else f", {kept['bits_per_byte']:.3f} bits a byte"
    told = [("loss on held-out text", f"{kept['loss']:.3f} nats a {'token' if bits else 'target'}{bits}")]
    if kept["accuracy"] is not None:
        told.append(("targets that were the likeliest", f"{kept['accuracy']:.1%}"))
    if "known_words" in kept:
        told.append(("words of the sample that are words of the corpus", f"{kept['known_words']:.0%}"))
    return told


def html(facts: Mapping[str, Any]) -> str:
    """The page."""
    measured = facts["train"]["measured"]
    checks = [
        (name, "yes" if found["ok"] else "NO", found["detail"]) for name, found in facts["train"]["preflight"].items()
    ]
    body = [
        '<h1>Pre-training</h1><p class="lead">A model trained from nothing on its owner\'s text.</p>',
        section("Figures", table(("figure", "value"), figures(facts))),
        *(_curve(title, measured, name, unit) for title, name, unit in CURVES if measured[-1].get(name) is not None),
        *_sources(facts["train"]),
        section("How it writes, by step", _gallery(measured)),
        section("Forecast and measured", _forecast(facts["train"])),
        section("Checked before the start", table(("check", "holds", "found"), checks)),
        section("Where the time went", svg.bars(list(facts["stage_seconds"].items()), unit="s")),
        section("Limits", "<ul>" + "".join(f"<li>{escape(limit)}</li>" for limit in limits(facts)) + "</ul>"),
    ]
    return page("Pre-training", body)


def card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    sample = kept_of(facts)["sample"].strip().replace("```", "'''")
    lines = [
        "# Card of a pre-trained model", "", "Made by `almanac pretrain` from its owner's text; what is below was measured.",
        "", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures(facts)), "",
        "## How it writes", "", "```text", sample, "```", "", "## Limits", "", *(f"- {limit}" for limit in limits(facts)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _sources(train: Mapping[str, Any]) -> list[str]:
    found = train["sources"].items()
    rows = [
        (name, f"{item['share']:.1%}", f"{item['epochs']:.2f}", _number(item["loss"])) for name, item in found
    ]  # fmt: skip
    head = ("source", "share of what was seen", "times seen", "loss on its held-out text")
    return [section("Sources", table(head, rows))] if rows else []


def _curve(title: str, measured: Sequence[Mapping[str, Any]], name: str, unit: str) -> str:
    return section(title, svg.line([[item["step"], item[name]] for item in measured], x="step", y=unit))


def _gallery(measured: Sequence[Mapping[str, Any]]) -> str:
    step = max(1, -(-len(measured) // SHOWN))
    shown = [*measured[:-1:step], measured[-1]]
    return table(("step", "sample"), [(item["step"], item["sample"]) for item in shown])


def _forecast(train: Mapping[str, Any]) -> str:
    forecast, measured = train["forecast"] or {}, train["resources"] or {}
    rows = [
        ("seconds", _number(forecast.get("seconds")), _number(measured.get("seconds"))),
        ("peak memory, GB", *(_number((part.get("peak_bytes") or 0) / 1e9) for part in (forecast, measured))),
        ("energy, Wh", *(_number(part.get("energy", {}).get("watt_hours")) for part in (forecast, measured))),
    ]
    return table(("", "forecast", "measured (of the last part, if the run was resumed)"), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
