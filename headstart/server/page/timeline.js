// Steps as stacked bars: tokens read below, tokens written on top, drawn by hand on a canvas.

import { h } from "./dom.js";
import { count, digits, seconds, whole } from "./format.js";

const LAST_STEPS = 160;
const MINUTE = 60;
const BIN = 0.5;
// A minute of steps; of a model that is faster than this, somewhat less.
const MOST = 30000;

/** Sums of steps over bins of time that end at `now`: tokens per second read and written. */
export function binned(steps, now, span = MINUTE, width = BIN) {
  const bins = Array.from({ length: Math.round(span / width) }, (_, at) => ({
    from: now - span + at * width,
    read: 0,
    written: 0,
    steps: 0,
  }));
  for (const step of steps) {
    const bin = bins[Math.floor((step.began - (now - span)) / width)];
    if (!bin) continue;
    bin.read += step.prefill / width;
    bin.written += step.decode / width;
    bin.steps += 1;
  }
  return bins;
}

/** Steps as objects, from the lists of `/stats`. */
export function named(list) {
  return list.map(([number, began, took, prefill, decode, sequences, waiting, free, cached]) => ({
    number,
    began,
    seconds: took,
    prefill,
    decode,
    sequences,
    waiting,
    free,
    cached,
  }));
}

export function timeline() {
  let steps = [];
  let now = 0;
  let budget = 0;
  let byTime = false;
  let cursor = null;
  const canvas = h("canvas", { class: "timeline", tabindex: 0, role: "img" });
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const choices = [
    ["Last steps", false],
    ["Last minute", true],
  ].map(([text, value]) =>
    h(
      "button",
      { type: "button", "aria-pressed": String(value === byTime), onclick: () => choose(value) },
      text,
    ),
  );
  const legend = h(
    "ul",
    { class: "legend" },
    h("li", {}, h("span", { class: "swatch c-read" }), "read (prefill)"),
    h("li", {}, h("span", { class: "swatch c-write" }), "written (decode)"),
    h("li", {}, "– – budget of a step"),
  );
  const element = h(
    "figure",
    { class: "card" },
    h(
      "figcaption",
      {},
      h("h2", {}, "Tokens per step"),
      h("span", { class: "switch", role: "group", "aria-label": "Time axis" }, choices),
    ),
    canvas,
    readout,
    legend,
  );

  function choose(value) {
    byTime = value;
    cursor = null;
    choices.forEach((button, at) => button.setAttribute("aria-pressed", String((at === 1) === byTime)));
    element.querySelector("h2").textContent = byTime ? "Tokens per second" : "Tokens per step";
    legend.lastChild.hidden = byTime;
    draw();
  }

  const bars = () =>
    byTime
      ? binned(steps, now)
      : steps.slice(-LAST_STEPS).map((step) => ({ ...step, read: step.prefill, written: step.decode }));

  function draw() {
    const shown = bars();
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    const scale = window.devicePixelRatio || 1;
    if (!width) return;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const style = getComputedStyle(canvas);
    // As the canvas would be coloured: the property itself holds a colour for light and one for dark.
    const colour = (name) => {
      canvas.style.color = `var(${name})`;
      return style.color;
    };
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `11px ${style.fontFamily}`;
    const left = 44;
    const bottom = height - 6;
    const highest = Math.max(
      ...shown.map((bar) => bar.read + bar.written),
      byTime ? 1 : Math.min(budget, 64),
      1,
    );
    const top = byTime || highest < budget / 3 ? highest : Math.max(highest, budget);
    const y = (value) => bottom - (value / top) * (bottom - 14);
    context.fillStyle = colour("--soft");
    context.strokeStyle = colour("--line");
    context.lineWidth = 1;
    for (const value of [0, top / 2, top]) {
      const at = Math.round(y(value)) + 0.5;
      context.beginPath();
      context.moveTo(left, at);
      context.lineTo(width, at);
      context.stroke();
      context.textAlign = "right";
      context.fillText(value >= 1e4 ? `${digits(value / 1000)}k` : whole(value), left - 6, at + 3.5);
    }
    const slots = byTime ? shown.length : LAST_STEPS;
    const pitch = (width - left) / slots;
    const gap = pitch > 4 ? 1 : 0;
    shown.forEach((bar, at) => {
      const x = left + (slots - shown.length + at) * pitch;
      context.fillStyle = colour("--read");
      context.fillRect(x, y(bar.read), pitch - gap, bottom - y(bar.read));
      context.fillStyle = colour("--write");
      context.fillRect(x, y(bar.read + bar.written), pitch - gap, y(bar.read) - y(bar.read + bar.written));
      if (at === cursor) {
        context.strokeStyle = colour("--text");
        context.strokeRect(x - 0.5, 8, Math.max(pitch, 2), bottom - 8);
      }
    });
    if (!byTime && budget <= top) {
      context.setLineDash([4, 4]);
      context.strokeStyle = colour("--text");
      context.beginPath();
      context.moveTo(left, Math.round(y(budget)) + 0.5);
      context.lineTo(width, Math.round(y(budget)) + 0.5);
      context.stroke();
      context.setLineDash([]);
    }
  }

  function describe() {
    const shown = bars();
    const bar = cursor === null ? null : shown[cursor];
    if (!bar) {
      readout.textContent = "";
    } else if (byTime) {
      readout.textContent = `${digits(now - bar.from)} s ago: ${whole(bar.read)} tokens/s read, ${whole(bar.written)} written, ${count(bar.steps, "step")}`;
    } else {
      readout.textContent =
        `step ${whole(bar.number)}: ${whole(bar.read)} read + ${whole(bar.written)} written of ${whole(budget)}, ` +
        `${count(bar.sequences, "sequence")}, ${whole(bar.waiting)} waiting, ${seconds(bar.seconds)}`;
    }
  }

  function point(event) {
    const shown = bars();
    const slots = byTime ? shown.length : LAST_STEPS;
    const at =
      Math.floor(((event.offsetX - 44) / (canvas.clientWidth - 44)) * slots) - (slots - shown.length);
    cursor = shown[at] ? at : null;
    describe();
    draw();
  }
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", () => {
    cursor = null;
    describe();
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const last = bars().length - 1;
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -last, End: last };
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    cursor = Math.min(last, Math.max(0, (cursor ?? last) + moves[event.key]));
    describe();
    draw();
  });
  canvas.addEventListener("blur", () => {
    cursor = null;
    describe();
    draw();
  });
  new ResizeObserver(draw).observe(canvas);

  return {
    element,
    get steps() {
      return steps;
    },
    add(stats) {
      if (stats.restarted) steps = [];
      now = stats.engine.now;
      budget = stats.engine.budget;
      legend.lastChild.textContent = `– – budget of a step: ${whole(budget)}`;
      const known = steps.at(-1)?.number ?? 0;
      const fresh = named(stats.engine.steps).filter((step) => step.number > known);
      steps = [...steps, ...fresh]
        .filter((step) => step.began > now - MINUTE || steps.length < LAST_STEPS)
        .slice(-MOST);
      const recent = steps.filter((step) => step.began > now - MINUTE);
      const sum = (name) => recent.reduce((all, step) => all + step[name], 0);
      canvas.setAttribute(
        "aria-label",
        `Tokens per step. In the last minute: ${count(recent.length, "step")}, ${whole(sum("prefill"))} tokens read, ` +
          `${whole(sum("decode"))} written. Arrow keys go from step to step.`,
      );
      draw();
    },
    draw,
  };
}
