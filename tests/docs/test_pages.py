"""What a page promises by its form: links that lead somewhere, names that exist, no walls of text, no web addresses."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.pages import ROOT, SOURCES, Page, pages, written_by_hand

from almanac.core import errors

PAGES = pages()
OWN = written_by_hand()
MAX_WORDS = 700  # of a page
MAX_SECTION_WORDS = 200
LEAST_SECTION_WORDS = 10
_ARXIV = re.compile(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})")
_ROW = re.compile(r"^\| (\d{4}\.\d{4,5}) \|", re.MULTILINE)
_VAGUE = re.compile(r"(?i)(?:overview|notes?|details|misc\w*|introduction|more|summary|usage|examples?)")
_PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|c|md|txt|toml)|[\w-]+\.(?:md|toml|txt)")
_ROOMS = frozenset(path.name for path in SOURCES.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", list(PAGES))
def test_links_resolve(name: str) -> None:
    for target in PAGES[name].links():
        path = (PAGES[name].path.parent / target.partition("#")[0]).resolve()
        assert path.exists() or target.startswith("#"), f"{name} links to {target}"
        assert path.is_relative_to(ROOT), f"{name} links out of the repository: {target}"


@pytest.mark.parametrize("name", list(OWN))
def test_every_page_can_be_reached_from_the_index(name: str) -> None:
    reached, waiting = set[Path](), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        text = Page(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))
        waiting += [(page.parent / target.partition("#")[0]).resolve() for target in text.links()]
    assert PAGES[name].path in reached


@pytest.mark.parametrize("name", list(PAGES))
def test_no_page_names_the_web_or_a_machine(name: str) -> None:
    found = re.findall(r"https?://(?!127\.0\.0\.1:8000/)\S+|www\.\S+|/(?:work|root|home)/\S*", PAGES[name].text)
    assert not found, f"{name} names {found[:3]}"


@pytest.mark.parametrize("name", list(OWN))
def test_a_page_is_short_and_in_sections(name: str) -> None:
    page = OWN[name]
    assert 150 <= len(page.text.split()) <= MAX_WORDS, f"{name} has {len(page.text.split())} words"
    title, *sections = re.split(r"^## ", page.prose(), flags=re.MULTILINE)
    assert title.strip().startswith("# ") and len(title.strip().splitlines()) == 1, "a page begins with its title alone"
    for section in sections:
        heading, _, text = section.partition("\n")
        assert not _VAGUE.fullmatch(heading.strip()), f"{name}: {heading!r} tells nothing"
        words = len(text.split())
        assert LEAST_SECTION_WORDS <= words <= MAX_SECTION_WORDS, f"{name}: {heading!r} has {words} words"


@pytest.mark.parametrize("name", [*OWN, "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(name: str) -> None:
    places = (ROOT, SOURCES, PAGES[name].path.parent)
    for span in PAGES[name].spans():
        if _PATH.fullmatch(span) and not span.startswith(("my-", "card.")):
            assert any((place / span).exists() for place in places), f"{name} names {span}"


@pytest.mark.parametrize("name", [*OWN, "CONTRIBUTING.md"])
def test_dotted_names_in_a_page_exist(name: str) -> None:
    for span in PAGES[name].spans():
        dotted = span.partition("(")[0].removeprefix("almanac.")
        if re.fullmatch(r"\w+(?:\.\w+)+", dotted) and dotted.partition(".")[0] in _ROOMS | {"LanguageModel"}:
            assert _exists(dotted), f"{name} names {span}"


@pytest.mark.parametrize("name", [*OWN, "CONTRIBUTING.md"])
def test_errors_that_a_page_names_exist(name: str) -> None:
    named = set(re.findall(r"`(\w+Error)`", PAGES[name].text))
    assert named <= set(vars(errors)) | set(vars(builtins)), f"{name} names {sorted(named)}"


def test_the_error_page_names_every_error() -> None:
    kinds = {name for name, item in vars(errors).items() if isinstance(item, type)}
    assert kinds <= set(PAGES["docs/concepts/errors.md"].spans())


def test_papers_are_those_that_the_code_cites() -> None:
    page = PAGES["docs/papers.md"]
    cited = dict(_citations())
    listed = _ROW.findall(page.text)
    assert len(listed) == len(set(listed)), "a paper is listed twice"
    missing = {paper: place for paper, place in cited.items() if paper not in listed}
    assert not missing, f"docs/papers.md lacks {missing}"
    assert not set(listed) - set(cited), f"docs/papers.md lists {sorted(set(listed) - set(cited))}, which nothing cites"


def test_every_paper_is_cited_by_the_files_it_is_listed_with() -> None:
    citing: dict[str, set[str]] = {}
    for paper, place in _citations():
        citing.setdefault(paper, set()).add(place)
    for row in PAGES["docs/papers.md"].text.splitlines():
        if match := _ROW.match(row):
            named = set(re.findall(r"`([^`]+\.py)`", row.rpartition(" | ")[2]))
            assert named == citing[match[1]], f"{match[1]} is cited by {sorted(citing[match[1]])}"


def _citations() -> Iterator[tuple[str, str]]:
    """(arXiv number, path below almanac/) of every citation in a docstring or another text of the code."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for paper in _ARXIV.findall(node.value):
                    yield paper, str(path.relative_to(SOURCES))


def _exists(dotted: str) -> bool:
    """Whether a name below ``almanac`` leads to a module, or to a name in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), -1, -1):
        try:
            found: object = importlib.import_module(".".join(["almanac", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False
