// Files on their way into the index: one after the other, each with its progress and what became of it.

import { ApiError, putDocument } from "./api.js";
import { announce, button, count, el } from "./dom.js";
import { askToken, token } from "./token.js";

const MAX_BYTES = 512 * 1024 * 1024; // the server's own limit, said before half an hour is spent on sending
const ATTEMPTS = 4; // while the server is busy
const PATIENCE_SECONDS = 3; // between attempts, where the server names no time

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

export class Uploads {
  /** `onChange()` is called after every file that changed the index. */
  constructor(onChange) {
    this.onChange = onChange;
    this.queue = [];
    this.working = false;
    this.list = el("ul", {});
    const clear = button("Clear this list", null, () => this.clear(), { kind: "plain" });
    this.element = el("section", { class: "uploads", "aria-label": "Files being added" }, this.list, clear);
    this.element.hidden = true;
  }

  /** Takes { file, path } items; resolves when all of them are through. */
  async add(items) {
    for (const { file, path } of items) this.queue.push(this.row(file, path));
    this.element.hidden = this.list.childElementCount === 0;
    if (this.working) return;
    this.working = true;
    while (this.queue.length) await this.send(this.queue.shift());
    this.working = false;
  }

  clear() {
    for (const row of [...this.list.children]) if (row.dataset.state !== "sending") row.remove();
    this.queue = [];
    this.element.hidden = this.list.childElementCount === 0;
  }

  /** A line that says what failed, for a document that was not on its way here. */
  report(path, words) {
    const row = this.row(null, path);
    this.finish(row, "failed", words);
    this.element.hidden = false;
  }

  row(file, path) {
    const control = new AbortController();
    const words = el("p", { class: "upload-words" }, "Waiting");
    const bar = el("progress", { max: "1", value: "0", "aria-label": `Progress of ${path}` });
    const cancel = button(`Cancel ${path}`, "close", () => control.abort(), { quiet: true });
    const name = el("p", { class: "upload-name", dir: "auto" }, path);
    const head = el("div", { class: "upload-head" }, name, cancel);
    const element = el("li", { class: "upload", "data-state": "sending" }, head, bar, words);
    this.list.append(element);
    return { file, path, control, words, bar, cancel, element };
  }

  async send(row) {
    try {
      if (row.control.signal.aborted) throw new ApiError("Cancelled.", "stopped");
      if (row.file.size > MAX_BYTES) {
        throw new ApiError("The file is larger than 512 MiB. Split it, or build with it from the terminal.", "request");
      }
      this.succeed(row, await this.attempt(row, 1));
      await this.onChange();
    } catch (error) {
      this.finish(row, "failed", error.message);
      announce(`${row.path}: ${error.message}`);
    }
  }

  async attempt(row, number) {
    const used = token();
    try {
      return await putDocument(row.path, row.file, {
        signal: row.control.signal,
        onProgress: (share) => this.progress(row, share),
      });
    } catch (error) {
      if (error.kind === "token" && (await askToken(used))) return this.attempt(row, number);
      if (error.kind !== "busy" || number >= ATTEMPTS) throw error;
      const seconds = error.retryAfter ?? PATIENCE_SECONDS;
      row.words.textContent = `The assistant is busy; trying again in ${Math.ceil(seconds)} s`;
      await pause(seconds);
      if (row.control.signal.aborted) throw new ApiError("Cancelled.", "stopped");
      return this.attempt(row, number + 1);
    }
  }

  progress(row, share) {
    if (share < 1) {
      row.bar.value = share;
      row.words.textContent = `Sending, ${Math.round(share * 100)} %`;
    } else {
      row.bar.removeAttribute("value"); // how long reading takes is not known
      row.words.textContent = "Reading and indexing";
    }
  }

  succeed(row, added) {
    const documents = added.documents ?? [];
    const skipped = added.skipped ?? [];
    const passages = documents.reduce((sum, entry) => sum + (entry.chunks ?? 0), 0);
    const parts = documents.length > 1 ? [count(documents.length, "document")] : [];
    const verb = added.replaced ? "Replaced" : "Added";
    const words = documents.length
      ? `${verb}: ${[...parts, count(passages, "passage")].join(", ")}`
      : "Nothing was added";
    this.finish(row, documents.length ? "done" : "failed", words);
    const notes = [...(added.notes ?? []).map(String), ...skipped.map(([name, reason]) => `${name}: ${reason}`)];
    if (notes.length) {
      row.element.append(el("ul", { class: "upload-notes" }, ...notes.map((note) => el("li", { dir: "auto" }, note))));
    }
    announce(`${row.path}: ${words}`);
  }

  finish(row, state, words) {
    row.element.dataset.state = state;
    row.words.textContent = words;
    row.bar.remove();
    row.cancel.remove();
  }
}
