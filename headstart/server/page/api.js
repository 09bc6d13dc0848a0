// Requests to this server, or to another one: keys, errors as one sentence, and answers as they come.

const KEY = "headstart-key";

export class ApiFailure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Where a request goes: `url` of a server (empty: this one) and the key for it. */
export const here = () => ({ url: "", key: key.get() });

async function send(server, path, options = {}) {
  const headers = new Headers(options.headers);
  if (server.key) headers.set("Authorization", `Bearer ${server.key}`);
  if (options.body) headers.set("Content-Type", "application/json");
  let response;
  try {
    response = await fetch(server.url + path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const where = server.url || "this server";
    const hint = server.url ? `; it must be running, with --allowed-origins ${location.origin}` : "";
    throw new ApiFailure(`there is no answer from ${where}${hint}`, 0);
  }
  if (!response.ok) throw new ApiFailure(await reason(response), response.status);
  return response;
}

async function reason(response) {
  try {
    const body = await response.json();
    return body.error?.message ?? `the server answered ${response.status}`;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** JSON of a path. A 401 from this server asks for a key (see `onKeyWanted`). */
export async function get(path, server = here(), signal) {
  try {
    return await (await send(server, path, { signal })).json();
  } catch (error) {
    if (error.status === 401 && !server.url) wanted();
    throw error;
  }
}

export async function post(path, body, server = here(), signal) {
  return (await send(server, path, { method: "POST", body: JSON.stringify(body), signal })).json();
}

let wanted = () => {};
export function onKeyWanted(callback) {
  wanted = callback;
}

/** The data of server-sent events, parsed; ends at `[DONE]`. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart())
          .join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Stream an answer.
 *
 * @param request `path` and `body` of the request, `server`, and `signal` to stop it.
 * @param onText called with each piece of text.
 * @returns figures: `firstToken`, `total` and `rate` (seconds and tokens per second as this browser saw them), `usage`
 *   and `finish` as the server told them. They are complete only if the answer was not stopped.
 */
export async function generate({ path, body, server = here(), signal }, onText) {
  const began = performance.now();
  const figures = { firstToken: null, total: null, rate: null, usage: null, finish: null };
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await send(server, path, { method: "POST", body: JSON.stringify(asked), signal });
  let first = null;
  let last = null;
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new ApiFailure(chunk.error.message, 0);
    if (chunk.usage) figures.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const text = choice.delta ? (choice.delta.content ?? "") : (choice.text ?? "");
    figures.finish = choice.finish_reason ?? figures.finish;
    if (text) {
      last = performance.now();
      first ??= last;
      onText(text);
    }
  }
  figures.total = (performance.now() - began) / 1000;
  if (first !== null) figures.firstToken = (first - began) / 1000;
  const written = figures.usage?.completion_tokens ?? 0;
  if (last > first && written > 1) figures.rate = ((written - 1) / (last - first)) * 1000;
  return figures;
}
