// Small live charts in SVG: the last 90 seconds, newest at the right.

import { number } from "./amounts.js";

const SVG = "http://www.w3.org/2000/svg";
const POINTS = 90;
const WIDTH = 300;
const HEIGHT = 96;

function make(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// 1, 2 or 5 times a power of ten: the end of an axis that has room for the value.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

// `format` writes a value; `least` is the lowest end of the axis. Lines, or with `stacked` areas on top of each other; `limit` is drawn across if there is one.
export class Chart {
  constructor(figure, { format = number, stacked = false, least = 1 }) {
    Object.assign(this, { format, stacked, least });
    this.series = new Map(); // by name: its values, null where there is none
    this.limit = null;
    this.length = 0;
    this.legend = figure.querySelector("figcaption").appendChild(document.createElement("p"));
    this.legend.className = "legend";
    this.svg = figure.appendChild(make("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true",
    }));
    this.top = figure.appendChild(document.createElement("span"));
    this.top.className = "top";
  }

  // `values` by name; a name that is new begins now.
  add(values) {
    this.length = Math.min(this.length + 1, POINTS);
    for (const name of Object.keys(values)) {
      if (!this.series.has(name)) this.series.set(name, { points: [], ...this.#parts(name) });
    }
    for (const [name, { points }] of this.series) {
      points.push(values[name] ?? null);
      if (points.length > POINTS) points.shift();
    }
    this.#draw();
  }

  #parts(name) {
    const tone = `tone-${this.series.size + 1}`;
    const shape = this.svg.appendChild(make("path", { class: `${this.stacked ? "area" : "curve"} ${tone}` }));
    const entry = this.legend.appendChild(document.createElement("span"));
    entry.className = tone;
    const label = entry.appendChild(document.createElement("span"));
    label.textContent = name;
    const value = entry.appendChild(document.createElement("b"));
    return { shape, value };
  }

  #draw() {
    const most = this.#most();
    const end = this.limit && this.limit < most * 4 ? Math.max(this.limit, most) * 1.08 : roundUp(Math.max(most, this.least));
    const y = (value) => HEIGHT - (value / end) * (HEIGHT - 2);
    let below = new Array(POINTS).fill(0);
    for (const { points, shape, value } of this.series.values()) {
      const offset = POINTS - points.length;
      const x = (index) => (((offset + index) / (POINTS - 1)) * WIDTH).toFixed(1);
      const tops = points.map((point, index) => (point ?? 0) + (this.stacked ? below[offset + index] : 0));
      const upper = tops.map((top, index) => `${x(index)},${y(top).toFixed(1)}`);
      if (this.stacked) {
        const lower = tops.map((_, index) => `${x(index)},${y(below[offset + index]).toFixed(1)}`).reverse();
        shape.setAttribute("d", `M${[...upper, ...lower].join("L")}Z`);
        tops.forEach((top, index) => { below[offset + index] = top; });
      } else {
        shape.setAttribute("d", this.#curve(points, upper));
      }
      const last = points.at(-1);
      value.textContent = last === null ? "–" : this.format(last);
    }
    this.#drawLimit(y);
    this.top.textContent = this.limit && this.limit < most * 4 ? `limit ${this.format(this.limit)}` : this.format(end);
  }

  // A line with gaps where there is no value.
  #curve(points, places) {
    let path = "";
    points.forEach((point, index) => {
      if (point === null) return;
      path += (index > 0 && points[index - 1] !== null ? "L" : "M") + places[index];
      if (points[index - 1] == null && points[index + 1] == null) path += `L${places[index]}`;
    });
    return path;
  }

  #most() {
    const all = [...this.series.values()].map(({ points }) => points);
    if (!this.stacked) return Math.max(0, ...all.flat());
    const sums = new Array(POINTS).fill(0);
    for (const points of all) points.forEach((point, index) => { sums[POINTS - points.length + index] += point ?? 0; });
    return Math.max(0, ...sums);
  }

  #drawLimit(y) {
    if (!this.limit) return;
    this.line ??= this.svg.appendChild(make("path", { class: "limit" }));
    this.line.setAttribute("d", `M0,${y(this.limit).toFixed(1)}H${WIDTH}`);
  }
}
