// What the engine is doing, asked for again and again while somebody looks.

import { get } from "./api.js";

// Milliseconds between two questions, by who asks.
export const PACE = { live: 500, reading: 300, idle: 4000 };
const AFTER_ERROR = 5000;

const listeners = new Map();
let lastStep = 0;
let timer = null;
let asking = false;
let again = false;

/** Call `onStats(stats, error)` about every `pace` milliseconds until the returned function is called. */
export function watch(pace, onStats) {
  const ticket = Symbol();
  listeners.set(ticket, { pace, onStats });
  soon();
  return () => listeners.delete(ticket);
}

/** Hear of the steps again that the engine still remembers. */
export function rewind() {
  lastStep = 0;
}

/** Ask now rather than when it is time. */
export function soon() {
  clearTimeout(timer);
  timer = null;
  if (asking) again = true;
  else ask();
}

async function ask() {
  if (document.hidden || listeners.size === 0) return;
  asking = true;
  let wait = AFTER_ERROR;
  try {
    const stats = await get(`/stats?after=${lastStep}`);
    // A server that has started again counts from the beginning.
    if (stats.engine.step < lastStep) stats.restarted = true;
    lastStep = stats.engine.step;
    wait = Math.min(...[...listeners.values()].map((each) => each.pace));
    tell(stats, null);
  } catch (error) {
    tell(null, error);
  } finally {
    asking = false;
    clearTimeout(timer);
    timer = setTimeout(ask, again ? 0 : wait);
    again = false;
  }
}

function tell(stats, error) {
  for (const { onStats } of [...listeners.values()]) onStats(stats, error);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) soon();
});
