// One question and what became of it, as an element. A turn is in one state at a time: looking, drafting, checked,
// declined, stopped or failed; only a checked answer looks like an answer.

import { announce, button, el, icon } from "./dom.js";
import { markdown } from "./markdown.js";

const STATES = {
  looking: ["search", "Looking in the documents"],
  drafting: [null, "Draft, not checked yet"],
  checked: ["check", "Checked against the cited passages"],
  declined: ["none", "Declined"],
  stopped: ["stop", "Stopped before the check; this draft is not an answer"],
  failed: ["warn", "No answer"],
};

/** The place of a passage in words: its headings and its page. */
export function place(source) {
  const page = source.page ? [`page ${source.page}`] : [];
  return [...(source.heading ?? []), ...page].join(" › ");
}

export class Turn {
  /** `open(sources, index, opener)` shows a source; `again(turn)` asks once more. */
  constructor(question, { open, again }) {
    this.question = question;
    this.open = open;
    this.again = again;
    this.draft = "";
    this.answer = null;
    this.label = el("p", { class: "state" });
    this.body = el("div", { class: "body" });
    this.after = el("div", { class: "after" });
    const heading = el("h2", { class: "question", dir: "auto" }, question);
    this.element = el("li", { class: "turn" }, el("article", {}, heading, this.label, this.body, this.after));
    this.looking();
  }

  set(state, words = STATES[state][1]) {
    const name = STATES[state][0];
    this.element.dataset.state = state;
    this.label.replaceChildren(name ? icon(name) : el("span", { class: "pulse", "aria-hidden": "true" }), words);
    this.element.setAttribute("aria-busy", String(state === "looking" || state === "drafting"));
  }

  looking() {
    this.draft = "";
    this.body.replaceChildren();
    this.after.replaceChildren();
    this.set("looking");
    announce("Looking in the documents");
  }

  /** The passages found, before the model has written anything. */
  found(passages) {
    const titles = [...new Set(passages.map((passage) => passage.title || passage.document))];
    this.set("looking", titles.length ? `Reading ${titles.join(", ")}` : STATES.looking[1]);
  }

  write(piece) {
    if (!this.draft) this.set("drafting");
    this.draft += piece;
    this.body.replaceChildren(el("p", { class: "draft", dir: "auto" }, this.draft));
  }

  conclude(answer) {
    this.answer = answer;
    if (answer.declined) this.decline(answer);
    else this.show(answer);
  }

  show(answer) {
    const sources = answer.citations ?? [];
    const mark = (number) => {
      const index = sources.findIndex((source) => source.number === number);
      return index === -1 ? null : this.citation(sources, index);
    };
    const sure = typeof answer.confidence === "number" ? `, confidence ${Math.round(answer.confidence * 100)} %` : "";
    this.set("checked", STATES.checked[1] + sure);
    this.body.replaceChildren(el("div", { class: "answer prose", dir: "auto" }, markdown(answer.answer, { mark })));
    const list = el("ol", { class: "sources", "aria-label": "Sources" }, ...this.rows(sources));
    this.after.replaceChildren(sources.length ? list : "", this.actions());
    announce(`Answer: ${answer.answer}`);
  }

  decline(answer) {
    this.set("declined", "Declined: not in the documents");
    const box = el("div", { class: "declined" }, el("p", { class: "refusal" }, answer.answer));
    if (answer.reason) box.append(el("p", { class: "reason" }, `Reason: ${answer.reason}`));
    this.body.replaceChildren(box);
    const passages = answer.passages ?? [];
    const nearest = el(
      "details",
      { class: "nearest" },
      el("summary", {}, "Nearest passages, which do not answer it"),
      el("ol", { class: "sources" }, ...this.rows(passages)),
    );
    this.after.replaceChildren(passages.length ? nearest : "", this.actions());
    announce(`Declined. ${answer.answer} ${answer.reason ?? ""}`);
  }

  stop() {
    this.set("stopped", this.draft ? STATES.stopped[1] : "Stopped");
    this.after.replaceChildren(el("div", { class: "actions" }, this.retry("Ask again")));
    announce("Stopped");
  }

  /** A failure in the server's own words, with a button to ask again, waiting as long as the server asked for. */
  fail(error) {
    this.set("failed");
    this.body.replaceChildren(el("p", { class: "problem" }, error.message));
    const again = this.retry("Try again");
    this.after.replaceChildren(el("div", { class: "actions" }, again));
    announce(`No answer. ${error.message}`);
    if (error.retryAfter) this.countDown(again, Math.ceil(error.retryAfter));
  }

  countDown(again, seconds) {
    const words = again.lastChild;
    const tick = (left) => {
      again.disabled = left > 0;
      words.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      if (left > 0 && again.isConnected) setTimeout(tick, 1000, left - 1);
    };
    tick(Math.min(seconds, 600));
  }

  retry(words) {
    const made = button("", "again", () => this.again(this), { kind: "retry" });
    made.lastChild.textContent = words;
    made.replaceChildren(made.firstChild, document.createTextNode(words));
    return made;
  }

  citation(sources, index) {
    const source = sources[index];
    const words = [`Source ${source.number}: ${source.title || source.document}`, place(source)].filter(Boolean);
    const made = el("button", { type: "button", class: "cite", "aria-label": `${words.join(", ")}. Open the passage` });
    made.textContent = String(source.number);
    made.title = words.join("\n");
    made.dataset.source = `${source.document}:${source.start}`;
    made.addEventListener("click", () => this.open(sources, index, made));
    return made;
  }

  rows(sources) {
    return sources.map((source, index) => {
      const where = place(source);
      const made = el(
        "button",
        { type: "button", class: "source", click: () => this.open(sources, index, made) },
        el("span", { class: "number" }, String(source.number)),
        el(
          "span",
          { class: "source-words" },
          el("span", { class: "source-title", dir: "auto" }, source.title || source.document),
          where ? el("span", { class: "source-place", dir: "auto" }, where) : null,
          el("q", { class: "quote", dir: "auto" }, source.quote ?? source.text),
        ),
      );
      made.dataset.source = `${source.document}:${source.start}`;
      return el("li", {}, made);
    });
  }

  actions() {
    const copy = button("Copy", "copy", async () => {
      const done = await copied(this.plain());
      copy.lastChild.textContent = done ? "Copied" : "Copying is not allowed here";
      setTimeout(() => (copy.lastChild.textContent = "Copy"), 2000);
    });
    const print = button("Print", "print", () => printOnly(this.element));
    return el("div", { class: "actions" }, copy, print);
  }

  /** The turn as text to take elsewhere: question, answer, and its sources by number. */
  plain() {
    const { answer, citations = [] } = this.answer;
    const sources = citations.map((source) => {
      const where = [source.title || source.document, place(source), source.document].filter(Boolean).join(", ");
      return `[${source.number}] ${where}: "${source.quote}"`;
    });
    return [this.question, answer, sources.join("\n")].filter(Boolean).join("\n\n");
  }
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // no permission, or not a secure context: the button says so
  }
}

function printOnly(element) {
  element.classList.add("printed");
  document.body.classList.add("printing");
  window.print();
  element.classList.remove("printed");
  document.body.classList.remove("printing");
}
