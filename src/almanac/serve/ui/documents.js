// The documents: listed, filtered, sorted, added by button or by dropping, deleted after a question.

import { documents as fetchDocuments, removeDocument } from "./api.js";
import { announce, button, byId, count, day, el, figure } from "./dom.js";
import { Uploads } from "./upload.js";

const AT_ONCE = 200; // rows shown at a time
const COLUMNS = [
  ["title", "Document", (entry) => (entry.title || entry.path).toLowerCase()],
  ["pages", "Pages", (entry) => entry.pages ?? 0],
  ["chunks", "Passages", (entry) => entry.chunks ?? 0],
  ["language", "Language", (entry) => String(entry.language ?? "")],
  ["characters", "Characters", (entry) => entry.characters ?? 0],
  ["added", "Added", (entry) => String(entry.added ?? "")],
];
const NUMBERS = new Set(["pages", "chunks", "characters"]);
const startsDown = (name) => NUMBERS.has(name) || name === "added"; // the most and the newest first

export class Documents {
  constructor(reader) {
    this.reader = reader;
    this.entries = [];
    this.order = { by: "title", down: false };
    this.limit = AT_ONCE;
    this.view = byId("documents");
    this.build();
  }

  build() {
    const label = el("label", { class: "unseen", for: "filter" }, "Filter by title, path or language");
    this.filter = el("input", { id: "filter", type: "search", placeholder: "Filter", autocomplete: "off" });
    this.filter.addEventListener("input", () => {
      this.limit = AT_ONCE;
      this.render();
    });
    this.total = el("p", { class: "facts" });
    this.picker = el("input", { id: "picker", type: "file", multiple: true, class: "unseen", tabindex: "-1" });
    this.picker.setAttribute("aria-label", "Files to add");
    this.picker.addEventListener("change", () => {
      this.uploads.add([...this.picker.files].map((file) => ({ file, path: file.name })));
      this.picker.value = "";
    });
    const add = button("Add documents", "upload", () => this.picker.click(), { kind: "primary" });
    this.uploads = new Uploads(() => this.changed());
    this.table = el("div", { class: "table" });
    this.sorting = el("select", {}, ...COLUMNS.map(([name, words]) => el("option", { value: name }, words)));
    this.sorting.addEventListener("change", () => this.sortBy(this.sorting.value, startsDown(this.sorting.value)));
    const sorting = el("label", { class: "sorting on-narrow" }, "Sort by ", this.sorting);
    const hint = el("p", { class: "drop-hint" }, "or drop files or a folder anywhere on this page");
    this.view.append(
      el(
        "div",
        { class: "sheet" },
        el("header", { class: "heading" }, el("div", {}, el("h1", {}, "Documents"), this.total),
          el("div", { class: "adding" }, add, hint, this.picker)),
        this.uploads.element,
        el("div", { class: "filter" }, label, this.filter, sorting),
        this.table,
      ),
      el("p", { class: "drop-cover", "aria-hidden": "true" }, "Drop to add"),
    );
    this.acceptDrops();
  }

  acceptDrops() {
    const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    let depth = 0;
    const cover = (by) => {
      depth = by === 0 ? 0 : depth + by;
      this.view.classList.toggle("dropping", depth > 0);
    };
    window.addEventListener("dragenter", (event) => carriesFiles(event) && !this.view.hidden && cover(1));
    window.addEventListener("dragleave", (event) => carriesFiles(event) && !this.view.hidden && cover(-1));
    window.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
    window.addEventListener("drop", async (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault(); // a file dropped beside its place must not replace this page
      cover(0);
      if (!this.view.hidden) this.uploads.add(await dropped(event.dataTransfer));
    });
  }

  /** Gets the list anew. Throws ApiError. */
  async load() {
    this.entries = await fetchDocuments();
    this.render();
    return this.entries;
  }

  async show() {
    try {
      await this.load();
    } catch (error) {
      const again = button("Try again", "again", () => this.show());
      this.total.textContent = "";
      this.table.replaceChildren(el("p", { class: "problem", role: "alert" }, error.message), again);
    }
  }

  /** After an upload or a deletion: the list, and whoever else shows documents. */
  async changed() {
    await this.show();
    document.dispatchEvent(new CustomEvent("documents-changed"));
  }

  selected() {
    const words = this.filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const key = COLUMNS.find(([name]) => name === this.order.by)[2];
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
    return this.entries
      .filter((entry) => {
        const text = `${entry.title} ${entry.path} ${entry.language} ${language(entry.language)}`.toLowerCase();
        return words.every((word) => text.includes(word));
      })
      .sort((a, b) => compare(key(a), key(b)) * (this.order.down ? -1 : 1));
  }

  render() {
    const found = this.selected();
    const all = count(this.entries.length, "document");
    this.total.textContent = found.length === this.entries.length ? all : `${figure(found.length)} of ${all}`;
    this.sorting.value = this.order.by;
    if (!found.length) {
      const words = this.entries.length
        ? "No document matches this filter."
        : "No documents yet. Add some, and ask about them at once.";
      this.table.replaceChildren(el("p", { class: "empty" }, words));
      return;
    }
    const last = el("th", {}, el("span", { class: "unseen" }, "Delete"));
    const head = el("tr", {}, ...COLUMNS.map((column) => this.header(column)), last);
    const body = found.slice(0, this.limit).map((entry) => this.row(entry));
    const table = el("table", { class: "documents-table" }, el("thead", {}, head), el("tbody", {}, ...body));
    this.table.replaceChildren(table, ...(found.length > this.limit ? [this.more()] : []));
  }

  more() {
    const onClick = () => {
      this.limit += AT_ONCE;
      this.render();
    };
    return button("Show more", null, onClick, { kind: "wide" });
  }

  sortBy(name, down) {
    this.order = { by: name, down };
    this.render();
  }

  header([name, words]) {
    const active = this.order.by === name;
    const sort = () => {
      this.sortBy(name, active ? !this.order.down : startsDown(name));
      this.table.querySelector(`th[data-column="${name}"] button`).focus();
    };
    const arrow = active ? (this.order.down ? " ↓" : " ↑") : "";
    const made = el("th", { scope: "col", "data-column": name, class: NUMBERS.has(name) ? "number-cell" : null });
    if (active) made.setAttribute("aria-sort", this.order.down ? "descending" : "ascending");
    const sign = el("span", { "aria-hidden": "true" }, arrow);
    made.append(el("button", { type: "button", class: "sort", click: sort }, words, sign));
    return made;
  }

  row(entry) {
    const title = entry.title || entry.path;
    const open = el("button", { type: "button", class: "document-title", dir: "auto" }, title);
    open.addEventListener("click", () => this.reader.read(entry, open));
    const path = entry.path === title ? null : el("span", { class: "path", dir: "auto" }, entry.path);
    const remove = button(`Delete ${title}`, "trash", () => this.remove(entry), { quiet: true, kind: "remove" });
    return el(
      "tr",
      {},
      el("td", { class: "name-cell" }, open, path),
      number(entry.pages, "page"),
      number(entry.chunks, "passage"),
      el("td", { class: "word-cell" }, language(entry.language)),
      number(entry.characters, "character"),
      el("td", { class: "word-cell" }, el("time", { datetime: entry.added }, day(entry.added))),
      el("td", { class: "remove-cell" }, remove),
    );
  }

  async remove(entry) {
    const named = entry.title && entry.title !== entry.path;
    byId("delete-name").textContent = named ? `${entry.title} (${entry.path})` : entry.path;
    const dialog = byId("delete-dialog");
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "delete") return;
    try {
      await removeDocument(entry.path);
      announce(`Deleted ${entry.title || entry.path}`);
    } catch (error) {
      this.uploads.report(entry.path, error.message);
    }
    await this.changed();
    this.filter.focus();
  }
}

/** A cell with a number: alone under its column's name, with its unit where a narrow window shows no columns. */
function number(value, unit) {
  const wide = el("span", { class: "on-wide" }, value ? figure(value) : "–");
  return el("td", { class: "number-cell" }, wide, el("span", { class: "on-narrow" }, value ? count(value, unit) : ""));
}

/** The name of a language code, or the code. */
export function language(code) {
  if (!code) return "–";
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code) ?? code;
  } catch {
    return String(code); // not a language tag
  }
}

/** The files of a drop, folders walked, each with its path. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  const path = entry.fullPath.replace(/^\/+/, "");
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, path });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    for (const inner of batch) if (!inner.name.startsWith(".")) await walk(inner, found);
  }
}
