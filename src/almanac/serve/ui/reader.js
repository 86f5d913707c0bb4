// The reading panel: a document, opened at what is quoted from it. Beside the conversation on a wide window, over it on
// a narrow one, where the rest of the page cannot be reached until it is closed.

import { ApiError, document_ } from "./api.js";
import { announce, button, byId, el } from "./dom.js";
import { blockElement, layout, offsets } from "./layout.js";
import { place } from "./turn.js";

const BEFORE = 60; // blocks shown above the one looked for
const AT_ONCE = 240; // blocks added at a time: a book of ten thousand opens as fast as a page

export class Reader {
  constructor() {
    this.panel = byId("reader");
    this.opener = null;
    this.sources = [];
    this.index = 0;
    this.held = null; // the document on show: { path, source, blocks }
    this.asked = 0;
    this.narrow = window.matchMedia("(max-width: 900px)");
    this.narrow.addEventListener("change", () => this.guard());
    document.addEventListener("documents-changed", () => (this.held = null));
  }

  get isOpen() {
    return !this.panel.hidden;
  }

  /** Opens the passage of one of an answer's sources. */
  cite(sources, index, opener) {
    this.sources = sources;
    this.index = index;
    this.show(sources[index], opener);
  }

  /** Opens a document at its beginning. */
  read(entry, opener) {
    this.sources = [];
    this.show({ document: entry.path, title: entry.title }, opener);
  }

  async show(target, opener) {
    const asked = ++this.asked;
    this.opener = opener ?? this.opener;
    this.panel.hidden = false;
    document.body.classList.add("reading");
    this.guard();
    this.frame(target);
    this.point(target);
    try {
      const held = await this.fetched(target.document);
      if (asked === this.asked) this.fill(held, target);
    } catch (error) {
      if (asked !== this.asked) return;
      const known = error instanceof ApiError;
      const gone = known && error.kind === "missing" ? "This document is no longer here. " : "";
      const again = button("Try again", "again", () => this.show(target));
      const words = known ? error.message : `This page failed: ${error.message}`;
      this.page.replaceChildren(el("p", { class: "problem", role: "alert" }, gone + words), again);
    }
  }

  async fetched(path) {
    if (this.held?.path !== path) {
      this.held = null;
      const source = await document_(path);
      this.held = { path, source, blocks: layout(source) };
    }
    return this.held;
  }

  frame(target) {
    const title = el("h2", { dir: "auto" }, target.title || target.document);
    const where = place(target);
    const close = button("Close", "close", () => this.close(), { quiet: true, kind: "close" });
    this.page = el("div", { class: "page", id: "reader-page", tabindex: "0", role: "document" });
    this.page.setAttribute("aria-label", "Text of the document");
    this.page.append(el("p", { class: "waiting" }, "Opening the document"));
    this.panel.replaceChildren(
      el(
        "header",
        {},
        el("div", { class: "reader-title" }, title, close),
        el("p", { class: "path", dir: "auto" }, target.document),
        where ? el("p", { class: "place", dir: "auto" }, where) : null,
        this.steps(),
      ),
      this.page,
    );
    this.panel.setAttribute("aria-label", `Document: ${target.title || target.document}`);
    this.panel.focus({ preventScroll: true });
  }

  steps() {
    if (this.sources.length < 2) return null;
    const step = (by) => () => {
      this.index = (this.index + by + this.sources.length) % this.sources.length;
      this.show(this.sources[this.index]);
      this.panel.querySelector(by < 0 ? ".step-back" : ".step-on").focus();
    };
    return el(
      "div",
      { class: "steps" },
      button("Previous source", "previous", step(-1), { quiet: true, kind: "step-back" }),
      el("span", {}, `Source ${this.index + 1} of ${this.sources.length}`),
      button("Next source", "next", step(1), { quiet: true, kind: "step-on" }),
    );
  }

  fill({ source, blocks }, target) {
    const range = quoted(source.text, target);
    const first = range ? Math.max(0, blocks.findLastIndex((block) => block.start <= range[0])) : 0;
    this.shown = { source, blocks, range, from: Math.max(0, first - BEFORE), to: 0 };
    this.shown.to = this.shown.from;
    this.page.replaceChildren(el("div", { class: "earlier" }), el("div", { class: "later" }));
    this.extend();
    if (this.shown.from > 0) this.offer(".earlier", "Show the text before", () => this.prepend());
    const mark = this.page.querySelector("mark");
    if (mark) {
      mark.scrollIntoView({ block: "center" });
      announce(`Opened ${target.title || target.document} at: ${target.quote ?? target.text ?? ""}`);
    } else if (target.quote ?? target.text) {
      const changed = "The document has changed since this answer: the passage is no longer in it.";
      this.page.prepend(el("p", { class: "problem", role: "alert" }, changed));
    }
    if (!source.text) this.page.append(el("p", { class: "waiting" }, "This document has no text."));
  }

  piece(block) {
    return blockElement(block, this.shown.source.text, this.shown.range);
  }

  extend() {
    const { blocks, to } = this.shown;
    this.shown.to = Math.min(blocks.length, to + AT_ONCE);
    const later = this.page.querySelector(".later");
    later.before(...blocks.slice(to, this.shown.to).map((block) => this.piece(block)));
    later.replaceChildren();
    if (this.shown.to < blocks.length) this.offer(".later", "Show more of the text", () => this.extend());
  }

  prepend() {
    const { blocks, from } = this.shown;
    this.shown.from = Math.max(0, from - AT_ONCE);
    const earlier = this.page.querySelector(".earlier");
    const height = this.page.scrollHeight;
    earlier.after(...blocks.slice(this.shown.from, from).map((block) => this.piece(block)));
    if (this.shown.from === 0) earlier.replaceChildren();
    this.page.scrollTop += this.page.scrollHeight - height;
  }

  offer(place_, words, onClick) {
    this.page.querySelector(place_).replaceChildren(button(words, null, onClick, { kind: "wide" }));
  }

  /** Shows in the conversation which source is open. */
  point(target) {
    const key = target ? `${target.document}:${target.start}` : null;
    for (const made of document.querySelectorAll("[data-source]")) {
      if (made.dataset.source === key) made.setAttribute("aria-expanded", "true");
      else made.removeAttribute("aria-expanded");
    }
  }

  /** On a narrow window the panel covers the page, which then takes no focus. */
  guard() {
    const covering = this.isOpen && this.narrow.matches;
    for (const part of [byId("skip"), byId("main"), document.querySelector(".bar")]) part.inert = covering;
  }

  close() {
    if (!this.isOpen) return false;
    this.asked += 1;
    this.panel.hidden = true;
    document.body.classList.remove("reading");
    this.guard();
    this.point(null);
    if (this.opener?.isConnected) this.opener.focus();
    else byId("main").focus();
    this.opener = null;
    return true;
  }
}

/** Where the quotation stands: at its offsets, else where its words are; null for none. In UTF-16 units. */
function quoted(text, target) {
  const words = target.quote ?? target.text;
  if (!words) return null;
  const unit = offsets(text);
  const range = [unit(target.start ?? 0), unit(target.end ?? 0)];
  if (same(text.slice(...range), words)) return range;
  const near = text.indexOf(words, range[0]); // a passage may be wider than its quotation
  const found = near === -1 ? text.indexOf(words) : near;
  return found === -1 ? null : [found, found + words.length];
}

const same = (one, other) => one.replace(/\s+/g, " ").trim() === other.replace(/\s+/g, " ").trim();
