"""Documents made fit to be searched and learned from, with an account of all that was changed and left out.

In this order: broken characters are repaired; exact and near copies are left out, the first one kept; lines that many
documents share go from all but the first; the language is told; personal data is counted, masked, or its document left
out, as the `Policy` says. Each step is a file of `data.filters`, `data.dedup` or `data.pii` and cites its source there.

Two decisions protect facts. A near copy whose figures differ (last year's price list) is kept and noted. A near copy of
a document that is itself left out takes its place.

The same documents in the same order give the same result. The report names documents by path, quotes shared lines in
short and with personal data masked, and never holds what was found as personal data. Paths are not changed: a file
named after a person keeps its name.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.data.dedup.exact import text_digest
from almanac.data.dedup.near import NearDuplicates, NearIndex
from almanac.data.filters.boilerplate import BoilerplateRule, removal, shared_lines
from almanac.data.filters.language import UNDETERMINED, identify, lingua_is_there
from almanac.data.filters.repair import Change, repair
from almanac.data.pii.find import MIN_CONFIDENCE, find
from almanac.data.pii.redact import mark, redact
from almanac.data.pii.span import WEAK
from almanac.retrieve.edit import with_changes, with_names
from almanac.retrieve.read.document import Document, clean

KEPT, EXACT, NEAR, LANGUAGE, PERSONAL = "kept", "exact duplicate", "near duplicate", "language", "personal data"
PII_CHOICES = ("keep", "redact", "drop")
QUOTES, QUOTE_CHARACTERS = 5, 80
SURE_LANGUAGE = 0.5  # confidence from which a document in an unwanted language is left out

LINGUA_ABSENT = "languages were told by function words alone: more surely with the extra 'docs'"

_FIGURE = re.compile(r"\w*\d[\w.,:%]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy(Value):
    """What cleaning does.

    ``pii``: ``keep`` counts personal data, ``redact`` masks it in text, headings and title, ``drop`` leaves out the
    documents that hold any. ``near_duplicate``: Jaccard similarity from which a document is a copy; 0 switches near
    copies off. ``languages``: ISO 639-1 codes to keep; empty keeps all, and a document whose language cannot be told is
    always kept. ``lingua``: whether that library may decide where it is installed.
    """

    pii: str = "keep"
    pii_confidence: float = MIN_CONFIDENCE
    near_duplicate: float = 0.85
    keep_if_figures_differ: bool = True
    repair: bool = True
    boilerplate: BoilerplateRule = BoilerplateRule()
    languages: tuple[str, ...] = ()
    lingua: bool = True

    def __post_init__(self) -> None:
        if self.pii not in PII_CHOICES:
            raise RequestError(
                f"Personal data is to be {self.pii!r}", remedy=f"Choose one of {', '.join(PII_CHOICES)}."
            )
        if not 0 <= self.near_duplicate <= 1:
            raise RequestError(
                f"Near duplicates from similarity {self.near_duplicate}", remedy="Choose 0 (off) to 1 (same words)."
            )


@dataclasses.dataclass(frozen=True)
class Entry:
    """What happened to one document, and why; ``of`` is the path of the document it is a copy of."""

    path: str
    outcome: str = KEPT
    of: str = ""
    similarity: float = 0.0
    repaired: int = 0
    boilerplate_lines: int = 0
    quotes: tuple[str, ...] = ()
    personal_data: tuple[tuple[str, int], ...] = ()
    language: str = UNDETERMINED
    confidence: float = 0.0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what did not happen is left out."""
        data: dict[str, Any] = {"path": self.path, "outcome": self.outcome}
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                data[field.name] = list(value) if isinstance(value, tuple) else value
        if self.personal_data:
            data["personal_data"] = dict(self.personal_data)
        return data


@dataclasses.dataclass(frozen=True)
class Shared:
    """A line left in one document (``kept_in``) and cut from the others; ``digest`` finds it again in an upload."""

    digest: str
    quote: str
    documents: int
    kept_in: str


@dataclasses.dataclass(frozen=True)
class CleaningReport:
    """One entry for every document given, in the order given."""

    policy: Policy
    entries: tuple[Entry, ...]
    boilerplate: tuple[Shared, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many documents came in, stayed, left for which reason, and were changed how."""
        outcomes = Counter(entry.outcome for entry in self.entries)
        changes = {
            "repaired": sum(entry.repaired > 0 for entry in self.entries),
            "boilerplate removed": sum(entry.boilerplate_lines > 0 for entry in self.entries),
            "with personal data": sum(bool(entry.personal_data) for entry in self.entries),
        }
        return {"documents": len(self.entries), **{name: outcomes[name] for name in _OUTCOMES}, **changes}

    @property
    def personal_data(self) -> dict[str, int]:
        """Finds of each kind over all documents."""
        total: Counter[str] = Counter()
        for entry in self.entries:
            total.update(dict(entry.personal_data))
        return dict(sorted(total.items()))

    def to_dict(self) -> dict[str, Any]:
        """JSON form of the whole report."""
        return {
            "policy": self.policy.to_dict(),
            "notes": list(self.notes),
            "counts": self.counts,
            "personal_data": self.personal_data,
            "languages": dict(sorted(Counter(e.language for e in self.entries if e.outcome == KEPT).items())),
            "boilerplate": [dataclasses.asdict(line) for line in self.boilerplate],
            "documents": [entry.to_dict() for entry in self.entries],
        }


_OUTCOMES = (KEPT, EXACT, NEAR, LANGUAGE, PERSONAL)


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """The documents that stayed, in the order given, and the report on all."""

    documents: tuple[Document, ...]
    report: CleaningReport


@dataclasses.dataclass(frozen=True)
class CleanedOne:
    """One document cleaned, or None where it is left out; ``entry`` says why."""

    document: Document | None
    entry: Entry


class Known:
    """What cleaned documents to compare a new one with: digests, signatures, figures, and shared lines.

    Args:
        policy: the policy that the documents were cleaned by.
        boilerplate: digests of shared lines, from ``report.boilerplate``.
    """

    def __init__(self, policy: Policy, *, boilerplate: Iterable[str] = ()) -> None:
        self.boilerplate = frozenset(boilerplate)
        self._policy = policy
        self._exact: dict[str, str] = {}  # digest -> path
        self._digests: dict[str, str] = {}  # path -> digest
        self._figures: dict[str, frozenset[str]] = {}
        settings = NearDuplicates(threshold=policy.near_duplicate) if policy.near_duplicate else None
        self._near: NearIndex[str] | None = NearIndex(settings) if settings else None

    @classmethod
    def of(cls, documents: Iterable[Document], *, policy: Policy, boilerplate: Iterable[str] = ()) -> Known:
        """What is known once ``documents`` (already clean) are."""
        known = cls(policy, boilerplate=boilerplate)
        for document in documents:
            known.remember(document)
        return known

    def remember(self, document: Document) -> None:
        """Adds a cleaned document; one of the same path is forgotten first."""
        self.forget(document.path)
        text = _compared(document)
        if not text.strip():
            return
        digest = text_digest(text)
        if self._exact.setdefault(digest, document.path) == document.path:
            self._digests[document.path] = digest
        self._figures[document.path] = frozenset(_FIGURE.findall(text))
        if self._near is not None:
            self._near.add(document.path, text)

    def forget(self, path: str) -> None:
        """Takes a document out again; an unknown path is nothing to forget."""
        self._exact.pop(self._digests.pop(path, ""), None)
        self._figures.pop(path, None)
        if self._near is not None:
            self._near.remove(path)

    def judge(self, document: Document) -> Entry:
        """Whether ``document`` is a copy of a known one of another path: an entry with the outcome and its reason."""
        text = _compared(document)
        if not text.strip():
            return Entry(document.path)
        original = self._exact.get(text_digest(text), document.path)
        if original != document.path:
            return Entry(document.path, EXACT, original, 1.0)
        matches = self._near.matches(text, without=document.path) if self._near is not None else []
        figures = frozenset(_FIGURE.findall(text))
        for path, similarity in matches:
            if not self._policy.keep_if_figures_differ or self._figures[path] == figures:
                return Entry(document.path, NEAR, path, round(similarity, 4))
        if matches:
            path, similarity = matches[0]
            note = f"{similarity:.0%} the same words as {path}, kept because its figures differ"
            return Entry(document.path, notes=(note,))
        return Entry(document.path)


def clean_documents(documents: Iterable[Document], *, policy: Policy | None = None) -> Cleaned:
    """The documents cleaned by ``policy``, in their order, with the report.

    Raises:
        RequestError: two documents of one path.
    """
    policy = policy or Policy()
    mended = [_repaired(document, policy) for document in documents]
    unable = sorted({note for _, account in mended for note in account.notes})  # the same for all: told once
    mended = [(document, dataclasses.replace(account, notes=())) for document, account in mended]
    if policy.lingua and not lingua_is_there():
        unable.append(LINGUA_ABSENT)
    _refuse_same_paths([document for document, _ in mended])
    known = Known(policy)
    judged: list[Entry] = []
    for document, _ in mended:
        judged.append(known.judge(document))
        if judged[-1].outcome == KEPT:
            known.remember(document)
    texts = {document.path: document.text for (document, _), entry in zip(mended, judged, strict=True) if _stays(entry)}
    lines = shared_lines(list(texts.values()), rule=policy.boilerplate)
    paths = list(texts)
    shared = tuple(Shared(line.digest, _quote(line.line), line.documents, paths[line.first]) for line in lines)

    def finished(number: int, entry: Entry) -> CleanedOne:
        document, account = mended[number]
        digests = frozenset(line.digest for line in shared if line.kept_in != document.path)
        account = dataclasses.replace(account, notes=entry.notes)
        done = _finished(document, account, digests, policy)
        if done.document is None:
            known.forget(document.path)
        return done

    results = {number: finished(number, entry) for number, entry in enumerate(judged) if _stays(entry)}
    left = {one.entry.path for one in results.values() if one.document is None}
    for number, entry in enumerate(judged):
        if number in results:
            continue
        document, account = mended[number]
        if entry.of in left:  # its original went: is it still a copy of anything?
            entry = known.judge(document)
        if _stays(entry):
            known.remember(document)
            results[number] = finished(number, entry)
            left |= {document.path} if results[number].document is None else set()
        else:
            copy = dataclasses.replace(entry, repaired=account.repaired, notes=entry.notes)
            results[number] = CleanedOne(None, copy)
    ordered = [results[number] for number in range(len(mended))]
    report = CleaningReport(policy, tuple(one.entry for one in ordered), shared, tuple(unable))
    return Cleaned(tuple(one.document for one in ordered if one.document is not None), report)


def clean_one(document: Document, known: Known, *, policy: Policy | None = None) -> CleanedOne:
    """One more document, cleaned and compared with those already there; it is not added to ``known``.

    ``known`` is built from cleaned documents, so the new one is compared in its clean form too. One of its own path is
    the version it replaces, not a copy.
    """
    policy = policy or Policy()
    mended, account = _repaired(document, policy)
    done = _finished(mended, account, known.boilerplate, policy)
    if done.document is None:
        return done
    verdict = known.judge(done.document)
    entry = dataclasses.replace(
        done.entry,
        outcome=verdict.outcome,
        of=verdict.of,
        similarity=verdict.similarity,
        notes=(*done.entry.notes, *verdict.notes),
    )
    return CleanedOne(done.document if _stays(verdict) else None, entry)


def _stays(entry: Entry) -> bool:
    return entry.outcome == KEPT


def _compared(document: Document) -> str:
    """What two documents are compared by: headings count, since pages of a reference may differ in nothing else."""
    return "\n\n".join("\n".join([*section.heading[-1:], section.text]) for section in document.sections)


def _refuse_same_paths(documents: Sequence[Document]) -> None:
    for path, count in Counter(document.path for document in documents).items():
        if count > 1:
            raise RequestError(
                f"{count} documents have the path {path}", remedy="Give each document a path of its own."
            )


def _repaired(document: Document, policy: Policy) -> tuple[Document, Entry]:
    if not policy.repair:
        return document, Entry(document.path)
    done = repair(document.text)
    changes = [dataclasses.replace(change, replacement=clean(change.replacement)[0]) for change in done.changes]
    named = with_names(document, lambda name: " ".join(clean(repair(name).text)[0].split()))
    renamed = sum(before != after for before, after in zip(_names(document), _names(named), strict=True))
    return with_changes(named, changes), Entry(
        document.path, repaired=len(changes) + renamed, notes=(done.note,) if done.note else ()
    )


def _names(document: Document) -> list[str]:
    return [document.title, *(section.heading[-1] for section in document.sections if section.heading)]


def _finished(document: Document, account: Entry, digests: frozenset[str], policy: Policy) -> CleanedOne:
    """Boilerplate, language and personal data of one document that is no copy."""
    cut = removal(document.text, digests, rule=policy.boilerplate)
    document = with_changes(document, [Change(start, end, "") for start, end in cut.spans])
    refused = (f"shared lines are {cut.refused:.0%} of it and were left",) if cut.refused else ()
    language = identify(document.text, lingua=policy.lingua)
    document, personal = _personal_data(document, policy)
    entry = dataclasses.replace(
        account,
        boilerplate_lines=len(cut.lines),
        quotes=tuple(_quote(line) for line in cut.lines[:QUOTES]),
        language=language.code,
        confidence=language.confidence,
        personal_data=tuple(sorted(personal.items())),
        notes=(*account.notes, *refused),
    )
    unwanted = policy.languages and language.code not in (*policy.languages, UNDETERMINED)
    if unwanted and language.confidence >= SURE_LANGUAGE:
        return CleanedOne(None, dataclasses.replace(entry, outcome=LANGUAGE))
    if policy.pii == "drop" and personal:
        return CleanedOne(None, dataclasses.replace(entry, outcome=PERSONAL))
    return CleanedOne(document, entry)


def _personal_data(document: Document, policy: Policy) -> tuple[Document, Counter[str]]:
    """The document, redacted where the policy says so, and the finds of each kind in text, headings and title."""
    changes: list[Change] = []
    count: Counter[str] = Counter()
    for section in document.sections:
        for item in find(section.text, min_confidence=policy.pii_confidence):
            count[item.kind] += 1
            changes.append(Change(section.start + item.start, section.start + item.end, mark(item.kind)))
    names = {name: find(name, min_confidence=policy.pii_confidence) for name in _names(document)}
    count.update(item.kind for found in names.values() for item in found)
    if policy.pii != "redact" or not count:
        return document, count
    masked = with_names(document, lambda name: redact(name, find(name, min_confidence=policy.pii_confidence)))
    return with_changes(masked, changes), count


def _quote(line: str) -> str:
    """A short quote, personal data masked even where it is only suspected."""
    line = redact(line, find(line, min_confidence=WEAK))
    return line if len(line) <= QUOTE_CHARACTERS else line[: QUOTE_CHARACTERS - 1] + "…"
