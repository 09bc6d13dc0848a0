// A conversation: documents and messages in, answers as they come.

import { stream } from "./answer.js";
import { documentDrop, withDocuments } from "./documents.js";
import { announce, h } from "./dom.js";
import { settingsForm } from "./settings.js";

export function chatView(root, server) {
  let messages = [];
  let running = null;
  const problem = h("p", { class: "error", role: "alert", hidden: true });
  const empty = h("p", { class: "empty" }, "Ask something. Drop a long document here to ask about it.");
  const log = h("div", { class: "talk", role: "log", "aria-label": "Conversation" }, empty);
  const input = h("textarea", { rows: 2, "aria-label": "Message", placeholder: "Message" });
  const send = h("button", { type: "submit", class: "primary" }, "Send");
  const fresh = h("button", { type: "button", class: "quiet", onclick: begin }, "New chat");
  const settings = settingsForm({ system: true });
  const complain = (text) => {
    problem.textContent = text ?? "";
    problem.hidden = !text;
  };
  const drop = documentDrop(root, complain, () => complain(null));
  const field = h(
    "div",
    { class: "field" },
    drop.list,
    input,
    h("div", { class: "row" }, drop.button, fresh, h("span", { class: "grow" }), send),
  );
  const form = h("form", { class: "composer", novalidate: true }, problem, field, settings.element);
  root.append(log, form);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else ask();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!running) form.requestSubmit();
    }
  });

  function begin() {
    running?.abort();
    messages = [];
    log.replaceChildren(empty);
    complain(null);
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
      complain(error.message);
      return;
    }
    complain(null);
    const documents = drop.take();
    input.value = "";
    const chips = h(
      "ul",
      { class: "files" },
      documents.map((each) => h("li", { class: "fixed" }, each.name)),
    );
    const question = turn("user", "You", chips, h("div", { class: "said" }, text));
    const asked = [...messages, { role: "user", content: withDocuments(documents, text) }];
    const said = h("div", { class: "said" });
    const figures = h("p", { class: "figures" });
    const before = h("div");
    const answer = turn("assistant", server.model ?? "Answer", before, said, figures);
    const conversation = messages;
    running = new AbortController();
    send.textContent = "Stop";
    announce("Reading");
    const system = settings.system();
    const body = { messages: system ? [{ role: "system", content: system }, ...asked] : asked, ...values };
    const result = await stream(
      { path: "/v1/chat/completions", body, signal: running.signal },
      { said, figures, before },
    );
    running = null;
    send.textContent = "Send";
    if (messages !== conversation) return; // a new chat was begun meanwhile
    if (result.error !== null && !result.text) {
      // Nothing was answered: the question goes back to where it can be asked again.
      question.remove();
      answer.remove();
      input.value ||= text;
      if (!messages.length) log.append(empty);
      drop.restore(documents);
      complain(result.error);
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
