// Addresses and places in files in the output, opened by a click and by nothing else.

import { copy } from "./dom.js";
import { t } from "./texts.js";

const ADDRESS = /https?:\/\/[^\s"'<>`|\\^{}\u0000-\u001f]+|\b(?:localhost|127\.0\.0\.1|0\.0\.0\.0):\d{2,5}\b(?:\/[^\s"'<>]*)?/g;
const PLACE = /(?:File "([^"\n]+)", line (\d+))|((?:[\w.+-]*\/)*[\w.+-]+\.[A-Za-z]\w{0,8}):(\d+)(?::\d+)?/g;
const HERE = new Set(["localhost", "127.0.0.1", "0.0.0.0", "[::1]"]);

/** @import {ILinkProvider, Terminal} from "@xterm/xterm" */
/** @import {Pane} from "./pane.js" */
/** @typedef {{start: number, end: number} & ({address: string} | {path: string, line: number})} Found what can be opened, from where to where in its line */

/**
 * What in a line can be opened. No DOM here.
 * @param {string} text
 */
export function found(text) {
  /** @type {Found[]} */
  const all = [];
  for (const match of text.matchAll(ADDRESS)) {
    const shown = match[0].replace(/[.,;:!?)\]]+$/, "");
    all.push({ start: match.index, end: match.index + shown.length, address: shown.includes("://") ? shown : `http://${shown}` });
  }
  for (const match of text.matchAll(PLACE)) {
    const end = match.index + match[0].length;
    if (all.some((other) => match.index < other.end && end > other.start)) continue;
    all.push({ start: match.index, end, path: match[1] ?? match[3], line: Number(match[2] ?? match[4]) });
  }
  return all;
}

/** Where the page's server is, and the notebook's folder below its root. */
function server() {
  let base = "/";
  try {
    base = JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "").baseUrl ?? "/";
  } catch {
    // not JupyterLab's page
  }
  const notebook = /\/(?:tree|notebooks|render)\/(.*)$/.exec(decodeURIComponent(location.pathname))?.[1] ?? "";
  return { base, folder: notebook.split("/").slice(0, -1).join("/") };
}

/**
 * A port of the kernel's machine as this page reaches it: through jupyter-server-proxy where that answers.
 * @param {string} address
 */
async function reachable(address) {
  const url = new URL(address);
  if (!HERE.has(url.hostname) || !url.port) return address;
  const proxied = `${server().base}proxy/${url.port}${url.pathname}${url.search}`;
  if (!HERE.has(location.hostname)) return proxied;
  const answer = await fetch(proxied, { method: "HEAD" }).catch(() => null);
  return answer && answer.status !== 404 && answer.status !== 403 ? proxied : address;
}

/**
 * @param {string} path
 * @param {string} cwd of the process
 */
function page(path, cwd) {
  const { base, folder } = server();
  const below = path.startsWith("/") ? (cwd && path.startsWith(`${cwd}/`) ? path.slice(cwd.length + 1) : null) : path.replace(/^\.\//, "");
  if (below === null || below.split("/").includes("..")) return null;
  return `${base}lab/tree/${[folder, below].filter(Boolean).join("/").split("/").map(encodeURIComponent).join("/")}`;
}

/**
 * @param {Found} what
 * @param {Pane} pane
 */
async function open(what, pane) {
  if ("address" in what) return window.open(await reachable(what.address), "_blank", "noopener");
  const address = page(what.path, pane.head.cwd);
  if (address) return window.open(address, "_blank", "noopener");
  await copy(`${what.path}:${what.line}`);
  pane.context.notice(t("links.outside", what));
}

/**
 * A provider for xterm: links of a row, with the rows that it wraps over.
 * @param {Terminal} term
 * @param {Pane} pane
 * @returns {ILinkProvider}
 */
export function links(term, pane) {
  return {
    provideLinks(row, callback) {
      const { active } = term.buffer;
      let first = row - 1;
      while (first > 0 && active.getLine(first)?.isWrapped && row - first < 20) first--;
      let text = "";
      for (let i = first; i - first < 20; i++) {
        const line = active.getLine(i);
        if (!line || (i > first && !line.isWrapped)) break;
        text += line.translateToString(false);
      }
      const at = (/** @type {number} */ index) => ({ x: (index % term.cols) + 1, y: first + Math.floor(index / term.cols) + 1 });
      callback(
        found(text)
          .map((what) => ({
            text: text.slice(what.start, what.end),
            range: { start: at(what.start), end: at(what.end - 1) },
            activate: (/** @type {MouseEvent} */ event) => event.button === 0 && open(what, pane),
          }))
          .filter(({ range }) => range.start.y <= row && range.end.y >= row),
      );
    },
  };
}
