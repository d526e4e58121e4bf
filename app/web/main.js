// The page: its three parts behind their links, the dialogs that all share, and the keys that act everywhere.
import { Denoise } from "./denoise.js";
import { carriesFiles, h, hide, installLive } from "./dom.js";
import { Models } from "./models.js";
import { hasKey, setKey } from "./service.js";
import { text } from "./strings.js";
import { Train } from "./train.js";

const shared = { needKey: () => askKey(hasKey()) };
const parts = { denoise: new Denoise(shared), train: new Train(shared), models: new Models(shared) };

const links = Object.keys(parts).map((name) => h("a", { href: `#${name}` }, text.parts[name]));
const main = h("main", { id: "main", tabIndex: -1 }, Object.values(parts).map((part) => part.element));
const header = h(
  "header",
  {},
  h("a", { class: "skip", href: "#main", onclick: skip }, text.skip),
  h("h1", {}, h("span", { class: "mark", "aria-hidden": "true" }), h("span", {}, text.name)),
  h("nav", { "aria-label": text.navigation }, links),
  h(
    "div",
    { class: "aside" },
    h("button", { type: "button", class: "quiet help", onclick: () => keys.showModal() }, text.help),
    h("button", { type: "button", class: "quiet", onclick: () => askKey() }, text.key),
    h("a", { class: "quiet", href: "docs" }, text.interface),
  ),
);

const keys = dialog(text.keys.title, h("dl", { class: "keys" }, text.keys.list.map(([key, does]) => [h("dt", {}, key), h("dd", {}, does)])));
const keyField = h("input", { id: "api-key", type: "password", autofocus: true, autocomplete: "off", spellcheck: false });
const keyRefused = h("p", { class: "problem", role: "alert", hidden: true }, text.apiKey.refused);
const keyForm = h(
  "form",
  { method: "dialog" },
  h("p", {}, text.apiKey.hint),
  keyRefused,
  h("label", { htmlFor: "api-key" }, text.apiKey.label),
  keyField,
  h("button", { value: "use" }, text.act.save),
);
const keyDialog = dialog(text.apiKey.title, keyForm);

document.body.append(header, main, keys, keyDialog);
installLive();

let asking = null; // the open question for a key

// Asks for a key, once more if the last was `refused`; resolves to whether one was given. All who ask meanwhile wait for one answer.
function askKey(refused = false) {
  hide(keyRefused, !refused);
  asking ??= new Promise((resolve) => {
    keyDialog.showModal();
    keyDialog.addEventListener(
      "close",
      () => {
        const given = keyDialog.returnValue === "use";
        asking = null;
        keyDialog.returnValue = "";
        if (given) {
          setKey(keyField.value);
          for (const part of Object.values(parts)) part.unlock();
          window.dispatchEvent(new Event("models"));
        }
        resolve(given);
      },
      { once: true },
    );
  });
  return asking;
}

function dialog(title, ...content) {
  const id = `dialog-${title.toLowerCase().replaceAll(" ", "-")}`;
  const close = h("button", { type: "button", class: "quiet close", "aria-label": text.act.close, onclick: () => element.close() }, "×");
  const element = h("dialog", { "aria-labelledby": id }, h("h2", { id }, title), close, ...content);
  let began = false; // a press, outside
  const outside = ({ clientX: x, clientY: y }) => {
    const { left, right, top, bottom } = element.getBoundingClientRect();
    return x < left || x > right || y < top || y > bottom;
  };
  element.addEventListener("pointerdown", (event) => {
    began = outside(event);
  });
  element.addEventListener("click", (event) => {
    if (began && outside(event)) element.close();
    began = false;
  });
  return element;
}

function skip(event) {
  event.preventDefault();
  main.focus();
}

function show() {
  const [wanted, ...rest] = location.hash.slice(1).split("/");
  const name = Object.hasOwn(parts, wanted) ? wanted : "denoise";
  document.title = text.title(text.parts[name]);
  for (const [i, [each, part]] of Object.entries(parts).entries()) {
    hide(part.element, each !== name);
    if (each === name) links[i].setAttribute("aria-current", "page");
    else links[i].removeAttribute("aria-current");
    if (each === name) part.show?.(rest.join("/"));
    else part.leave?.();
  }
}
window.addEventListener("hashchange", show);
show();

// A file that no part takes does not take the page's place.
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => {
    if (!carriesFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "none";
  });
}

// Keys act wherever nothing is typed.
const typing = (element) => element.closest("input:not([type=range]):not([type=checkbox]), textarea, select, dialog");
window.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (event.key === "?") {
    keys.showModal();
    event.preventDefault();
  } else if (!parts.denoise.element.hidden && parts.denoise.key(event)) event.preventDefault();
});
window.addEventListener("keyup", (event) => parts.denoise.keyUp(event));
window.addEventListener("models", () => {
  parts.denoise.loadModels();
  parts.train.look();
});
window.addEventListener("blur", () => parts.denoise.viewer.hold(false));
