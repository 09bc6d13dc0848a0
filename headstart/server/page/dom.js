// Elements made by hand. Whatever comes from a model, a file or a server enters the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** An element with attributes, listeners (`onclick`) and children; strings become text. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export const byId = (id) => document.getElementById(id);

let made = 0;

/** A labelled form control: its label, and the control itself. */
export function labelled(text, control, kind = "div", wide = false) {
  control.id ||= `field-${++made}`;
  return h(kind, { class: wide ? "wide" : null }, h("label", { for: control.id }, text), control);
}

/** A line for what went wrong: `tell` shows a sentence there, or nothing. */
export function problemLine() {
  const element = h("p", { class: "error", role: "alert", hidden: true });
  const tell = (text) => {
    element.textContent = text ?? "";
    element.hidden = !text;
  };
  return { element, tell };
}

/** A button that says Stop while the work given to `run` lasts; the work gets a signal that `abort` gives. */
export function stoppable(button) {
  const label = button.textContent;
  let controller = null;
  return {
    get running() {
      return controller !== null;
    },
    abort: () => controller?.abort(),
    async run(work) {
      controller = new AbortController();
      button.textContent = "Stop";
      try {
        return await work(controller.signal);
      } finally {
        controller = null;
        button.textContent = label;
      }
    },
  };
}

/** Say something to those who listen rather than look. */
export function announce(text) {
  byId("status").textContent = text;
}
