// Text that the model goes on with.

import { answerPane, stream } from "./answer.js";
import { documentDrop } from "./documents.js";
import { announce, h, labelled, problemLine, stoppable } from "./dom.js";
import { settingsForm } from "./settings.js";

export function completeView(root) {
  const problem = problemLine();
  const prompt = h("textarea", { class: "page-of-text", rows: 10, placeholder: "Once upon a time" });
  const go = h("button", { type: "submit", class: "primary" }, "Continue");
  const settings = settingsForm();
  const going = stoppable(go);
  const drop = documentDrop(root, problem.tell, () => problem.tell(null));
  const given = h("span", { class: "given" });
  const pane = answerPane(h("span"));
  const output = h(
    "section",
    { class: "card continued", "aria-label": "Continuation", hidden: true },
    pane.before,
    h("div", { class: "said" }, given, pane.said),
    pane.figures,
  );
  const form = h(
    "form",
    { class: "talk", novalidate: true },
    labelled("Text to go on with", prompt),
    drop.list,
    h("div", { class: "row" }, drop.button, h("span", { class: "grow" }), go),
    settings.element,
    problem.element,
    output,
  );
  root.append(form);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (going.running) {
      going.abort();
      return;
    }
    const text = [...drop.documents.map((each) => each.text), prompt.value].filter(Boolean).join("\n\n");
    if (!text) return;
    let values;
    try {
      values = settings.values();
    } catch (error) {
      problem.tell(error.message);
      return;
    }
    problem.tell(null);
    given.textContent = text.length > 400 ? `…${text.slice(-400)}` : text;
    pane.clear();
    output.hidden = false;
    announce("Reading");
    const body = { prompt: text, ...values };
    await going.run((signal) => stream({ path: "/v1/completions", body, signal }, pane));
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  return { shown: () => prompt.focus({ preventScroll: true }) };
}
