// What this assistant is: its card, its figures, its settings, and the way to the report of its build.

import { assistant as fetchAssistant, ticket } from "./api.js";
import { button, byId, day, el, figure } from "./dom.js";
import { markdown } from "./markdown.js";
import { forgetToken, token } from "./token.js";

const MAX_ROWS = 400; // of settings or figures: more is data, not a page

export class About {
  constructor() {
    this.view = byId("about");
  }

  /** Gets what the server tells. Throws ApiError. */
  async load() {
    this.facts = await fetchAssistant();
    return this.facts;
  }

  async show() {
    try {
      await this.load();
      this.render();
    } catch (error) {
      const again = button("Try again", "again", () => this.show());
      const problem = el("p", { class: "problem", role: "alert" }, error.message);
      this.view.replaceChildren(el("div", { class: "sheet" }, el("h1", {}, "About"), problem, again));
    }
  }

  render() {
    const { facts } = this;
    const rows = [
      ["Base model", facts.base_model],
      ["Built", day(facts.created)],
      ["Documents", figure(facts.documents ?? 0)],
      ["Passages", figure(facts.passages ?? 0)],
    ].filter((row) => row[1]);
    const list = rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { dir: "auto" }, String(value))]);
    const side = el(
      "div",
      { class: "about-side" },
      el("dl", { class: "fact-list" }, ...list),
      facts.has_report ? this.report() : null,
      token() ? button("Forget the token", null, () => this.forget()) : null,
    );
    const card = el("article", { class: "prose card", "aria-label": "Card", dir: "auto" });
    card.append(facts.card ? markdown(String(facts.card), { top: 2 }) : "This assistant has no card.");
    const more = [
      this.values("Settings", facts.settings),
      this.values("Figures of the evaluation", facts.evaluations),
    ];
    this.view.replaceChildren(
      el(
        "div",
        { class: "sheet" },
        el("header", { class: "heading" }, el("div", {}, el("h1", { dir: "auto" }, facts.name),
          el("p", { class: "facts" }, "What this assistant is, what it was made from, and how good it is"))),
        el("div", { class: "about" }, el("div", { class: "about-main" }, card, ...more), side),
      ),
    );
  }

  report() {
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const open = button("Open the report", "out", async () => {
      try {
        const query = token() ? `?ticket=${encodeURIComponent(await ticket())}` : "";
        el("a", { href: `report${query}`, target: "_blank", rel: "noopener" }).click();
        problem.hidden = true;
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
      }
    }, { kind: "primary" });
    return el("div", {}, open, el("p", { class: "hint" }, "How it was built and measured, in a new tab."), problem);
  }

  forget() {
    forgetToken();
    window.location.reload();
  }

  values(words, value) {
    const rows = [...leaves(value ?? {}, [])].slice(0, MAX_ROWS);
    if (!rows.length) return null;
    const row = ([name, text]) =>
      el("tr", {}, el("th", { scope: "row", dir: "auto" }, name), el("td", { dir: "auto" }, text));
    const table = el("table", {}, el("tbody", {}, ...rows.map(row)));
    const frame = el("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": words }, table);
    return el("details", { class: "values" }, el("summary", {}, words), frame);
  }
}

const isInterval = (value) => ["mean", "low", "high"].every((name) => typeof value[name] === "number");
const short = (number) => String(Number.isInteger(number) ? number : Number(number.toPrecision(3)));

/** Pairs of a path and a text for every leaf of a JSON value; lists of objects are data and left out. */
function* leaves(value, path) {
  if (Array.isArray(value)) {
    if (value.every((item) => typeof item !== "object")) yield [path.join(" · "), value.join(", ")];
  } else if (value !== null && typeof value === "object") {
    if (isInterval(value)) {
      yield [path.join(" · "), `${value.mean.toFixed(2)} (${value.low.toFixed(2)}–${value.high.toFixed(2)})`];
    } else {
      for (const [name, inner] of Object.entries(value)) yield* leaves(inner, [...path, name.replaceAll("_", " ")]);
    }
  } else {
    yield [path.join(" · "), typeof value === "number" ? short(value) : String(value ?? "–")];
  }
}
