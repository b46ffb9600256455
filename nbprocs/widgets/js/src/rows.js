// The table's rows as data: what the kernel told, sorted and filtered. No DOM here.

export const STATUS_ORDER = ["starting", "running", "paused", "failed", "terminated", "completed"];
export const LIVE = new Set(["starting", "running", "paused"]);

/** @typedef {any} Cell what it holds is said by its column */
/** @typedef {{key: number, cells: Cell[], cpu: number[], mem: number[], changed: boolean}} Row */
/** @typedef {{columns: string[], rows: [key: number, cells: Cell[], cpu?: number[], mem?: number[]][], now: number, closed: boolean, signals: string[]}} Snapshot */
/** @typedef {{"-"?: number[], "+"?: [key: number, cells: Cell[]][], u?: [key: number, ...flat: Cell[]][], k?: number, closed?: boolean}} Delta u: a key, and by turns a column and a cell */
/** @typedef {{filter?: string, sort?: string, down?: boolean, status?: string, unfolded?: Set<string>}} Query */

const NUMERIC = new Set(["pid", "uptime", "cpu", "mem", "restarts"]);

/**
 * Rows travel as lists; their columns are named once, in the snapshot.
 * @type {(columns: string[]) => (row: unknown[]) => Record<string, unknown>}
 */
export const named = (columns) => (row) => Object.fromEntries(columns.map((name, i) => [name, row[i]]));

export class Rows {
  constructor(slots = 60) {
    this.slots = slots;
    /** @type {string[]} */
    this.columns = [];
    /** @type {Record<string, number>} */
    this.index = {};
    this.offset = 0; // the kernel's clock against this one
    /** @type {Map<number, Row>} */
    this.byKey = new Map();
    /** @type {Set<number>} */
    this.cleared = new Set(); // rows of what had ended, cleared by hand
    /** @type {Map<number, number>} */
    this.folded = new Map(); // row → how many earlier ones of its name stand behind it
    /** @type {Set<number>} */
    this.earlier = new Set(); // those that are shown below their newest
  }

  /** @param {Snapshot} snapshot */
  reset({ columns, rows, now }) {
    this.columns = columns;
    this.index = Object.fromEntries(columns.map((name, i) => [name, i]));
    this.offset = now - Date.now() / 1000;
    for (const known of [this.byKey, this.cleared, this.folded, this.earlier]) known.clear();
    for (const [key, cells, cpu, mem] of rows) this.add(key, cells, cpu, mem);
  }

  /**
   * @param {number} key
   * @param {Cell[]} cells
   * @param {number[]} cpu
   * @param {number[]} mem
   */
  add(key, cells, cpu = [], mem = []) {
    this.byKey.set(key, { key, cells: [...cells], cpu: [...cpu], mem: [...mem], changed: true });
  }

  /**
   * Apply one delta; returns {structure: rows came, went or may be sorted anew}.
   * @param {Delta} delta
   */
  apply(delta) {
    let structure = false;
    for (const key of delta["-"] ?? []) structure = this.byKey.delete(key) || structure;
    for (const [key, cells] of delta["+"] ?? []) {
      this.add(key, cells);
      structure = true;
    }
    for (const [key, ...flat] of delta.u ?? []) {
      const row = this.byKey.get(key);
      if (!row) continue;
      for (let i = 0; i < flat.length; i += 2) row.cells[flat[i]] = flat[i + 1];
      row.changed = true;
      structure = true;
    }
    if (delta.k) this.tick();
    return { structure };
  }

  /** Every sparkline moves one step to the left. */
  tick() {
    for (const row of this.byKey.values()) {
      const cpu = row.cells[this.index.cpu];
      if (cpu === null || cpu === undefined) continue;
      row.cpu.push(cpu);
      row.mem.push(row.cells[this.index.mem]);
      if (row.cpu.length > this.slots) row.cpu.shift();
      if (row.mem.length > this.slots) row.mem.shift();
      row.changed = true;
    }
  }

  /**
   * @param {Row} row
   * @param {string} name
   */
  get(row, name) {
    if (name === "uptime") return this.uptime(row);
    return row.cells[this.index[name]];
  }

  /** @param {Row} row */
  uptime(row, now = Date.now() / 1000) {
    const took = row.cells[this.index.took];
    return took ?? Math.max(0, now + this.offset - row.cells[this.index.start]);
  }

  /** @param {Row} row */
  live(row) {
    return LIVE.has(row.cells[this.index.status]);
  }

  counts() {
    /** @type {Record<string, number>} */
    const counts = {};
    for (const row of this.byKey.values()) {
      if (this.cleared.has(row.key)) continue;
      const status = row.cells[this.index.status];
      counts[status] = (counts[status] ?? 0) + 1;
    }
    return counts;
  }

  /**
   * The newest of each name; its earlier runs behind it, or below it where it is unfolded.
   * @param {Row[]} rows
   * @param {Set<string>} unfolded
   * @returns {Row[]}
   */
  fold(rows, unfolded) {
    this.folded.clear();
    this.earlier.clear();
    /** @type {Map<string, Row[]>} */
    const groups = new Map();
    for (const row of rows) {
      const name = this.get(row, "name");
      const group = groups.get(name);
      if (group) group.push(row);
      else groups.set(name, [row]);
    }
    /** @type {Row[]} */
    const shown = [];
    for (const [name, group] of groups) {
      const newest = group.reduce((a, b) => (b.key > a.key ? b : a));
      const rest = group.filter((row) => row !== newest);
      if (!rest.every((row) => !this.live(row))) {
        shown.push(...group); // several live ones of a name are several
        continue;
      }
      shown.push(newest);
      if (rest.length) this.folded.set(newest.key, rest.length);
      if (rest.length && unfolded.has(name)) for (const row of rest) this.earlier.add(row.key) && shown.push(row);
    }
    return shown;
  }

  /**
   * Rows that match the filter, in order. Words are joined by "and"; `status:failed`, `pid:123`, `name:web` look at one column.
   * @param {Query} query
   */
  view({ filter = "", sort = "", down = false, status = "", unfolded = new Set() } = {}) {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...this.byKey.values()].filter(
      (row) => (!status || this.get(row, "status") === status) && !this.cleared.has(row.key) && words.every((word) => this.matches(row, word)),
    );
    if (!sort) return this.fold(rows, unfolded);
    /** @param {Row} row */
    const rank = (row) => {
      const value = this.get(row, sort);
      if (sort === "status") return STATUS_ORDER.indexOf(value);
      if (NUMERIC.has(sort)) return value ?? -1;
      return String(value ?? "").toLowerCase();
    };
    const order = down ? -1 : 1;
    const ranked = rows.map((row) => [rank(row), row]);
    ranked.sort(([a, x], [b, y]) => (a < b ? -order : a > b ? order : x.key - y.key));
    return this.fold(
      ranked.map(([, row]) => row),
      unfolded,
    );
  }

  /**
   * @param {Row} row
   * @param {string} word
   */
  matches(row, word) {
    const [, name, rest] = /^(\w+):(.+)$/.exec(word) ?? [];
    if (name && name in this.index)
      return String(this.get(row, name) ?? "")
        .toLowerCase()
        .includes(rest);
    return ["name", "cmd", "status", "pid", "line", "ports", "end"].some((column) =>
      String(this.get(row, column) ?? "")
        .toLowerCase()
        .includes(word),
    );
  }
}
