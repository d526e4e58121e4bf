// The Models part: what there is to denoise with, which of them is used, and what each says of itself.
import { facts, h, hide, save, say, twice } from "./dom.js";
import { ask, json } from "./service.js";
import { bytes, text } from "./strings.js";

const words = text.models;
const changed = () => window.dispatchEvent(new Event("models"));

export class Models {
  constructor({ needKey }) {
    this.needKey = needKey;
    this.alert = h("div", { class: "problem", role: "alert", hidden: true });
    this.list = h("ul", { class: "models" });
    this.choice = h("div", { class: "row" });
    const chooser = h("input", { type: "file", hidden: true, accept: ".safetensors" });
    chooser.addEventListener("change", () => {
      const [file] = chooser.files;
      chooser.value = ""; // so that the same file can be chosen again
      if (file) this.#try(() => this.#upload(file));
    });
    this.element = h(
      "div",
      { class: "sheet" },
      (this.title = h("h2", { tabIndex: -1 }, words.title)),
      this.alert,
      this.choice,
      this.list,
      h("div", { class: "row" }, h("button", { type: "button", onclick: () => chooser.click() }, words.upload), h("span", { class: "note" }, words.uploadHint)),
      chooser,
    );
  }

  show() {
    this.#try(() => this.#load());
  }

  async #try(work) {
    try {
      this.told = null;
      hide(this.alert);
      await work();
    } catch (error) {
      this.told = error;
      this.alert.replaceChildren(h("strong", {}, error.title ?? text.problem.title), h("p", {}, error.detail ?? error.message));
      hide(this.alert, false);
      if (error.status === 401 && (await this.needKey())) this.#try(work);
    }
  }

  // Once there is another key.
  unlock() {
    if (this.told?.status === 401 && !this.element.hidden) this.show();
  }

  // After something was done to the model `done`: what did it is gone with the old list, and the focus goes to that model.
  async #load(done) {
    const { models, chosen } = await json("models");
    const automatic = () => this.#try(() => this.#use("auto"));
    const free = chosen === "auto";
    this.choice.replaceChildren(free ? h("p", { class: "note" }, words.automatic) : h("button", { type: "button", onclick: automatic }, words.useAutomatic));
    this.list.replaceChildren(...(models.length ? models.map((model) => this.#row(model, model.name === chosen)) : [h("li", {}, words.none)]));
    if (!done || document.activeElement !== document.body) return;
    const at = models.findIndex(({ name }) => name === done);
    (this.list.children[at]?.querySelector("h3") ?? this.title).focus();
  }

  #row(model, used) {
    const path = `models/${encodeURIComponent(model.name)}`;
    const act = (name, label, work) => h("button", { type: "button", "aria-label": `${label}: ${name}`, onclick: () => this.#try(work) }, label);
    const whole = h("div", { class: "card" });
    const card = h("details", { ontoggle: () => card.open && this.#try(async () => whole.replaceChildren(shown((await json(path).catch(() => model)).card))) }, h("summary", {}, words.card), whole);
    const origin = [
      model.shipped === true && words.shipped,
      model.shipped === false && words.own,
      model.parent && words.parent(model.parent),
      Number.isFinite(model.bytes) && bytes(model.bytes),
    ];
    const drop = async () => {
      await ask(path, { method: "DELETE" });
      say(words.removed(model.name));
      changed();
      await this.#load(model.name);
    };
    const remove = twice(words.remove, words.sure, () => this.#try(drop), model.name);
    return h(
      "li",
      {},
      h("h3", { tabIndex: -1 }, model.name, used && h("span", { class: "pill", "data-status": "done" }, words.isDefault)),
      model.card?.summary && h("p", {}, String(model.card.summary)),
      h("p", { class: "note" }, origin.filter(Boolean).join(" · "), model.job && " · ", model.job && h("a", { href: `#train/${encodeURIComponent(model.job)}` }, words.job)),
      h(
        "div",
        { class: "row" },
        !used && act(model.name, words.use, () => this.#use(model.name)),
        model.bytes !== undefined && act(model.name, words.download, async () => save(await (await ask(`${path}/weights`)).blob(), `${model.name}.safetensors`)),
        model.shipped === false && !model.default && remove,
      ),
      card,
    );
  }

  async #use(name) {
    const headers = { "Content-Type": "application/json" };
    await ask("models/default", { method: "PUT", headers, body: JSON.stringify({ model: name }) });
    say(words.changed(name));
    changed();
    await this.#load(name);
  }

  async #upload(file) {
    const name = file.name.replace(/\.safetensors$/, "");
    await ask(`models/${encodeURIComponent(name)}`, { method: "PUT", headers: { "Content-Type": "application/octet-stream" }, body: file });
    say(words.added(name));
    changed();
    await this.#load(name);
  }
}

const empty = (value) => value === null || (typeof value === "object" && Object.keys(value).length === 0);

// Whatever a card holds: a number, a word, a list, or more of its kind.
function shown(value) {
  if (Array.isArray(value)) return value.some((each) => each && typeof each === "object") ? h("div", {}, value.map(shown)) : h("span", {}, value.join(", "));
  if (value && typeof value === "object") return facts(Object.entries(value).filter(([, each]) => !empty(each)).map(([key, each]) => [key.replaceAll("_", " "), shown(each)]));
  return h("span", {}, typeof value === "number" ? value.toLocaleString(undefined, { maximumFractionDigits: 4 }) : String(value));
}
