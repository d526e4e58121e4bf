// The worker that holds pictures, as promises.

export const TILE = 512;

// Worker's address is the only one that a policy of trusted types lets through.
const address = new URL("pictures.worker.js", import.meta.url).href;
const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: () => address });
const worker = new Worker(policy ? policy.createScriptURL("") : address, { type: "module" });

const waiting = new Map();
let last = 0;

worker.onmessage = ({ data: { call, value, error } }) => {
  const { resolve, reject } = waiting.get(call);
  waiting.delete(call);
  if (error === undefined) resolve(value);
  else reject(new Error(error));
};

const ask = (name, given) =>
  new Promise((resolve, reject) => {
    waiting.set(++last, { resolve, reject });
    worker.postMessage({ call: last, name, given });
  });

export const open = (blob, deep = true) => ask("open", { blob, deep });
export const tile = (id, level, x, y) => ask("tile", { id, level, x, y });
export const difference = (given) => ask("difference", given);
export const thumbnail = (blob, side) => ask("thumbnail", { blob, side });
export const zip = (files) => ask("zip", { files });
export const close = (id) => worker.postMessage({ name: "close", given: { id } });
