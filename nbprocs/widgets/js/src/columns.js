// The table's columns: which are worth their room now, and how wide they are. What is named, run and said last gets what is left.

import { h, set } from "./dom.js";

/** @typedef {number | [least: number, share: number]} Width in px */
/** @typedef {[key: string, width: Width, narrowest: number, long?: string]} Column narrowest: the view that shows it; long: key of a longer name in the table of texts */

/** @type {Column[]} */
export const COLUMNS = [
  ["sel", 30, 0],
  ["name", [130, 2], 0],
  ["status", 104, 0],
  ["pid", 62, 720],
  ["uptime", 76, 300],
  ["cpu", 100, 480, "cpuLong"],
  ["mem", 116, 480],
  ["restarts", 34, 980, "restartsLong"],
  ["ports", 60, 980],
  ["line", [110, 1.7], 720],
  ["do", 142, 1200],
];
export const HEADS = COLUMNS.filter(([key]) => key !== "sel" && key !== "do");
const ENDED = 46; // px more for the status while some row says how it ended
const SPARKS = 980; // px of the view below which the little curves go, and a row's buttons lie over its end while it is pointed at
/** @type {Record<string, number>} */
const NARROW = { status: 26, cpu: 56, mem: 66 };

export class Columns {
  /** @param {HTMLElement} grid */
  constructor(grid) {
    this.grid = grid;
    this.useful = new Set(["sel", "name", "status", "uptime", "do"]); // grows, never shrinks: columns that come and go would be noise
    /** @type {Record<string, number>} */
    this.widths = {}; // set by hand
    this.wide = 1280;
  }

  /**
   * Something to show in these columns.
   * @param {Set<string>} keys
   */
  needs(keys) {
    const before = this.useful.size;
    for (const key of keys) this.useful.add(key);
    if (this.useful.size !== before) this.lay();
  }

  /** @param {number} wide of the view, px */
  fit(wide) {
    if (!wide || wide === this.wide) return;
    this.wide = wide;
    this.lay();
  }

  /**
   * @param {string} key
   * @param {number} narrowest
   */
  shown(key, narrowest) {
    return this.useful.has(key) && this.wide >= narrowest;
  }

  lay() {
    const small = this.wide < 480;
    const tracks = [];
    for (const [key, width, narrowest] of COLUMNS) {
      const on = this.shown(key, narrowest);
      this.grid.classList.toggle(`nb-no-${key}`, !on);
      if (!on) continue;
      /** @type {Width} */
      const fixed =
        this.widths[key] ??
        (small || (this.wide < SPARKS && (key === "cpu" || key === "mem")) ? NARROW[key] : undefined) ??
        (key === "status" && typeof width === "number" && this.useful.has("end") && this.wide >= SPARKS ? width + ENDED : width);
      tracks.push(typeof fixed === "number" ? `${fixed}px` : `minmax(${small ? 70 : fixed[0]}px, ${fixed[1]}fr)`);
    }
    this.grid.classList.toggle("nb-no-sparks", this.wide < SPARKS);
    this.grid.classList.toggle("nb-no-ends", this.wide < SPARKS);
    this.grid.classList.toggle("nb-no-words", small);
    this.grid.style.setProperty("--nb-cols", tracks.join(" "));
  }

  /**
   * A handle at a head's edge: drag to resize, double click to reset; Shift with left or right on the head does it by keys.
   * @param {HTMLElement} head
   * @param {string} key
   */
  handle(head, key) {
    const drag = (/** @type {PointerEvent} */ event) => {
      const from = event.clientX;
      const width = head.getBoundingClientRect().width;
      const move = (/** @type {PointerEvent} */ { clientX }) => this.set(key, width + clientX - from);
      const up = () => {
        removeEventListener("pointermove", move);
        removeEventListener("pointerup", up);
      };
      addEventListener("pointermove", move);
      addEventListener("pointerup", up);
      event.preventDefault();
      event.stopPropagation();
    };
    head.append(h("i.nb-edge", { "aria-hidden": "true", onpointerdown: drag, ondblclick: () => this.set(key) }));
    head.addEventListener("keydown", (event) => {
      const step = event.key === "ArrowLeft" ? -12 : event.key === "ArrowRight" ? 12 : 0;
      if (!event.shiftKey || !step) return;
      this.set(key, head.getBoundingClientRect().width + step);
      event.preventDefault();
      event.stopPropagation();
    });
    const sort = head.querySelector("button");
    if (sort) set(sort, { "aria-keyshortcuts": "Shift+ArrowLeft Shift+ArrowRight" });
  }

  /**
   * @param {string} key
   * @param {number} [width] px; without one as it was at first
   */
  set(key, width) {
    if (width === undefined) delete this.widths[key];
    else this.widths[key] = Math.max(30, Math.round(width));
    this.lay();
  }
}
