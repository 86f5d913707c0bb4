// The runs to choose from: a table whose rows are kept, so that the focus and the ticks stay where they are while it grows.

import { el } from "./dom.js";
import { counted, plain, short, time } from "./quantity.js";

const COLUMNS = ["Run", "State", "Step", "Loss", "Tokens a second", "Time left"];
const AT_ONCE = 12; // rows before the rest is asked for

export class RunList {
  constructor(place, most, choose) {
    this.most = most;
    this.choose = choose;
    this.rows = new Map();
    this.chosen = [];
    this.isAll = false;
    this.body = el("tbody");
    const head = COLUMNS.map((words) => el("th", { scope: "col" }, words));
    const table = el("table", { class: "runs-table" }, el("thead", {}, el("tr", {}, ...head)), this.body);
    this.more = el("button", { type: "button", class: "button wide", hidden: true, click: () => this.all() });
    this.frame = el("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": "Runs" }, table);
    place.append(this.frame, this.more);
  }

  all() {
    this.isAll = true;
    this.show(this.runs, this.chosen);
  }

  show(runs, chosen) {
    this.runs = runs;
    this.chosen = chosen;
    this.frame.hidden = !runs.length;
    const shown = runs.filter((run, place) => this.isAll || place < AT_ONCE || chosen.includes(run.name));
    this.more.hidden = shown.length === runs.length;
    this.more.textContent = `Show all ${counted(runs.length)} runs`;
    const rows = shown.map((run) => this.row(run));
    const isSame = rows.length === this.body.children.length && rows.every((row, at) => row.tr === this.body.children[at]);
    if (!isSame) this.body.replaceChildren(...rows.map((row) => row.tr));
    const titles = runs.map((run) => run.title);
    shown.forEach((run, at) => this.fill(rows[at], run, titles.indexOf(run.title) !== titles.lastIndexOf(run.title)));
    for (const name of this.rows.keys()) if (!runs.some((run) => run.name === name)) this.rows.delete(name);
  }

  row(run) {
    if (this.rows.has(run.name)) return this.rows.get(run.name);
    const box = el("input", { type: "checkbox", change: () => this.tick(run.name, box.checked) });
    box.setAttribute("aria-label", `Show the curves of ${run.title}`);
    const swatch = el("span", { class: "swatch" });
    const title = el("button", { type: "button", class: "run-title", dir: "auto", click: () => this.choose([run.name]) });
    const path = el("span", { class: "path", dir: "auto" });
    const cells = COLUMNS.slice(1).map((name) => el("td", { "data-name": name }));
    const name = el("td", { class: "name" }, el("span", { class: "name-line" }, box, swatch, title), path);
    const made = { tr: el("tr", {}, name, ...cells), box, swatch, title, path, cells, bar: el("progress", { max: 1 }) };
    made.bar.setAttribute("aria-label", `Progress of ${run.title}`);
    made.words = el("span");
    cells[1].append(made.words, made.bar);
    this.rows.set(run.name, made);
    return made;
  }

  fill(row, run, isAmbiguous) {
    const place = this.chosen.indexOf(run.name);
    row.box.checked = place >= 0;
    row.box.disabled = place < 0 && this.chosen.length >= this.most;
    row.swatch.className = place >= 0 ? `swatch s${place}` : "swatch";
    row.tr.className = place >= 0 ? "chosen" : "";
    row.title.textContent = run.title;
    row.path.textContent = isAmbiguous || !run.name.startsWith(run.title) ? run.name : "";
    const [state, , loss, rate, left] = row.cells;
    state.replaceChildren(el("span", { class: `state ${run.state}` }, run.state));
    row.words.textContent = run.steps ? `${counted(run.step)} of ${counted(run.steps)}` : counted(run.step);
    row.bar.hidden = !run.steps;
    row.bar.value = run.steps ? run.step / run.steps : 0;
    loss.textContent = run.loss === null ? "" : plain(run.loss);
    rate.textContent = run.tokens_per_second === null || run.state !== "running" ? "" : short(run.tokens_per_second);
    left.textContent = run.seconds_left === null ? "" : time(run.seconds_left);
  }

  tick(name, isOn) {
    const names = this.chosen.filter((other) => other !== name);
    if (isOn) names.push(name);
    this.choose(names);
  }
}
