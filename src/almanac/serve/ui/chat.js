// The conversation: the question box, the turns, and the stream that fills the last of them. Kept in memory only.

import { ApiError, ask } from "./api.js";
import { announce, button, byId, count, day, el, icon } from "./dom.js";
import { Turn } from "./turn.js";

const NEAR_END_PX = 120;

export class Chat {
  /** `reader` opens passages; `documents()` gives the documents known so far, or null. */
  constructor(reader) {
    this.reader = reader;
    this.turns = [];
    this.running = null;
    this.log = byId("log");
    this.list = byId("turns");
    this.field = byId("question");
    this.send = button("Ask", "send", () => this.submit(), { kind: "primary send" });
    this.stop = button("Stop", "stop", () => this.halt(), { kind: "stop" });
    this.stop.hidden = true;
    byId("composer-buttons").append(this.stop, this.send);
    this.fresh = button("New conversation", "plus", () => this.clear(), { kind: "new" });
    this.fresh.hidden = true;
    byId("tools").prepend(this.fresh);
    this.listen();
    this.measure();
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.field.addEventListener("input", () => this.measure());
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
  }

  /** The box is as high as what is in it, up to a third of the window. */
  measure() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, window.innerHeight / 3)}px`;
    this.send.disabled = this.running !== null || this.field.value.trim() === "";
  }

  focus() {
    this.field.focus();
  }

  submit() {
    const question = this.field.value.trim();
    if (!question || this.running) return;
    this.field.value = "";
    const turn = new Turn(question, {
      open: (sources, index, opener) => this.reader.cite(sources, index, opener),
      again: (one) => this.run(one),
    });
    this.turns.push(turn);
    this.list.append(turn.element);
    this.run(turn);
  }

  async run(turn) {
    if (this.running) return;
    const control = new AbortController();
    this.running = control;
    if (this.field.value.trim() === turn.question) this.field.value = "";
    this.busy(true);
    turn.looking();
    turn.element.scrollIntoView({ block: "start" });
    try {
      for await (const event of ask(turn.question, control.signal)) this.receive(turn, event);
    } catch (error) {
      this.failed(turn, error);
    } finally {
      this.running = null;
      this.busy(false);
    }
  }

  receive(turn, event) {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    if (event.type === "passages") turn.found(event.passages ?? []);
    else if (event.type === "draft") turn.write(event.text ?? "");
    else if (event.type === "answer") turn.conclude(event.answer);
    if (atEnd && event.type === "draft") this.log.scrollTop = this.log.scrollHeight;
  }

  failed(turn, error) {
    if (turn.answer && turn.element.dataset.state !== "looking" && turn.element.dataset.state !== "drafting") return;
    if (error instanceof ApiError && error.kind === "stopped") {
      turn.stop();
    } else {
      turn.fail(error instanceof ApiError ? error : new ApiError(`This page failed: ${error.message}`, "server"));
    }
    if (this.field.value === "") this.field.value = turn.question; // nothing typed is lost
  }

  busy(running) {
    const hadFocus = document.activeElement === (running ? this.send : this.stop);
    this.stop.hidden = !running;
    this.send.hidden = running;
    this.fresh.hidden = this.turns.length === 0;
    byId("welcome").hidden = this.turns.length > 0;
    byId("conversation-title").hidden = this.turns.length === 0;
    if (hadFocus) (running ? this.stop : this.field).focus();
    this.measure();
  }

  /** Stops the answer under way; false when there is none. */
  halt() {
    if (!this.running) return false;
    this.running.abort();
    return true;
  }

  clear() {
    this.halt();
    this.reader.close();
    this.turns = [];
    this.list.replaceChildren();
    this.busy(this.running !== null);
    this.focus();
    announce("New conversation");
  }

  /** What stands here before the first question: whom one asks, and what it has read. */
  welcome(assistant, documents) {
    const facts = `${count(assistant.documents, "document")}, ${count(assistant.passages, "passage")}`;
    const newest = [...documents].sort((a, b) => String(b.added).localeCompare(String(a.added))).slice(0, 5);
    const rows = newest.map((entry) => {
      const open = el("button", { type: "button", class: "recent", click: () => this.reader.read(entry, open) });
      const words = el("span", { class: "recent-title", dir: "auto" }, entry.title || entry.path);
      open.append(icon("file"), words, el("span", { class: "recent-day" }, day(entry.added)));
      return el("li", {}, open);
    });
    const add = el("a", { href: "#/documents" }, "Add the first ones");
    const none = el("p", {}, "There are no documents yet. ", add, ".");
    byId("welcome").replaceChildren(
      el("h1", { dir: "auto" }, `Ask ${assistant.name}`),
      el("p", { class: "facts" }, facts),
      el("p", {}, "Answers are taken from passages of these documents, cited, and checked against them. "
        + "Where the documents do not tell, the assistant says so."),
      ...(rows.length ? [el("h2", {}, "Added last"), el("ul", { class: "recents" }, ...rows)] : [none]),
    );
  }
}
