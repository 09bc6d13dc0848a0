// Numbers as people read them.

export const whole = (value) => Math.round(value).toLocaleString("en");

/** Three digits that count. */
export function digits(value) {
  if (value === 0 || Math.abs(value) >= 100) return whole(value);
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
}

export function seconds(value) {
  if (value < 1e-3) return `${digits(value * 1e6)} µs`;
  return value < 1 ? `${digits(value * 1000)} ms` : `${digits(value)} s`;
}

export const share = (part, all) =>
  all > 0 ? `${((100 * part) / all).toFixed(part === all || part === 0 ? 0 : 1)}%` : "–";

export function bytes(value) {
  const power = value < 1 ? 0 : Math.min(4, Math.floor(Math.log2(value) / 10));
  return `${digits(value / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** A figure of the ledger with its unit. */
export function figure(value, unit) {
  if (unit === "s") return seconds(value);
  if (unit === "bytes") return bytes(value);
  if (unit === "fraction") return `${(100 * value).toFixed(1)}%`;
  return `${digits(value)} ${unit}`.trim();
}

export const count = (number, one, many = `${one}s`) => `${whole(number)} ${number === 1 ? one : many}`;
