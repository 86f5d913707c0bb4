"""Our Markdown, against what each construct must become, and in time that grows with its length only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from serve.ui.browsing import Visit

RENDER = """async (text) => {
  const { markdown } = await import("/ui/markdown.js");
  const box = document.createElement("div");
  box.append(markdown(text));
  return box.innerHTML;
}"""
TIME = """async (text) => {
  const { markdown } = await import("/ui/markdown.js");
  const start = performance.now();
  const words = markdown(text).textContent.length;
  return [performance.now() - start, words];
}"""
CASES = {
    "``` a ``` b": "<p><code>a</code> b</p>",
    "# One\ntwo": "<h3>One</h3><p>two</p>",
    "###### Deep ##": "<h6>Deep</h6>",
    "a *b* _c_ **d** `e *f*`": "<p>a <em>b</em> <em>c</em> <strong>d</strong> <code>e *f*</code></p>",
    "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "\\*a\\* and *open": "<p>*a* and *open</p>",
    "``a ` b``": "<p><code>a ` b</code></p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "- a\n  more\n\n  second": "<ul><li>a\nmore<p>second</p></li></ul>",
    "> a\n> b": "<blockquote><p>a\nb</p></blockquote>",
    "a\n\n---\nb": "<p>a</p><hr><p>b</p>",
    "```py\n# x *y*\n```\nz": '<pre tabindex="0"><code># x *y*</code></pre><p>z</p>',
    "~~~\nunclosed": '<pre tabindex="0"><code>unclosed</code></pre>',
    "![a *chart*](x.png)": '<p><span class="image">image: a *chart*</span></p>',
    "<b>x</b> &amp;": "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp;</p>",
    "[a](javascript:x)": "<p>a (javascript:x)</p>",
    "[1] [2](y)": "<p>[1] 2 (y)</p>",
}

HOSTILE = ("*a ", "_", "**a*", "``` ", "![", "[a](", "> ", "- ", "|", "[", "<http://", "#", "  - x\n", "a|\n-|\n")


@pytest.fixture
def page(visit: Callable[..., Visit]) -> Any:
    """The page, open."""
    return visit().open()


def test_constructs(page: Any) -> None:
    for text, expected in CASES.items():
        assert page.evaluate(RENDER, text) == expected, text


def test_reference_links_are_not_resolved(page: Any) -> None:
    shown = page.evaluate(RENDER, "[a][r]\n\n[r]: https://x.example/")
    assert shown.startswith("<p>[a][r]</p><p>[r]: <bdi")
    assert "href" not in shown


def test_tables(page: Any) -> None:
    shown = page.evaluate(RENDER, "| a | b |\n|:--|--:|\n| `1` | x\\|y |\n| 2 |\nend | z | too many")
    assert "<thead><tr><th>a</th><th>b</th></tr></thead>" in shown
    assert "<tr><td><code>1</code></td><td>x|y</td></tr><tr><td>2</td></tr>" in shown
    assert "<tr><td>end</td><td>z</td></tr>" in shown


def test_hostile_lengths_take_no_time(page: Any) -> None:
    """Where time grew with the square, these would take minutes."""
    for piece in HOSTILE:
        milliseconds, words = page.evaluate(TIME, piece * (60_000 // len(piece)))
        assert milliseconds < 2000, piece
        assert words > 0 or piece in ("> ", "- ", "_"), piece  # quotes, items and a rule of nothing
