// An answer that is being read for, written, and measured.

import { ApiFailure, generate } from "./api.js";
import { announce, h } from "./dom.js";
import { count, digits, seconds, share, whole } from "./format.js";
import { PACE, soon, watch } from "./stats.js";

// Our request is told from others by its age, if only one is about as old.
const SAME_AGE = 0.4;

/** The figures of an answer in one line. */
export function summary(figures) {
  const { usage } = figures;
  const parts = [];
  if (figures.firstToken !== null) parts.push(`first token after ${seconds(figures.firstToken)}`);
  if (figures.rate !== null) parts.push(`${digits(figures.rate)} tokens/s`);
  if (usage) {
    parts.push(count(usage.completion_tokens, "token"));
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const found = cached ? `, ${share(cached, usage.prompt_tokens)} of it from the cache` : "";
    parts.push(`prompt of ${count(usage.prompt_tokens, "token")}${found}`);
    if (usage.exact === false) parts.push("approximate");
  }
  if (figures.finish === "length") parts.push("cut at the length limit");
  return parts.join(" · ");
}

/** The one request that is as old as ours and is not being written yet; null if several could be it. */
export function ours(requests, age) {
  const near = requests.filter((each) => Math.abs(each.age - age) < SAME_AGE);
  return near.length === 1 && near[0].state !== "writing" ? near[0] : null;
}

function progress() {
  const bar = h("progress", { "aria-label": "Reading the prompt" });
  const text = h("span", { class: "figures" }, "Reading…");
  return {
    element: h("div", { class: "reading" }, bar, text),
    show(request) {
      if (!request) return;
      if (request.state === "waiting") {
        text.textContent = "Waiting in line…";
        return;
      }
      bar.max = request.prompt;
      bar.value = request.read;
      const found = request.cached ? `, ${whole(request.cached)} of them from the cache` : "";
      text.textContent = `Read ${whole(request.read)} of ${count(request.prompt, "token")}${found}`;
    },
  };
}

/** Where an answer goes: `said` takes its text, `before` is shown until it begins, `figures` says what was measured. */
export function answerPane(said = h("div", { class: "said" })) {
  const before = h("div");
  const figures = h("p", { class: "figures" });
  const clear = () => {
    said.replaceChildren();
    figures.textContent = "";
    figures.classList.remove("error");
  };
  return { said, before, figures, clear };
}

/**
 * Stream an answer into the page.
 *
 * @param request as for `generate`.
 * @param pane an `answerPane`.
 * @returns `text`, `figures`, and `error` (a sentence) or `stopped`.
 */
export async function stream(request, { said, figures, before }) {
  const text = document.createTextNode("");
  said.append(text);
  said.setAttribute("aria-busy", "true");
  const bar = progress();
  before.append(bar.element);
  const began = performance.now();
  const stop = request.server?.url
    ? () => {}
    : watch(
        PACE.reading,
        (stats) => stats && bar.show(ours(stats.engine.requests, (performance.now() - began) / 1000)),
      );
  let waiting = "";
  let frame = null;
  let whatCame = "";
  const flush = () => {
    frame = null;
    const follow = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
    text.appendData(waiting);
    waiting = "";
    if (follow) window.scrollTo({ top: document.documentElement.scrollHeight });
  };
  const result = { text: "", figures: null, error: null, stopped: false };
  try {
    result.figures = await generate(request, (piece) => {
      if (!whatCame) {
        bar.element.remove();
        stop();
      }
      whatCame += piece;
      waiting += piece;
      frame ??= requestAnimationFrame(flush);
    });
    figures.textContent = summary(result.figures);
    announce(`Answer complete: ${figures.textContent}`);
  } catch (error) {
    result.stopped = error.name === "AbortError";
    result.error = result.stopped
      ? null
      : error instanceof ApiFailure
        ? error.message
        : "the connection broke off";
    figures.textContent = result.stopped ? "stopped" : result.error;
    figures.classList.toggle("error", !result.stopped);
    announce(figures.textContent);
  } finally {
    stop();
    bar.element.remove();
    if (frame !== null) cancelAnimationFrame(frame);
    flush();
    said.removeAttribute("aria-busy");
    result.text = whatCame;
    soon();
  }
  return result;
}
