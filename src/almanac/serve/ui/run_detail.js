// What there is to say of one run beside its curves: how it stands, what was forecast, how it writes, how it was set.

import { button, el } from "./dom.js";
import { bytes, counted, plain, short, time } from "./quantity.js";

const AT_ONCE = 4; // samples

export class RunDetail {
  constructor() {
    this.facts = el("dl", { class: "run-facts" });
    this.samples = el("div", { class: "samples" });
    this.samplesPart = part("How it writes", this.samples);
    this.forecast = el("tbody");
    const head = ["", "Forecast", "Measured"].map((words) => el("th", { scope: "col" }, words));
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...head)), this.forecast);
    this.forecastPart = part("Forecast and measured", table);
    this.settings = el("tbody");
    const frame = el("div", { class: "scroll-x" }, el("table", {}, this.settings));
    this.settingsPart = el("details", { class: "part" }, el("summary", {}, "Settings"), frame);
    this.more = el("div", { class: "more" }, this.samplesPart, this.forecastPart, this.settingsPart);
    this.isAll = false;
  }

  /** Shows a run, or nothing. What has not changed is left as it is, so that it can be read and selected. */
  show(held) {
    this.facts.hidden = this.more.hidden = !held;
    if (!held) return;
    this.held = held;
    const run = held.facts;
    this.facts.replaceChildren(...figures(run).flatMap(([name, value]) => [el("div", {}, el("dt", {}, name), el("dd", {}, value))]));
    this.write(held.samples);
    const rows = resources(run);
    this.forecastPart.hidden = !rows.length;
    replace(this.forecast, rows);
    this.settingsPart.hidden = !run.settings.length;
    replace(this.settings, run.settings);
  }

  write(samples) {
    this.samplesPart.hidden = !samples.length;
    const key = `${this.held.facts.name} ${this.isAll} ${samples.length} ${samples[0]?.step}`;
    if (key === this.written) return;
    this.written = key;
    const shown = this.isAll ? samples : samples.slice(0, AT_ONCE);
    const made = shown.map(({ step, text }) =>
      el("article", { class: "sample" }, el("h3", {}, `Step ${counted(step)}`), el("p", { dir: "auto" }, text)));
    const more = button("Show the earlier samples", null, () => this.all(), { kind: "wide" });
    this.samples.replaceChildren(...made, ...(shown.length < samples.length ? [more] : []));
  }

  all() {
    this.isAll = true;
    this.write(this.held.samples);
  }
}

const part = (words, content) => el("section", { class: "part" }, el("h2", {}, words), content);

function replace(body, rows) {
  const key = JSON.stringify(rows);
  if (body.dataset.key === key) return;
  body.dataset.key = key;
  body.replaceChildren(...rows.map(([name, ...values]) =>
    el("tr", {}, el("th", { scope: "row", dir: "auto" }, name), ...values.map((value) => el("td", { dir: "auto" }, value)))));
}

function figures(run) {
  const share = run.steps ? ` (${Math.floor((100 * run.step) / run.steps)} %)` : "";
  const seconds = run.saved_at === null ? null : Math.max(0, Date.now() / 1000 - run.saved_at);
  return [
    ["State", run.state],
    ["Step", run.steps ? `${counted(run.step)} of ${counted(run.steps)}${share}` : counted(run.step)],
    ["Loss of the last step", run.loss === null ? null : plain(run.loss)],
    ["Time left", run.seconds_left === null ? null : time(run.seconds_left)],
    ["Time in steps", run.seconds ? time(run.seconds) : null],
    ["Tokens seen", run.tokens ? short(run.tokens) : null],
    ["Tokens a second", run.tokens_per_second === null ? null : short(run.tokens_per_second)],
    ["Last checkpoint", run.saved === null ? null : `step ${counted(run.saved)}, ${time(seconds)} ago`],
    ["Steps without an update", run.skipped ? counted(run.skipped) : null],
    ["Returns to a checkpoint", run.rollbacks ? counted(run.rollbacks) : null],
  ].filter((row) => row[1] !== null);
}

function resources({ forecast, measured }) {
  const kinds = [
    ["Time", "seconds", time],
    ["Memory at its peak", "peak_bytes", bytes],
    ["Energy", "watt_hours", (value) => `${plain(value)} Wh`],
  ];
  const told = (found, name, format) => (typeof found?.[name] === "number" ? format(found[name]) : "");
  const rows = kinds.map(([words, name, format]) => [words, told(forecast, name, format), told(measured, name, format)]);
  return rows.filter((row) => row[1] || row[2]);
}
