// The catalogue: every method with what its paper claims and what was measured here.

import { get } from "./api.js";
import { announce, h, labelled } from "./dom.js";
import { count, whole } from "./format.js";
import { lines, ranges } from "./plots.js";

const CHUNKING = {
  any: "any split of a prompt gives the same result",
  per_chunk: "the result depends on how a prompt is split",
  whole: "a prompt is read whole",
};
const KINDS = {
  inference: "works while a model answers",
  training: "works on a model, its data or its training",
  analysis: "only measures",
};

/** Cards that have every word somewhere, and are of the stage and status asked for. */
export function filtered(methods, words, stage, status) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  return methods.filter((card) => {
    if ((stage && card.stage !== stage) || (status && card.status !== status)) return false;
    const text = [card.key, card.stage, card.summary, card.paper?.title, card.claim?.text, ...card.slots]
      .join(" ")
      .toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

/** Text in which `backticks` mean code. */
function prose(text) {
  return text
    .split(/(`[^`]+`)/)
    .map((part) => (part.startsWith("`") && part.length > 2 ? h("code", {}, part.slice(1, -1)) : part));
}

export function methodsView(root) {
  let catalogue = null;
  const search = h("input", { type: "search", placeholder: "prefill, cache, minference …" });
  const stage = h("select", {}, h("option", { value: "" }, "Every stage"));
  const status = h(
    "select",
    {},
    h("option", { value: "" }, "Any"),
    h("option", { value: "implemented" }, "Implemented"),
    h("option", { value: "planned" }, "Planned"),
  );
  const filters = h(
    "form",
    { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    labelled("Search", search),
    labelled("Stage", stage),
    labelled("Status", status),
  );
  const counted = h("p", { class: "soft", role: "status" });
  const list = h("div");
  const overview = h("div", { class: "side" }, filters, counted, list);
  const detail = h("div", { hidden: true });
  root.append(overview, detail);
  for (const control of [search, stage, status]) control.addEventListener("input", show);

  async function load() {
    if (catalogue) return;
    counted.textContent = "Loading…";
    try {
      catalogue = await get("/catalogue");
    } catch (error) {
      counted.textContent = `The catalogue could not be read: ${error.message}.`;
      return;
    }
    for (const name of new Set(catalogue.methods.map((card) => card.stage)))
      stage.append(h("option", { value: name }, name));
    show();
  }

  function show() {
    if (!catalogue) return;
    const found = filtered(catalogue.methods, search.value, stage.value, status.value);
    const coded = found.filter((card) => card.status === "implemented").length;
    counted.textContent = `${count(found.length, "method")}, ${whole(coded)} implemented`;
    const stages = [...new Set(found.map((card) => card.stage))];
    list.replaceChildren(
      ...stages.map((name) =>
        h(
          "section",
          {},
          h("h2", {}, name),
          h("p", { class: "soft" }, catalogue.stages[name] ?? ""),
          h("ul", { class: "methods" }, found.filter((card) => card.stage === name).map(tile)),
        ),
      ),
    );
  }

  async function open(key) {
    overview.hidden = true;
    detail.hidden = false;
    const back = h("p", {}, h("a", { href: "#methods" }, "← All methods"));
    detail.replaceChildren(back, h("p", { class: "soft" }, "Loading…"));
    let shown;
    try {
      shown = page(await get(`/catalogue/${encodeURIComponent(key)}`));
    } catch (error) {
      shown = h("p", { class: "error", role: "alert" }, error.message);
    }
    detail.replaceChildren(back, shown);
    const title = detail.querySelector("h2");
    title?.focus();
    announce(title?.textContent ?? "");
    window.scrollTo({ top: 0 });
  }

  return {
    shown(key) {
      if (key) open(key);
      else {
        detail.hidden = true;
        overview.hidden = false;
        load();
      }
    },
  };
}

function tile(card) {
  const status = card.status === "planned" ? "planned" : card.baseline ? "baseline" : "implemented";
  return h(
    "li",
    {},
    h(
      "a",
      { href: `#methods/${card.key}`, class: card.status === "planned" ? "planned" : null },
      h(
        "span",
        { class: "row" },
        h("strong", {}, card.key),
        h("span", { class: "grow" }),
        h("span", { class: "pill" }, status),
      ),
      h("span", { class: "soft" }, card.claim ? `Claimed: ${card.claim.text}` : card.summary.split(". ")[0]),
      h("span", { class: "soft" }, card.newest ? `Measured: ${card.newest}` : "Not measured here yet"),
    ),
  );
}

function section(title, ...children) {
  return children.flat().some(Boolean) ? h("section", {}, h("h3", {}, title), children) : null;
}

const bullets = (items) =>
  items.length
    ? h(
        "ul",
        {},
        items.map((item) => h("li", {}, item)),
      )
    : null;

function page(card) {
  const paper = card.paper;
  const where = paper?.arxiv
    ? h("a", { href: `https://arxiv.org/abs/${paper.arxiv}`, rel: "noreferrer" }, `arXiv ${paper.arxiv}`)
    : null;
  const traits = [
    `It ${KINDS[card.kind]}.`,
    card.slots.length
      ? ["It fills ", card.slots.map((slot, at) => [at ? ", " : "", h("code", {}, slot)]).flat(), "."]
      : null,
    card.exact === null
      ? null
      : card.exact
        ? "Exact: the model's distribution stays as it is."
        : "Approximate: it changes the model's distribution.",
    card.chunking ? `Chunking: ${CHUNKING[card.chunking]}.` : null,
    card.min_context
      ? `It runs from ${whole(card.min_context)} tokens of context; below, the default does.`
      : null,
  ].filter(Boolean);
  const options = card.options.map((option) =>
    [
      h("code", {}, option.name),
      ` (${option.type}, ${option.required ? "required" : `default ${option.default}`}): `,
      prose(option.help),
    ].flat(),
  );
  const measured = card.measurements.length
    ? card.measurements.map(measurement)
    : [
        h(
          "p",
          { class: "soft" },
          card.status === "planned"
            ? "Not measured: there is no code yet."
            : "Nothing in this machine's ledger. The last command below measures it.",
        ),
      ];
  return h(
    "article",
    { class: "method" },
    h(
      "header",
      {},
      h("h2", { tabindex: -1 }, card.key),
      paper ? h("p", {}, h("em", {}, paper.title)) : null,
      h(
        "p",
        { class: "soft" },
        [
          paper?.venue,
          paper?.venue && where ? ", " : "",
          where,
          paper ? " · " : "",
          `${card.stage} · ${card.status}`,
        ].filter(Boolean),
      ),
    ),
    section("What it does", h("p", {}, prose(card.summary))),
    card.claim
      ? section(
          "The paper's claim",
          h("blockquote", {}, prose(card.claim.text)),
          h("p", { class: "soft" }, `Shown with: ${card.claim.setting}. Source: ${card.claim.source}.`),
        )
      : null,
    section("Measured here", measured),
    card.when_not ? section("When not to use it", h("p", {}, prose(card.when_not))) : null,
    section("Traits", bullets(traits)),
    section("What it needs", bullets(card.needs.map(prose))),
    section("Options", bullets(options)),
    card.composes ? section("Goes with", h("p", {}, prose(card.composes))) : null,
    card.conflicts ? section("Conflicts with", h("p", {}, prose(card.conflicts))) : null,
    section("Commands", h("pre", { tabindex: 0 }, card.commands.join("\n"))),
  );
}

function measurement(entry) {
  const title = [entry.model, entry.machine, entry.date].filter(Boolean).join(" · ");
  return h(
    "section",
    { class: "card side", "aria-label": title },
    h("h3", {}, title),
    entry.stale.length
      ? h("p", { class: "error" }, `Stale: measured before changes to ${entry.stale.join(", ")}.`)
      : null,
    bullets(entry.findings),
    entry.lines.length ? h("div", { class: "pair" }, entry.lines.map(lines)) : null,
    entry.ranges.length ? ranges(entry.ranges) : null,
    h("details", {}, h("summary", {}, "All figures"), entry.tables.map(table)),
    h("p", { class: "soft" }, `${entry.machine_line}; ${entry.code}.`),
    bullets(entry.notes),
    h("p", { class: "soft" }, "Measure it again: ", h("code", {}, entry.command)),
  );
}

function table({ title, headers, rows }) {
  const cells = (tag, values) =>
    values.map((value, at) =>
      h(tag, { scope: tag === "th" ? "col" : null, class: at ? "number" : null }, value),
    );
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": title || "Figures" },
    h(
      "table",
      {},
      title ? h("caption", { class: "soft" }, title) : null,
      h("thead", {}, h("tr", {}, cells("th", headers))),
      h(
        "tbody",
        {},
        rows.map((row) => h("tr", {}, cells("td", row))),
      ),
    ),
  );
}
