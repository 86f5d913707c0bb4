"""The HTML reader: the visible text of a page under its headings, in time that grows with its size."""

from __future__ import annotations

import time

import pytest

from almanac.core.errors import FileFormatError
from almanac.retrieve.read import html
from almanac.retrieve.read.document import Document
from almanac.retrieve.read.guard import MAX_TAGS


def read(source: str) -> Document:
    document = html.read(source.encode(), "page.html").document
    for section in document.sections:
        assert document.text[section.start : section.end] == section.text
    return document


def text(source: str) -> str:
    return read(source).text


def test_title_headings_and_text() -> None:
    document = read(
        "<!doctype html><html><head><title>The &amp; title</title><style>p{color:red}</style></head><body>"
        "<nav>Menu</nav><h1>Top <em>level</em></h1><p>First.</p><h3>Deep</h3>Loose text<footer>Imprint</footer></body></html>"
    )
    assert document.title == "The & title"
    assert [(s.heading, s.text) for s in document.sections] == [
        (("Top level",), "First."),
        (("Top level", "Deep"), "Loose text"),
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<p>a<p>b", "a\n\nb"),
        ("<p>one\n two<br>three</p>", "one two\nthree"),
        ("<b>bo</b>ld <i>it</i>alic", "bold italic"),
        ("<p>Use <code>a  b</code>, <kbd>Ctrl</kbd>.", "Use `a b`, `Ctrl`."),
        ("<pre><code>x = 1\n  y &lt; 2\n</code></pre>", "```\nx = 1\n  y < 2\n```"),
        ("<ul><li>a<li>b<ol><li>c<li>d</ol><li>e</ul>", "- a\n- b\n  1. c\n  2. d\n- e"),
        ("<ul><li><p>a</p><p>b</p></li></ul>", "- a\n  b"),
        ("<table><tr><th>A<th>B<tr><td>1<td>2</table>", "| A | B |\n| 1 | 2 |"),
        ("<table><tr><td></td><td>x</td></tr></table>", "|  | x |"),
        ("<img src=a.png alt='a cat'> sits", "a cat sits"),
        ("<dl><dt>Term<dd>Meaning</dl>", "Term\n\nMeaning"),
        ("a < b and c > d", "a < b and c > d"),
        ("a &lt;b&gt; c", "a <b> c"),
        ("<p>x<!-- gone -->y<!--> z", "xy z"),
        ("<script>if (a<b) '<p>no</p>'</script><style>p{}</style>yes", "yes"),
        ("<noscript>no</noscript><template>no</template><svg><text>no</text></svg>yes", "yes"),
        ("kept <!-- unclosed comment swallows the rest", "kept"),
        ("<div hidden>no<p>no</div><p>yes", "yes"),
        ("<code>never closed", "never closed"),
        ("<table><tr><td>never closed", "| never closed |"),
    ],
)
def test_structure_becomes_plain_text(source: str, expected: str) -> None:
    assert text(source) == expected


def test_a_stray_end_tag_reveals_nothing() -> None:
    assert text("<div hidden>a</p></span>b</div>c") == "c"
    assert text("<p hidden>a<p>b") == "b"


def test_hidden_elements_are_counted() -> None:
    reading = html.read(b"<p>shown<p hidden>x<i hidden>y</i></p><nav>menu</nav>", "page.html")
    assert reading.notes == ("left out 1 hidden elements",)


OPENINGS = ["<", "<a ", '<a b="', "<!--", "<!", "<![CDATA[a>", "<?", "</", "&#", "<script>", "<p style='", "x<![a>"]
LONG_TAGS = [f"<a {'b ' * 1000}>", f"<a{'=' * 2000}>", *(f"<p style='{fill * 900}'>" for fill in ("  ", "/*", ";:"))]


@pytest.mark.parametrize("pattern", [*OPENINGS, *LONG_TAGS])
def test_two_megabytes_of_anything_are_read_in_bounded_time(pattern: str) -> None:
    """The standard parser alone needs minutes to hours for several of these."""
    source = "shown " + pattern * (2_000_000 // len(pattern))
    before = time.process_time()
    try:
        assert text(source).startswith("shown")
    except FileFormatError:
        assert source.count("<") > MAX_TAGS
    assert time.process_time() - before < 5
    source = "shown " + pattern * min(MAX_TAGS - 1, 2_000_000 // len(pattern))
    before = time.process_time()
    assert text(source).startswith("shown")
    assert time.process_time() - before < 5


@pytest.mark.parametrize("pattern", ["< ", "<1", "a<=b ", "<<"])
def test_signs_that_open_no_tag_are_text(pattern: str) -> None:
    source = "shown " + pattern * 50_000 + " end"
    before = time.process_time()
    document = read(source)
    assert time.process_time() - before < 5
    assert document.text == " ".join(source.split())


@pytest.mark.parametrize("pattern", ["<p>", "<ul><li>", "<div>", "</b>", "<tr><td>"])
def test_more_tags_than_any_page_has_are_refused_at_once(pattern: str) -> None:
    before = time.process_time()
    with pytest.raises(FileFormatError, match="200,000 tags"):
        html.read((pattern * 300_000).encode(), "bomb.html")
    assert time.process_time() - before < 2


def test_deep_nesting_below_the_limit_is_linear_and_stays_small() -> None:
    before = time.process_time()
    document = read("<ul><li>a" * 40_000)
    assert time.process_time() - before < 5
    assert len(document.text) < 40_000 * 40


def test_monstrous_tags_keep_what_matters() -> None:
    assert text(f"<p>before</p><img src='data:{'A' * 100_000}' alt='x>y'><p>after</p>") == "before\n\nx>y\n\nafter"
    assert text(f"<p {'a=1 ' * 10_000} hidden>no</p>yes") == "yes"
