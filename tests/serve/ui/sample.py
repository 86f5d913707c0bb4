"""A small library for the page to show: a maintenance handbook, written for these tests."""

from __future__ import annotations

from collections.abc import Iterator

from serve.ui.stub import Json, State, StubDocument, answer, quoting, streamed

QUESTION = "How often is the pressure relief valve tested?"
QUOTE = "The pressure relief valve is tested every 6 months by a licensed inspector."
SECOND = "A valve that fails the test is replaced within 24 hours, and the boiler stays off until then."
UNKNOWN = "Who painted the boiler room?"
SLOW = "Tell me everything, slowly"

# Characters beyond the basic plane before the quotation: offsets counted in UTF-16 would miss it by three.
_PARTS = [
    (["Boiler room", "Daily round"], "Read the 𝟏𝟒 gauges at 07:00 and write them into the log. 𝒑 stands for pressure, "
     "in bar. Never leave the room while the burner starts.\n\n- Look at the flame through the sight glass.\n"
     "- Listen for a hissing sound at the joints.\n- Smell for gas before you open the second valve."),
    (["Boiler room", "Safety valves"], f"Two valves protect the boiler. {QUOTE} Its result is written on the yellow tag "
     f"with the date and the inspector's number.\n\n{SECOND} Run `purge --line 2` on the panel first.\n\n"
     "| Valve | Opens at | Tested |\n| V-101 | 6.0 bar | May, November |\n| V-102 | 6.4 bar | May, November |"),
    (["Boiler room", "Shutting down"], "Close the gas cock, wait for two minutes, and open the drain.\n\n"
     "```\npanel> burner off\npanel> drain open --slow\n```\n\nLeave the fan running until the outlet is below 60 °C. "
     "A burner that is hot when the fan stops will warp, and a warped burner whistles for the rest of its life."),
]  # fmt: skip


def handbook() -> StubDocument:
    """The document that answers come from: three sections, three pages."""
    text, sections = "", []
    for heading, part in _PARTS:
        text += "\n\n" if text else ""
        sections.append({"heading": heading, "level": 2, "start": len(text), "end": len(text) + len(part)})
        text += part
    pages = [0, sections[1]["start"], text.index(SECOND)]
    return StubDocument("plant/boiler room.pdf", "Boiler room handbook", text, pages, sections)


def library() -> State:
    """The handbook and its neighbours, one question that it answers, one that it does not, and one that takes long."""
    boiler = handbook()
    others = [
        StubDocument("plant/pumps.md", "Pumps and seals", "Grease the seals.\n\n" * 90, added="2026-11-18T08:00:00Z"),
        StubDocument("plant/electrical.pdf", "Electrical cabinets", "Earth first.\n\n" * 300, [0, 900, 2100]),
        StubDocument(
            "hr/leave.docx", "Leave and absence", "Ask two weeks before.\n\n" * 70, added="2026-10-02T08:00:00Z"
        ),
        StubDocument("hr/shift_plan.csv", "Shift plan 2026", "Monday | early\n" * 60, added="2026-11-21T08:00:00Z"),
        StubDocument(
            "quality/audit-2025.pdf", "Prüfbericht 2025", "Alles geprüft.\n\n" * 410, [0, 2000], language="de"
        ),
        StubDocument("safety/evacuation.md", "Evacuation", "Leave by the north door.\n\n" * 44),
        StubDocument("safety/chemicals.html", "Chemicals and their cabinets", "Acids below.\n\n" * 120),
    ]
    state = State(documents={document.path: document for document in [boiler, *others]})
    state.card = CARD
    state.settings = {"answer_tokens": 120, "shown": 4, "compression": "int8", "lora": {"rank": 8, "alpha": 16}}
    state.evaluations = {"after": {"assistant": {"answer_f1": {"mean": 0.71, "low": 0.62, "high": 0.8}}}}
    state.scripts = {QUESTION: _valve, SLOW: _slow}
    return state


def _valve(question: str) -> Iterator[Json]:
    boiler = handbook()
    cited = [quoting(boiler, QUOTE, number=1, page=2), quoting(boiler, SECOND, number=2, page=3)]
    text = f"{QUOTE} [1]\n\nIf it fails, it is replaced within **24 hours**, and the boiler stays off until then. [2]"
    yield from streamed(
        answer(question, text, cited, confidence=0.912), "The valve is tested every 6 months, I think. [1]"
    )


def _slow(question: str) -> Iterator[Json]:
    yield from streamed(answer(question, "Everything. [1]", []), "word after word " * 60, pause_seconds=0.02)


CARD = """# Card of this assistant

Answers questions about 8 documents (64 passages) with citations, or says that they do not tell.

## Made from

- Base model: `smollm2-135m-instruct`
- Documents: 8 read, 0 skipped; digests in `provenance.json`
- Compression: int8, 135 MB of weights

## How good, before and after

Means with 95 % bootstrap intervals.

| | before | after |
|---|---|---|
| Answer token F1 | 0.16 (0.06-0.29) | **0.71** (0.62-0.80) |
| Citation precision | 0.29 (0.12-0.53) | **0.83** (0.70-0.93) |
| Declines what the passages do not tell | 0.86 (0.57-1.00) | 1.00 (1.00-1.00) |

## Limits

- A small model: it finds and repeats what passages say; it does not reason over them.
- Not for decisions about people, health, law or money without a person who checks.
"""
