// Long documents that are dropped, pasted or chosen: read here, shown as a chip, sent with the prompt.

import { post } from "./api.js";
import { announce, h } from "./dom.js";
import { bytes, count } from "./format.js";

// A server takes bodies of 8 MiB, and text grows a little in JSON.
const MOST_BYTES = 7 * 2 ** 20;

async function read(file) {
  if (file.size > MOST_BYTES)
    throw new Error(`${file.name} has ${bytes(file.size)}; a document may have ${bytes(MOST_BYTES)}`);
  const text = new TextDecoder().decode(await file.arrayBuffer());
  // Text that is no text: what is not UTF-8 becomes this sign, and binary files hold zeros.
  if (text.includes("\0")) throw new Error(`${file.name} is not a text file`);
  const damaged = text.split("\uFFFD").length - 1;
  if (damaged > text.length / 100) throw new Error(`${file.name} is not text in UTF-8`);
  return { name: file.name, text };
}

/** How many tokens a text has; null where the server does not say. */
export async function tokensOf(text) {
  try {
    return (await post("/tokenize", { prompt: text, add_special_tokens: false })).count;
  } catch {
    return null;
  }
}

/**
 * A place to drop documents on.
 *
 * @param zone element that takes drops.
 * @param onError called with a sentence.
 * @returns `list` and `button` to be placed, and `take()`, which hands the documents over and begins anew.
 */
export function documentDrop(zone, onError, onChange = () => {}) {
  let documents = [];
  const list = h("ul", { class: "files", "aria-label": "Documents" });
  const input = h("input", { type: "file", multiple: true, hidden: true });
  const button = h(
    "button",
    { type: "button", class: "quiet", onclick: () => input.click() },
    "Add a document",
  );
  input.addEventListener("change", () => add([...input.files]));

  async function add(files) {
    onChange(documents);
    for (const file of files) {
      try {
        const found = await read(file);
        documents.push(found);
        show(found);
      } catch (error) {
        onError(error.message);
      }
    }
    input.value = "";
  }

  async function show(document) {
    const size = h("span", { class: "soft" }, bytes(new Blob([document.text]).size));
    const remove = h(
      "button",
      { type: "button", class: "quiet", "aria-label": `Remove ${document.name}` },
      "✕",
    );
    const chip = h("li", {}, h("span", {}, document.name), size, remove);
    remove.addEventListener("click", () => {
      documents = documents.filter((each) => each !== document);
      chip.remove();
      button.focus();
      onChange(documents);
    });
    list.append(chip);
    announce(`${document.name} added`);
    const tokens = await tokensOf(document.text);
    if (tokens !== null) size.textContent = count(tokens, "token");
  }

  let depth = 0;
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  zone.addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth += 1;
    zone.classList.add("dropping");
  });
  zone.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  zone.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) zone.classList.remove("dropping");
  });
  zone.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    zone.classList.remove("dropping");
    add([...event.dataTransfer.files]);
  });
  zone.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      add(files);
    }
  });

  return {
    list,
    button: h("span", {}, button, input),
    get documents() {
      return documents;
    },
    take() {
      const taken = documents;
      documents = [];
      list.replaceChildren();
      return taken;
    },
    restore(given) {
      documents = [...given, ...documents];
      given.forEach(show);
    },
  };
}

/** A prompt with its documents before it, so that questions about the same ones begin alike and are read once. */
export function withDocuments(documents, text) {
  return [...documents.map((each) => `${each.name}:\n\n${each.text.trim()}`), text]
    .filter(Boolean)
    .join("\n\n");
}
