"""Pages and figures hold what was observed: every seed, the line, the published number; and nothing else."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from evidence.pretend import CARD, NAME, Pretended, install

from almanac.evidence import pages, runner
from almanac.evidence.card import Plot, Published
from almanac.evidence.code import code_digest
from almanac.evidence.figure import draw

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Pretended()
    install(monkeypatch, found)
    return found


def test_a_page_says_what_was_claimed_found_and_not_shown(pretended: Pretended, tmp_path: Path) -> None:
    result = runner.run(NAME, profile="full", folder=tmp_path)
    page = pages.page(CARD, [result])
    for text in (CARD.claim, CARD.source, CARD.toy_claim, CARD.scope, "at least 0.2", result.machine, "**REPRODUCED**"):
        assert text in page
    assert page.count("| experiment |") == 2
    assert "accuracy of baseline at least 0.4: 0." in page
    assert "With the method replaced by *baseline*: NOT REPRODUCED" in page


def test_a_card_that_was_never_run_has_a_page_that_says_so(pretended: Pretended, tmp_path: Path) -> None:
    texts = pages.all_pages(tmp_path)
    assert "**not run**" in texts[f"{NAME}.md"] and "not run" in texts["index.md"]
    assert f"{NAME}.svg" not in texts


def test_bars_show_every_seed_the_line_and_the_published_number(pretended: Pretended, tmp_path: Path) -> None:
    card = CARD.with_(plot=Plot(metric="accuracy", published=(Published(label="paper", value=0.97),)))
    result = runner.run(NAME, profile="full", folder=tmp_path)
    root = ElementTree.fromstring(draw(card, result.outcomes))
    assert len(root.findall(f"{SVG}circle")) == len(card.arms) * len(result.seeds)
    assert len([line for line in root.iter(f"{SVG}line") if line.get("class") == "fail"]) == 1
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "◇ paper" in texts and "planted data; accuracy; each point a seed" in texts
    dots = sorted(float(circle.get("cy", "nan")) for circle in root.findall(f"{SVG}circle"))
    assert dots[4] < dots[5] - 50, "the method's five seeds stand well above the others"


def test_lines_show_one_line_a_seed(pretended: Pretended, tmp_path: Path) -> None:
    card = CARD.with_(plot=Plot(metric="course", lines=True, x="step", log_x=True))
    result = runner.run(NAME, profile="full", folder=tmp_path)
    root = ElementTree.fromstring(draw(card, result.outcomes))
    lines = root.findall(f"{SVG}polyline")
    assert len(lines) == len(card.arms) * len(result.seeds)
    assert all(len((line.get("points") or "").split()) == 2 for line in lines)


def test_what_people_say_of_a_result_stands_on_its_page(pretended: Pretended, tmp_path: Path) -> None:
    runner.run(NAME, profile="full", folder=tmp_path)
    (tmp_path / "remarks").mkdir()
    (tmp_path / "remarks" / f"{NAME}.md").write_text("It was to be expected.\n")
    pages.render(folder=tmp_path)
    assert "**What we make of it.** It was to be expected." in (tmp_path / f"{NAME}.md").read_text()
    assert (tmp_path / "remarks" / f"{NAME}.md").is_file()


def test_pages_that_no_card_has_are_taken_away(pretended: Pretended, tmp_path: Path) -> None:
    runner.run(NAME, profile="full", folder=tmp_path)
    assert pages.render(folder=tmp_path) and pages.render(check=True, folder=tmp_path)
    (tmp_path / "gone.md").write_text("a card that is no more")
    assert not pages.render(check=True, folder=tmp_path)
    pages.render(folder=tmp_path)
    assert not (tmp_path / "gone.md").exists()


def test_the_code_digest_follows_imports_and_ignores_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "almanac_toy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text('"""One."""\nfrom almanac_toy.second import f\n\ndef g():\n    return f() + 1\n')
    (package / "second.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("almanac.evidence.code.PACKAGE", "almanac_toy")

    def digest(number: int) -> str:
        for path in package.glob("*.py"):
            os.utime(path, ns=(number, number))
        return code_digest("almanac_toy.first")

    before = digest(1)
    (package / "first.py").write_text(
        '"""Another."""\n# a comment\nfrom almanac_toy.second import f\n\n\ndef g():\n    """More."""\n    return f() + 1\n'
    )
    assert digest(2) == before
    (package / "second.py").write_text("def f():\n    return 2\n")
    assert digest(3) != before
