// One drawing of curves: lines over steps with the spread of every stretch behind them, and a cross-hair for the pointer
// and the arrow keys that reads the values.

import { announce, el, shape } from "./dom.js";
import { counted, short } from "./quantity.js";

const HEIGHT = 210;
const EDGE = { left: 56, right: 14, top: 10, bottom: 26 };
const TICKS = 4;
const FEW = 24;

export class Chart {
  /** `format` writes a value, `tick` one of a scale in given paces; `logarithmic` is asked at every drawing. */
  constructor(title, { format, tick = format }, logarithmic = () => false) {
    this.title = title;
    this.format = format;
    this.tick = tick;
    this.logarithmic = logarithmic;
    this.lines = [];
    this.at = null; // the step under the cross-hair
    this.svg = shape("svg", { role: "img", tabindex: "0", class: "chart" });
    this.readout = el("p", { class: "readout" });
    this.figure = el("figure", { class: "curve" }, el("h2", {}, title), this.readout, this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.move(null));
    this.svg.addEventListener("blur", () => this.move(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  /** Lines as { label, kind, points }, points as [stretch, last step, mean, least, most] in order, up to the step `last`. */
  show(lines, last) {
    this.last = Math.max(1, last);
    this.lines = lines.filter((line) => line.points.length);
    this.figure.hidden = !this.lines.length;
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width || !this.lines.length) return;
    this.x = scaleX(this.last, EDGE.left, width - EDGE.right);
    this.y = scaleY(this.lines, this.logarithmic(), HEIGHT - EDGE.bottom, EDGE.top);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("aria-label", `${this.title}. ${this.lines.map((line) => this.summary(line)).join(". ")}`);
    this.cross = shape("g", { class: "cross" });
    this.svg.replaceChildren(...this.grid(width), ...this.bands(), ...this.paths(), this.cross);
    this.mark();
  }

  summary({ label, points }) {
    const [first, last] = [points[0], points[points.length - 1]];
    return `${label}: ${this.format(first[2])} at step ${counted(first[1])}, ${this.format(last[2])} at step ${counted(last[1])}`;
  }

  grid(width) {
    const rows = this.y.ticks.flatMap((value) => [
      shape("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: this.y.of(value), y2: this.y.of(value) }),
      shape("text", { x: EDGE.left - 8, y: this.y.of(value) + 4, "text-anchor": "end" }, this.tick(value, this.y.pace)),
    ]);
    const columns = this.x.ticks.map((value, index) =>
      shape("text", { x: this.x.of(value), y: HEIGHT - 8, "text-anchor": index ? "middle" : "start" }, short(value)));
    return [...rows, ...columns];
  }

  bands() {
    return this.lines.filter(({ points }) => points.some((point) => point[4] > point[3])).map(({ kind, points }) => {
      const upper = points.map((point) => this.place(point[1], point[4]));
      const lower = points.map((point) => this.place(point[1], point[3])).reverse();
      return shape("polygon", { class: `band s${kind}`, points: [...upper, ...lower].join(" ") });
    });
  }

  /** Where points are few, each is marked: a line alone would not tell them from what lies between. */
  paths() {
    return this.lines.flatMap(({ kind, points }) => {
      const few = points.length > FEW ? [] : points.map((point) =>
        shape("circle", { class: `dot s${kind}`, cx: this.x.of(point[1]), cy: this.y.of(point[2]), r: 2.5 }));
      const places = points.map((point) => this.place(point[1], point[2])).join(" ");
      return [shape("polyline", { class: `line s${kind}`, points: places }), ...few];
    });
  }

  place(step, value) {
    return `${this.x.of(step).toFixed(1)},${this.y.of(value).toFixed(1)}`;
  }

  point(event) {
    if (!this.x) return;
    this.move(this.x.back(event.clientX - this.svg.getBoundingClientRect().left));
  }

  key(event) {
    const steps = this.lines[0]?.points.map((point) => point[1]) ?? [];
    if (!steps.length || !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") return this.move(null);
    const now = this.at === null ? steps.length : nearest(steps, this.at);
    const pace = event.shiftKey ? Math.ceil(steps.length / 20) : 1;
    const to = { ArrowLeft: now - pace, ArrowRight: now + pace, Home: 0, End: steps.length - 1 }[event.key];
    this.move(steps[Math.max(0, Math.min(steps.length - 1, to))]);
    announce(`${this.title}, ${this.readout.textContent}`);
  }

  move(step) {
    this.at = step;
    this.mark();
  }

  /** The cross-hair and the values at it; without one, the last values. */
  mark() {
    if (!this.x) return;
    const found = this.lines.map((line) => ({ ...line, point: this.near(line.points) }));
    const drawn = this.at === null ? [] : found.map(({ kind, point }) =>
      shape("circle", { class: `dot s${kind}`, cx: this.x.of(point[1]), cy: this.y.of(point[2]), r: 3.5 }));
    if (this.at !== null) {
      const x = this.x.of(found[0].point[1]);
      drawn.unshift(shape("line", { x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
    }
    this.cross.replaceChildren(...drawn);
    this.readout.replaceChildren(...found.map(({ label, kind, point }) => this.value(label, kind, point, found.length)));
  }

  near(points) {
    if (this.at === null) return points[points.length - 1];
    return points[nearest(points.map((point) => point[1]), this.at)];
  }

  value(label, kind, [, step, mean, least, most], count) {
    const spread = this.at !== null && most > least ? ` (${this.format(least)} to ${this.format(most)})` : "";
    const name = count > 1 ? [el("span", { class: `swatch s${kind}` }), el("span", { dir: "auto" }, label), " "] : [];
    return el("span", { class: "value" }, ...name, el("b", {}, this.format(mean)), `${spread} at step ${counted(step)} `);
  }
}

function nearest(steps, step) {
  let best = 0;
  for (let place = 1; place < steps.length; place += 1) {
    if (Math.abs(steps[place] - step) < Math.abs(steps[best] - step)) best = place;
  }
  return best;
}

function scaleX(last, from, to) {
  const of = (step) => from + ((to - from) * step) / last;
  return { of, back: (place) => ((place - from) / (to - from)) * last, ticks: ticks(0, last, Math.max(1, pace(0, last, TICKS))) };
}

/** A linear scale, or a logarithmic one where all values are above 0. */
function scaleY(lines, logarithmic, from, to) {
  const [low, high] = extent(lines, logarithmic && lines.every(({ points }) => points.every((point) => point[3] > 0)));
  const isLog = logarithmic && low > 0;
  const by = isLog ? Math.log : (value) => value;
  const [a, b] = [by(low), by(high)];
  const of = (value) => from + ((to - from) * (by(Math.max(low, Math.min(high, value))) - a)) / (b - a);
  const step = pace(low, high, TICKS);
  return { of, pace: isLog ? 0 : step, ticks: isLog ? powers(low, high) : ticks(low, high, step) };
}

/** All means and, of their spread, what does not dwarf them: a spike of one step is cut off at the edge. */
function extent(lines, isLog) {
  let [low, high] = [Infinity, -Infinity];
  let [least, most] = [Infinity, -Infinity];
  for (const { points } of lines) {
    for (const [, , mean, under, over] of points) {
      low = Math.min(low, mean);
      high = Math.max(high, mean);
      least = Math.min(least, under);
      most = Math.max(most, over);
    }
  }
  const span = high - low || Math.abs(high) * 0.1 || 1;
  const margin = span * 0.06;
  const bottom = Math.max(least, low - span * 0.5);
  const top = Math.min(most, high + span * 0.5);
  if (isLog) return [Math.max(bottom, Number.MIN_VALUE), top > bottom ? top : bottom * 1.1];
  const padded = bottom >= 0 ? Math.max(0, bottom - margin) : bottom - margin;
  return [padded, top + margin];
}

/** A round distance at which about `count` ticks fit. */
function pace(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.75);
}

function ticks(low, high, step) {
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    found.push(Number(value.toPrecision(12)));
  }
  return found;
}

function powers(low, high) {
  const factors = high / low > 50 ? [1] : high / low > 5 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of factors) found.push(Number((factor * 10 ** power).toPrecision(6)));
  }
  return found.filter((value) => value >= low && value <= high);
}
