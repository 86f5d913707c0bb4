"""The report and the card: every figure of the build is in them, nothing in them runs, loads or breaks out of its place."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from almanac.assistant import card, report
from almanac.files import svg

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def parts(built: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((built / "provenance.json").read_text()), json.loads((built / "evaluations.json").read_text())


def test_the_report_holds_the_figures_of_the_run(built: Path) -> None:
    provenance, evaluations = parts(built)
    text = (built / "report.html").read_text()
    f1 = evaluations["after"]["assistant"]["answer_f1"]
    assert f"{f1['mean']:.2f} ({f1['low']:.2f}-{f1['high']:.2f})" in text
    for stage in provenance["stage_seconds"]:
        assert stage in text
    assert f"{provenance['index']['passages']} passages" in text
    for question in (answer["question"] for answer in evaluations["after"]["answers"]):
        assert question.replace("'", "&#x27;") in text


def test_nothing_in_the_report_runs_or_loads_whatever_the_documents_say(built: Path) -> None:
    provenance, evaluations = copy.deepcopy(parts(built))
    provenance["skipped"] = [[HOSTILE, HOSTILE]]
    for answer in evaluations["after"]["answers"]:
        answer |= {"question": HOSTILE, "reference": HOSTILE, "shown": HOSTILE}
    text = report.render(HOSTILE, provenance, evaluations)
    tags = Tags()
    tags.feed(text)
    names = {name for name, _ in tags.found}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "a", "form", "base"}
    attributes = {name for _, given in tags.found for name in given}
    assert not attributes & {"src", "href", "srcset", "action"} and not any(
        name.startswith("on") for name in attributes
    )
    assert not re.search(r"url\(|@import|https?:", text)


def test_the_card_says_what_it_is_and_what_it_is_not(built: Path) -> None:
    provenance, evaluations = parts(built)
    text = card.render(provenance, evaluations)
    assert sorted(text.splitlines()) == sorted((built / "card.md").read_text().splitlines())  # JSON sorts its keys
    assert "talking to a machine" in text and "## Limits" in text and "forecast" in text
    assert f"{provenance['index']['documents']} documents" in text


def test_bars_are_as_long_as_their_values() -> None:
    interval = {"mean": 0.5, "low": 0.25, "high": 1.0}
    drawn = svg.grouped([("a", [interval, None])], ["before", "after"])
    wide = [float(found) for found in re.findall(r'<rect class="[abc]" x="300" y="\d+" width="([\d.]+)"', drawn)]
    assert wide[1:] == [0.5 * (svg.WIDTH - 300 - 60)] and "none" in drawn
    line = svg.line([[1, 2.0], [2, 1.0], [3, 0.0]], x="step", y="loss")
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]+)"', line)[0].split()]
    assert points[0][1] < points[1][1] < points[2][1] and points[2][1] == 10 + 180
    assert svg.line([[1, 2.0]], x="step", y="loss") == ""
