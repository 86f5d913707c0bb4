// Markdown inside a line, to nodes. Whatever is not understood stays the text it was; nothing is ever parsed as HTML.
// Images are their words, links are their full address with a button: no address enters the page's markup, so nothing
// can be fetched, resolved or followed before a person clicks.

import { el } from "./dom.js";

const MAX_DEPTH = 6; // emphasis within emphasis
const IMAGE = /!\[([^\]\n]{0,500})\](?:\([^)\n]{0,4000}\)|\[[^\]\n]{0,500}\])?/y;
const LINK = /\[([^\]\n]{1,500})\]\(\s*<?([^\s()<>]{1,4000})>?(?:\s+(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?\s*\)/y;
const CITATION = /\[(\d{1,3})\]/y;
const POINTED = /<(https?:\/\/[^\s<>]{1,4000})>/y;
const BARE = /https?:\/\/[^\s<>"'`|\\^{}\[\]]{1,4000}/y;
const TICKS = /`+/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const SPECIAL = /[\\`![<*_h]/g;

function at(pattern, text, position) {
  pattern.lastIndex = position;
  return pattern.exec(text);
}

/** The address as the browser would open it, or null for one that is not on the web. */
export function webAddress(address) {
  try {
    const url = new URL(address);
    return url.protocol === "https:" || url.protocol === "http:" ? url : null;
  } catch {
    return null;
  }
}

function openOutside(url) {
  const link = el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" });
  link.click();
}

/** A link: its words, its whole address as text, and a button that names the host it opens. */
function link(words, address) {
  const url = webAddress(address);
  if (url === null) return [words === address ? words : `${words} (${address})`];
  const shown = words === address || words === url.href ? [] : [`${words} `];
  const open = el("button", { type: "button", class: "open-link", click: () => openOutside(url) }, "open");
  open.setAttribute("aria-label", `open ${url.hostname} in a new tab`);
  open.title = `Opens ${url.hostname}`;
  return [...shown, el("bdi", { class: "address" }, url.href), " ", open];
}

function emphasis(text, position, state) {
  const sign = text[position];
  const marker = text[position + 1] === sign ? sign + sign : sign;
  const inside = position + marker.length;
  const before = text[position - 1] ?? " ";
  if (state.depth >= MAX_DEPTH || state.unclosed.has(marker)) return null;
  if (!/\S/.test(text[inside] ?? " ") || (sign === "_" && /\w/.test(before))) return null;
  for (let close = text.indexOf(marker, inside + 1); close !== -1; close = text.indexOf(marker, close + 1)) {
    const after = text[close + marker.length] ?? " ";
    if (/\s/.test(text[close - 1]) || (marker.length === 1 && after === sign)) continue;
    if (sign === "_" && /\w/.test(after)) continue;
    const nodes = inline(text.slice(inside, close), state.mark, state.depth + 1);
    return { nodes: [el(marker.length === 2 ? "strong" : "em", {}, ...nodes)], end: close + marker.length };
  }
  state.unclosed.add(marker); // what has no end from here has none further on: keeps hostile text linear
  return null;
}

function code(text, position, state) {
  const ticks = at(TICKS, text, position)[0];
  const inside = position + ticks.length;
  if (!state.unclosed.has(ticks)) {
    const closing = new RegExp(`(?<!\`)${ticks}(?!\`)`, "g");
    closing.lastIndex = inside;
    const close = closing.exec(text);
    if (close) {
      const words = text.slice(inside, close.index).replace(/^ (.*\S.*) $/s, "$1");
      return { nodes: [el("code", {}, words)], end: close.index + ticks.length };
    }
    state.unclosed.add(ticks);
  }
  return { nodes: [ticks], end: inside };
}

function bracket(text, position, state) {
  const citation = at(CITATION, text, position);
  const marked = citation && state.mark(Number(citation[1]));
  if (marked) return { nodes: [marked], end: position + citation[0].length };
  const found = at(LINK, text, position);
  return found && { nodes: link(found[1], found[2]), end: position + found[0].length };
}

function bare(text, position) {
  if (/\w/.test(text[position - 1] ?? " ")) return null;
  const found = at(BARE, text, position);
  if (!found) return null;
  let address = found[0].replace(/[.,;:!?*_]+$/, "");
  while (address.endsWith(")") && address.split("(").length < address.split(")").length) address = address.slice(0, -1);
  return { nodes: link(address, address), end: position + address.length };
}

function special(text, position, state) {
  const sign = text[position];
  if (sign === "\\") {
    const next = text[position + 1];
    return next && PUNCTUATION.test(next) ? { nodes: [next], end: position + 2 } : null;
  }
  if (sign === "`") return code(text, position, state);
  if (sign === "!") {
    const image = at(IMAGE, text, position);
    const words = image && (image[1] || "without a description");
    return image && { nodes: [el("span", { class: "image" }, `image: ${words}`)], end: position + image[0].length };
  }
  if (sign === "[") return bracket(text, position, state);
  if (sign === "<") {
    const found = at(POINTED, text, position);
    return found && { nodes: link(found[1], found[1]), end: position + found[0].length };
  }
  return sign === "h" ? bare(text, position) : emphasis(text, position, state);
}

/**
 * Nodes and strings for one line or paragraph. `mark(number)` gives the node for a citation like [1], or null where
 * there is none of that number, which leaves the text.
 */
export function inline(text, mark = () => null, depth = 0) {
  const state = { mark, depth, unclosed: new Set() };
  const nodes = [];
  let plain = "";
  let position = 0;
  while (position < text.length) {
    SPECIAL.lastIndex = position;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(position, next);
    position = next;
    if (position === text.length) break;
    const found = special(text, position, state);
    if (found) {
      if (plain) nodes.push(plain);
      plain = "";
      nodes.push(...found.nodes);
      position = found.end;
    } else {
      plain += text[position];
      position += 1;
    }
  }
  if (plain) nodes.push(plain);
  return nodes;
}
