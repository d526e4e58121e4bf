// Elements, made without HTML: whatever a file is called or a service answers stays text.

// h("button", {class: "quiet", onclick: f, "aria-pressed": true}, "words", otherElement)
export function h(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export const hide = (element, hidden = true) => {
  element.hidden = hidden;
};

// A text that is spoken by a screen reader and shown nowhere.
const live = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
export const installLive = () => document.body.append(live);
export const say = (words) => {
  live.textContent = words;
};

// A slider with its name and its value, which can be typed too.
export function range({ label, id, min, max, step, value, shown, oninput }) {
  const slider = h("input", { type: "range", id, min, max, step, value });
  const number = h("input", { type: "number", min, max, step: "any", value, "aria-label": shown ?? label, inputMode: "decimal", placeholder: "–" });
  let typing = false; // what stands there is not yet meant
  const within = (v) => Math.min(Number(max), Math.max(Number(min), v));
  slider.addEventListener("input", () => {
    number.value = slider.value;
    oninput(Number(slider.value));
  });
  number.addEventListener("input", () => {
    typing = true;
  });
  number.addEventListener("blur", () => {
    typing = false;
  });
  number.addEventListener("change", () => {
    typing = false;
    const typed = Number.parseFloat(number.value);
    const valid = Number.isFinite(typed) ? within(typed) : Number(slider.value);
    number.value = valid;
    slider.value = valid;
    oninput(valid);
  });
  const element = h("div", { class: "range" }, h("label", { htmlFor: id }, label), slider, number);
  return {
    element,
    slider,
    set: (v) => {
      slider.value = v ?? 0;
      if (!typing) number.value = v === undefined ? "" : Math.round(v * 100) / 100;
    },
  };
}

export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Waits until calls stop for `milliseconds`, then does it once.
export function settled(milliseconds, work) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}

// Acts only when pressed twice: what is deleted does not come back.
export function twice(name, sure, act, of = "") {
  const show = (words) => {
    button.textContent = words;
    if (of) button.setAttribute("aria-label", `${words}: ${of}`); // one of several alike
  };
  const reset = () => {
    show(name);
    asked = false;
  };
  let asked = false;
  const press = () => {
    if (asked) act();
    else {
      show(sure);
      asked = true;
      say(sure);
    }
  };
  const button = h("button", { type: "button", onclick: press, onblur: reset });
  reset();
  return button;
}

export const facts = (rows, label) =>
  h("dl", { class: "facts", "aria-label": label }, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

export const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

// What a system keeps in a folder for itself.
export const concealed = (path) => path.split("/").some((part) => part.startsWith("."));

// Files of a drop, those of its folders too, each with its path.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path: entry.fullPath.slice(1) });
    else {
      const reader = entry.createReader();
      for (let some; (some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) {
        for (const each of some) await walk(each);
      }
    }
  };
  for (const entry of entries) await walk(entry);
  return found.filter(({ path }) => !concealed(path));
}
