// What is done with all pixels of a picture, as promises: by a worker, or where none starts by this thread, which then stands still meanwhile.
import { Problem } from "./service.js";
import { text } from "./strings.js";

export const TILE = 512;

const waiting = new Map(); // call -> {message, resolve, reject}
let last = 0;
let worker = started();

function started() {
  // Worker's address is the only one that a policy of trusted types lets through.
  const address = new URL("pictures.worker.js", import.meta.url).href;
  const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: () => address });
  try {
    const made = new Worker(policy ? policy.createScriptURL("") : address, { type: "module" });
    made.onmessage = ({ data }) => {
      made.onerror = null;
      answer(data);
    };
    made.onerror = (event) => {
      event.preventDefault();
      worker = null;
      for (const { message } of waiting.values()) here(message);
    };
    return made;
  } catch {
    return null;
  }
}

async function here({ call, name, given }) {
  const doors = await import("./pixels.js").then(
    (pixels) => pixels.doors,
    () => null,
  );
  if (!doors) return answer({ call, error: new Problem(0, text.problem.incomplete.title, text.problem.incomplete.detail) });
  try {
    const [value] = await doors[name](given);
    answer({ call, value });
  } catch (error) {
    answer({ call, error });
  }
}

function answer({ call, value, error }) {
  const { resolve, reject } = waiting.get(call);
  waiting.delete(call);
  if (error === undefined) resolve(value);
  else reject(error instanceof Error ? error : new Error(error));
}

const ask = (name, given) =>
  new Promise((resolve, reject) => {
    const message = { call: ++last, name, given };
    waiting.set(last, { message, resolve, reject });
    if (worker) worker.postMessage(message);
    else here(message);
  });

let turn = Promise.resolve();

export const open = (blob, deep = true) => ask("open", { blob, deep });
export const tile = (id, level, x, y) => ask("tile", { id, level, x, y });
export const difference = (given) => ask("difference", given);
// One at a time: each holds a whole picture while it is made, and what is looked at must not wait for all of them.
export const thumbnail = (blob, side) => (turn = turn.catch(() => {}).then(() => ask("thumbnail", { blob, side })));
export const zip = (files) => ask("zip", { files });
export const close = (id) => ask("close", { id });
