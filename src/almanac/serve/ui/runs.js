// The page of training runs: a list to choose from, the curves of those chosen, one above the other, and for a single
// run its samples, its forecast and its settings. It asks the server every few seconds while it can be seen.

import { trainingRun, trainingRuns } from "./api.js";
import { themeButton } from "./appearance.js";
import { Chart } from "./curve.js";
import { byId, count, el } from "./dom.js";
import { bytes, counted, plain, short, tick } from "./quantity.js";
import { RunDetail } from "./run_detail.js";
import { RunList } from "./run_list.js";

const MOST = 6; // runs compared at once: as many as there are kinds of lines
const RUNNING_MS = 2000;
const RESTING_MS = 15000;
const READING_MS = 100;

const figure = { format: plain, tick };
const CURVES = [
  ["loss", "Training loss, nats a token", figure, true],
  ["held_out_loss", "Loss on held-out text, nats a token", figure, true],
  ["bits_per_byte", "Bits a byte of held-out text", figure, false],
  ["learning_rate", "Learning rate", figure, false],
  ["gradient_norm", "Gradient norm", figure, false],
  ["tokens_per_second", "Tokens a second", { format: short }, false],
  ["memory_bytes", "Memory held by the process", { format: bytes }, false],
];

/** One run's curves, put together from the answers so far. */
class Held {
  constructor() {
    this.version = "";
    this.curves = new Map();
    this.samples = [];
    this.facts = null;
  }

  take(answer) {
    if (answer.whole) this.curves.clear();
    for (const [name, points] of Object.entries(answer.curves)) {
      if (name === "held_out_loss" || name === "bits_per_byte" || !this.curves.has(name)) this.curves.set(name, new Map());
      for (const point of points) this.curves.get(name).set(point[0], point);
    }
    this.samples = answer.samples ?? this.samples;
    this.version = answer.version;
    this.facts = answer;
  }

  points(name) {
    return [...(this.curves.get(name)?.values() ?? [])].sort((one, other) => one[0] - other[0]);
  }
}

class Page {
  constructor() {
    this.held = new Map();
    this.runs = [];
    this.timer = 0;
    this.asking = false;
    this.list = new RunList(byId("run-list"), MOST, (names) => this.choose(names));
    this.log = el("input", { type: "checkbox", id: "logarithmic", change: () => this.draw() });
    this.charts = CURVES.map(([name, title, formats, canLog]) =>
      [name, new Chart(title, formats, () => canLog && this.log.checked)]);
    this.detail = new RunDetail();
    this.note = el("p", { class: "hint", hidden: true });
    const toggle = el("label", { class: "toggle", for: "logarithmic" }, this.log, "Logarithmic loss");
    byId("chosen").append(
      this.detail.facts,
      el("div", { class: "chosen-head" }, this.note, toggle),
      el("div", { class: "curves" }, ...this.charts.map(([, chart]) => chart.figure)),
      this.detail.more,
    );
    byId("chosen").hidden = true;
  }

  /** The names in the address, as far as there are such runs; the one that changed last where there are none. */
  get chosen() {
    const named = window.location.hash.replace(/^#\/?/, "").split("&").filter(Boolean).map(decoded);
    const known = named.filter((name) => this.runs.some((run) => run.name === name)).slice(0, MOST);
    return known.length || !this.runs.length ? known : [this.runs[0].name];
  }

  choose(names) {
    const address = `#/${names.map(encodeURIComponent).join("&")}`;
    if (address !== window.location.hash) window.history.replaceState(null, "", address);
    this.draw();
    this.poll();
  }

  async poll() {
    window.clearTimeout(this.timer);
    if (this.asking) return;
    this.asking = true;
    let pause = RESTING_MS;
    try {
      pause = await this.ask();
      tell("");
    } catch (error) {
      tell(error.message);
    }
    this.asking = false;
    window.clearTimeout(this.timer);
    if (document.visibilityState === "visible") this.timer = window.setTimeout(() => this.poll(), pause);
  }

  /** Gets what is new and draws it; gives the pause before the next time. */
  async ask() {
    const answer = await trainingRuns();
    this.runs = answer.data;
    byId("assistant-link").hidden = !answer.has_assistant;
    let reading = false;
    this.draw();
    for (const name of this.chosen) {
      const held = this.held.get(name) ?? new Held();
      held.take(await trainingRun(name, held.version));
      this.held.set(name, held);
      reading ||= !held.facts.complete;
    }
    for (const name of this.held.keys()) if (!this.chosen.includes(name)) this.held.delete(name);
    this.draw();
    if (reading) return READING_MS;
    return this.runs.some((run) => run.state === "running") ? RUNNING_MS : RESTING_MS;
  }

  draw() {
    const names = this.chosen;
    const running = this.runs.filter((run) => run.state === "running").length;
    byId("runs-facts").textContent = this.runs.length
      ? `${count(this.runs.length, "run")}, ${running ? `${counted(running)} running` : "none running"}`
      : "There are no training runs in this folder yet. This page shows them when they begin.";
    this.list.show(this.runs, names);
    byId("chosen").hidden = !names.length;
    const lines = names
      .map((name, kind) => ({ name, kind, held: this.held.get(name) }))
      .filter(({ held }) => held?.facts);
    const last = Math.max(0, ...lines.map(({ held }) => held.facts.step));
    for (const [curve, chart] of this.charts) {
      chart.show(lines.map(({ kind, held }) => ({ label: held.facts.title, kind, points: held.points(curve) })), last);
    }
    this.detail.show(lines.length === 1 && names.length === 1 ? lines[0].held : null);
    this.remark(lines.map(({ held }) => held.facts));
  }

  remark(facts) {
    const words = facts.flatMap((fact) => [
      fact.complete ? null : `Reading the log of ${fact.title}: ${Math.round(fact.share_read * 100)} %.`,
      fact.damaged_lines ? `${count(fact.damaged_lines, "line")} in the log of ${fact.title} could not be read.` : null,
    ]).filter(Boolean);
    this.note.textContent = words.join(" ");
    this.note.hidden = !words.length;
  }
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // not an address of ours
  }
}

function tell(words) {
  byId("banner").textContent = words;
  byId("banner").hidden = !words;
}

const page = new Page();
byId("tools").append(themeButton());
byId("skip").addEventListener("click", () => byId("main").focus());
byId("token-cancel").addEventListener("click", () => byId("token-dialog").close("cancel"));
window.addEventListener("hashchange", () => page.poll());
window.addEventListener("offline", () => tell("This device is offline."));
window.addEventListener("online", () => page.poll());
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && page.poll());
page.poll();
