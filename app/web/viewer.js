// A picture before and after, drawn from tiles: one place and one scale for both. Knows nothing of how "after" came to be.
import { h } from "./dom.js";
import * as pictures from "./pictures.js";
import { text } from "./strings.js";

const { TILE } = pictures;
const KEPT = 192; // tiles, of 1 MiB each
const LEAST = 0.02;
const MOST = 32; // device pixels a pixel
const SMOOTH = 2; // above it pixels are shown as squares
const GREY = "#767676";
const STEP = 0.1; // of the view, for one press of an arrow key
const NEAR = 24; // how near to the line, in CSS pixels, a press takes it

export const VIEWS = ["before", "split", "after", "removed"];

export class Viewer {
  // names: what the two sides are called
  constructor({ onmove, onview, onzoom, names = [text.viewer.before, text.viewer.after] }) {
    Object.assign(this, { onmove, onview, onzoom, names });
    this.canvas = h("canvas", { class: "picture" });
    this.handle = h("div", {
      class: "handle",
      role: "slider",
      tabIndex: 0,
      "aria-label": text.viewer.handle,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-orientation": "horizontal",
      onkeydown: (event) => this.#slide(event),
    });
    this.tags = [h("span", { class: "tag left" }, names[0]), h("span", { class: "tag right" }, names[1])];
    this.element = h(
      "div",
      { class: "stage", role: "group", tabIndex: 0, "aria-label": text.viewer.label, onkeydown: (event) => event.target === this.element && this.key(event) && event.preventDefault() },
      this.canvas,
      ...this.tags,
      this.handle,
    );
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.tiles = new Map();
    this.view = "split";
    this.split = 0.5;
    this.pointers = new Map();
    this.clear();
    this.element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      this.element.addEventListener(kind, (event) => this.#pointer(event));
    }
    new ResizeObserver(() => this.#resize()).observe(this.element);
  }

  clear() {
    this.before = this.after = this.patch = null;
    this.gain = 4;
    this.#forget();
    this.draw();
  }

  // before: what `pictures.open` gave. It opens at 100 %, on the flat patch.
  show(before) {
    this.clear();
    this.before = before;
    const [{ width, height }] = before.sizes;
    this.scale = 1;
    this.x = this.canvas.width >= width ? width / 2 : before.flat.x;
    this.y = this.canvas.height >= height ? height / 2 : before.flat.y;
    this.#moved();
  }

  setAfter(after, gain = this.gain) {
    if (after !== this.after || gain !== this.gain) this.#forget(/^(after|removed)/);
    this.after = after;
    this.gain = gain;
    this.draw();
  }

  // A part of "after" at (x, y), with its difference from "before".
  setPatch(patch) {
    this.patch = patch;
    this.draw();
  }

  setView(view) {
    this.view = view;
    this.draw();
    this.onview(view);
  }

  // While true, "before" is shown whatever the view.
  hold(held) {
    this.held = held;
    this.draw();
  }

  get size() {
    return this.before?.sizes[0];
  }

  // The part of the picture that is seen, in whole pixels.
  visible() {
    const { width, height } = this.size;
    const [w, h] = [this.canvas.width / this.scale / 2, this.canvas.height / this.scale / 2];
    const x = Math.max(0, Math.floor(this.x - w));
    const y = Math.max(0, Math.floor(this.y - h));
    return { x, y, width: Math.min(width, Math.ceil(this.x + w)) - x, height: Math.min(height, Math.ceil(this.y + h)) - y };
  }

  fit() {
    if (!this.before) return;
    const { width, height } = this.size;
    this.scale = Math.min(this.canvas.width / width, this.canvas.height / height);
    this.x = width / 2;
    this.y = height / 2;
    this.#moved();
  }

  // By a factor, keeping what lies under (x, y), device pixels from the canvas's corner, where it is.
  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.before) return;
    const scale = Math.min(MOST, Math.max(LEAST, this.scale * factor));
    const [dx, dy] = [x - this.canvas.width / 2, y - this.canvas.height / 2];
    this.x += dx / this.scale - dx / scale;
    this.y += dy / this.scale - dy / scale;
    this.scale = scale;
    this.#moved();
  }

  actual() {
    if (this.before) this.zoom(1 / this.scale);
  }

  pan(dx, dy) {
    if (!this.before) return;
    this.x += dx / this.scale;
    this.y += dy / this.scale;
    this.#moved();
  }

  #moved() {
    const { width, height } = this.size;
    const keep = (value, size, view) => (size <= view ? size / 2 : Math.min(size - view / 2, Math.max(view / 2, value)));
    this.x = keep(this.x, width, this.canvas.width / this.scale);
    this.y = keep(this.y, height, this.canvas.height / this.scale);
    this.draw();
    this.onzoom(this.scale);
    this.onmove();
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.element.clientWidth * ratio), Math.round(this.element.clientHeight * ratio)];
    if (!width || !height || (width === this.canvas.width && height === this.canvas.height)) return;
    this.canvas.width = width;
    this.canvas.height = height;
    if (this.before) this.#moved();
    else this.draw();
  }

  // One press is one step; Shift is ten.
  #slide(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -100, End: 100 }[event.key];
    if (!steps) return;
    event.preventDefault();
    event.stopPropagation();
    this.#setSplit(this.split + (steps * (event.shiftKey ? 10 : 1)) / 100);
  }

  #setSplit(value) {
    this.split = Math.min(1, Math.max(0, value));
    this.draw();
  }

  // Whether it means something here; then it is done.
  key(event) {
    if (!this.before || event.ctrlKey || event.metaKey || event.altKey) return false;
    const [w, h] = [this.canvas.width * STEP, this.canvas.height * STEP];
    const act = {
      ArrowLeft: () => this.pan(-w, 0),
      ArrowRight: () => this.pan(w, 0),
      ArrowUp: () => this.pan(0, -h),
      ArrowDown: () => this.pan(0, h),
      "+": () => this.zoom(Math.SQRT2),
      "=": () => this.zoom(Math.SQRT2),
      "-": () => this.zoom(Math.SQRT1_2),
      0: () => this.fit(),
      z: () => this.actual(),
      Z: () => this.actual(),
    }[event.key];
    act?.();
    return Boolean(act);
  }

  #wheel(event) {
    if (!this.before) return;
    event.preventDefault();
    const ratio = this.canvas.width / this.element.clientWidth;
    const pixels = event.deltaY * (event.deltaMode ? 24 : 1);
    const box = this.element.getBoundingClientRect();
    this.zoom(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.002)), (event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio);
  }

  #pointer(event) {
    if (!this.before) return;
    const ratio = this.canvas.width / this.element.clientWidth;
    const box = this.element.getBoundingClientRect();
    const at = { x: event.clientX - box.left, y: event.clientY - box.top };
    if (event.type === "pointerdown") {
      if (event.button !== 0) return;
      this.element.setPointerCapture(event.pointerId);
      const near = Math.abs(at.x - this.split * box.width) < NEAR || event.target === this.handle;
      at.slides = this.view === "split" && near && this.pointers.size === 0;
      this.pointers.set(event.pointerId, at);
      return;
    }
    const was = this.pointers.get(event.pointerId);
    if (!was) return;
    if (event.type !== "pointermove") {
      this.pointers.delete(event.pointerId);
      return;
    }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (was.slides) this.#setSplit(at.x / box.width);
    else if (other) {
      const apart = (p) => Math.max(1, Math.hypot(p.x - other.x, p.y - other.y));
      this.pan(((was.x - at.x) / 2) * ratio, ((was.y - at.y) / 2) * ratio);
      this.zoom(apart(at) / apart(was), ((at.x + other.x) / 2) * ratio, ((at.y + other.y) / 2) * ratio);
    } else this.pan((was.x - at.x) * ratio, (was.y - at.y) * ratio);
    this.pointers.set(event.pointerId, { ...at, slides: was.slides });
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.#draw();
    });
  }

  #draw() {
    const { context, canvas } = this;
    const view = this.held ? "before" : this.view;
    const split = Boolean(this.before) && view === "split";
    context.fillStyle = GREY;
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.handle.hidden = !split;
    this.tags[0].hidden = !this.before || !(split || view === "before");
    this.tags[1].hidden = !this.before || view === "before" || !(this.after || this.patch); // nothing was made that could be called so
    this.tags[1].textContent = view === "removed" ? text.viewer.removed(this.gain) : this.names[1];
    if (!this.before) return;
    context.imageSmoothingEnabled = this.scale <= SMOOTH;
    if (!split) return this.#side(view, 0, canvas.width);
    const line = Math.round(this.split * canvas.width);
    this.#side("before", 0, line);
    this.#side("after", line, canvas.width);
    this.handle.style.left = `${this.split * 100}%`;
    const percent = Math.round(this.split * 100);
    this.handle.setAttribute("aria-valuenow", percent);
    this.handle.setAttribute("aria-valuetext", text.viewer.split(percent));
  }

  // One picture between two columns of the canvas.
  #side(view, left, right) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, this.canvas.height);
    context.clip();
    if (view === "before" || (this.after && view === "after")) this.#picture(view, this[view], left, right);
    else if (this.after && view === "removed") this.#picture(view, null, left, right);
    else {
      if (view === "after") this.#picture("before", this.before, left, right);
      const part = view === "after" ? this.patch?.bitmap : this.patch?.removed;
      if (part) this.#put(part, this.patch.x, this.patch.y, this.patch.width, this.patch.height);
    }
    context.restore();
  }

  #picture(view, opened, left, right) {
    const whole = this.size;
    const levels = this.before.sizes;
    const level = Math.min(levels.length - 1, Math.max(0, Math.floor(Math.log2(1 / this.scale) + 1e-6)));
    const { width, height } = levels[level];
    const [across, down] = [whole.width / width, whole.height / height];
    if (opened) this.#put(opened.bitmap, 0, 0, whole.width, whole.height);
    const seen = this.visible();
    const toX = (column) => this.x + (column - this.canvas.width / 2) / this.scale;
    const first = Math.floor(Math.max(seen.x, toX(left)) / across / TILE);
    const last = Math.min(seen.x + seen.width, toX(right)) / across;
    for (let row = Math.floor(seen.y / down / TILE); row * TILE < (seen.y + seen.height) / down; row++) {
      for (let column = Math.max(0, first); column * TILE < last; column++) {
        const [x, y] = [column * TILE, row * TILE];
        const bitmap = this.#tile(view, level, x, y);
        if (bitmap) this.#put(bitmap, x * across, y * down, bitmap.width * across, bitmap.height * down);
      }
    }
  }

  // Edges on whole device pixels, so that no seam shows between two tiles.
  #put(bitmap, x, y, width, height) {
    const toX = (value) => Math.round((value - this.x) * this.scale + this.canvas.width / 2);
    const toY = (value) => Math.round((value - this.y) * this.scale + this.canvas.height / 2);
    this.context.drawImage(bitmap, toX(x), toY(y), toX(x + width) - toX(x), toY(y + height) - toY(y));
  }

  #tile(view, level, x, y) {
    const key = `${view} ${level} ${x} ${y}`;
    const kept = this.tiles.get(key);
    if (kept) {
      this.tiles.delete(key); // and in again, as the one used last
      this.tiles.set(key, kept);
      return kept === "asked" ? null : kept;
    }
    this.tiles.set(key, "asked");
    this.#ask(view, level, x, y).then(
      (bitmap) => {
        if (this.tiles.get(key) !== "asked") return bitmap.close();
        this.tiles.set(key, bitmap);
        for (const [old, value] of this.tiles) {
          if (this.tiles.size <= KEPT) break;
          if (value !== "asked") value.close();
          this.tiles.delete(old);
        }
        this.draw();
      },
      () => this.tiles.delete(key),
    );
    return null;
  }

  #ask(view, level, x, y) {
    if (view !== "removed") return pictures.tile(this[view].id, level, x, y);
    const { width, height } = this.before.sizes[level];
    const size = { width: Math.min(TILE, width - x), height: Math.min(TILE, height - y) };
    const [before, after] = [this.before.id, this.after.id];
    return pictures.difference({ before, after, dx: 0, dy: 0, level, x, y, ...size, gain: this.gain });
  }

  #forget(which = /./) {
    for (const [key, tile] of this.tiles) {
      if (!which.test(key)) continue;
      if (tile !== "asked") tile.close();
      this.tiles.delete(key);
    }
  }
}
