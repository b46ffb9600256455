// Pure: what a row of the panel says. Times in seconds, memory in bytes.
import { TEXTS } from "./texts.js";

/**
 * @typedef {object} Process
 * @property {string} id
 * @property {string} name
 * @property {string} [command]
 * @property {string} status
 * @property {boolean} [paused]
 * @property {number} [started] unix time
 * @property {number} [ended] unix time
 * @property {number} [cpu] seconds
 * @property {number} [rss]
 * @property {number | null} [exit_code]
 * @property {string} socket
 * @property {boolean} detached
 * @property {boolean} kernel_alive
 * @property {string} kernel
 * @property {string} path
 * @property {number} pid
 */

/** Whether it still runs. @param {Process} row */
export function lives(row) {
  return row.ended === undefined || row.ended === null;
}

/** @param {number} seconds */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;
  if (s < 86400) return `${Math.floor(s / 3600)}:${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} h`;
  return `${Math.floor(s / 86400)} d`;
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/**
 * Percent of one core between two looks; undefined until there are two.
 * @param {{cpu?: number, at: number} | undefined} before
 * @param {{cpu?: number, at: number}} now
 */
export function load(before, now) {
  if (before?.cpu === undefined || now.cpu === undefined || now.at <= before.at) return undefined;
  return Math.max(0, (100 * (now.cpu - before.cpu)) / (now.at - before.at));
}

/**
 * The detail of a row: a panel of 250 px shows about ten characters, so the vital word comes first.
 * @param {Process} row @param {number} now unix time @param {number | undefined} percent
 */
export function detail(row, now, percent) {
  const words = [];
  if (!lives(row)) words.push(row.exit_code === 0 ? TEXTS.over : TEXTS.exit(row.exit_code ?? "?"));
  else if (row.paused) words.push(TEXTS.paused);
  else if (row.status === "stray") words.push(TEXTS.stray);
  if (row.started !== undefined) words.push(duration((lives(row) ? now : (row.ended ?? now)) - row.started));
  if (lives(row) && percent !== undefined) words.push(`${Math.round(percent)}%`);
  if (lives(row) && row.rss) words.push(size(row.rss));
  if (row.detached) words.push(TEXTS.detached);
  else if (!row.kernel_alive) words.push(TEXTS.gone);
  return words.join(" ");
}

/** The tooltip. @param {Process} row */
export function title(row) {
  const where = row.detached ? TEXTS.outlives : row.path || TEXTS.kernel(row.kernel);
  return [TEXTS.named(row.name, row.pid), row.command ?? "", where].filter(Boolean).join("\n");
}

/** One order for all: the living first, each by age. @param {Process[]} rows */
export function ordered(rows) {
  return [...rows].sort((a, b) => Number(!lives(a)) - Number(!lives(b)) || (b.started ?? 0) - (a.started ?? 0) || a.name.localeCompare(b.name));
}

/** How many run, strays not counted. @param {Process[]} rows */
export function running(rows) {
  return rows.filter((row) => lives(row) && row.status !== "stray").length;
}
