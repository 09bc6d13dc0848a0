// One prompt through two stacks, and where the answers part.

import { get, here } from "./api.js";
import { answerPane, stream } from "./answer.js";
import { documentDrop, withDocuments } from "./documents.js";
import { announce, h, labelled, problemLine, stoppable } from "./dom.js";
import { digits, seconds, share, whole } from "./format.js";
import { settingsForm } from "./settings.js";

/** The length of the text with which both begin, never within a character that takes two. */
export function commonLength(one, other) {
  let at = 0;
  while (at < one.length && at < other.length && one[at] === other[at]) at += 1;
  const within = at > 0 && at < Math.max(one.length, other.length) && /[\uD800-\uDBFF]/.test(one[at - 1]);
  return within ? at - 1 : at;
}

/** What two answers have in common, in a sentence. */
export function verdict(one, other) {
  if (one === other) return `Both answers are the same, all ${whole(one.length)} characters.`;
  const common = commonLength(one, other);
  if (common === 0) return "The answers differ from the first character on.";
  const words = one.slice(0, common).trim().split(/\s+/).filter(Boolean).length;
  if (common === Math.min(one.length, other.length))
    return `One answer begins with all of the other, ${whole(common)} characters, and goes on.`;
  return `The answers are the same for ${whole(common)} characters (about ${whole(words)} words), then they part.`;
}

/** Which methods a side's requests bring for themselves, of those that its server allows; hidden where it allows none. */
function methodChoice(name) {
  const whose = h(
    "select",
    {},
    h("option", { value: "server" }, "As the server runs"),
    h("option", { value: "own" }, "Only those chosen here"),
  );
  const list = h("div", { class: "row" });
  const chosen = h(
    "fieldset",
    { hidden: true },
    h("legend", {}, `Methods of side ${name} (none: the model alone)`),
    list,
  );
  const element = h("div", { hidden: true }, labelled("Methods", whose), chosen);
  const boxes = () => [...list.querySelectorAll("input")];
  const toggle = () => {
    chosen.hidden = whose.value !== "own";
  };
  whose.addEventListener("change", toggle);
  return {
    element,
    offer(allowed) {
      const before = new Set(boxes().map((box) => box.value));
      if (allowed.length === before.size && allowed.every((method) => before.has(method))) return;
      list.replaceChildren(
        ...allowed.map((method) =>
          h("label", { class: "check" }, h("input", { type: "checkbox", value: method }), method),
        ),
      );
      element.hidden = allowed.length === 0;
      if (element.hidden) whose.value = "server";
      toggle();
    },
    /** The request's field `use`; null leaves it out. */
    use() {
      if (whose.value !== "own") return null;
      return boxes()
        .filter((box) => box.checked)
        .map((box) => box.value);
    },
  };
}

function sideForm(name, other) {
  const url = h("input", {
    type: "url",
    placeholder: other ? "http://127.0.0.1:8001 (empty: this server)" : "This server",
    autocomplete: "off",
    spellcheck: "false",
  });
  const key = h("input", { type: "password", placeholder: "None", autocomplete: "off" });
  const anew = h("input", { type: "checkbox", checked: other });
  const methods = methodChoice(name);
  const stack = h("p", { class: "soft" }, "");
  const pane = answerPane();
  const check = h("label", { class: "check" }, anew, "Read the prompt anew, without the cache");
  const element = h(
    "section",
    { class: "card side", "aria-label": `Side ${name}` },
    h("h2", {}, `Side ${name}`),
    h(
      "fieldset",
      {},
      h("legend", { class: "visually-hidden" }, `Server of side ${name}`),
      labelled("Server", url),
      labelled("Its key, if it is another server", key),
      methods.element,
      check,
    ),
    stack,
    pane.before,
    pane.said,
    pane.figures,
  );
  const server = () => {
    const given = url.value.trim().replace(/\/+$/, "");
    return given && given !== location.origin ? { url: given, key: key.value } : here();
  };
  const side = { element, server, anew, methods, stack, pane };
  // Stacks are compared by what they do, not by what one of them finds.
  methods.element.addEventListener("change", () => methods.use() && (anew.checked = true));
  for (const field of [url, key]) field.addEventListener("change", () => offer(side).catch(() => {}));
  return side;
}

/** Ask the side's server what its requests may choose. */
async function offer(side) {
  const model = (await get("/v1/models", side.server())).data[0];
  side.methods.offer(model.allow_use ?? []);
  return model;
}

async function describe(side) {
  const model = await offer(side);
  let methods = "";
  try {
    const used = (await get("/stats?after=999999999999999", side.server())).engine.methods;
    methods = used.length ? `, --use ${used.join(" --use ")}` : ", no methods in force";
  } catch {
    // Another kind of server has no such path.
  }
  const own = side.methods.use();
  if (own !== null) methods += own.length ? `; this request: ${own.join(", ")}` : "; this request: the model alone";
  else if (model.exact === false) methods += ", approximate";
  side.stack.textContent = `${model.id}${methods}`;
}

export function compareView(root) {
  const problem = problemLine();
  const prompt = h("textarea", { rows: 4 });
  const kind = h(
    "select",
    {},
    h("option", { value: "completions" }, "Completion"),
    h("option", { value: "chat" }, "Chat"),
  );
  const order = h(
    "select",
    {},
    h("option", { value: "turns" }, "A, then B"),
    h("option", { value: "together" }, "Both at once"),
  );
  const go = h("button", { type: "submit", class: "primary" }, "Compare");
  const going = stoppable(go);
  const settings = settingsForm({ temperature: 0, maxTokens: 128 });
  const drop = documentDrop(root, problem.tell, () => problem.tell(null));
  const sides = [sideForm("A", false), sideForm("B", true)];
  const result = h("div", { class: "verdict", hidden: true });
  const form = h(
    "form",
    { class: "side", novalidate: true },
    h(
      "p",
      { class: "soft" },
      "With B left empty, this server answers twice: once with its cache and once reading anew, or each time by the " +
        "methods chosen for the side, from those that its --allow-use names. What only a whole server can have, such " +
        "as a scheduler, takes a second server with other --use options and " +
        `--allowed-origins ${location.origin}: name it as side B. Times are as this browser sees them.`,
    ),
    labelled("Prompt", prompt),
    drop.list,
    h(
      "div",
      { class: "row" },
      drop.button,
      labelled("As", kind),
      labelled("Order", order),
      h("span", { class: "grow" }),
      go,
    ),
    settings.element,
    problem.element,
    result,
    h(
      "div",
      { class: "sides" },
      sides.map((side) => side.element),
    ),
  );
  root.append(form);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (going.running) {
      going.abort();
      return;
    }
    const text = withDocuments(drop.documents, prompt.value);
    if (!text) return;
    problem.tell(null);
    result.hidden = true;
    try {
      const values = settings.values();
      await going.run((signal) => compare(text, values, signal));
    } catch (error) {
      problem.tell(error.message);
    }
  });

  async function compare(text, values, signal) {
    const chat = kind.value === "chat";
    const path = chat ? "/v1/chat/completions" : "/v1/completions";
    const asked = chat ? { messages: [{ role: "user", content: text }] } : { prompt: text };
    const run = async (side) => {
      side.pane.clear();
      await describe(side);
      const body = { ...asked, ...values };
      const use = side.methods.use();
      if (use !== null) body.use = use;
      // A salt of its own shares cached keys with nobody.
      if (side.anew.checked) body.cache_salt = crypto.getRandomValues(new Uint32Array(4)).join("-");
      return stream({ path, body, server: side.server(), signal }, side.pane);
    };
    let answers;
    if (order.value === "together") answers = await Promise.all(sides.map(run));
    else answers = [await run(sides[0]), signal.aborted ? null : await run(sides[1])];
    if (answers.every((answer) => answer?.figures)) show(answers);
  }

  function show(answers) {
    const [one, other] = answers.map((answer) => answer.text);
    const common = commonLength(one, other);
    sides.forEach((side, at) => {
      const text = answers[at].text;
      const rest = text.slice(common);
      side.pane.said.replaceChildren(text.slice(0, common), rest ? h("mark", {}, rest) : "");
    });
    const sentence = verdict(one, other);
    const [a, b] = answers.map((answer) => answer.figures);
    const rows = [
      ["First token", seconds, a.firstToken, b.firstToken],
      ["Whole answer", seconds, a.total, b.total],
      ["Tokens/s", digits, a.rate, b.rate],
      ["Prompt tokens", whole, a.usage?.prompt_tokens, b.usage?.prompt_tokens],
      ["From the cache", (value) => value, cachedShare(a), cachedShare(b)],
      ["Distribution", (value) => value, exactness(a), exactness(b)],
    ];
    const shown = (format, value) => (value === null || value === undefined ? "–" : format(value));
    result.replaceChildren(
      h("p", {}, sentence),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              ["", "A", "B"].map((head) => h("th", { scope: "col", class: head ? "number" : null }, head)),
            ),
          ),
          h(
            "tbody",
            {},
            rows.map(([name, format, left, right]) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, name),
                [left, right].map((value) => h("td", { class: "number" }, shown(format, value))),
              ),
            ),
          ),
        ),
      ),
      h(
        "p",
        { class: "soft" },
        "One run each: times differ from run to run. `headstart bench compare` measures with repeats.",
      ),
    );
    result.hidden = false;
    announce(sentence);
  }

  return {
    shown() {
      prompt.focus({ preventScroll: true });
      for (const side of sides) offer(side).catch(() => {});
    },
  };
}

function exactness(figures) {
  const exact = figures.usage?.exact;
  return exact === undefined ? null : exact ? "exact" : "approximate";
}

function cachedShare(figures) {
  const usage = figures.usage;
  return usage ? share(usage.prompt_tokens_details?.cached_tokens ?? 0, usage.prompt_tokens) : null;
}
