"""R34 (incidents 65 and 66): hostile text from models, documents and cards runs nothing and fetches nothing.

Every payload goes through every place that shows text of others. The control shows that the payloads are alive: on a page
that trusts them, they do run and do fetch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import pytest
from serve.ui.browsing import Visit
from serve.ui.payloads import leaks, scripts
from serve.ui.stub import Json, State, StubDocument

PAYLOADS = {"scripts": scripts(), "leaks": leaks()}
STREAMED = 30  # one payload in so many goes the whole way through the server; all go through the code that shows them
FLOOR = {"scripts": 300, "leaks": 120}
OWN_REQUESTS = ("/v1/assistant", "/v1/documents", "/v1/ask", "/ui/", "/")

# Elements the page makes itself; anything else in it came from a payload.
TAGS = """a article aside bdi blockquote body button circle code dd details dialog div dl dt em footer form h1 h2 h3 h4 h5
h6 head header hr html img input label li link main mark meta nav noscript ol option p path pre progress q section script
select span strong summary svg table tbody td textarea th thead time title tr ul""".split()

FOREIGN = """(tags) => {
  const found = [];
  const own = (element) => element.closest("head, .brand, nav") !== null;
  for (const element of document.querySelectorAll("*")) {
    if (!tags.includes(element.localName)) found.push(element.localName);
    for (const { name, value } of element.attributes) {
      const set = /^on|^(src|srcset|href|xlink:href|action|formaction|style|ping|background|poster|data)$/.test(name);
      const height = element.id === "question" && name === "style" && /^height: [a-z0-9.]+;$/.test(value);
      if (set && !own(element) && !height && !(name === "href" && value.startsWith("#/"))) found.push(`${name}=${value}`);
    }
  }
  for (const { textContent } of document.querySelectorAll(".address")) {
    if (!/^https?:\\/\\//.test(textContent)) found.push(`address ${textContent}`);
  }
  for (const name of ["img", "script", "link", "meta", "iframe"]) {
    for (const element of document.querySelectorAll(name)) if (!own(element)) found.push(name);
  }
  return found;
}"""

ASK_EACH = """async (numbers) => {
  const pause = () => new Promise((resolve) => setTimeout(resolve, 2));
  const field = document.getElementById("question");
  for (const number of numbers) {
    field.value = `payload ${number}`;
    field.dispatchEvent(new InputEvent("input"));
    document.querySelector(".send").click();
    while (!document.querySelector(".turn:last-child:is([data-state=checked], [data-state=declined], [data-state=failed])")
           || document.querySelector(".send").hidden) await pause();
  }
  return document.querySelectorAll(".turn:is([data-state=checked], [data-state=declined])").length;
}"""

CONCLUDE_ALL = """async (streams) => {
  const { Turn } = await import("/ui/turn.js");
  const list = document.getElementById("turns");
  for (const [passages, draft, answer] of streams) {
    const turn = new Turn(draft.text, { open: () => undefined, again: () => undefined });
    list.append(turn.element);
    turn.found(passages.passages);
    turn.write(draft.text);
    turn.conclude(answer.answer);
  }
  return list.querySelectorAll(".turn:is([data-state=checked], [data-state=declined])").length;
}"""

OPEN_EACH = """async ([buttons, every]) => {
  const pause = () => new Promise((resolve) => setTimeout(resolve, 2));
  let opened = 0;
  for (const [number, button] of [...document.querySelectorAll(buttons)].entries()) {
    if (number % every) continue;
    button.click();
    while (document.querySelector("#reader .waiting")) await pause();
    opened += document.querySelector("#reader .page").childElementCount > 0;
  }
  return opened;
}"""

LAY_OUT_ALL = """async (bodies) => {
  const { layout, blockElement } = await import("/ui/layout.js");
  for (const body of bodies) {
    const marked = [0, Math.floor(body.text.length / 2)];
    for (const block of layout(body)) document.getElementById("documents").append(blockElement(block, body.text, marked));
  }
}"""

RENDER_ALL = """async (payloads) => {
  const { markdown } = await import("/ui/markdown.js");
  for (const payload of payloads) document.getElementById("about").append(markdown(payload));
}"""

CONTROL = """<!doctype html><title>control</title><body><script>
for (const payload of %s) {
  const box = document.createElement("div");
  const naive = payload.replace(/!\\[([^\\]]*)\\]\\(<?([^\\s)>]+)[^)]*\\)/g, '<img alt="$1" src="$2">')
    .replace(/\\[([^\\]]*)\\]\\(([^\\s)]+)\\)/g, '<a href="$2">$1</a>');
  document.body.append(box);
  box.innerHTML = naive;
}
for (const link of document.querySelectorAll("a[href^=javascript]")) link.click();
</script>"""


def hostile(payloads: Sequence[str]) -> State:
    """A state in which everything that others write is a payload."""
    state = State(card="\n\n".join(payloads), name=payloads[0])
    state.settings = {payload: payload for payload in payloads[:200]}
    for number, payload in enumerate(payloads):
        text = f"{payload}\n\nquoted"
        section: Json = {"heading": [payload, payload], "level": 2, "start": 0, "end": len(text)}
        path = payload.replace("/", "∕").replace("\x01", "?") + f" {number}"
        state.documents[path] = StubDocument(path, payload, text, [0], [section], language=payload[:40], added=payload)
    documents = list(state.documents.values())

    def script(question: str) -> Iterator[Json]:
        number = int(question.split()[-1])
        payload, document = payloads[number], documents[number]
        source: Json = {
            "number": 1, "id": payload, "document": document.path, "title": payload, "heading": [payload, payload],
            "page": 1, "quote": payload, "text": payload, "start": 0, "end": len(payload), "score": 1.0,
        }  # fmt: skip
        declined = number % 4 == 3
        yield {"type": "passages", "passages": [source]}
        yield {"type": "draft", "text": payload}
        yield {"type": "answer", "answer": {
            "question": question, "answer": f"{payload} [1]", "declined": declined, "reason": payload if declined else "",
            "citations": [] if declined else [source], "passages": [source],
        }}  # fmt: skip

    state.otherwise = script
    return state


def unharmed(seen: Visit) -> None:
    """Nothing ran, nothing left, nothing was fetched that the page does not fetch by itself, nothing was added to it."""
    seen.page.wait_for_timeout(100)
    assert seen.page.evaluate(FOREIGN, TAGS) == []
    strange = [path for path in seen.inside if not path.startswith(OWN_REQUESTS[:-1]) and path != "/"]
    assert strange == []
    assert not any("d=SECRET" in path and not path.startswith("/v1/documents/%") for path in seen.inside)
    assert seen.popups == []
    seen.calm()


@pytest.fixture(params=["scripts", "leaks"])
def payloads(request: pytest.FixtureRequest) -> list[str]:
    """Both kinds, at least as many as R34 asks for."""
    found = PAYLOADS[request.param]
    assert len(found) == len(set(found)) >= FLOOR[request.param]
    return found


def test_answers_run_and_fetch_nothing(visit: Callable[..., Visit], payloads: list[str]) -> None:
    """Every payload as draft, answer, reason, title, heading and quotation; one in 30 through the whole stream."""
    state = hostile(payloads)
    seen = visit(state)
    page = seen.open()
    asked = list(range(0, len(payloads), STREAMED))
    assert page.evaluate(ASK_EACH, asked) == len(asked)
    streams = [list(state.otherwise(f"payload {number}")) for number in range(len(payloads))]
    assert page.evaluate(CONCLUDE_ALL, streams) == len(asked) + len(payloads)
    page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    assert page.locator(".source").count() == len(asked) + len(payloads)
    unharmed(seen)


def test_documents_run_and_fetch_nothing(visit: Callable[..., Visit], payloads: list[str]) -> None:
    """Every payload as a document's name, title, language, date, heading and text; one in 30 opened by its button."""
    state = hostile(payloads)
    seen = visit(state)
    page = seen.open("#/documents")
    page.wait_for_selector(".documents-table")
    while page.locator(".table > .wide").count():
        page.eval_on_selector(".table > .wide", "(more) => more.click()")
    assert page.locator(".document-title").count() == len(payloads)
    assert page.evaluate(OPEN_EACH, [".document-title", STREAMED]) == -(-len(payloads) // STREAMED)
    page.evaluate(LAY_OUT_ALL, [document.body() for document in state.documents.values()])
    unharmed(seen)
    page.click(".documents-table .remove >> nth=0")
    assert page.locator("#delete-dialog[open]").count() == 1
    unharmed(seen)


def test_the_card_runs_and_fetches_nothing(visit: Callable[..., Visit], payloads: list[str]) -> None:
    seen = visit(hostile(payloads))
    page = seen.open("#/about")
    page.wait_for_selector(".card")
    page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    page.evaluate(RENDER_ALL, payloads)
    unharmed(seen)


def test_the_payloads_are_alive(visit: Callable[..., Visit]) -> None:
    """Where text is trusted, they run and fetch: the silence above is the page's doing, not theirs."""
    state = State(extra_pages={"/control": CONTROL % json.dumps(scripts()).replace("</", "<\\/")})
    state.extra_pages["/leaks"] = CONTROL % json.dumps(leaks()).replace("</", "<\\/")
    seen = visit(state)
    seen.page.goto(f"{seen.origin}/control", wait_until="commit")
    wait_for(seen, lambda: seen.page.evaluate("window.ran.length") >= 150)
    seen.page.goto(f"{seen.origin}/leaks", wait_until="commit")
    wait_for(seen, lambda: len(seen.outside) >= 40)


def wait_for(seen: Visit, reached: Callable[[], bool]) -> None:
    """Waits up to four seconds for something to become true; the test fails where it does not."""
    for _ in range(80):
        if reached():
            return
        seen.page.wait_for_timeout(50)
    pytest.fail(f"ran {seen.page.evaluate('window.ran.length')}, asked outside for {len(seen.outside)}")
