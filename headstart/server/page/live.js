// The engine at work: what it reads and writes in each step, who is in it, and where its memory goes.

import { h } from "./dom.js";
import { digits, seconds, share, whole } from "./format.js";
import { distribution } from "./plots.js";
import { PACE, rewind, watch } from "./stats.js";
import { timeline } from "./timeline.js";

// Rates are over this many seconds.
const WINDOW = 5;

export function liveView(root) {
  let stop = null;
  let paused = false;
  const steps = timeline();
  const tiles = new Map();
  const tile = (name) => {
    const value = h("span", {}, "–");
    const note = h("div", { class: "note" });
    tiles.set(name, { value, note });
    return h("div", {}, h("dt", {}, name), h("dd", {}, value, note));
  };
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: toggle }, "Pause");
  const problem = h("p", { class: "soft error", role: "status", hidden: true });
  const pages = h("figure", { class: "card" });
  const hits = h("figure", { class: "card" });
  const latencies = h("div", { class: "pair" });
  const requests = h("section", { class: "card requests", "aria-labelledby": "requests-title" });
  root.append(
    h("div", { class: "row" }, h("h2", {}, "The engine, live"), h("span", { class: "grow" }), pause),
    problem,
    h(
      "dl",
      { class: "tiles" },
      ["Running", "Waiting", "Reading", "Writing", "From the cache", "Pages in use"].map(tile),
    ),
    steps.element,
    requests,
    h("div", { class: "pair" }, pages, hits),
    latencies,
  );
  new MutationObserver(steps.draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", steps.draw);

  function toggle() {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  }

  const set = (name, value, note = "") => {
    tiles.get(name).value.textContent = value;
    tiles.get(name).note.textContent = note;
  };

  function show(stats, error) {
    problem.hidden = !error;
    if (error) problem.textContent = `No news: ${error.message}.`;
    if (!stats || paused) return;
    const { engine, totals } = stats;
    steps.add(stats);
    const recent = steps.steps.filter((step) => step.began > engine.now - WINDOW);
    const rate = (name) => `${digits(recent.reduce((all, step) => all + step[name], 0) / WINDOW)}`;
    const held = engine.pages.tenants.reduce((all, tenant) => all + tenant.held, 0);
    set(
      "Running",
      whole(totals.running),
      totals.preemptions ? `${whole(totals.preemptions)} set back so far` : "sequences",
    );
    set("Waiting", whole(totals.waiting), "in line");
    set("Reading", rate("prefill"), "tokens/s");
    set("Writing", rate("decode"), "tokens/s");
    set("From the cache", share(totals.cached_tokens, totals.queried_tokens), "of all prompt tokens");
    set("Pages in use", share(held, engine.pages.total), `of ${whole(engine.pages.total)}`);
    showPages(pages, engine.pages);
    showHits(hits, totals);
    latencies.replaceChildren(
      distribution("Time to first token", stats.latency.first_token),
      distribution("Time between tokens", stats.latency.gap),
    );
    showRequests(requests, engine);
  }

  return {
    shown() {
      rewind();
      stop ??= watch(PACE.live, show);
    },
    hidden() {
      stop?.();
      stop = null;
    },
  };
}

/** What the memory holds, as one bar and its legend: held by each tenant, kept for reuse, and free. */
export function parts(pages) {
  const tenants = pages.tenants.map((tenant) => ({ ...tenant, name: tenant.name ?? "others" }));
  const found = tenants
    .filter((tenant) => tenant.held)
    .map((tenant, at) => ({
      name: tenants.length > 1 ? `in use by ${tenant.name}` : "in use",
      pages: tenant.held,
      kind: at === 0 ? "c-read" : "c-other",
    }));
  for (const [at, tenant] of tenants.filter((each) => each.cached).entries()) {
    found.push({
      name: tenants.length > 1 ? `cached for ${tenant.name}` : "cached",
      pages: tenant.cached,
      kind: at === 0 ? "c-cache" : "c-cache-other",
    });
  }
  const rest = pages.total - found.reduce((all, part) => all + part.pages, 0);
  // Who holds what is counted a little later than what is free.
  return [...found, { name: "free", pages: Math.max(0, rest), kind: "c-free" }];
}

function showPages(figure, pages) {
  const shown = parts(pages);
  const bar = h("div", {
    class: "pages",
    role: "img",
    "aria-label": shown.map((part) => `${part.name}: ${whole(part.pages)}`).join(", "),
  });
  for (const part of shown) {
    const piece = h("span", { class: part.kind });
    piece.style.flexGrow = String(part.pages);
    bar.append(piece);
  }
  figure.replaceChildren(
    h(
      "figcaption",
      {},
      h("h2", {}, "Memory for keys and values"),
      h("span", { class: "soft" }, `pages of ${pages.page_size} tokens`),
    ),
    bar,
    h(
      "ul",
      { class: "legend" },
      shown.map((part) =>
        h(
          "li",
          {},
          h("span", { class: `swatch ${part.kind}` }),
          `${part.name}: ${whole(part.pages)} (${share(part.pages, pages.total)})`,
        ),
      ),
    ),
  );
}

function showHits(figure, totals) {
  const found = h("progress", {
    max: Math.max(1, totals.queried_tokens),
    value: totals.cached_tokens,
    "aria-label": "Prompt tokens found in the cache",
  });
  figure.replaceChildren(
    h("figcaption", {}, h("h2", {}, "Read before"), h("span", { class: "soft" }, "since the start")),
    found,
    h(
      "p",
      { class: "figures" },
      `${whole(totals.cached_tokens)} of ${whole(totals.queried_tokens)} prompt tokens were found in the prefix tree and not read again.`,
    ),
  );
}

function showRequests(section, engine) {
  const rows = engine.requests.map((request) => {
    const bar = h("progress", { max: request.prompt, value: request.read, "aria-label": "Prompt read" });
    const cells = [
      request.tenant ?? "others",
      request.state,
      h(
        "div",
        {},
        bar,
        h("span", { class: "figures" }, `${whole(request.read)} of ${whole(request.prompt)}`),
      ),
      whole(request.cached),
      whole(request.written),
      seconds(request.age),
    ];
    return h(
      "tr",
      {},
      cells.map((cell, at) => h("td", { class: at > 2 ? "number" : null }, cell)),
    );
  });
  const heads = ["Of", "State", "Prompt read", "Cached", "Written", "Age"];
  section.replaceChildren(
    h("h2", { id: "requests-title" }, "Requests"),
    rows.length
      ? h(
          "div",
          { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "requests-title" },
          h(
            "table",
            {},
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                heads.map((head, at) => h("th", { scope: "col", class: at > 2 ? "number" : null }, head)),
              ),
            ),
            h("tbody", {}, rows),
          ),
        )
      : h("p", { class: "soft" }, "None at the moment."),
    engine.others ? h("p", { class: "soft" }, `and ${whole(engine.others)} more`) : "",
  );
}
