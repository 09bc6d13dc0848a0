// The page: which view is shown, what the header says, the key, and the theme.

import { key, onKeyWanted } from "./api.js";
import { chatView } from "./chat.js";
import { compareView } from "./compare.js";
import { completeView } from "./complete.js";
import { byId } from "./dom.js";
import { whole } from "./format.js";
import { liveView } from "./live.js";
import { methodsView } from "./methods.js";
import { PACE, soon, watch } from "./stats.js";

const THEME = "headstart-theme";
const THEMES = { auto: "as the system", light: "light", dark: "dark" };

// What this server said about itself.
const server = { model: null, chat: null };
const tabs = [...document.querySelectorAll("[role=tab]")];
const make = {
  chat: chatView,
  complete: completeView,
  live: liveView,
  compare: compareView,
  methods: methodsView,
};
const views = {};
let current = null;

function view(name) {
  views[name] ??= make[name](byId(`view-${name}`), server);
  return views[name];
}

function route() {
  const [asked, ...rest] = location.hash.slice(1).split("/");
  const name = asked in make ? asked : "chat";
  if (current && current !== name) views[current].hidden?.();
  current = name;
  for (const tab of tabs) {
    const chosen = tab.dataset.view === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(`view-${tab.dataset.view}`).hidden = !chosen;
  }
  document.title = `${tabs.find((tab) => tab.dataset.view === name).textContent} · Headstart`;
  view(name).shown?.(decodeURIComponent(rest.join("/")));
}

for (const tab of tabs) {
  tab.addEventListener("click", () => {
    location.hash = tab.dataset.view;
  });
  tab.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(tab);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tabs[(to + tabs.length) % tabs.length].focus();
  });
}
window.addEventListener("hashchange", route);

function news(stats, error) {
  const banner = byId("banner");
  banner.hidden = !error || error.status === 401;
  if (error) {
    banner.textContent = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
    return;
  }
  const { engine, totals } = stats;
  Object.assign(server, stats.server);
  byId("model").textContent = stats.server.model;
  byId("model").title = `${stats.server.model}, up to ${whole(stats.server.max_model_len)} tokens`;
  const pill = byId("exact");
  pill.hidden = false;
  pill.textContent = stats.server.exact ? "exact" : "approximate";
  pill.title = engine.methods.length ? `In force: ${engine.methods.join(", ")}` : "No methods in force";
  byId("load").textContent = `${whole(totals.running)} running, ${whole(totals.waiting)} waiting`;
  views.chat?.stats();
}

function askForKey() {
  byId("key-button").hidden = false;
  const dialog = byId("key-dialog");
  if (dialog.open) return;
  byId("key").value = "";
  dialog.showModal();
}
byId("key-button").addEventListener("click", askForKey);
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close("cancel"));
byId("key-dialog").addEventListener("close", () => {
  if (byId("key-dialog").returnValue !== "ok") return;
  key.set(byId("key").value.trim());
  soon();
  views[current].shown?.(decodeURIComponent(location.hash.split("/").slice(1).join("/")));
});
let refused = false;
onKeyWanted(() => {
  byId("key-button").hidden = false;
  // Once for each key: who closed the dialog does not want it again.
  if (refused !== key.get()) askForKey();
  refused = key.get();
});

function theme(name) {
  const button = byId("theme");
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.textContent = name[0].toUpperCase() + name.slice(1);
  button.setAttribute("aria-label", `Theme: ${THEMES[name]}`);
  localStorage.setItem(THEME, name);
}
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme(names[(names.indexOf(localStorage.getItem(THEME) ?? "auto") + 1) % names.length]);
});
theme(localStorage.getItem(THEME) in THEMES ? localStorage.getItem(THEME) : "auto");

watch(PACE.idle, news);
route();
