// A small list with columns: rows by key, changed in place. For lists of some hundred rows; the process table has its own, virtual one.

import { h, set } from "./dom.js";
import { t } from "./texts.js";

/**
 * @template Data
 * @typedef {{key: string, data: Data, root: HTMLElement, cells: {cell: HTMLElement, inside: HTMLElement[]}[], check?: HTMLInputElement}} Line of the list
 */
/**
 * @template Data
 * @typedef {{name: string, label: string, make?: (cell: HTMLElement) => unknown,
 *   fill: (cell: HTMLElement, line: Line<Data>, inside: HTMLElement[]) => unknown}} Column inside: what make() put into the cell
 */
/**
 * @template Data
 * @typedef {object} Options
 * @property {string} name
 * @property {string} label
 * @property {number} height px
 * @property {(line: Line<Data>) => string} title
 * @property {(a: Line<Data>, b: Line<Data>) => number} order
 * @property {boolean} [select] true: lines can be selected
 * @property {() => void} [selection] called when that has changed
 * @property {(key: string, line?: Line<Data>) => boolean} [press] a key that the list has no use for; true: it was used
 * @property {string} [empty] said where there are no lines
 */

/** @template Data */
export class Grid {
  /**
   * @param {Column<Data>[]} columns
   * @param {Options<Data>} options
   */
  constructor(columns, options) {
    this.columns = columns;
    this.options = options;
    /** @type {Map<string, Line<Data>>} */
    this.rows = new Map();
    /** @type {Set<string>} */
    this.selected = new Set();
    const heads = columns.map(({ name, label }) => h(`span.nb-cell.nb-c-${name}`, { role: "columnheader" }, label));
    if (options.select) {
      this.all = h("input", { type: "checkbox", "aria-label": t("grid.selectAll"), onchange: ({ currentTarget }) => this.selectAll(currentTarget.checked) });
      heads.unshift(h("span.nb-cell.nb-c-sel", { role: "columnheader" }, this.all));
    }
    this.head = h("div.nb-row.nb-head.nb-label", { role: "row" }, ...heads);
    this.empty = h("div.nb-empty.nb-inline", {}, options.empty ?? t("grid.nothingHere"));
    this.body = h("div.nb-list", { role: "rowgroup", tabindex: "0", "aria-label": options.label, onkeydown: (event) => this.key(event) }, this.empty);
    this.body.style.maxHeight = `${options.height}px`;
    this.root = h(
      `div.nb-grid.nb-g-${options.name}`,
      { role: "grid", "aria-label": options.label, "aria-multiselectable": options.select ? "true" : null },
      this.head,
      this.body,
    );
  }

  /**
   * @param {string} key
   * @param {Data} data
   */
  put(key, data) {
    const row = this.rows.get(key) ?? this.make(key, data);
    row.data = data;
    this.fill(row);
    this.empty.hidden = true;
  }

  /**
   * @param {string} key
   * @param {Data} data
   */
  make(key, data) {
    /** @type {Line<Data>} */
    const row = { key, data, cells: [], root: h("div.nb-row", { role: "row", onclick: () => this.activate(row) }) };
    if (this.options.select) {
      row.check = h("input", {
        type: "checkbox",
        tabindex: "-1",
        onclick: (event) => event.stopPropagation(),
        onchange: ({ currentTarget }) => this.toggle(row, currentTarget.checked),
      });
      row.root.append(h("span.nb-cell.nb-c-sel", { role: "gridcell" }, row.check));
    }
    for (const { name, make } of this.columns) {
      const cell = h(`span.nb-cell.nb-c-${name}`, { role: "gridcell" });
      make?.(cell);
      row.cells.push({ cell, inside: /** @type {HTMLElement[]} */ ([...cell.children]) });
      row.root.append(cell);
    }
    this.rows.set(key, row);
    this.body.append(row.root);
    return row;
  }

  /** @param {Line<Data>} row */
  fill(row) {
    this.columns.forEach(({ fill }, i) => fill(row.cells[i].cell, row, row.cells[i].inside));
    if (row.check) set(row.check, { "aria-label": t("grid.select", { name: this.options.title(row) }) });
  }

  /** @param {string} key */
  remove(key) {
    this.rows.get(key)?.root.remove();
    this.rows.delete(key);
    if (this.selected.delete(key)) this.changed();
    this.empty.hidden = this.rows.size > 0;
  }

  clear() {
    for (const key of [...this.rows.keys()]) this.remove(key);
  }

  /** Put the rows in order, moving only those that are out of place. */
  arrange() {
    const rows = [...this.rows.values()].sort(this.options.order);
    let at = this.body.firstChild;
    for (const { root } of rows) {
      if (root === at) at = root.nextSibling;
      else this.body.insertBefore(root, at);
    }
  }

  /**
   * @param {Line<Data>} row
   * @param {boolean} on
   */
  toggle(row, on) {
    if (on) this.selected.add(row.key);
    else this.selected.delete(row.key);
    if (row.check) row.check.checked = on;
    set(row.root, { "aria-selected": String(on) });
    this.changed();
  }

  /** @param {boolean} on */
  selectAll(on) {
    for (const row of this.rows.values()) this.toggle(row, on);
  }

  changed() {
    if (this.all) {
      this.all.checked = this.selected.size > 0 && this.selected.size === this.rows.size;
      this.all.indeterminate = this.selected.size > 0 && !this.all.checked;
    }
    this.options.selection?.();
  }

  /** @param {Line<Data> | undefined} row */
  activate(row) {
    this.active?.root.removeAttribute("data-active");
    this.active = row;
    row?.root.setAttribute("data-active", "true");
    row?.root.scrollIntoView?.({ block: "nearest" });
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.target !== this.body) return;
    const roots = [...this.body.querySelectorAll(".nb-row")];
    const at = this.active ? roots.indexOf(this.active.root) : -1;
    /** @type {Record<string, number | undefined>} */
    const moves = { ArrowDown: at + 1, ArrowUp: Math.max(at - 1, 0), Home: 0, End: roots.length - 1 };
    const next = moves[event.key];
    if (next !== undefined) {
      const root = roots[Math.min(next, roots.length - 1)];
      this.activate([...this.rows.values()].find((row) => row.root === root));
    } else if (event.key === " " && this.active?.check) this.toggle(this.active, !this.selected.has(this.active.key));
    else if (event.key === "Escape") this.selectAll(false);
    else if (!this.options.press?.(event.key, this.active)) return;
    event.preventDefault();
    event.stopPropagation();
  }
}
