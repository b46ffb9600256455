// The view of a cluster's workers. It asks for a look while it is in sight: the workers measure nothing for a view that nobody sees.

import { bytes, h, say } from "./dom.js";
import { Grid } from "./grid.js";
import { named } from "./rows.js";
import { t } from "./texts.js";

/** @import {Column} from "./grid.js" */
/** @import {Context} from "./root.js" */
/**
 * @typedef {{name: string, host: string, state: string, slots: number, running: number, cpu: number | null, used: number | null,
 *   memory: number | null, tasks: string}} Worker bytes, percent of a core; null: not known
 */
/** @typedef {{workers: number, slots: number, running: number, why: string, closed: boolean}} Figures of the cluster */
/** @typedef {[address: string, cells: unknown[]]} Row as it travels */

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

/**
 * A column of text, which is its tooltip as well.
 * @param {string} name
 * @param {string} label
 * @param {(worker: Worker) => string} text
 * @returns {Column<Worker>}
 */
function column(name, label, text) {
  return { name, label, fill: (cell, { data }) => say(cell, (cell.title = text(data))) };
}

/** @returns {Column<Worker>[]} */
function columns() {
  return [
    {
      name: "name",
      label: t("boards.worker"),
      make: (cell) => cell.append(h("b", {}), h("span.nb-cmd", {})),
      fill: (cell, { key, data }, [name, address]) => {
        say(name, data.name || key);
        say(address, data.name && data.name !== key ? key : "");
        cell.title = key;
      },
    },
    {
      name: "status",
      label: t("boards.state"),
      make: (cell) => cell.append(h("i.nb-dot", { "aria-hidden": "true" }), h("span", {})),
      fill: (_cell, { data }, [dot, word]) => {
        dot.dataset.status = DOTS[data.state];
        say(word, data.state);
      },
    },
    column("host", t("boards.host"), (worker) => worker.host),
    column("pid", t("workers.slots"), (worker) => t("workers.of", { n: worker.running, all: worker.slots })),
    column("cpu", t("workers.cpu"), (worker) => (worker.cpu === null ? "" : `${worker.cpu} %`)),
    column("mem", t("workers.memory"), memory),
    column("line", t("boards.tasks"), (worker) => worker.tasks),
  ];
}

/** @param {Worker} worker */
function memory({ used, memory: all }) {
  if (used === null) return "";
  return all ? t("workers.of", { n: bytes(used), all: bytes(all) }) : bytes(used);
}

export class Workers {
  /**
   * @param {Context} context
   * @param {string} name of the part
   */
  constructor(context, name) {
    this.context = context;
    this.part = name;
    this.asked = false; // an answer is under way
    this.over = false;
    this.named = named([]);
    this.facts = h("span.nb-facts", {});
    /** @type {Grid<Worker>} */
    this.grid = new Grid(columns(), {
      name: "workers",
      label: t("boards.workers"),
      height: (context.height ?? 210) - 30, // less its bar
      order: (a, b) => a.data.name.localeCompare(b.data.name, "en", { numeric: true }) || a.key.localeCompare(b.key),
      title: ({ data }) => data.name,
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

  /** @param {{columns: string[], rows: Row[], figures: Figures}} content */
  snapshot(content) {
    this.grid.clear();
    this.named = named(content.columns);
    this.rows(content.rows);
    this.figures(content.figures);
    this.look();
  }

  /** @param {{"-"?: string[], u?: Row[], figures?: Figures}} content */
  delta(content) {
    for (const key of content["-"] ?? []) this.grid.remove(key);
    if (content.u) this.rows(content.u);
    if (content.figures) this.figures(content.figures);
  }

  /** @param {Row[]} rows */
  rows(rows) {
    for (const [key, cells] of rows) this.grid.put(key, /** @type {Worker} */ (this.named(cells)));
    this.grid.arrange();
  }

  /** @param {Figures} figures */
  figures({ workers, slots, running, why, closed }) {
    this.over = closed;
    const words = closed ? [t("boards.closed")] : [t("workers.some", { n: workers }), t("workers.busy", { n: running, all: slots })];
    if (why && !closed) words.push(t("workers.waits", { why }));
    say(this.facts, words.join(" · "));
  }

  destroy() {
    clearInterval(this.timer);
  }
}
