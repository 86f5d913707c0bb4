// A document's text as a list of blocks to show: headings and page breaks, which are not in the text, and pieces of the
// text itself, each with its offsets, so that what is quoted can be marked to the character.

import { el } from "./dom.js";

/** A function from an offset in characters, as the server counts, to one in JavaScript's UTF-16 units. */
export function offsets(text) {
  if (!/[\ud800-\udfff]/.test(text)) return (offset) => Math.max(0, Math.min(offset, text.length));
  const units = [];
  for (let unit = 0; unit < text.length; unit += text.codePointAt(unit) > 0xffff ? 2 : 1) units.push(unit);
  units.push(text.length);
  return (offset) => units[Math.max(0, Math.min(offset, units.length - 1))];
}

/** The blocks of a document as the API gives it: { kind, start, end, ... }, offsets in UTF-16 units. */
export function layout(source) {
  const { text, pages = [], sections = [] } = source;
  const unit = offsets(text);
  const breaks = pages.map((offset, index) => ({ at: unit(offset), page: index + 1 }));
  const parts = sections.length ? sections : [{ heading: [], level: 0, start: 0, end: Infinity }];
  const found = [];
  let path = [];
  for (const section of parts) {
    const start = unit(section.start);
    const pieces = split(text, start, unit(section.end));
    const from = shared(path, section.heading);
    for (let depth = from; depth < section.heading.length; depth += 1) {
      found.push({ kind: "heading", start, end: start, level: depth + 1, words: section.heading[depth] });
    }
    path = section.heading;
    found.push(...pieces);
  }
  return withPages(found, breaks);
}

function shared(path, next) {
  let depth = 0;
  while (depth < next.length - 1 && path[depth] === next[depth]) depth += 1;
  return depth;
}

/** Cuts [start, end) at blank lines, lists and tables line by line, code fences whole. */
function split(text, start, end) {
  const found = [];
  let fence = null;
  let open = null;
  const close = () => {
    if (open) found.push(open);
    open = null;
  };
  for (let from = start; from < end; ) {
    const newline = text.indexOf("\n", from);
    const to = newline === -1 || newline > end ? end : newline;
    const line = text.slice(from, to);
    const ticks = /^\s*(`{3,})/.exec(line)?.[1];
    if (fence !== null) {
      open.end = to;
      if (ticks && line.trim().length >= fence.length && line.trim() === ticks) {
        fence = null;
        close();
      }
    } else if (ticks) {
      close();
      fence = ticks;
      open = { kind: "code", start: from, end: to };
    } else if (line.trim() === "") {
      close();
    } else {
      const kind = /^\s*(?:- |\d{1,9}\. )/.test(line) ? "item" : /^\|.*\|$/.test(line) ? "row" : "text";
      if (kind !== "text" || open?.kind === "row") close();
      open ??= { kind, start: from, end: to };
      open.end = to;
    }
    from = to + 1;
  }
  close();
  return found;
}

function withPages(blocks, breaks) {
  const found = [];
  let next = 0;
  const put = () => {
    const { at, page } = breaks[next];
    found.push({ kind: "page", start: at, end: at, page });
    next += 1;
  };
  for (let block of blocks) {
    while (next < breaks.length && breaks[next].at <= block.start) put();
    while (next < breaks.length && breaks[next].at < block.end) {
      const { at } = breaks[next];
      found.push({ ...block, end: at });
      put();
      block = { ...block, start: at };
    }
    found.push(block);
  }
  while (next < breaks.length) put();
  return found;
}

/** The element of a block; the part of it within `marked` = [start, end) stands in a mark. */
export function blockElement(block, text, marked) {
  if (block.kind === "heading") {
    return el(`h${Math.min(6, block.level + 2)}`, { class: "doc-heading" }, block.words);
  }
  if (block.kind === "page") return el("p", { class: "page-break" }, el("span", {}, `Page ${block.page}`));
  if (block.kind === "row") return rowElement(block, text, marked);
  if (block.kind === "code") {
    return el("pre", { tabindex: "0" }, el("code", {}, ...pieces(unfenced(block, text), text, marked)));
  }
  const lead = block.kind === "item" ? /^\s*(?:- |\d{1,9}\. )/.exec(text.slice(block.start, block.end)) : null;
  if (!lead) return el("p", { class: block.kind }, ...pieces(block, text, marked));
  const cut = block.start + lead[0].length;
  const marker = el("span", { class: "marker" }, ...pieces({ ...block, end: cut }, text, marked));
  return el("p", { class: block.kind }, marker, ...pieces({ ...block, start: cut }, text, marked));
}

/** A code block without its lines of backticks; one that a page break has cut may lack either. */
function unfenced(block, text) {
  const [, open, inside] = /^(\s*`{3,}[^\n]*\n|)([^]*?)(?:\n\s*`{3,}\s*)?$/.exec(text.slice(block.start, block.end));
  const start = block.start + open.length;
  return { ...block, start, end: start + inside.length };
}

function rowElement(block, text, marked) {
  const row = el("div", { class: "row" });
  let from = block.start;
  for (const cell of text.slice(block.start, block.end).split("|")) {
    const lead = cell.length - cell.trimStart().length;
    const start = from + lead;
    const end = Math.max(start, from + cell.trimEnd().length);
    if (end > start) row.append(el("span", {}, ...pieces({ ...block, start, end, kind: "text" }, text, marked)));
    from += cell.length + 1;
  }
  return row;
}

/** Text nodes, code spans and marks for [start, end), cut where any of them begins or ends. */
function pieces(block, text, marked) {
  const [from, to] = marked ?? [0, 0];
  const cuts = new Set([block.start, block.end]);
  for (const cut of [from, to]) if (cut > block.start && cut < block.end) cuts.add(cut);
  const spans = block.kind === "code" ? [] : codeSpans(text, block, cuts);
  const sorted = [...cuts].sort((one, other) => one - other);
  return sorted.slice(0, -1).map((start, index) => {
    const end = sorted[index + 1];
    let node = text.slice(start, end);
    if (spans.some(([a, b]) => start >= a && end <= b)) node = el("code", {}, ...quiet(node));
    return start >= from && end <= to ? el("mark", {}, node) : node;
  });
}

/** The backticks of a code span stay in the text, for whoever copies it, and are not seen. */
const quiet = (words) => words.split(/(`)/).map((part) => (part === "`" ? el("span", { class: "tick" }, part) : part));


function codeSpans(text, block, cuts) {
  const spans = [];
  for (const found of text.slice(block.start, block.end).matchAll(/`[^`\n]+`/g)) {
    const start = block.start + found.index;
    spans.push([start, start + found[0].length]);
    cuts.add(start).add(start + found[0].length);
  }
  return spans;
}
