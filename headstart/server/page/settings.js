// Sampling settings: only what differs from the server's own defaults is sent.

import { h, labelled } from "./dom.js";

const number = (properties) => h("input", { type: "number", inputmode: "decimal", ...properties });

/** A foldable form; `values()` are the request's fields, and throws a sentence for a value that is none. */
export function settingsForm({ system = false, maxTokens = 256, temperature = "" } = {}) {
  const fields = {
    max_tokens: number({ min: 1, step: 1, value: maxTokens }),
    temperature: number({ min: 0, max: 2, step: "any", value: temperature, placeholder: "model's own" }),
    top_p: number({ min: 0, max: 1, step: "any", placeholder: "model's own" }),
    seed: number({ step: 1, placeholder: "random" }),
  };
  const instruction = h("textarea", { rows: 2, placeholder: "None" });
  const form = h(
    "div",
    { class: "settings" },
    system && labelled("System message", instruction, "div", true),
    labelled("Most tokens", fields.max_tokens),
    labelled("Temperature", fields.temperature),
    labelled("Top p", fields.top_p),
    labelled("Seed", fields.seed),
  );
  return {
    element: h("details", {}, h("summary", {}, "Settings"), form),
    system: () => instruction.value.trim(),
    values() {
      const found = {};
      for (const [name, field] of Object.entries(fields)) {
        if (!field.checkValidity()) {
          field.closest("details").open = true;
          field.focus();
          throw new Error(`${field.labels[0].textContent}: ${field.validationMessage}`);
        }
        if (field.value !== "") found[name] = Number(field.value);
      }
      return found;
    },
  };
}
