// A conversation: documents and messages in, answers as they come.

import { answerPane, stream } from "./answer.js";
import { documentDrop, withDocuments } from "./documents.js";
import { announce, h, problemLine, stoppable } from "./dom.js";
import { settingsForm } from "./settings.js";

export function chatView(root, server) {
  let messages = [];
  const problem = problemLine();
  const empty = h("p", { class: "empty" }, "Ask something. Drop a long document here to ask about it.");
  const log = h("div", { class: "talk", role: "log", "aria-label": "Conversation" }, empty);
  const input = h("textarea", { rows: 2, "aria-label": "Message", placeholder: "Message" });
  const send = h("button", { type: "submit", class: "primary" }, "Send");
  const fresh = h("button", { type: "button", class: "quiet", onclick: begin }, "New chat");
  const settings = settingsForm({ system: true });
  const sending = stoppable(send);
  const drop = documentDrop(root, problem.tell, () => problem.tell(null));
  const field = h(
    "div",
    { class: "field" },
    drop.list,
    input,
    h("div", { class: "row" }, drop.button, fresh, h("span", { class: "grow" }), send),
  );
  const form = h("form", { class: "composer", novalidate: true }, problem.element, field, settings.element);
  root.append(log, form);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (sending.running) sending.abort();
    else ask();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!sending.running) form.requestSubmit();
    }
  });

  function begin() {
    sending.abort();
    messages = [];
    log.replaceChildren(empty);
    problem.tell(null);
    input.focus();
  }

  function turn(role, who, ...children) {
    const element = h(
      "article",
      { class: `turn ${role}`, "aria-label": who },
      h("span", { class: "who" }, who),
      ...children,
    );
    empty.remove();
    log.append(element);
    element.scrollIntoView({ block: "nearest" });
    return element;
  }

  async function ask() {
    const text = input.value.trim();
    if (!text && !drop.documents.length) return;
    let values;
    try {
      values = settings.values();
    } catch (error) {
      problem.tell(error.message);
      return;
    }
    problem.tell(null);
    const documents = drop.take();
    input.value = "";
    const chips = h(
      "ul",
      { class: "files" },
      documents.map((each) => h("li", { class: "fixed" }, each.name)),
    );
    const question = turn("user", "You", chips, h("div", { class: "said" }, text));
    const asked = [...messages, { role: "user", content: withDocuments(documents, text) }];
    const pane = answerPane();
    const answer = turn("assistant", server.model ?? "Answer", pane.before, pane.said, pane.figures);
    const conversation = messages;
    announce("Reading");
    const system = settings.system();
    const body = { messages: system ? [{ role: "system", content: system }, ...asked] : asked, ...values };
    const result = await sending.run((signal) => stream({ path: "/v1/chat/completions", body, signal }, pane));
    if (messages !== conversation) return; // a new chat was begun meanwhile
    if (result.error !== null && !result.text) {
      // Nothing was answered: the question goes back to where it can be asked again.
      question.remove();
      answer.remove();
      input.value ||= text;
      if (!messages.length) log.append(empty);
      drop.restore(documents);
      problem.tell(result.error);
    } else {
      messages = [...asked, { role: "assistant", content: result.text }];
    }
  }

  return {
    shown() {
      input.focus({ preventScroll: true });
    },
    stats() {
      if (server.chat === false)
        empty.textContent = "This model has no chat template: give its prompts to Complete.";
    },
  };
}
