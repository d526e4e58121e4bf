// The service's doors. Every failure is a Problem with words to show; an API key is kept here, in memory, and nowhere else.
import { text } from "./strings.js";

let key = "";
export const setKey = (value) => {
  key = value.trim();
};
export const hasKey = () => key !== "";
const keyHeader = () => (key ? { Authorization: `Bearer ${key}` } : {});

export class Problem extends Error {
  constructor(status, title, detail, more = {}) {
    super(detail);
    Object.assign(this, { status, title, detail, ...more });
  }
}

// Why nothing came back. A browser sends no file that is not as it was when it was chosen, and says only that it failed.
async function unanswered(body) {
  for (const file of body instanceof FormData ? body.values() : [body]) {
    if (!(file instanceof File)) continue;
    try {
      await file.slice(0, 1).arrayBuffer();
    } catch {
      return new Problem(0, text.problem.gone.title, text.problem.gone.detail(file.name));
    }
  }
  return new Problem(0, text.problem.unreachable.title, text.problem.unreachable.detail);
}

// Sends once more what was refused for want of a key if another was given since it began: the refusal says nothing of that one.
async function keyed(send) {
  const used = key;
  try {
    return await send();
  } catch (error) {
    if (error.status !== 401 || key === used) throw error;
    return keyed(send);
  }
}

const isAbort = (error) => error?.name === "AbortError";
// Whether asking again would bring the same.
export const refused = (error) => error.status >= 400 && error.status < 500 && error.status !== 429;
export const cancelled = isAbort;

async function problem(status, body, header) {
  let told = {};
  try {
    told = JSON.parse(await body.text());
  } catch {
    // not the service's own words: a proxy's, or none
  }
  const retry = Number.parseFloat(header("Retry-After"));
  const detail = typeof told.detail === "string" ? told.detail : text.problem.plain(status);
  return new Problem(status, typeof told.title === "string" ? told.title : text.problem.title, detail, {
    retrySeconds: Number.isFinite(retry) ? retry : undefined,
    kind: String(told.type ?? ""),
  });
}

// A Response with a good status, or a Problem is thrown.
export const ask = (path, options) => keyed(() => asked(path, options));

async function asked(path, { headers = {}, ...options } = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...keyHeader(), ...headers } });
  } catch (error) {
    throw isAbort(error) ? error : await unanswered(options.body);
  }
  if (!answer.ok) throw await problem(answer.status, answer, (name) => answer.headers.get(name));
  return answer;
}

export const json = async (path, options) => (await ask(path, options)).json();

// POST with the upload's progress, which fetch does not tell. -> {blob, header(name)}
export const post = (path, body, options) => keyed(() => posted(path, body, options));

function posted(path, body, { signal, onsent = () => {}, headers = {} } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const stop = () => request.abort();
    const done = (settle, value) => {
      signal?.removeEventListener("abort", stop);
      settle(value);
    };
    const header = (name) => request.getResponseHeader(name);
    request.open("POST", path);
    for (const [name, value] of Object.entries({ ...keyHeader(), ...headers })) request.setRequestHeader(name, value);
    request.responseType = "blob";
    request.upload.onprogress = (event) => event.lengthComputable && onsent(event.loaded / event.total);
    request.upload.onload = () => onsent(1);
    request.onload = async () => {
      if (request.status >= 200 && request.status < 300) done(resolve, { blob: request.response, header });
      else done(reject, await problem(request.status, request.response, header));
    };
    request.onerror = async () => done(reject, await unanswered(body));
    request.onabort = () => done(reject, new DOMException("cancelled", "AbortError"));
    if (signal?.aborted) return request.onabort();
    signal?.addEventListener("abort", stop);
    request.send(body);
    if (!body) onsent(1);
  });
}

export function denoise(file, settings, options) {
  const form = new FormData();
  form.append("file", file, file.name);
  return post(`denoise?${new URLSearchParams(settings)}`, form, options);
}

// The same without sending the file again, while the service keeps it. It does where `settings.keep`, and `item.kept` is its name there.
export async function denoiseKept(item, settings, options) {
  if (item.kept) {
    try {
      return await post(`denoise?${new URLSearchParams(settings)}`, null, { ...options, headers: { "X-Clearfold-Kept": item.kept } });
    } catch (error) {
      if (!error.kind?.endsWith(":unknown-picture")) throw error;
      item.kept = null;
    }
  }
  const answer = await denoise(item.file, settings, options);
  item.kept = answer.header("X-Clearfold-Kept");
  return answer;
}

// Server-sent events through fetch, which can carry a key. Comes back after a break, where it left off; ends when the service closes with 204.
export async function* events(path, signal) {
  let last = "";
  let wait = 1000;
  while (!signal.aborted) {
    try {
      const answer = await ask(path, { signal, headers: { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) } });
      if (answer.status === 204) return;
      let buffer = "";
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        buffer += part.value.replaceAll("\r\n", "\n");
        const blocks = buffer.split("\n\n");
        buffer = blocks.pop();
        for (const block of blocks) {
          const event = parsed(block);
          if (event.id !== undefined) last = event.id;
          if (event.retry) wait = event.retry;
          if (event.data !== undefined) yield { event: event.event ?? "message", data: JSON.parse(event.data) };
        }
      }
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      if (refused(error)) throw error;
      yield { event: "lost" };
    }
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, wait);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
  }
}

function parsed(block) {
  const event = {};
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    if (at < 1) continue; // a comment, which keeps the line open
    const [name, value] = [line.slice(0, at), line.slice(at + 1).replace(/^ /, "")];
    if (name === "data") event.data = event.data === undefined ? value : `${event.data}\n${value}`;
    else if (name === "retry") event.retry = Number(value);
    else event[name] = value;
  }
  return event;
}
