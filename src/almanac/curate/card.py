"""The data card of a corpus: what is in it, what was left out and why, for people.

After Gebru et al. 2018, "Datasheets for Datasets" (arXiv 1803.09010), as far as the run itself can answer; what only the
owner knows is asked for, not made up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from almanac.curate.sources import Source

OPEN_QUESTIONS = (
    "For what is this corpus meant, and for what not?",
    "Who wrote the texts, and do they know of this use?",
    "Which groups of people, dialects and views do the sources lack?",
)


def card(facts: Mapping[str, Any], sources: Sequence[Source]) -> str:
    """Markdown. ``facts`` is the report."""
    read, kept = _sum(facts["read"]), _sum(facts["kept"])
    parts = [
        "# Data card",
        f"{kept['documents']:,} documents, {kept['bytes']:,} bytes of text in `text/` (JSON lines under gzip), of "
        f"{read['documents']:,} documents and {read['bytes']:,} bytes that were read. "
        "Every document that was left out is in `removed.jsonl.gz` with the reason; digests of all files are in "
        "`manifest.json`.",
        "## Sources",
        _table(("source", "licence declared", "read", "kept", "bytes kept", "share"), _sources(facts, sources)),
        f"{facts['faults']['count']:,} files or records could not be read." + _faults(facts),
        "## What was left out",
        _table(("step", "reason", "documents", "bytes"), _reasons(facts)) or "Nothing.",
        "## What was changed",
        _table(("step", "documents", "bytes taken out"), _changes(facts)) or "Nothing.",
        "## Examples of what was left out",
        "\n".join(_examples(facts)) or "None.",
        "## Recipe",
        "\n".join(f"- `{step['kind']}` {_settings(step)}".rstrip() for step in _steps(facts["recipe"])),
        "## What only you can say",
        "\n".join(f"- {question}" for question in OPEN_QUESTIONS),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sum(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(entry[name] for entry in counts.values()) for name in ("documents", "bytes")}


def _sources(facts: Mapping[str, Any], sources: Sequence[Source]) -> Iterable[Sequence[object]]:
    none = {"documents": 0, "bytes": 0}
    for source in sources:
        read, kept = facts["read"].get(source.title, none), facts["kept"].get(source.title, none)
        share = kept["bytes"] / max(1, _sum(facts["kept"])["bytes"])
        yield (
            source.title, source.licence or "by document, or none", f"{read['documents']:,}", f"{kept['documents']:,}",
            f"{kept['bytes']:,}", f"{share:.1%}",
        )  # fmt: skip


def _reasons(facts: Mapping[str, Any]) -> Iterable[Sequence[object]]:
    for step, entry in facts["steps"].items():
        for reason, found in entry["reasons"].items():
            yield step, reason, f"{found['documents']:,}", f"{found['bytes']:,}"


def _changes(facts: Mapping[str, Any]) -> Iterable[Sequence[object]]:
    for step, entry in facts["steps"].items():
        if entry["changed"]:
            yield step, f"{entry['changed']:,}", f"{entry['bytes_cut']:,}"


def _examples(facts: Mapping[str, Any]) -> Iterable[str]:
    for step, entry in facts["steps"].items():
        for reason, found in entry["reasons"].items():
            for identity, detail, quote in found["examples"]:
                told = f" ({_plain(detail)})" if detail else ""
                yield f"- {step}, {reason}{told}: {_plain(identity)}" + (f": {_plain(quote)}" if quote else "")


def _faults(facts: Mapping[str, Any]) -> str:
    first = facts["faults"]["first"][:10]
    return "".join(f"\n- {_plain(name)}: {_plain(reason)}" for name, reason in first)


def _steps(recipe: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    from almanac.curate.recipe import Recipe

    whole = Recipe.from_dict(recipe)
    yield from (step.to_dict() for step in whole.steps)
    yield {"kind": "exact copies", "removed": whole.exact}
    yield from (value.to_dict() for value in (whole.near, whole.substring, whole.mixture) if value is not None)


def _settings(step: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in step.items() if name != "kind")


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(_plain(str(cell)) for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *lines])


def _plain(text: str) -> str:
    """Text of strangers in Markdown: no mark of it counts, and no line ends."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in " ".join(text.split()))
