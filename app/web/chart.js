// A curve or two over the same steps, as SVG; its last and pointed-at values in words below.
import { h } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 120;
const LEFT = 56;
const RIGHT = 12;
const BOTTOM = 20;

function s(tag, given = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// series: [{name, unit, digits, points: [[x, y], …]}], each in a band of its own
export class Chart {
  constructor({ label, series, x }) {
    Object.assign(this, { label, series, x });
    this.svg = s("svg", { role: "img" });
    this.words = h("figcaption");
    this.element = h("figure", { class: "chart" }, this.svg, this.words);
    this.svg.addEventListener("pointermove", (event) => this.#point(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerleave", () => this.#point(null));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  add(index, point) {
    this.series[index].points.push(point);
    this.drawing ??= requestAnimationFrame(() => this.draw());
  }

  clear() {
    for (const { points } of this.series) points.length = 0;
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = undefined;
    const width = this.element.clientWidth;
    if (!width) return;
    const all = this.series.flatMap(({ points }) => points.map(([x]) => x));
    const last = Math.max(1, ...all);
    this.toX = (x) => LEFT + (x / last) * (width - LEFT - RIGHT);
    this.last = last;
    const height = this.series.length * HEIGHT + BOTTOM;
    const drawn = this.series.flatMap((series, i) => this.#band(series, i * HEIGHT, width));
    const steps = ticks(0, last, Math.max(2, Math.floor(width / 160)), true).map((step) =>
      s("text", { x: this.toX(step), y: height - 4, "text-anchor": step === 0 ? "start" : "middle" }, step.toLocaleString()),
    );
    this.line = s("line", { class: "cursor", y1: 0, y2: height - BOTTOM, visibility: "hidden" });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...drawn, ...steps, this.line);
    this.#point(null);
  }

  #band({ name, unit, points, digits }, top, width) {
    const values = points.map(([, y]) => y);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (!(high > low)) [low, high] = [low * 0.9, low * 1.1 || 1];
    const toY = (y) => top + 18 + (1 - (y - low) / (high - low)) * (HEIGHT - 30);
    const at = ticks(low, high, 3);
    const places = Math.max(digits, -Math.floor(Math.log10(Math.abs(at[1] - at[0]) || 1)));
    const lines = at.flatMap((y) => [
      s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: toY(y), y2: toY(y) }),
      s("text", { x: LEFT - 8, y: toY(y) + 4, "text-anchor": "end" }, y.toFixed(places)),
    ]);
    const curve = points.map(([x, y]) => `${this.toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" ");
    const dot = points.length === 1 ? [s("circle", { cx: this.toX(points[0][0]), cy: toY(points[0][1]), r: 3 })] : [];
    const title = s("text", { class: "title", x: LEFT + 4, y: top + 8 }, unit ? `${name},${unit}` : name);
    return [...(points.length ? [...lines, title] : []), s("polyline", { class: "curve", points: curve }), ...dot];
  }

  // The values at a column of the figure, or the last ones.
  #point(column) {
    const step = column === null || !this.toX ? Infinity : ((column - LEFT) / (this.toX(this.last) - LEFT)) * this.last;
    const told = this.series.map(({ name, unit, digits, points }) => {
      const at = points.findLast(([x]) => x <= step) ?? points[0];
      return at && { x: at[0], words: `${name} ${at[1].toFixed(digits)}${unit}` };
    });
    const found = told.filter(Boolean);
    const x = Math.max(0, ...found.map((each) => each.x));
    this.words.textContent = found.length ? `${this.x(x)}: ${found.map((each) => each.words).join(", ")}` : this.x(0);
    this.svg.setAttribute("aria-label", `${this.label}. ${this.words.textContent}`);
    if (!this.line) return;
    this.line.setAttribute("visibility", column === null || !found.length ? "hidden" : "visible");
    this.line.setAttribute("x1", this.toX(x));
    this.line.setAttribute("x2", this.toX(x));
  }
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count, whole = false) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = power * ([1, 2, 5].find((each) => each * power >= rough) ?? 10);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}
