// Markdown to elements, for answers and for the card: headings, paragraphs, lists, tables, quotes, code. HTML in it is
// text. Reference-style links and images are not resolved: their definitions stay visible as what they are.

import { el } from "./dom.js";
import { inline } from "./inline.js";

const MAX_CHARACTERS = 400_000; // a longer text is shown as it is
const MAX_DEPTH = 8; // quotes and lists within each other
const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** A fragment. `mark` as in `inline`; `top` is the level that the text's first-level heading gets. */
export function markdown(text, { mark, top = 3 } = {}) {
  const fragment = document.createDocumentFragment();
  if (text.length > MAX_CHARACTERS) fragment.append(el("pre", {}, text));
  else fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), { mark, top, depth: 0 }));
  return fragment;
}

function blocks(lines, context) {
  const nodes = [];
  for (let line = 0; line < lines.length; ) {
    if (lines[line].trim() === "") {
      line += 1;
      continue;
    }
    const [node, next] = block(lines, line, context);
    nodes.push(node);
    line = next;
  }
  return nodes;
}

function block(lines, line, context) {
  const text = lines[line];
  if (FENCE.test(text)) return fenced(lines, line);
  const heading = HEADING.exec(text);
  if (heading) {
    const level = Math.min(6, heading[1].length - 1 + context.top);
    const words = text.slice(heading[0].length).trim().replace(/(?:^|[ \t])#+$/, "");
    return [el(`h${level}`, {}, ...inline(words, context.mark)), line + 1];
  }
  if (RULE.test(text)) return [el("hr"), line + 1];
  if (context.depth < MAX_DEPTH) {
    if (QUOTE.test(text)) return quote(lines, line, context);
    if (ITEM.test(text)) return list(lines, line, context);
  }
  if (isTable(lines, line)) return table(lines, line, context);
  return paragraph(lines, line, context);
}

const isTable = (lines, line) => lines[line].includes("|") && DELIMITER.test(lines[line + 1] ?? "");

function starts(lines, line) {
  const text = lines[line];
  return FENCE.test(text) || HEADING.test(text) || RULE.test(text) || QUOTE.test(text) || ITEM.test(text);
}

function paragraph(lines, line, context) {
  let end = line + 1;
  while (end < lines.length && lines[end].trim() !== "" && !starts(lines, end) && !isTable(lines, end)) end += 1;
  const text = lines.slice(line, end).map((part) => part.trim()).join("\n");
  return [el("p", {}, ...inline(text, context.mark)), end];
}

function fenced(lines, line) {
  const fence = FENCE.exec(lines[line])[1];
  let end = line + 1;
  while (end < lines.length && !closes(lines[end], fence)) end += 1;
  const code = el("code", {}, lines.slice(line + 1, end).join("\n"));
  return [el("pre", { tabindex: "0" }, code), Math.min(end + 1, lines.length)];
}

function closes(text, fence) {
  const bare = text.trim();
  return bare.length >= fence.length && bare === fence[0].repeat(bare.length);
}

function quote(lines, line, context) {
  let end = line;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(line, end).map((text) => text.replace(QUOTE, ""));
  return [el("blockquote", {}, ...blocks(inner, { ...context, depth: context.depth + 1 })), end];
}

const indentOf = (text) => text.length - text.trimStart().length;

function list(lines, line, context) {
  const [, lead, sign] = ITEM.exec(lines[line]);
  const ordered = /\d/.test(sign);
  const items = [];
  let next = line;
  while (next < lines.length) {
    const found = ITEM.exec(lines[next]);
    if (!found || Math.abs(found[1].length - lead.length) > 1 || /\d/.test(found[2]) !== ordered) break;
    const content = [lines[next].slice(found[0].length)];
    next += 1;
    while (next < lines.length && belongs(lines, next, found[1].length)) {
      content.push(lines[next].slice(Math.min(indentOf(lines[next]), found[0].length)));
      next += 1;
    }
    items.push(item(content, context));
  }
  const start = ordered ? Number.parseInt(sign, 10) : 1;
  return [el(ordered ? "ol" : "ul", { start: start === 1 ? null : start }, ...items), next];
}

function belongs(lines, line, indent) {
  if (lines[line].trim() === "") {
    const after = lines[line + 1] ?? "";
    return after.trim() !== "" && indentOf(after) > indent + 1;
  }
  return indentOf(lines[line]) > indent + 1 || !starts(lines, line);
}

function item(content, context) {
  const nodes = blocks(content, { ...context, depth: context.depth + 1 });
  const [first, ...rest] = nodes;
  if (first?.tagName !== "P") return el("li", {}, ...nodes);
  return el("li", {}, ...first.childNodes, ...rest);
}

function cells(text) {
  const inner = text.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, line, context) {
  const width = cells(lines[line]).length;
  const row = (text, tag) => {
    const found = cells(text).slice(0, width);
    return el("tr", {}, ...found.map((cell) => el(tag, {}, ...inline(cell, context.mark))));
  };
  const head = row(lines[line], "th");
  const body = [];
  let end = line + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim() !== "") {
    body.push(row(lines[end], "td"));
    end += 1;
  }
  const made = el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
  return [el("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": "Table" }, made), end];
}
