"""Self-contained pages: no script, no request, styles inside; light and dark. Every text handed in is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1d2230;--soft:#5b6478;--line:#d9dde6;--page:#fbfbfa;--card:#fff;--accent:#2b5fd9;
--second:#c9922e;--third:#8a93a6}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaf0;--soft:#a3abbd;--line:#343b4c;--page:#151922;--card:#1c212d;
--accent:#86a8ff;--second:#e6b65c;--third:#7d879c}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}h1{font-size:1.9rem;margin:0 0 .25rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem}p.lead,.soft{color:var(--soft)}section{background:var(--card);
border:1px solid var(--line);border-radius:12px;padding:.4rem 1.25rem 1.1rem;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.93rem}th,td{text-align:left;padding:.4rem .6rem .4rem 0;
border-bottom:1px solid var(--line);vertical-align:top}th{font-weight:600;color:var(--soft)}.wide{overflow-x:auto}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .soft{fill:var(--soft)}svg .grid{stroke:var(--line)}svg .a{fill:var(--third)}svg .b{fill:var(--second)}
svg .c{fill:var(--accent)}svg .line{fill:none;stroke:var(--accent);stroke-width:2}svg .bar{stroke:var(--ink);stroke-width:1.3}
.no{color:var(--soft);font-style:italic}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page around parts that are HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        + "".join(body)
        + "</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A part under a heading; ``content`` is HTML already."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in header)
    lines = ["<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
