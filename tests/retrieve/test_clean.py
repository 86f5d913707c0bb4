"""Cleaning keeps every promise at once: order, offsets, pages, facts, and a report without personal data."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.core.errors import RequestError
from almanac.data.filters.repair import Change, apply_changes
from almanac.retrieve.clean import (
    EXACT,
    KEPT,
    LANGUAGE,
    NEAR,
    PERSONAL,
    Cleaned,
    Known,
    Policy,
    clean_documents,
    clean_one,
)
from almanac.retrieve.edit import with_changes
from almanac.retrieve.read.document import SEPARATOR, Document, Section

PROSE = (
    "The pump is switched on with the green button and runs until the tank is full. Before the first start the valve "
    "has to be opened by hand, since the motor cannot turn against a closed line. When the lamp is red, the filter is "
    "blocked and must be rinsed with clean water. Nobody may open the housing while the shaft is turning."
)
OTHER = (
    "Invoices are paid within thirty days of the date on which they were received. A reminder is sent to the customer "
    "by the office in the second week, and the account is closed by the manager if nothing has been paid by then."
)


def document(path: str, *sections: tuple[str, str], pages: tuple[int, ...] = (), title: str = "") -> Document:
    """A document of (heading, text) sections, with offsets as the readers write them."""
    made: list[Section] = []
    end = 0
    for heading, text in sections:
        if not heading and not text:  # the readers write no such section
            continue
        start = end + len(SEPARATOR) if text and end else end
        end = start + len(text)
        made.append(Section((heading,) if heading else (), 1 if heading else 0, text, start, end))
    return Document(path, title or path, tuple(made), "0" * 64, pages)


def assert_sound(done: Document) -> None:
    for section in done.sections:
        assert done.text[section.start : section.end] == section.text
        assert section.text == section.text.strip()
        assert section.text or section.heading
    assert list(done.pages) == sorted(done.pages)
    assert all(0 <= page <= len(done.text) for page in done.pages)


def outcomes(cleaned: Cleaned) -> dict[str, str]:
    return {entry.path: entry.outcome for entry in cleaned.report.entries}


TEXT = st.lists(st.sampled_from(["alpha", "beta", "gamma delta", "- item", "x"]), min_size=1, max_size=4).map(
    "\n\n".join
)
SECTIONS = st.lists(st.tuples(st.sampled_from(["", "H", "K"]), st.one_of(TEXT, st.just(""))), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(SECTIONS, st.data())
def test_offsets_sections_and_pages_survive_any_changes(sections: list[tuple[str, str]], data: st.DataObject) -> None:
    """Each kept character carries a number through the change; its page is the one it had."""
    before = document("a", *sections)
    length = len(before.text)
    pages = tuple(sorted(data.draw(st.lists(st.integers(0, length), max_size=4))))
    before = dataclasses.replace(before, pages=pages)
    cuts = sorted(set(data.draw(st.lists(st.integers(0, length), max_size=8))))
    changes = [
        Change(start, end, data.draw(st.sampled_from(["", "[MARK]"])))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    after = with_changes(before, changes)
    assert_sound(after)
    kept = [place for place in range(length) if not any(change.start <= place < change.end for change in changes)]
    text, place = after.text.replace("[MARK]", "\0" * 6), 0
    for old in kept:
        if not before.text[old].isspace():
            place = next(new for new in range(place, len(text)) if not text[new].isspace() and text[new] != "\0")
            assert text[place] == before.text[old]
            assert after.page_at(place) == before.page_at(old)
            place += 1
    assert not text[place:].replace("\0", "").strip()  # nothing was added
    if changes and len(before.sections) == 1:
        assert after.text == apply_changes(before.text, tuple(changes)).strip()


def test_a_removed_section_keeps_its_heading_and_its_page() -> None:
    before = document("a", ("", "gone"), ("H", "gone too"), ("K", "stays"), pages=(0, 6, 16))
    after = with_changes(before, [Change(0, 16, "")])
    assert [(s.heading, s.text, s.start) for s in after.sections] == [(("H",), "", 0), (("K",), "stays", 0)]
    assert (after.pages, after.page_at(0), before.page_at(16)) == ((0, 0, 0), 3, 3)


def test_the_order_of_steps_on_one_collection() -> None:
    footer = "This page belongs to the handbook of the works, edition of the year."
    texts = [f"Part {name}. " + " ".join(reversed(PROSE.split()))[shift * 9 :] for shift, name in enumerate("abcdef")]
    pages = [document(f"{n}.md", ("Top", f"{text}\n\n{footer}"), pages=(0,)) for n, text in enumerate(texts)]
    copy = document("copy.md", ("Top", f"{texts[0]}\n\n{footer}".replace(" ", "  ", 3)))
    broken = document("broken.md", ("Schluß", OTHER + " Das GerÃ¤t."), title="BÃ¼cher")
    cleaned = clean_documents([*pages, copy, broken], policy=Policy(near_duplicate=0))
    assert outcomes(cleaned) == {**{f"{n}.md": KEPT for n in range(6)}, "copy.md": EXACT, "broken.md": KEPT}
    assert [d.path for d in cleaned.documents] == [*(f"{n}.md" for n in range(6)), "broken.md"]
    for done in cleaned.documents:
        assert_sound(done)
    assert [footer in done.text for done in cleaned.documents] == [True] + [False] * 6  # the first keeps it
    assert [done.text for done in cleaned.documents[1:6]] == texts[1:]
    entries = {entry.path: entry for entry in cleaned.report.entries}
    assert (entries["copy.md"].of, entries["copy.md"].similarity) == ("0.md", 1.0)
    assert (entries["1.md"].boilerplate_lines, entries["1.md"].quotes) == (1, (footer,))
    assert [(line.quote, line.documents, line.kept_in) for line in cleaned.report.boilerplate] == [(footer, 6, "0.md")]
    if not cleaned.report.notes:  # with the extra
        assert (entries["broken.md"].repaired, cleaned.documents[-1].title) == (2, "Bücher")
        assert cleaned.documents[-1].text.endswith("Das Gerät.")
    assert entries["broken.md"].language == "en"
    again = clean_documents([*pages, copy, broken], policy=Policy(near_duplicate=0))
    assert (again.documents, again.report.to_dict()) == (cleaned.documents, cleaned.report.to_dict())


def test_near_copies_go_unless_their_figures_differ() -> None:
    changed = PROSE.replace("green", "yellow")
    texts = {"a": f"{PROSE} {OTHER} Pressure 5 bar.", "b": f"{changed} {OTHER} Pressure 5 bar."}
    texts["c"] = texts["a"].replace("5 bar", "7 bar")
    given_ = [document(path, ("", text)) for path, text in texts.items()]
    cleaned = clean_documents(given_)
    assert outcomes(cleaned) == {"a": KEPT, "b": NEAR, "c": KEPT}
    entries = cleaned.report.entries
    assert (entries[1].of, 0.85 <= entries[1].similarity < 1) == ("a", True)
    assert "figures differ" in entries[2].notes[0]
    strict = clean_documents(given_, policy=Policy(keep_if_figures_differ=False))
    assert outcomes(strict) == {"a": KEPT, "b": NEAR, "c": NEAR}
    assert set(outcomes(clean_documents(given_, policy=Policy(near_duplicate=0))).values()) == {KEPT}


def test_pages_that_differ_only_in_their_headings_are_no_copies() -> None:
    given_ = [document("a", ("get", "Returns the item.")), document("b", ("delete", "Returns the item."))]
    assert set(outcomes(clean_documents(given_)).values()) == {KEPT}
    assert set(outcomes(clean_documents([document("x"), document("y")])).values()) == {KEPT}


SECRETS = ["jane.roe@mail.com", "+1 212 555 0123", "4111 1111 1111 1111", "GB82 WEST 1234 5698 7654 32", "536-90-4399"]


def with_secrets(path: str) -> Document:
    lines = "\n\n".join(f"{PROSE} See {secret} for it." for secret in SECRETS)
    return document(path, (f"Ask {SECRETS[0]}", lines), ("Plain", OTHER), title=f"Card {SECRETS[2]}", pages=(0, 900))


@pytest.mark.parametrize("choice", ["keep", "redact", "drop"])
def test_personal_data_by_policy(choice: str) -> None:
    before = with_secrets("p.md")
    cleaned = clean_documents([before, document("q.md", ("", OTHER))], policy=Policy(pii=choice))
    counted = {"card": 2, "email": 2, "iban": 1, "phone": 1, "ssn": 1}
    assert cleaned.report.personal_data == counted
    everything = json.dumps([dataclasses.asdict(done) for done in cleaned.documents])
    if choice == "keep":
        assert cleaned.documents[0] == before
    if choice == "redact":
        (done, _) = cleaned.documents
        assert_sound(done)
        assert (done.title, done.sections[0].heading) == ("Card [CARD]", ("Ask [EMAIL]",))
        assert done.sections[0].text.count("[") == 5
        assert done.sections[1].text == OTHER
        assert done.page_at(done.text.index("Invoices")) == before.page_at(before.text.index("Invoices")) == 2
    if choice == "drop":
        assert outcomes(cleaned) == {"p.md": PERSONAL, "q.md": KEPT}
    for secret in SECRETS:
        assert (secret in everything) is (choice == "keep")
        assert secret not in json.dumps(cleaned.report.to_dict())


def test_the_report_masks_personal_data_in_shared_lines() -> None:
    footer = f"Questions go to {SECRETS[0]} or to 192.168.0.17, thank you."
    given_ = [document(str(n), ("", f"{n}. {PROSE[n * 7 :]} {OTHER[n * 11 :]}\n\n{footer}")) for n in range(6)]
    report = clean_documents(given_, policy=Policy(near_duplicate=0)).report
    assert report.boilerplate[0].quote == "Questions go to [EMAIL] or to [IP], thank you."
    assert report.entries[1].quotes == (report.boilerplate[0].quote,)


def test_a_copy_takes_the_place_of_a_document_that_leaves() -> None:
    """Else dropping one letter for its address would take the facts of its clean near copy with it."""
    first = document("a", ("", f"{PROSE} {OTHER} Ask {SECRETS[0]}."))
    second = document("b", ("", f"{PROSE} {OTHER} Ask {SECRETS[0].replace('jane', 'john')}."))
    third, fourth = (document(path, ("", f"{PROSE} {OTHER} Ask {word}.")) for path, word in (("c", "us"), ("d", "me")))
    cleaned = clean_documents([first, second, third, fourth], policy=Policy(pii="drop"))
    assert outcomes(cleaned) == {"a": PERSONAL, "b": PERSONAL, "c": KEPT, "d": NEAR}
    assert cleaned.report.entries[3].of == "c"


def test_unwanted_languages_leave_and_the_undetermined_stay() -> None:
    german = (
        "Die Pumpe wird mit dem grünen Knopf eingeschaltet und läuft, bis der Tank voll ist. Vor dem ersten Start ist "
    )
    german += "das Ventil von Hand zu öffnen, da der Motor nicht gegen eine geschlossene Leitung drehen kann."
    given_ = [document("de", ("", german)), document("en", ("", PROSE)), document("short", ("", "42"))]
    cleaned = clean_documents(given_, policy=Policy(languages=("en",)))
    assert outcomes(cleaned) == {"de": LANGUAGE, "en": KEPT, "short": KEPT}
    assert [entry.language for entry in cleaned.report.entries] == ["de", "en", "und"]


def test_an_upload_is_cleaned_and_a_duplicate_is_told() -> None:
    policy = Policy(pii="redact")
    stored = clean_documents([with_secrets("p.md"), document("q.md", ("", OTHER))], policy=policy)
    known = Known.of(stored.documents, policy=policy, boilerplate=["0" * 64])
    same = clean_one(with_secrets("again.md"), known, policy=policy)
    assert (same.document, same.entry.outcome, same.entry.of) == (None, EXACT, "p.md")
    near = clean_one(
        document("n.md", ("", OTHER.replace("manager", "owner"))), known, policy=Policy(near_duplicate=0.8)
    )
    assert near.entry.outcome == KEPT  # `known` was built for 0.85
    replaced = clean_one(with_secrets("p.md"), known, policy=policy)
    assert replaced.document == stored.documents[0]  # a new version is no copy of the old one
    fresh = clean_one(document("new.md", ("", PROSE)), known, policy=policy)
    assert fresh.document is not None
    known.remember(fresh.document)
    assert clean_one(document("new2.md", ("", PROSE)), known, policy=policy).entry.of == "new.md"
    known.forget("new.md")
    assert clean_one(document("new2.md", ("", PROSE)), known, policy=policy).entry.outcome == KEPT


def test_an_upload_loses_the_shared_lines_of_the_collection() -> None:
    footer = "This page belongs to the handbook of the works, edition of the year."
    given_ = [document(str(n), ("", f"{n}. {PROSE[n * 7 :]} {OTHER[n * 11 :]}\n\n{footer}")) for n in range(6)]
    cleaned = clean_documents(given_, policy=Policy(near_duplicate=0))
    lines = [line.digest for line in cleaned.report.boilerplate]
    known = Known.of(cleaned.documents, policy=cleaned.report.policy, boilerplate=lines)
    done = clean_one(document("new", ("", f"{footer}\n\n{PROSE}")), known, policy=cleaned.report.policy)
    assert done.document is not None
    assert (done.document.text, done.entry.boilerplate_lines) == (PROSE, 1)


@pytest.mark.parametrize("bad", [{"pii": "hide"}, {"near_duplicate": 1.2}, {"near_duplicate": -0.1}])
def test_an_impossible_policy_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Policy(**bad)  # type: ignore[arg-type]


def test_two_documents_of_one_path_are_refused() -> None:
    with pytest.raises(RequestError, match="2 documents"):
        clean_documents([document("a", ("", "one")), document("a", ("", "two"))])


def test_the_policy_and_the_report_are_json() -> None:
    report = clean_documents([document("a", ("", PROSE))], policy=Policy(languages=("en", "de"))).report
    data = json.loads(json.dumps(report.to_dict()))
    assert Policy.from_dict(data["policy"]) == report.policy
    assert data["counts"]["documents"] == 1
    assert data["documents"][0]["path"] == "a"


def test_cleaning_needs_neither_torch_nor_the_extras() -> None:
    script = (
        "import sys; sys.modules['ftfy'] = sys.modules['lingua'] = None\n"
        "from almanac.retrieve.clean import clean_documents\n"
        "from almanac.retrieve.read.document import Document, Section\n"
        "text = 'The report is sent to the owner of it. sch\\u00c3\\u00b6n'\n"
        "done = clean_documents([Document('a', 'a', (Section((), 0, text, 0, len(text)),), '0' * 64)])\n"
        "assert done.documents[0].text == text and len(done.report.notes) == 2, done\n"
        "assert done.report.entries[0].language == 'en'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
