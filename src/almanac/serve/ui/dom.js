// The only way this page makes elements: text goes in as text, and an attribute that could run something is refused.

const SVG = "http://www.w3.org/2000/svg";
const REFUSED = /^(on.*|style|srcdoc|src|srcset|formaction|action|ping|background|poster|data)$/i;

const PATHS = {
  send: "M12 19V6M6 11.5 12 5.5l6 6",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  print: "M7 9V4h10v5M7 17H4V9h16v8h-3M7 14h10v6H7z",
  check: "M5 12.5 10 17.5 19.5 7",
  none: "M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17zM6 6l12 12",
  warn: "M12 4 2.8 20h18.4zM12 10v4.5M12 17.2v.3",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM15.5 15.5 20 20",
  upload: "M12 16V5M7 10l5-5 5 5M4 19.5h16",
  trash: "M4 7h16M9 7V4h6v3M6.5 7l1 13h9l1-13M10 11v5M14 11v5",
  file: "M6 3.5h8l4 4v13H6zM14 3.5v4h4",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  plus: "M12 5v14M5 12h14",
  next: "M9 5.5l6.5 6.5L9 18.5",
  previous: "M15 5.5 8.5 12l6.5 6.5",
  out: "M13 5h6v6M19 5l-9 9M10 6H5v13h13v-5",
  again: "M19.5 12a7.5 7.5 0 1 1-2.2-5.3M19.5 4v4h-4",
};

/** An element. Attribute values that are functions become listeners; null, undefined and false leave it out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (REFUSED.test(name)) throw new TypeError(`attribute ${name} is not set from here`);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A shape of a drawing; the same refusals as for an element. */
export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (REFUSED.test(name)) throw new TypeError(`attribute ${name} is not set from here`);
    made.setAttribute(name, String(value));
  }
  made.append(...children);
  return made;
}

/** One of the icons above, hidden from assistive technology: its button carries the words. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon and words; `quiet` keeps the words for assistive technology and the tooltip. */
export function button(words, iconName, onClick, { quiet = false, kind = "" } = {}) {
  const label = quiet ? el("span", { class: "unseen" }, words) : words;
  return el(
    "button",
    { type: "button", class: `button ${kind} ${quiet ? "square" : ""}`, title: quiet ? words : null, click: onClick },
    iconName ? icon(iconName) : null,
    label,
  );
}

export const byId = (id) => document.getElementById(id);

const counting = new Intl.NumberFormat();

/** 1 passage, 2 passages, 12,000 passages. */
export function count(number, one, many = `${one}s`) {
  return `${counting.format(number)} ${number === 1 ? one : many}`;
}

export const figure = (number) => counting.format(number);

/** A time as a short local date, or the text itself where it is none. */
export function day(time) {
  const date = new Date(time);
  if (!time || Number.isNaN(date.getTime())) return String(time ?? "");
  return new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" }).format(date);
}

/** Says a sentence to assistive technology, without moving the focus. */
export function announce(words) {
  byId("announcer").textContent = words;
}
