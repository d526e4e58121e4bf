// The Denoise part: pictures come in, each is shown before and after, and goes out as a file.
import { carriesFiles, dropped, h, hide, range, save, say, settled } from "./dom.js";
import * as pictures from "./pictures.js";
import { Problem, cancelled, denoise, denoiseKept, hasKey, json } from "./service.js";
import { bytes, duration, text } from "./strings.js";
import { VIEWS, Viewer } from "./viewer.js";

const DEFAULTS = { sigma: "auto", strength: 1, model: "", format: "", quality: 95, metadata: "keep" };
const LOSSY = ["jpeg", "webp", "avif"];
const MOST_PREVIEWED = 3e6; // pixels
const SETTLE = 150; // milliseconds of rest before a preview is asked for
const AT_ONCE = 2; // pictures on their way; one is sent while another is worked on
const THUMBNAIL = 112;

let last = 0;

export class Denoise {
  constructor({ needKey }) {
    this.needKey = needKey;
    this.items = [];
    this.settings = fromAddress();
    this.models = [];
    this.pace = 0; // seconds a pixel, as last seen
    this.previewSoon = settled(SETTLE, () => this.preview());
    this.addressSoon = settled(SETTLE, () => toAddress(this.settings)); // browsers refuse an address that changes at every touch of a slider
    this.viewer = new Viewer({
      onmove: () => this.previewSoon(),
      onview: (view) => this.views.forEach((button, i) => button.setAttribute("aria-pressed", VIEWS[i] === view)),
      onzoom: (scale) => {
        const percent = Math.round(scale * 100);
        this.percent.textContent = text.viewer.actual(percent);
        this.percent.setAttribute("aria-label", text.viewer.actualLabel(percent));
      },
    });
    this.element = h("div", { class: "denoise" }, this.#desk(), this.#panel());
    this.#doors();
    this.#fill();
    this.#update();
    this.loadModels();
  }

  // What is built once.

  #desk() {
    this.views = VIEWS.map((view, i) =>
      h(
        "button",
        { type: "button", "aria-pressed": view === "split", "aria-keyshortcuts": i + 1, onclick: () => this.viewer.setView(view) },
        text.viewer.views[view],
      ),
    );
    this.percent = h("button", { type: "button", class: "percent", "aria-label": text.viewer.actualLabel(100), onclick: () => this.viewer.actual() }, "100 %");
    const zoom = (label, sign, factor) =>
      h("button", { type: "button", "aria-label": label, onclick: () => this.viewer.zoom(factor) }, sign);
    this.hint = h("p", { class: "hint", hidden: true });
    this.tools = h(
      "div",
      { class: "tools" },
      h("div", { class: "choice", role: "group", "aria-label": text.viewer.viewsLabel }, this.views),
      h(
        "div",
        { class: "choice", role: "group", "aria-label": text.viewer.zoomLabel },
        zoom(text.viewer.out, "−", Math.SQRT1_2),
        this.percent,
        zoom(text.viewer.in, "+", Math.SQRT2),
        h("button", { type: "button", "aria-label": text.viewer.fitLabel, onclick: () => this.viewer.fit() }, text.viewer.fit),
      ),
    );
    this.chooser = h("input", { type: "file", hidden: true, multiple: true, accept: "image/*" });
    this.camera = h("input", { type: "file", hidden: true, accept: "image/*", capture: "environment" });
    for (const input of [this.chooser, this.camera]) {
      input.addEventListener("change", () => {
        this.add([...input.files]);
        input.value = "";
      });
    }
    this.empty = h(
      "div",
      { class: "empty" },
      h("h2", {}, text.drop.title),
      h("p", {}, text.drop.hint),
      h("div", { class: "row" },
        h("button", { type: "button", class: "main", onclick: () => this.chooser.click() }, text.drop.choose),
        h("button", { type: "button", class: "camera", onclick: () => this.camera.click() }, text.drop.camera),
      ),
    );
    this.alert = h("div", { class: "problem", role: "alert", hidden: true });
    this.progress = h("progress", { max: 1, "aria-label": text.progress.label });
    this.progressWord = h("p");
    this.working = h("div", { class: "working", hidden: true }, this.progressWord, this.progress);
    this.over = h("div", { class: "over" }, this.hint, this.working, this.alert);
    this.film = h("ul", { class: "film", "aria-label": text.film.label });
    this.more = h("button", { type: "button", class: "more", "aria-label": text.film.addLabel, onclick: () => this.chooser.click() }, `+ ${text.film.add}`);
    this.strip = h("div", { class: "strip" }, this.film, this.more);
    return h(
      "section",
      { class: "desk", "aria-label": text.film.label },
      this.tools,
      h("div", { class: "table" }, this.viewer.element, this.empty, this.over, h("p", { class: "letgo" }, text.drop.now)),
      this.strip,
      this.chooser,
      this.camera,
    );
  }

  #panel() {
    const words = text.settings;
    const change = (name) => (value) => this.change({ [name]: value });
    this.auto = h("input", { type: "checkbox", id: "auto", onchange: () => this.change({ sigma: this.auto.checked ? "auto" : this.#shownSigma() }) });
    this.autoWord = h("span", { class: "note", id: "auto-word" });
    this.sigma = range({ label: words.sigma, id: "sigma", min: 0, max: 100, step: 0.5, value: 0, shown: words.sigmaNumber, oninput: change("sigma") });
    this.strength = range({ label: words.strength, id: "strength", min: 0, max: 2, step: 0.05, value: 1, oninput: change("strength") });
    this.presets = words.presets.map(({ name, strength, title }) =>
      h("button", { type: "button", title, onclick: () => this.change({ strength }) }, name),
    );
    const select = (name, label, options) => {
      const element = h("select", { id: name, onchange: () => this.change({ [name]: element.value }) }, options);
      return [h("div", { class: "field" }, h("label", { htmlFor: name }, label), element), element];
    };
    const option = (value, label) => h("option", { value }, label);
    let modelField, formatField, metadataField;
    [modelField, this.model] = select("model", words.model, option("", words.automatic));
    [formatField, this.format] = select("format", words.format, [option("", words.same), ...Object.entries(words.formats).map(([value, label]) => option(value, label))]);
    [metadataField, this.metadata] = select("metadata", words.metadata, Object.entries(words.kept).map(([value, label]) => option(value, label)));
    this.quality = range({ label: words.quality, id: "quality", min: 1, max: 100, step: 1, value: 95, oninput: change("quality") });

    this.go = h("button", { type: "button", class: "main", onclick: () => this.#goOrCancel() });
    this.goAll = h("button", { type: "button", onclick: () => (this.#busy() ? this.cancelAll() : this.run(this.items)) });
    this.download = h("button", { type: "button", onclick: () => this.save() }, text.act.download);
    this.zip = h("button", { type: "button", onclick: () => this.saveAll() });
    this.facts = h("dl", { class: "facts", "aria-label": text.facts.label });
    this.curl = h("pre", { tabIndex: 0, role: "group", "aria-label": text.act.curl });
    this.copy = h("button", { type: "button", onclick: () => this.#copy() }, text.act.copy);
    return h(
      "section",
      { class: "panel", "aria-label": text.settings.label },
      h(
        "fieldset",
        {},
        h("legend", { class: "unseen" }, words.sigma),
        this.sigma.element,
        h("p", { class: "check" }, this.auto, h("label", { htmlFor: "auto" }, words.auto), this.autoWord),
      ),
      h(
        "fieldset",
        {},
        h("legend", { class: "unseen" }, words.strength),
        this.strength.element,
        h("div", { class: "choice", role: "group", "aria-label": words.presetsLabel }, this.presets),
      ),
      modelField,
      h("details", {}, h("summary", {}, words.saving), formatField, metadataField, this.quality.element),
      h("div", { class: "acts" }, this.go, this.goAll, h("div", { class: "row" }, this.download, this.zip)),
      h("details", { class: "curl" }, h("summary", {}, text.act.curl), this.curl, this.copy),
      this.facts,
    );
  }

  // Ways in: drop, paste. The chooser and the camera have buttons.
  #doors() {
    const carries = (event) => !this.element.hidden && carriesFiles(event);
    let depth = 0;
    const over = (on) => document.body.classList.toggle("dropping", on);
    window.addEventListener("dragenter", (event) => carries(event) && over(++depth > 0));
    window.addEventListener("dragleave", (event) => carries(event) && over(--depth > 0));
    window.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
    window.addEventListener("drop", async (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      over((depth = 0) > 0);
      this.add((await dropped(event.dataTransfer)).map(({ file }) => file));
    });
    window.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (this.element.hidden || !files.length) return;
      event.preventDefault();
      this.add(files);
    });
  }

  // Asked for one after another, so that the last answer is the newest.
  loadModels() {
    this.loaded = Promise.resolve(this.loaded).then(() => this.#loadModels());
  }

  async #loadModels() {
    const before = this.chosen;
    try {
      const { models, chosen } = await json("models");
      this.models = models.map(({ name }) => name);
      this.chosen = chosen;
    } catch {
      return; // the first picture will say what is wrong
    }
    this.#fill();
    this.#update();
    if (before === undefined || before === this.chosen || this.settings.model) return;
    this.previewing?.abort();
    this.#setPatch(null); // by the model before
    this.previewSoon();
  }

  show() {
    if (!this.patch) this.previewSoon();
  }

  // Keys

  key(event) {
    const view = VIEWS[Number(event.key) - 1];
    if (view) this.viewer.setView(view);
    else if (event.key === "o" || event.key === "O") this.viewer.hold(true);
    else if (event.key === "[" || event.key === "]") this.step(event.key === "[" ? -1 : 1);
    else if (event.key === "Enter" && event.target.matches("body, main, .stage")) {
      if (!event.repeat) this.#goOrCancel();
    } else return !event.key.startsWith("Arrow") && this.viewer.key(event); // arrows scroll, too
    return true;
  }

  keyUp(event) {
    if (event.key === "o" || event.key === "O") this.viewer.hold(false);
  }

  step(by) {
    const next = this.items[this.items.indexOf(this.current) + by];
    if (next) this.select(next);
  }

  // Pictures

  add(files) {
    if (!files.length) return;
    const items = files.map((file) => ({ id: ++last, file, name: file.name || "picture", state: "ready", gone: new AbortController() }));
    for (const item of items) this.#frame(item);
    this.items.push(...items);
    say(text.said.added(items.length));
    this.select(items[0]);
    for (const item of items) this.#thumbnail(item);
  }

  #frame(item) {
    item.picture = h("canvas", { width: THUMBNAIL, height: THUMBNAIL, "aria-hidden": "true" });
    item.word = h("span", { class: "state" });
    item.button = h(
      "button",
      { type: "button", class: "frame", onclick: () => this.select(item) },
      item.picture,
      h("span", { class: "name" }, item.name),
      item.word,
    );
    const remove = h("button", { type: "button", class: "remove", "aria-label": text.film.remove(item.name), onclick: () => this.remove(item) }, "×");
    item.element = h("li", {}, item.button, remove);
    this.film.append(item.element);
  }

  async #thumbnail(item) {
    try {
      const { bitmap, width, height } = await this.#look(item, (blob) => pictures.thumbnail(blob, THUMBNAIL));
      this.#seen(item, width, height);
      item.picture.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
      this.#update();
    } catch (error) {
      if (item !== this.current) this.#fail(item, error); // what is looked at tells by itself
    }
  }

  // What `look` makes of a picture: of its file, or where the browser cannot read that, of what the service makes of it as PNG.
  async #look(item, look) {
    if (!item.png) {
      try {
        return await look(item.file);
      } catch (error) {
        if (error instanceof Problem) throw error; // the page's own
      }
    }
    item.png ??= this.#asPng(item, item.file).catch((error) => {
      item.png = null; // and is asked for again
      throw error;
    });
    return look(await item.png);
  }

  async #asPng(item, file) {
    const { signal } = item.gone;
    const send = () => denoise(file, { sigma: 0, strength: 0, format: "png" }, { signal });
    return (await this.#patiently(signal, send, (seconds) => item === this.current && this.#hint(text.preview.waiting(seconds)))).blob;
  }

  #seen(item, width, height) {
    if (!item.width) this.#forgive(item); // what failed was to show it
    Object.assign(item, { width, height });
  }

  remove(item) {
    item.stop?.abort();
    item.stop = null;
    item.gone.abort();
    const at = this.items.indexOf(item);
    this.items.splice(at, 1);
    item.element.remove();
    say(text.said.removed(item.name));
    if (item === this.current) this.select(this.items[Math.min(at, this.items.length - 1)]);
    else this.#update();
    (this.current?.button ?? this.empty.querySelector("button")).focus();
  }

  async select(item) {
    if (item === this.current) return;
    const turn = (this.turn = {}); // the same picture may be chosen again while this one's is read
    this.#close();
    this.current = item;
    this.viewer.clear();
    this.#hint("");
    this.#fill();
    this.#update();
    if (!item) return;
    item.element.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (item.state === "failed" && !item.width) this.#thumbnail(item); // which failed too
    try {
      const opened = await this.#look(item, (blob) => pictures.open(blob));
      if (turn !== this.turn) return pictures.close(opened.id);
      item.before = opened;
      this.#seen(item, opened.sizes[0].width, opened.sizes[0].height);
      this.viewer.show(opened);
    } catch (error) {
      if (turn !== this.turn) return;
      this.#hint("");
      this.#fail(item, error);
    }
    this.#update();
  }

  // Lets go of the decoded pictures; the files stay.
  #close() {
    this.previewing?.abort();
    this.patch = null;
    const item = this.current;
    for (const name of ["before", "after"]) {
      if (item?.[name]) pictures.close(item[name].id);
      if (item) item[name] = null;
    }
  }

  // Settings

  change(given) {
    Object.assign(this.settings, given);
    this.#fill();
    this.addressSoon();
    this.#update();
    this.previewSoon();
  }

  #shownSigma() {
    return Math.round((this.current?.sigma ?? this.settings.measured ?? 15) * 10) / 10;
  }

  // What the service is asked for; the shorter, the better to read.
  #wishes() {
    const { sigma, strength, model, format, quality, metadata } = this.settings;
    const wishes = { sigma };
    if (strength !== 1) wishes.strength = strength;
    if (model) wishes.model = model;
    if (format) wishes.format = format;
    if (quality !== 95 && (!format || LOSSY.includes(format))) wishes.quality = quality;
    if (metadata !== "keep") wishes.metadata = metadata;
    return wishes;
  }

  #fill() {
    const { sigma, strength, model, format, quality, metadata } = this.settings;
    this.auto.checked = sigma === "auto";
    this.sigma.set(sigma === "auto" ? this.current?.sigma : sigma);
    this.strength.set(strength);
    this.presets.forEach((button, i) => button.setAttribute("aria-pressed", text.settings.presets[i].strength === strength));
    const names = [...new Set([...this.models, ...(model ? [model] : [])])];
    this.model.replaceChildren(
      h("option", { value: "" }, text.settings.automatic),
      ...names.map((name) => h("option", { value: name }, name)),
    );
    this.model.value = model;
    this.format.value = format;
    this.metadata.value = metadata;
    this.quality.set(quality);
    hide(this.quality.element, Boolean(format) && !LOSSY.includes(format));
  }

  // Work

  // The part that is seen, with these settings, from the service: equal to that part of the whole.
  async preview() {
    const item = this.current;
    this.previewing?.abort();
    if (!item?.before || this.element.hidden) return;
    if (this.#fresh(item)) return this.#hint("");
    const region = this.viewer.visible();
    if (region.width * region.height > MOST_PREVIEWED) {
      this.#setPatch(null);
      return this.#hint(text.preview.large);
    }
    const stop = (this.previewing = new AbortController());
    const began = performance.now();
    const { sigma, strength, model } = this.settings;
    const wishes = { sigma, strength, format: "png", crop: [region.x, region.y, region.width, region.height].join(), ...(model && { model }) };
    this.#hint(text.preview.making);
    try {
      const { blob, header } = await denoiseKept(item, { ...wishes, keep: true }, { signal: stop.signal });
      const opened = await pictures.open(blob, false);
      if (stop.signal.aborted || item !== this.current) return pictures.close(opened.id);
      this.#learn(item, sigma, header, region.width * region.height);
      const gain = gainFor(Number(header("X-Clearfold-Sigma")), strength);
      const { x: dx, y: dy, ...rest } = region;
      const given = { before: item.before.id, after: opened.id, dx, dy, level: 0, x: dx, y: dy, ...rest, gain };
      const removed = await pictures.difference(given);
      pictures.close(opened.id);
      if (stop.signal.aborted || item !== this.current) return removed.close();
      this.#forgive(item);
      this.viewer.gain = gain;
      this.#setPatch({ ...region, bitmap: opened.bitmap, removed });
      this.#hint(text.preview.shown(performance.now() - began));
      this.#update();
    } catch (error) {
      if (cancelled(error) || stop.signal.aborted || item !== this.current) return;
      if (error.retrySeconds) {
        this.#hint(text.preview.waiting(error.retrySeconds));
        const timer = setTimeout(() => this.preview(), error.retrySeconds * 1000);
        stop.signal.addEventListener("abort", () => clearTimeout(timer));
        return;
      }
      this.#hint("");
      this.#fail(item, error);
    }
  }

  #setPatch(patch) {
    this.patch?.bitmap.close();
    this.patch?.removed.close();
    this.patch = patch;
    this.viewer.setPatch(patch);
  }

  #hint(words) {
    this.hint.textContent = words;
    hide(this.hint, !words);
  }

  // What an answer's headers tell; the noise level is measured where "auto" was asked for.
  #learn(item, sigma, header, pixels) {
    if (sigma === "auto") this.settings.measured = item.sigma = Number.parseFloat(header("X-Clearfold-Sigma"));
    const stages = [...(header("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)].map(([, stage, ms]) => [stage, Number(ms)]);
    const working = stages.find(([stage]) => stage === "denoise");
    if (working && pixels) this.pace = working[1] / 1000 / pixels;
    this.#fill();
    return stages.reduce((sum, [, ms]) => sum + ms, 0);
  }

  // Whether the whole picture was denoised with these very settings.
  #fresh(item) {
    return item.result?.key === this.#key();
  }

  // What the service is asked for, with the model that it takes by itself where none is.
  #key(wishes = this.#wishes()) {
    return JSON.stringify({ model: this.chosen, ...wishes });
  }

  #busy() {
    return this.items.some((item) => item.stop);
  }

  #goOrCancel() {
    if (!this.current) return;
    if (this.current.stop) this.#cancel(this.current);
    else this.run([this.current]);
  }

  cancelAll() {
    for (const item of this.items) if (item.stop) this.#cancel(item);
  }

  #cancel(item) {
    item.stop.abort();
    if (item.state === "waiting") this.#cancelled(item); // the others may take long
  }

  #cancelled(item) {
    item.stop = null;
    item.state = item.result ? "done" : "ready";
    say(text.said.cancelled(item.name));
    this.#update();
  }

  // Denoises pictures whole, a few at a time.
  async run(items) {
    const queue = items
      .filter((item) => !item.stop && !this.#fresh(item))
      .map((item) => {
        const stop = new AbortController();
        Object.assign(item, { stop, state: "waiting", problem: null });
        return () => stop.signal.aborted || this.#whole(item, stop);
      });
    this.#update();
    const next = async () => {
      for (let work = queue.shift(); work; work = queue.shift()) await work();
    };
    await Promise.all(Array.from({ length: AT_ONCE }, next));
  }

  async #whole(item, stop) {
    await this.loaded; // what is chosen
    const wishes = this.#wishes();
    const key = this.#key(wishes);
    const strength = this.settings.strength;
    const { signal } = stop;
    const tick = setInterval(() => this.#tell(), 200);
    const send = () => {
      item.state = "sending";
      item.sent = 0;
      this.#update();
      return denoiseKept(item, wishes, {
        signal,
        onsent: (share) => {
          item.sent = share;
          if (share === 1 && item.state === "sending") [item.state, item.began] = ["working", performance.now()];
          this.#tell();
        },
      });
    };
    const busy = (seconds) => {
      item.state = "busy";
      item.until = performance.now() + seconds * 1000;
      this.#update();
    };
    try {
      if (signal.aborted) throw new DOMException("cancelled", "AbortError");
      const began = performance.now();
      const { blob, header } = await this.#patiently(signal, send, busy);
      const served = this.#learn(item, wishes.sigma, header, item.width * item.height);
      item.result = {
        blob,
        key,
        name: named(header("Content-Disposition")) ?? `${stem(item.name)}-denoised`,
        sigma: header("X-Clearfold-Sigma"),
        model: decodeURIComponent(header("X-Clearfold-Model") ?? ""),
        device: header("X-Clearfold-Device"),
        reason: header("X-Clearfold-Reason"),
        dropped: header("X-Clearfold-Dropped"),
        seconds: (served || performance.now() - began) / 1000,
        strength,
      };
      item.state = "done";
      if (item.after) pictures.close(item.after.id);
      item.after = null;
      say(text.said.done(item.name));
    } catch (error) {
      if (!cancelled(error)) this.#fail(item, error);
      else if (item.stop === stop) this.#cancelled(item);
    } finally {
      clearInterval(tick);
      if (item.stop === stop) item.stop = null;
      this.#update();
    }
  }

  // Comes again as often as the service says that it is busy; `busy` is told the seconds until then.
  async #patiently(signal, send, busy) {
    for (;;) {
      try {
        return await send();
      } catch (error) {
        if (!error.retrySeconds) throw error;
        busy(error.retrySeconds);
        await new Promise((resolve, reject) => {
          const timer = setTimeout(resolve, error.retrySeconds * 1000);
          signal.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("cancelled", "AbortError"))), { once: true });
        });
      }
    }
  }

  #fail(item, error) {
    if (cancelled(error)) return;
    item.state = "failed";
    item.problem = { status: error.status, title: error.title ?? text.problem.title, detail: error.detail ?? error.message };
    say(text.said.failed(item.name, item.problem.title));
    this.#update();
    if (error.status === 401) this.needKey();
  }

  // Once there is another key: what failed for want of it is done again.
  unlock() {
    for (const item of this.items.filter(({ problem }) => problem?.status === 401)) {
      this.#forgive(item);
      if (item === this.current) {
        this.select(null);
        this.select(item);
      }
      this.#thumbnail(item);
    }
  }

  #forgive(item) {
    if (item.state === "failed") item.state = item.result ? "done" : "ready";
    item.problem = null;
  }

  save() {
    const { result } = this.current;
    save(result.blob, result.name);
  }

  async saveAll() {
    const files = this.items.filter((item) => item.result).map(({ result: { name, blob } }) => ({ name, blob }));
    try {
      save(await pictures.zip(files), "clearfold.zip");
    } catch {
      this.#fail(this.current, text.problem.zip);
    }
  }

  async #copy() {
    const words = this.curl.textContent;
    try {
      await navigator.clipboard.writeText(words);
    } catch {
      getSelection().selectAllChildren(this.curl); // a page from afar without TLS may not write to the clipboard
      document.execCommand("copy");
    }
    this.copy.textContent = text.act.copied;
    say(text.act.copied);
    setTimeout(() => (this.copy.textContent = text.act.copy), 2000);
  }

  // Show the state of things.

  #update() {
    const item = this.current;
    const any = this.items.length > 0;
    document.body.classList.toggle("any", any);
    hide(this.empty, any);
    hide(this.strip, !any);
    hide(this.viewer.element, !any);
    for (const button of this.tools.querySelectorAll("button")) button.disabled = !item?.before;
    for (const each of this.items) {
      each.button.setAttribute("aria-current", each === item);
      each.element.dataset.state = each.state;
      each.word.textContent = this.#stateWord(each);
    }
    this.#showAfter();
    const fresh = Boolean(item && this.#fresh(item));
    this.go.disabled = !item || (fresh && !item.stop);
    this.go.textContent = item?.stop ? text.act.cancel : text.act.denoise;
    hide(this.goAll, this.items.length < 2);
    this.goAll.textContent = this.#busy() ? text.act.cancelAll : text.act.all(this.items.length);
    this.goAll.disabled = !this.#busy() && this.items.every((each) => this.#fresh(each));
    this.download.disabled = !item?.result;
    this.download.classList.toggle("main", fresh); // what is to be done next
    const done = this.items.filter((each) => each.result).length;
    hide(this.zip, this.items.length < 2);
    this.zip.textContent = text.act.zip(done);
    this.zip.disabled = done === 0;
    this.#showProblem(item?.problem ?? null);
    this.autoWord.textContent =
      this.settings.sigma !== "auto" ? text.settings.own : item?.sigma >= 0 ? text.settings.measured : text.settings.unmeasured;
    this.#showFacts(item, fresh);
    this.curl.textContent = this.#asCurl(item);
    this.#tell();
  }

  #stateWord(item) {
    if (item.state === "sending") return text.film.sending(Math.round(item.sent * 100));
    if (item.state === "working") return text.film.working;
    if (item.state === "done" && !this.#fresh(item)) return text.film.states.stale;
    return text.film.states[item.state];
  }

  // The whole result, while it is that of these settings; else the preview.
  async #showAfter() {
    const item = this.current;
    if (!item?.before) return;
    if (!this.#fresh(item)) {
      this.viewer.setAfter(null, this.viewer.gain);
      return;
    }
    if (!item.after && !item.opening) {
      item.opening = true;
      const { result } = item;
      try {
        item.after = await pictures.open(result.blob).catch(async () => {
          return pictures.open(await this.#asPng(item, new File([result.blob], "shown")));
        });
      } catch (error) {
        if (item === this.current) this.#hint("");
        this.#fail(item, error);
        return;
      } finally {
        item.opening = false;
      }
      if (item !== this.current || result !== item.result) {
        pictures.close(item.after.id);
        item.after = null;
        if (item === this.current) this.#showAfter();
        return;
      }
      this.#hint("");
    }
    if (item.after && this.#fresh(item)) this.viewer.setAfter(item.after, gainFor(Number(item.result.sigma), item.result.strength));
  }

  // Once, for whatever is put in there is read out.
  #showProblem(problem) {
    if (problem === this.alerted) return;
    this.alerted = problem;
    hide(this.alert, !problem);
    this.alert.replaceChildren(...(problem ? [h("strong", {}, problem.title), h("p", {}, problem.detail)] : []));
  }

  #showFacts(item, fresh) {
    const words = text.facts;
    const rows = [];
    if (item?.width) rows.push([words.size, words.sizeValue(item.width, item.height)]);
    if (item && fresh) {
      const { result } = item;
      rows.push(
        [words.noise, words.noiseValue(result.sigma, result.strength)],
        [words.model, result.model],
        ...(result.reason && !this.settings.model && this.models.length > 1 ? [[words.reason, result.reason]] : []),
        [words.device, result.device],
        [words.time, duration(result.seconds)],
        [words.file, `${result.name}, ${bytes(result.blob.size)}`],
      );
      if (result.dropped) rows.push([words.dropped, result.dropped]);
    }
    this.facts.replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    hide(this.facts, rows.length === 0);
  }

  // Progress of the picture that is looked at.
  #tell() {
    const item = this.current;
    const states = ["waiting", "sending", "working", "busy"];
    const active = Boolean(item?.stop) && states.includes(item.state);
    hide(this.working, !active);
    this.over.classList.toggle("busy", active); // which says more than the hint
    for (const each of this.items) {
      if (each.stop) each.word.textContent = this.#stateWord(each);
    }
    if (!active) return;
    const words = text.progress;
    this.progress.removeAttribute("value");
    if (item.state === "sending") {
      this.progress.value = item.sent;
      this.progressWord.textContent = words.sending(Math.round(item.sent * 100));
    } else if (item.state === "working") {
      const whole = this.pace * item.width * item.height;
      const gone = (performance.now() - item.began) / 1000;
      if (whole > 0) this.progress.value = Math.min(0.98, gone / whole);
      this.progressWord.textContent = !(whole > 0) ? words.working : gone < whole ? words.left(whole - gone) : words.over;
    } else if (item.state === "busy") {
      this.progressWord.textContent = words.busy(Math.max(0, Math.ceil((item.until - performance.now()) / 1000)));
    } else this.progressWord.textContent = words.waiting;
  }

  #asCurl(item) {
    const name = item?.name ?? "noisy.jpg";
    const file = /[;,"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
    const url = new URL(`denoise?${new URLSearchParams(this.#wishes())}`, document.baseURI);
    const suffix = this.settings.format ? `.${this.settings.format}` : name.slice(stem(name).length);
    const key = hasKey() ? '-H "Authorization: Bearer $CLEARFOLD_API_KEY" ' : "";
    return `curl ${key}-F ${quoted(`file=@${file}`)} ${quoted(url.href)} -o ${quoted(`${stem(name)}-denoised${suffix}`)}`;
  }
}

// So strong that noise of this level is well seen around mid-grey.
function gainFor(sigma, strength) {
  return Math.round(Math.min(16, Math.max(2, 40 / Math.max(1, sigma * strength))));
}

const stem = (name) => name.replace(/(?<=.)\.[^.]*$/, "");
const quoted = (words) => `'${words.replaceAll("'", "'\\''")}'`;

function named(disposition) {
  const found = /filename\*=UTF-8''([^;]+)/i.exec(disposition ?? "");
  return found && decodeURIComponent(found[1]);
}

// The settings live in the address, so that a link or a reload brings them back.
function fromAddress() {
  const asked = new URLSearchParams(location.search);
  const settings = { ...DEFAULTS };
  const number = (name, min, max) => {
    const value = Number.parseFloat(asked.get(name));
    if (value >= min && value <= max) settings[name] = value;
  };
  number("sigma", 0, 100);
  number("strength", 0, 2);
  number("quality", 1, 100);
  if (asked.get("model")) settings.model = asked.get("model");
  if (Object.hasOwn(text.settings.kept, asked.get("metadata"))) settings.metadata = asked.get("metadata");
  if (Object.hasOwn(text.settings.formats, asked.get("format"))) settings.format = asked.get("format");
  return settings;
}

function toAddress(settings) {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) if (settings[name] !== value) kept.set(name, settings[name]);
  const query = kept.size ? `?${kept}` : "";
  history.replaceState(null, "", `${location.pathname}${query}${location.hash}`);
}
