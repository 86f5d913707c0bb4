"""The pages under ``docs/evidence``: a table of every card, a page and a figure each, drawn from the stored results alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from almanac.evidence import audit
from almanac.evidence.card import Card
from almanac.evidence.claim import Verdict
from almanac.evidence.experiment import card_of, names
from almanac.evidence.figure import draw
from almanac.evidence.judge import Reading
from almanac.evidence.results import FOLDER, SURVIVED, Result, fault_of, stored, verdict_of
from almanac.files.store import write_atomic

NOT_RUN = "not run"
REMARKS = "remarks"  # the folder of what people say of a result, one file a card


def render(check: bool = False, *, folder: Path = FOLDER) -> bool:
    """Draws the pages from the stored results; with ``check`` only tells whether they are what they would be."""
    pages = all_pages(folder)
    known = {path.name for path in folder.glob("*") if path.suffix in (".md", ".svg")}
    current = known <= set(pages) and all(
        (folder / name).is_file() and (folder / name).read_text(encoding="utf-8") == text
        for name, text in pages.items()
    )
    if not check:
        for name in known - set(pages):
            (folder / name).unlink()
        for name, text in pages.items():
            write_atomic(folder / name, text.encode())
    return current or not check


def all_pages(folder: Path) -> dict[str, str]:
    """file name -> text of every page and figure."""
    results = stored(folder)
    pages = {"index.md": index(results), "audit.md": audit.page()}
    for name in names():
        card, found = card_of(name), results.get(name, [])
        remark = folder / REMARKS / f"{name}.md"
        said = remark.read_text(encoding="utf-8").strip() if remark.is_file() else ""
        pages[f"{name}.md"] = page(card, found, said)
        if found and not fault_of(found[0], card) and (drawing := draw(card, found[0].outcomes)):
            pages[f"{name}.svg"] = drawing
    return pages


def badge(result: Result | None, card: Card) -> str:
    """The verdict as the table shows it, with what demotes it."""
    if result is None:
        return NOT_RUN
    verdict = verdict_of(result, card)
    return f"{verdict} (weak)" if verdict == Verdict.REPRODUCED and result.weak else str(verdict)


def rows(results: dict[str, list[Result]]) -> list[tuple[str, ...]]:
    """Name, tier, verdict, primary effect, its line, mutants killed, processor minutes, date; one row a card."""
    found = []
    for name in names():
        card, items = card_of(name), results.get(name, [])
        result = items[0] if items else None
        primary = card.claims[0]
        if result is None or fault_of(result, card):
            found.append(
                (name, card.tier, badge(result, card), "", primary.line, "", "", result.date if result else "")
            )
            continue
        reading = result.judgement(card).readings[0]
        killed = f"{sum(how != SURVIVED for how in result.killed.values())} of {len(result.killed)}"
        effect = str(reading.bounds) if reading.bounds.count > 1 else f"{reading.bounds.mean:.3g}"
        minutes = f"{result.seconds / 60:.1f}"
        found.append((name, card.tier, badge(result, card), effect, primary.line, killed, minutes, result.date))
    return found


def index(results: dict[str, list[Result]]) -> str:
    """The table of all cards."""
    lines = [
        "# Evidence",
        "",
        "Each line is an experiment that can fail, with the effect it found (mean, one-sided 98.75 % bounds, number of seeds",
        "or items) and the line its primary claim must clear, drawn from stored results. A REPRODUCED that missed a planted",
        "bug is weak. How verdicts come about: [the guide](../guide/evidence.md). What survey texts say and what holds:",
        "[the claims audit](audit.md).",
        "",
        "| experiment | tier | verdict | primary effect | must be | mutants killed | CPU min | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, *cells in rows(results):
        lines.append(f"| [{name}]({name}.md) | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def page(card: Card, results: Sequence[Result], remark: str = "") -> str:
    """The page of one card; ``remark`` is what people say of the result, which no number does."""
    result = results[0] if results else None
    lines = [f"# {card.title}", "", f"**{badge(result, card)}** · tier: {card.tier} · card version {card.version}", ""]
    if result is not None and (fault := fault_of(result, card)):
        lines += [f"The stored result counts for nothing: {fault}.", ""]
        result = None
    lines += [
        f"**The claim.** {card.claim} ({card.source})",
        "",
        f"**What is tested here.** {card.toy_claim}",
        "",
        f"**Does not show:** {card.scope}",
        "",
    ]
    if result is not None and card.plot is not None:
        lines += [f"![{card.title}]({card.name}.svg)", ""]
    if remark:
        lines += [f"**What we make of it.** {remark}", ""]
    lines += _claims(card, result) + _arms(card, result) + _gates(card, result) + _mutants(card, result)
    if result is not None:
        null = result.null(card).verdict
        lines += [
            f"With the method replaced by *{card.null}*: {null}.",
            "",
            f"Profile {result.profile}, {len(result.seeds)} seeds of release {result.release}, "
            f"{result.seconds / 60:.1f} processor minutes, {result.date}, {result.machine}. Card `{result.digest[:16]}`.",
            "",
        ]
    lines += _history(card, results)
    return "\n".join(lines)


def _claims(card: Card, result: Result | None) -> list[str]:
    lines = ["| claim | effect | expected | must be | found | verdict |", "|---|---|---|---|---|---|"]
    readings: Sequence[Reading | None] = result.judgement(card).readings if result else [None] * len(card.claims)
    for claim, reading in zip(card.claims, readings, strict=True):
        found = ""
        if reading is not None:
            found = str(reading.bounds) if reading.bounds.count > 1 else f"{reading.bounds.mean:.3g}"
        verdict = str(reading.verdict) if reading else ""
        lines.append(f"| {claim.says} | {claim.effect} | {claim.expected:g} | {claim.line} | {found} | {verdict} |")
    return [*lines, ""]


def _arms(card: Card, result: Result | None) -> list[str]:
    metrics = sorted({name for found in result.outcomes.values() for name in found[0].metrics}) if result else []
    lines = [
        "| arm | role | what it is |" + "".join(f" {name} |" for name in metrics),
        "|---|---|---|" + "---|" * len(metrics),
    ]
    for arm in card.arms:
        cells = ""
        for name in metrics:
            values = [o.metrics[name] for o in result.outcomes[arm.name] if name in o.metrics] if result else []
            cells += f" {sum(values) / len(values):.4g} |" if values else " |"
        lines.append(f"| {arm.name} | {arm.role} | {arm.what} |{cells}")
    return [*lines, ""]


def _gates(card: Card, result: Result | None) -> list[str]:
    lines = []
    found = {gate: mean for gate, mean, _ in result.judgement(card).gates} if result else {}
    for gate in card.gates:
        mean = f": {found[gate]:.3g}" if gate in found else ""
        lines.append(f"- gate: {gate.why} ({gate.metric} of {gate.arm} {gate.line}{mean})")
    if card.equal:
        lines.append(f"- equal {card.equal}: {', '.join(card.budget_arms)}")
    return [*lines, ""] if lines else []


def _mutants(card: Card, result: Result | None) -> list[str]:
    lines = ["| planted bug | | noticed by |", "|---|---|---|"]
    for mutant in card.mutants:
        how = result.killed.get(mutant.name, "") if result else ""
        lines.append(f"| {mutant.name} | {mutant.what} | {'**nobody**' if how == SURVIVED else how} |")
    return [*lines, ""]


def _history(card: Card, results: Sequence[Result]) -> list[str]:
    """Earlier versions of the card, with the verdict that each stated."""
    return [
        f"- version {result.card.get('version', 1)}, {result.date}: {escape(result.verdict)} (`{result.digest[:16]}`)"
        for result in results[1:]
    ] + ([""] if len(results) > 1 else [])


if __name__ == "__main__":
    sys.exit(0 if render(check="--check" in sys.argv) else 1)
