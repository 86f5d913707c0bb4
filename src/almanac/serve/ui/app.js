// The page: its views, its keys, its theme. Everything else is in the file named after it.

import { About } from "./about.js";
import { themeButton } from "./appearance.js";
import { Chat } from "./chat.js";
import { Documents } from "./documents.js";
import { byId } from "./dom.js";
import { Reader } from "./reader.js";

const VIEWS = ["ask", "documents", "about"];

const reader = new Reader();
const chat = new Chat(reader);
const documents = new Documents(reader);
const about = new About();

function currentView() {
  const name = window.location.hash.replace(/^#\//, "");
  return VIEWS.includes(name) ? name : "ask";
}

function route() {
  const name = currentView();
  for (const view of VIEWS) byId(view).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = name;
  if (name === "documents") documents.show();
  if (name === "about") about.show();
  if (name === "ask") chat.focus();
}

function tell(words) {
  byId("banner").textContent = words;
  byId("banner").hidden = !words;
}

async function refresh() {
  try {
    const [facts, entries] = await Promise.all([about.load(), documents.load()]);
    byId("name").textContent = facts.name;
    document.title = `${facts.name} · Almanac`;
    byId("runs-link").hidden = !facts.has_runs;
    chat.welcome(facts, entries);
    tell("");
  } catch (error) {
    tell(error.message);
  }
}

function keys(event) {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.matches?.("input, textarea");
  if (event.key === "Escape") {
    if (chat.halt() || reader.close()) event.preventDefault();
  } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    if (currentView() === "documents") documents.filter.focus();
    else if (currentView() === "ask") chat.focus();
    else window.location.hash = "#/ask";
  }
}

byId("tools").append(themeButton());
byId("skip").addEventListener("click", () => byId("main").focus());
byId("token-cancel").addEventListener("click", () => byId("token-dialog").close("cancel"));
document.addEventListener("keydown", keys);
document.addEventListener("documents-changed", refresh);
window.addEventListener("hashchange", route);
window.addEventListener("offline", () => tell("This device is offline. What you typed is kept."));
window.addEventListener("online", refresh);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refresh());
route();
refresh();
