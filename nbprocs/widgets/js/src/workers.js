// The view of a cluster's workers. It asks for a look while it is in sight: the workers measure nothing for a view that nobody sees.

import { bytes, h, say } from "./dom.js";
import { Grid } from "./grid.js";
import { named } from "./rows.js";
import { t } from "./texts.js";

const EVERY = 1000; // ms
/** @type {Record<string, string>} */
const DOTS = { joined: "running", joining: "starting", silent: "failed", leaving: "paused" };

/**
 * Whether somebody may see it: in the window, in a notebook that is not behind another one, in a tab that is not hidden.
 * @param {HTMLElement} node
 */
function inSight(node) {
  const { top, bottom, height } = node.getBoundingClientRect();
  return document.visibilityState !== "hidden" && height > 0 && bottom > 0 && top < window.innerHeight;
}

export class Workers {
  /**
   * @param {{connection: import("./protocol.js").Connection, spec: Record<string, any>}} context
   * @param {string} name
   */
  constructor(context, name) {
    this.context = context;
    this.part = name;
    this.asked = false; // an answer is under way
    this.over = false;
    /** @type {(row: any[]) => Record<string, any>} */
    this.named = named([]);
    this.facts = h("span.nb-facts", {});
    this.grid = new Grid(this.columns(), {
      name: "workers",
      label: t("boards.workers"),
      height: context.spec.board ?? 180,
      order: (/** @type {any} */ a, /** @type {any} */ b) => a.data.name.localeCompare(b.data.name, "en", { numeric: true }) || a.key.localeCompare(b.key),
      title: (/** @type {any} */ row) => row.data.name,
      empty: t("workers.none"),
    });
    this.root = h(
      "section.nb-board",
      { role: "group", "aria-label": t("workers.cluster") },
      h("div.nb-bar", {}, h("b", {}, t("workers.cluster")), this.facts),
      this.grid.root,
    );
    this.timer = setInterval(() => this.look(), EVERY);
  }

  columns() {
    /** @type {(name: string, label: string, text: (data: Record<string, any>) => string) => any} */
    const column = (name, label, text) => ({
      name,
      label,
      fill: (/** @type {HTMLElement} */ cell, /** @type {any} */ { data }) => {
        const told = text(data);
        cell.title = told;
        say(cell, told);
      },
    });
    const worker = {
      name: "name",
      label: t("boards.worker"),
      make: (/** @type {HTMLElement} */ cell) => cell.append(h("b", {}), h("span.nb-cmd", {})),
      fill: (/** @type {any} */ cell, /** @type {any} */ { key, data }) => {
        say(cell.firstChild, data.name || key);
        say(cell.lastChild, data.name && data.name !== key ? key : "");
        cell.title = key;
      },
    };
    const state = {
      name: "status",
      label: t("boards.state"),
      make: (/** @type {HTMLElement} */ cell) => cell.append(h("i.nb-dot", { "aria-hidden": "true" }), h("span", {})),
      fill: (/** @type {any} */ cell, /** @type {any} */ { data }) => {
        cell.firstChild.dataset.status = DOTS[data.state];
        say(cell.lastChild, data.state);
      },
    };
    return [
      worker,
      state,
      column("host", t("boards.host"), (data) => data.host),
      column("pid", t("workers.slots"), (data) => t("workers.of", { n: data.running, all: data.slots })),
      column("cpu", t("workers.cpu"), (data) => (data.cpu === null ? "" : `${data.cpu} %`)),
      column("mem", t("workers.memory"), (data) => this.memory(data)),
      column("line", t("boards.tasks"), (data) => data.tasks),
    ];
  }

  /** @param {Record<string, any>} data */
  memory({ used, memory }) {
    if (used === null) return "";
    return memory ? t("workers.of", { n: bytes(used), all: bytes(memory) }) : bytes(used);
  }

  async look() {
    if (this.asked || this.over || !this.root.isConnected || !inSight(this.root)) return;
    this.asked = true;
    try {
      await this.context.connection.call(this.part, "look");
    } catch {
      // the kernel is busy or gone, which the view says by itself; the next look asks again
    } finally {
      this.asked = false;
    }
  }

  close() {
    this.over = true;
  }

  /** @param {any} content */
  snapshot(content) {
    this.grid.clear();
    this.named = named(content.columns);
    this.rows(content.rows);
    this.figures(content.figures);
    this.look();
  }

  /** @param {any} content */
  delta(content) {
    for (const key of content["-"] ?? []) this.grid.remove(key);
    if (content.u) this.rows(content.u);
    if (content.figures) this.figures(content.figures);
  }

  /** @param {[string, any[]][]} rows */
  rows(rows) {
    for (const [key, row] of rows) this.grid.put(key, this.named(row));
    this.grid.arrange();
  }

  /** @param {Record<string, any>} f */
  figures(f) {
    this.over = f.closed;
    const words = f.closed ? [t("boards.closed")] : [t("workers.some", { n: f.workers }), t("workers.busy", { n: f.running, all: f.slots })];
    if (f.why && !f.closed) words.push(t("workers.waits", { why: f.why }));
    say(this.facts, words.join(" · "));
  }

  destroy() {
    clearInterval(this.timer);
  }
}
