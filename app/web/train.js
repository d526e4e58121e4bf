// The Train part: pictures in, a model out, and all that happens in between, live.
import { Chart } from "./chart.js";
import { carriesFiles, concealed, dropped, facts, h, hide, say, settled, twice } from "./dom.js";
import * as pictures from "./pictures.js";
import { Problem, ask, cancelled, denoise, events, json, post, refused } from "./service.js";
import { text } from "./strings.js";
import { Viewer } from "./viewer.js";

const words = text.train;
const ACTIVE = ["queued", "running", "cancelling"];
const ENDED = ["cancelled", "done", "failed"];
const GLANCE = 5000; // milliseconds between two looks at the list, while something in it goes on
const FIRST_JOBS = "train?limit=20";
const ZIP = /\.zip$/i;
const [NUMBERED, WORDED] = [/^(.*?)(?:[ _.-]|(?<=\D))([12])$/, /^(.*?)[ _.-]?(noisy|clean)$/];
const TRUTHS = /(^|\/)(clean|gt|groundtruth|ground_truth|truth|targets?|reference)$/; // folders of pictures without noise

const when = (iso) => (iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "");
const changed = () => window.dispatchEvent(new Event("models"));

export class Train {
  constructor({ needKey }) {
    this.needKey = needKey;
    this.chosen = [];
    this.alert = h("div", { class: "problem", role: "alert", hidden: true });
    this.home = h("div", { class: "home" }, this.#form(), this.#list());
    this.job = h("div", { class: "job" });
    this.element = h("div", { class: "sheet" }, this.alert, this.home, this.job);
    this.#describe();
  }

  show(id) {
    const within = [this.home, this.job].find((part) => part.contains(document.activeElement)); // and what has the focus will be hidden
    this.leave();
    if (!this.unseen) this.tell(null);
    this.unseen = false;
    this.id = id;
    hide(this.home, Boolean(id));
    hide(this.job, !id);
    if (id) this.#open(decodeURIComponent(id));
    else this.look();
    if (within && within.hidden) (id ? this.title : this.jobs).focus();
  }

  // At the models to start from and at the list, where they are seen.
  look() {
    if (this.home.hidden || this.element.hidden) return;
    this.#models();
    this.#refresh();
  }

  // Once there is another key.
  unlock() {
    if (this.told?.status === 401 && !this.element.hidden) this.show(this.id);
  }

  leave() {
    this.stop?.abort();
    clearTimeout(this.timer);
    this.viewer?.clear();
    for (const opened of this.opened ?? []) pictures.close(opened.id);
    this.opened = [];
  }

  // A problem in the service's words, or none.
  async tell(error, again) {
    this.told = error;
    this.unseen = Boolean(error) && this.element.hidden;
    hide(this.alert, !error);
    if (!error) return;
    this.alert.replaceChildren(h("strong", {}, error.title ?? text.problem.title), h("p", {}, error.detail ?? error.message));
    this.alert.scrollIntoView({ block: "nearest" });
    if (error.status === 401 && (await this.needKey())) {
      this.tell(null);
      again?.();
    }
  }

  async #try(work) {
    try {
      this.tell(null);
      return await work();
    } catch (error) {
      if (!cancelled(error)) this.tell(error, () => this.#try(work));
    }
  }

  // The form

  #form() {
    const chooser = h("input", { type: "file", multiple: true, hidden: true, accept: "image/*,.zip" });
    const folder = h("input", { type: "file", multiple: true, hidden: true, webkitdirectory: true });
    for (const input of [chooser, folder]) {
      input.addEventListener("change", () => {
        const files = [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
        this.add(input === folder ? files.filter(({ path }) => !concealed(path)) : files);
        input.value = "";
      });
    }
    this.methods = Object.entries(words.methods).map(([value, [name, hint]], i) => {
      const radio = h("input", { type: "radio", name: "method", value, checked: i === 0, id: `method-${value}`, onchange: () => this.#describe() });
      radio.setAttribute("aria-describedby", `hint-${value}`);
      return h("div", { class: "method" }, radio, h("label", { htmlFor: radio.id }, name), h("p", { class: "note", id: `hint-${value}` }, hint));
    });
    this.count = h("p", { class: "note", role: "status" });
    this.clear = h("button", { type: "button", class: "quiet", onclick: () => this.add(null) }, words.clear);
    this.glimpses = h("div", { class: "glimpses", "aria-hidden": "true" });
    this.drop = h(
      "div",
      { class: "dropzone" },
      h("strong", {}, words.drop),
      h("div", { class: "row" },
        h("button", { type: "button", onclick: () => chooser.click() }, words.choose),
        h("button", { type: "button", class: "folder", onclick: () => folder.click() }, words.folder),
      ),
      h("div", { class: "row" }, this.count, this.clear),
      this.glimpses,
      chooser,
      folder,
    );
    const carries = (event) => carriesFiles(event) && !this.element.hidden && !this.home.hidden;
    window.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
    window.addEventListener("drop", async (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      this.add(await dropped(event.dataTransfer));
    });
    const field = (name, label, element) => h("div", { class: "field" }, h("label", { htmlFor: name }, label), element);
    this.name = h("input", { type: "text", id: "model-name", pattern: "[a-z0-9][a-z0-9._\\-]{0,62}", placeholder: words.namePlaceholder, title: words.nameHint, autocomplete: "off", spellcheck: false });
    this.parent = h("select", { id: "parent" });
    this.minutes = h("input", { type: "number", id: "minutes", min: 0.1, step: "any", value: 10, required: true });
    this.activate = h("input", { type: "checkbox", id: "activate" });
    this.noise = h("select", { id: "noise" }, Object.entries(words.noises).map(([value, name]) => h("option", { value }, name)));
    this.sigmas = [0, 55].map((value, i) => h("input", { type: "number", id: `sigma-${i}`, min: 0, max: 100, step: "any", value, required: true }));
    this.steps = h("input", { type: "number", id: "steps", min: 1, step: 1, placeholder: words.stepsPlaceholder });
    this.kind = h(
      "div",
      { class: "kind" },
      field("noise", words.noise, this.noise),
      field("sigma-0", words.sigmaMin, this.sigmas[0]),
      field("sigma-1", words.sigmaMax, this.sigmas[1]),
    );
    this.progress = h("progress", { max: 1, "aria-label": text.progress.label });
    this.progressWord = h("p", { class: "note" });
    this.working = h("div", { class: "sending" }, this.progress, this.progressWord);
    this.working.style.visibility = "hidden"; // it keeps its place
    this.startButton = h("button", { class: "main" }, words.start);
    this.cancelButton = h("button", { type: "button", hidden: true, onclick: () => this.sending?.abort() }, text.act.cancel);
    const more = h("details", {}, h("summary", {}, words.more), field("steps", words.steps, this.steps), this.kind);
    const form = h(
      "form",
      {
        class: "make",
        onsubmit: (event) => {
          event.preventDefault();
          this.#try(() => this.#start());
        },
      },
      h("div", {}, h("h2", {}, words.make), h("p", { class: "note" }, words.makeHint)),
      h("fieldset", { class: "methods" }, h("legend", {}, words.method), this.methods),
      this.drop,
      field("model-name", words.name, this.name),
      field("parent", words.parent, this.parent),
      field("minutes", words.minutes, this.minutes),
      h("p", { class: "check" }, this.activate, h("label", { htmlFor: "activate" }, words.activate)),
      more,
      h("div", { class: "row" }, this.startButton, this.cancelButton),
      this.working,
    );
    more.addEventListener("invalid", () => (more.open = true), true); // else the browser could not show which field is wrong, and say nothing
    return form;
  }

  get method() {
    return this.element.querySelector("[name=method]:checked").value;
  }

  add(files) {
    if (!files) this.glimpses.replaceChildren();
    this.chosen = files ? [...this.chosen, ...files] : [];
    this.#describe();
    for (const { file, path } of files ?? []) this.#glimpse(file, path);
  }

  async #glimpse(file, path) {
    if (ZIP.test(path) || this.glimpses.children.length >= 24) return;
    const canvas = h("canvas", { width: 64, height: 64, title: path });
    this.glimpses.append(canvas);
    try {
      const { bitmap } = await pictures.thumbnail(file, 64);
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
    } catch {
      canvas.remove(); // the service says which pictures it cannot read
    }
  }

  #describe() {
    const zips = this.chosen.filter(({ path }) => ZIP.test(path)).length;
    const size = this.chosen.reduce((sum, { file }) => sum + file.size, 0);
    const told = this.chosen.length ? [words.chosen(this.chosen.length - zips, zips, size)] : [words.nothing];
    if (this.chosen.length && !zips && this.method === "pairs") told.push(words.pairs(paired(this.chosen.map(({ path }) => path))));
    this.count.textContent = told.join(" · ");
    hide(this.clear, !this.chosen.length);
    hide(this.kind, this.method !== "clean");
    for (const input of this.sigmas) input.disabled = this.method !== "clean"; // what is not sent is not held against anyone
    this.startButton.disabled = !this.chosen.length || Boolean(this.sending);
  }

  async #models() {
    const { models, default: first } = await json("models").catch(() => ({ models: [] }));
    const names = models.map(({ name }) => name);
    const { value } = this.parent;
    const option = (value, name) => h("option", { value }, name);
    this.parent.replaceChildren(option("", words.standard(first)), ...names.map((name) => option(name, name)), option("scratch", words.scratch));
    if ([...names, "scratch"].includes(value)) this.parent.value = value;
  }

  async #start() {
    const form = new FormData();
    for (const { file, path } of this.chosen) form.append("files", file, path);
    const { method } = this;
    form.append("method", method);
    form.append("minutes", this.minutes.value);
    if (this.name.value) form.append("model", this.name.value);
    if (this.parent.value) form.append("parent", this.parent.value);
    if (this.steps.value) form.append("steps", this.steps.value);
    if (this.activate.checked) form.append("activate", "if_better");
    if (method === "clean") {
      form.append("noise", this.noise.value);
      form.append("sigma_min", this.sigmas[0].value);
      form.append("sigma_max", this.sigmas[1].value);
    }
    this.sending = new AbortController();
    this.working.style.visibility = "visible";
    this.startButton.disabled = true;
    hide(this.cancelButton, false);
    try {
      const { blob } = await post("train", form, {
        signal: this.sending.signal,
        onsent: (share) => {
          if (share < 1) this.progress.value = share;
          else this.progress.removeAttribute("value");
          this.progressWord.textContent = share < 1 ? words.sending(Math.round(share * 100)) : words.checking;
        },
      });
      const job = JSON.parse(await blob.text());
      say(words.accepted(job.pictures));
      this.add(null);
      if (!this.element.hidden && !this.home.hidden) location.hash = `train/${job.id}`; // whoever has gone elsewhere stays there
    } finally {
      this.sending = null;
      this.working.style.visibility = "hidden";
      this.startButton.disabled = !this.chosen.length;
      hide(this.cancelButton);
    }
  }

  // The list

  #list() {
    this.rows = h("ul", { class: "jobs" });
    this.kept = new Map(); // id -> row
    this.pages = 1;
    this.older = h("button", { type: "button", hidden: true, onclick: () => this.#older() }, words.more20);
    this.jobs = h("h2", { id: "jobs", tabIndex: -1 }, words.jobs);
    this.noJobs = h("p", { class: "note", hidden: true }, words.noJobs);
    return h("section", { "aria-labelledby": "jobs" }, this.jobs, this.noJobs, this.rows, this.older);
  }

  // All pages that were opened, while something on them goes on, and after the service was away. The rows stay, and with them the focus.
  async #refresh() {
    this.stop?.abort();
    clearTimeout(this.timer);
    const { signal } = (this.stop = new AbortController());
    const again = () => (this.timer = setTimeout(() => this.#refresh(), GLANCE));
    const jobs = [];
    let next = FIRST_JOBS;
    try {
      for (let page = 0; next && page < this.pages; page++) {
        const told = await json(next, { signal });
        jobs.push(...told.jobs);
        next = told.next?.replace(/^\//, "");
      }
    } catch (error) {
      if (cancelled(error)) return;
      if (!refused(error)) again(); // and a key, once given, brings it here again
      if (refused(error) || this.told?.detail !== error.detail) this.tell((this.missed = error));
      return;
    }
    if (this.told && this.told === this.missed) this.tell(null);
    this.#rows(jobs);
    hide(this.noJobs, jobs.length > 0);
    hide(this.older, !next);
    if (jobs.some(({ status }) => ACTIVE.includes(status))) again();
  }

  #rows(jobs) {
    const there = new Set(jobs.map(({ id }) => id));
    for (const [id, row] of this.kept) {
      if (there.has(id)) continue;
      row.remove();
      this.kept.delete(id);
    }
    for (const [i, job] of jobs.entries()) {
      const row = this.kept.get(job.id) ?? this.#row(job);
      row.querySelector(".pill").replaceWith(this.#pill(job));
      if (this.rows.children[i] !== row) this.rows.insertBefore(row, this.rows.children[i] ?? null);
    }
  }

  #row(job) {
    const about = h("span", { class: "note" }, `${words.methods[job.method]?.[0] ?? job.method}, ${when(job.created)}`);
    const row = h("li", {}, h("a", { href: `#train/${encodeURIComponent(job.id)}` }, h("strong", {}, job.model), this.#pill(job), about));
    this.kept.set(job.id, row);
    return row;
  }

  async #older() {
    const first = this.kept.size;
    this.pages++;
    await this.#refresh();
    this.rows.children[first]?.querySelector("a").focus();
  }

  #pill(job) {
    return h("span", { class: "pill", "data-status": job.status }, words.statuses[job.status] ?? job.status);
  }

  // One job

  async #open(id) {
    const path = `train/${encodeURIComponent(id)}`;
    const { signal } = (this.stop = new AbortController());
    this.title = h("h2", { tabIndex: -1 });
    this.lost = h("p", { class: "note", role: "status" });
    this.bar = h("progress", { max: 1, "aria-label": text.progress.label });
    this.time = h("p", { class: "note" });
    this.chart = new Chart({
      label: words.curve,
      x: words.step,
      series: [
        { name: words.loss, unit: "", digits: 4, points: [] },
        { name: words.quality, unit: " dB", digits: 2, points: [] },
      ],
    });
    this.panels = h("div", { class: "panels" }, h("p", { class: "note" }, words.noSample));
    this.outcome = h("div", { class: "outcome" });
    this.about = h("div");
    const act = (name, work) => h("button", { type: "button", onclick: () => this.#try(work) }, name);
    const to = (verb) => async () => this.#job(await json(`${path}/${verb}`, { method: "POST" }));
    this.cancelJob = act(words.cancel, to("cancel"));
    this.resumeJob = act(words.resume, async () => {
      await to("resume")();
      this.show(id); // its events go on
    });
    this.deleteJob = twice(words.remove, words.sure, () =>
      this.#try(async () => {
        await ask(path, { method: "DELETE" });
        location.hash = "train";
      }),
    );
    const log = h("pre", { tabIndex: 0, role: "group", "aria-label": words.log });
    const logs = h("details", { class: "log", ontoggle: () => logs.open && this.#try(async () => (log.textContent = await (await ask(`${path}/log`)).text())) }, h("summary", {}, words.log), log);
    this.job.replaceChildren(
      h("a", { href: "#train", class: "quiet" }, `‹ ${words.back}`),
      this.title,
      h("div", { class: "pace" }, this.bar, this.time, this.lost),
      this.outcome,
      h("section", { "aria-label": words.sample }, this.panels),
      this.chart.element,
      h("div", { class: "row" }, this.cancelJob, this.resumeJob, this.deleteJob),
      this.about,
      logs,
    );
    this.model = null;
    this.shownSample = undefined;
    const sample = settled(50, () => this.#sample(path, signal));
    try {
      const first = await json(path, { signal });
      this.#job(first);
      if (first.sample) sample();
      for await (const { event, data } of events(`${path}/events`, signal)) {
        if (event !== "lost") this.lost.textContent = "";
        if (event === "lost") this.lost.textContent = words.lost;
        else if (event === "progress") this.#progress(data);
        else if (event === "quality") {
          this.chart.add(1, [data.step, data.psnr]);
          sample();
        } else if (event === "job") {
          this.#job(data);
          if (data.sample) sample();
        }
      }
    } catch (error) {
      if (!cancelled(error) && !signal.aborted) this.tell(error, () => this.show(id));
    }
  }

  #progress({ step, loss, seconds_trained: trained, seconds_left: left }) {
    if (Number.isFinite(loss)) this.chart.add(0, [step, loss]);
    if (!ACTIVE.includes(this.status)) return;
    this.bar.value = left === null || left === undefined ? 0 : trained / Math.max(1e-9, trained + left);
    this.time.textContent = [words.trained(trained ?? 0), ...(left === null || left === undefined ? [] : [words.left(left)])].join(", ");
  }

  #job(job) {
    if (this.status && this.status !== job.status) say(`${job.model}: ${words.statuses[job.status]}`);
    this.status = job.status;
    document.title = text.title(job.model);
    this.title.replaceChildren(job.model, " ", this.#pill(job));
    const active = ACTIVE.includes(job.status);
    hide(this.bar, !active);
    if (job.status === "queued") this.time.textContent = "";
    if (active && job.step === null) this.bar.removeAttribute("value");
    if (job.status === "running" && job.step === null) this.time.textContent = words.preparing;
    if (!active) this.time.textContent = job.seconds_trained ? words.trained(job.seconds_trained) : "";
    hide(this.cancelJob, !active);
    this.cancelJob.disabled = job.status === "cancelling";
    hide(this.resumeJob, !["cancelled", "failed"].includes(job.status));
    hide(this.deleteJob, !ENDED.includes(job.status));
    const f = words.facts;
    const rows = [
      [f.method, words.methods[job.method]?.[0] ?? job.method],
      [f.parent, job.parent ?? words.scratch],
      [f.pictures, String(job.pictures)],
      [f.minutes, String(job.minutes)],
      [f.created, when(job.created)],
      ...(job.ended ? [[f.ended, when(job.ended)]] : []),
      ...(job.attempt > 1 ? [[f.attempt, String(job.attempt)]] : []),
    ];
    this.about.replaceChildren(facts(rows, job.model));
    this.#end(job);
  }

  // What came of it.
  #end(job) {
    const told = [];
    if (job.reason) told.push(h("div", { class: "problem" }, h("strong", {}, words.statuses[job.status]), h("p", {}, job.reason)));
    if (job.quality) {
      const { before, parent, trained, what } = job.quality;
      const gain = trained - (parent ?? before);
      if (Number.isFinite(gain)) told.push(h("p", { class: "verdict" }, (job.quality.better ? words.better : words.worse)(gain, !Number.isFinite(parent))));
      const cell = (name, value) => Number.isFinite(value) && h("div", {}, h("dt", {}, words.outcome[name]), h("dd", {}, words.decibels(value)));
      told.push(h("dl", { class: "scores" }, cell("before", before), cell("parent", parent), cell("trained", trained)), h("p", { class: "note" }, what));
    }
    if (job.note) told.push(h("p", { class: "note" }, job.note));
    if (job.status === "done") {
      if (this.model !== job.model) {
        this.model = job.model;
        this.useRow = h("div", { class: "row" });
        this.compared = h("div", { class: "compared", hidden: true });
        this.#use(job);
        changed();
      }
      told.push(this.useRow, this.compared);
    }
    this.outcome.replaceChildren(...told);
  }

  #use(job) {
    const choose = () => {
      const [file] = chooser.files;
      chooser.value = ""; // so that the same file can be chosen again
      if (file) this.#try(() => this.#compare(job.model, file));
    };
    const chooser = h("input", { type: "file", hidden: true, accept: "image/*", onchange: choose });
    const use = (name, label, main) =>
      h("button", {
        type: "button",
        class: main ? "main" : "",
        onclick: () =>
          this.#try(async () => {
            const { default: now, previous } = await json("models/default", {
              method: "PUT",
              headers: { "Content-Type": "application/json" },
              body: JSON.stringify({ model: name }),
            });
            say(words.used(now));
            changed();
            const back = previous && previous !== now && use(previous, words.undo(previous));
            buttons.replaceChildren(h("span", { class: "note" }, words.used(now)), ...(back ? [back] : []), ...(now === job.model ? [] : [use(job.model, words.use, true)]));
            buttons.querySelector("button")?.focus();
          }),
      }, label);
    const buttons = h("div", { class: "row" }, job.activated ? h("span", { class: "note" }, words.used(job.model)) : use(job.model, words.use, true));
    this.useRow.replaceChildren(buttons, h("button", { type: "button", onclick: () => chooser.click() }, words.compare), chooser);
  }

  // One's own picture by the model in use and by the new one, side by side.
  async #compare(model, file) {
    hide(this.compared, false);
    this.compared.replaceChildren(h("p", { class: "note", role: "status" }, words.comparing));
    const { models, chosen } = await json("models");
    const other = chosen === model ? models.find(({ name }) => name === model)?.parent ?? "auto" : chosen;
    const { signal } = this.stop;
    const [before, after] = await this.#denoised(file, [other, model], signal).catch((error) => {
      hide(this.compared);
      throw error;
    });
    this.opened.push(before, after);
    this.viewer = new Viewer({ onmove() {}, onview() {}, onzoom() {}, names: [words.current(other), model] });
    this.compared.replaceChildren(this.viewer.element);
    requestAnimationFrame(() => {
      this.viewer.show(before);
      this.viewer.setAfter(after);
      this.viewer.element.focus();
    });
  }

  async #denoised(file, models, signal) {
    const blobs = [];
    for (const model of models) blobs.push((await denoise(file, { model, format: "png" }, { signal })).blob);
    return Promise.all(blobs.map((blob) => pictures.open(blob)));
  }

  async #sample(path, signal) {
    let job;
    try {
      job = await json(path, { signal });
      if (!job.sample || job.sample.step === this.shownSample) return;
      const blobs = await Promise.all(job.sample.panels.map(async (show) => [show, await (await ask(`${path}/sample.png?show=${show}`, { signal })).blob()]));
      this.shownSample = job.sample.step;
      const figures = blobs.map(([show, blob]) => {
        const image = h("img", { src: URL.createObjectURL(blob), alt: words.panels[show] ?? show, onload: () => URL.revokeObjectURL(image.src) });
        return h("figure", {}, image, h("figcaption", {}, words.panels[show] ?? show));
      });
      this.panels.replaceChildren(...figures);
    } catch (error) {
      if (!cancelled(error) && !(error instanceof Problem)) throw error; // the next measurement brings another
    }
  }
}

// How many pairs these paths make, by the service's rules: x_1 with x_2, x_noisy with x_clean, or one name in two folders.
function paired(paths) {
  const files = paths.map((path) => /^(?:(.*)\/)?(.*?)(?:\.[^.]*)?$/.exec(path.toLowerCase()));
  const folders = new Set(files.map(([, folder = ""]) => folder));
  const truths = [...folders].filter((folder) => TRUTHS.test(folder)).length;
  for (const rule of folders.size === 2 && truths === 1 ? [WORDED] : [NUMBERED, WORDED]) {
    const halves = files.map(([, folder = "", stem]) => [folder, rule.exec(stem)?.[1]].join("\n"));
    if (files.every(([, , stem]) => rule.test(stem))) return twos(halves);
  }
  if (folders.size !== 2) return 0;
  return twos(files.map(([, , stem]) => stem));
}

function twos(keys) {
  const counts = new Map();
  for (const key of keys) counts.set(key, (counts.get(key) ?? 0) + 1);
  return [...counts.values()].filter((count) => count === 2).length;
}
