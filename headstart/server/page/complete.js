// Text that the model goes on with.

import { stream } from "./answer.js";
import { documentDrop } from "./documents.js";
import { announce, h, labelled } from "./dom.js";
import { settingsForm } from "./settings.js";

export function completeView(root) {
  let running = null;
  const problem = h("p", { class: "error", role: "alert", hidden: true });
  const prompt = h("textarea", { class: "page-of-text", rows: 10, placeholder: "Once upon a time" });
  const go = h("button", { type: "submit", class: "primary" }, "Continue");
  const settings = settingsForm();
  const complain = (text) => {
    problem.textContent = text ?? "";
    problem.hidden = !text;
  };
  const drop = documentDrop(root, complain, () => complain(null));
  const given = h("span", { class: "given" });
  const said = h("span");
  const before = h("div");
  const figures = h("p", { class: "figures" });
  const output = h(
    "section",
    { class: "card continued", "aria-label": "Continuation", hidden: true },
    before,
    h("div", { class: "said" }, given, said),
    figures,
  );
  const form = h(
    "form",
    { class: "talk", novalidate: true },
    labelled("Text to go on with", prompt),
    drop.list,
    h("div", { class: "row" }, drop.button, h("span", { class: "grow" }), go),
    settings.element,
    problem,
    output,
  );
  root.append(form);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) {
      running.abort();
      return;
    }
    const text = [...drop.documents.map((each) => each.text), prompt.value].filter(Boolean).join("\n\n");
    if (!text) return;
    let values;
    try {
      values = settings.values();
    } catch (error) {
      complain(error.message);
      return;
    }
    complain(null);
    given.textContent = text.length > 400 ? `…${text.slice(-400)}` : text;
    said.textContent = "";
    figures.textContent = "";
    figures.classList.remove("error");
    output.hidden = false;
    running = new AbortController();
    go.textContent = "Stop";
    announce("Reading");
    await stream(
      { path: "/v1/completions", body: { prompt: text, ...values }, signal: running.signal },
      { said, figures, before },
    );
    running = null;
    go.textContent = "Continue";
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  return { shown: () => prompt.focus({ preventScroll: true }) };
}
