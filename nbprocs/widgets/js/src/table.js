// The process table: virtual rows (only what is in sight exists), sorting, filtering, several selected, all by keyboard.

import { button, clock, controls, h, icon, mebibytes, say, seconds, set, short, sparkline, svg } from "./dom.js";
import { Columns, HEADS } from "./columns.js";
import { Pane } from "./pane.js";
import { reason } from "./protocol.js";
import { Rows, STATUS_ORDER } from "./rows.js";
import { t } from "./texts.js";

const ROW = 30; // px; the style sheet has the same
const SPARE = 6; // rows kept above and below what is in sight
const KEYS = ["move", "select", "enter", "unfold", "act", "clear", "bell", "filter", "escape", "wider"]; // each a key and what it does, in the table of texts
const FIRST_DOWN = new Set(["cpu", "mem", "restarts", "uptime"]);

/** @import {Icon} from "./dom.js" */
/** @import {Context} from "./root.js" */
/** @import {Delta, Query, Row, Snapshot} from "./rows.js" */
/** @typedef {Row["key"]} Key */
/** @typedef {ReturnType<Table["makeLine"]>} Line what shows a row */

export class Table {
  /**
   * @param {Context} context
   * @param {string} name of the part
   */
  constructor(context, name) {
    this.context = context;
    this.part = name;
    this.rows = new Rows();
    /** @type {Set<string>} */
    this.selected = new Set(); // ids
    /** @type {Key | null} */
    this.active = null;
    /** @type {Key | null} */
    this.anchor = null;
    /** @type {Required<Query>} */
    this.query = { filter: "", sort: "", down: false, status: "", unfolded: new Set() };
    /** @type {Row[]} */
    this.shown = [];
    /** @type {Map<Key, number>} */
    this.position = new Map(); // in what is shown
    /** @type {Map<Key, Line>} */
    this.lines = new Map();
    /** @type {{key: string, go: () => void} | null} */
    this.pending = null; // what is asked about
    /** @type {Pane | null} */
    this.pane = null;
    /** @type {Key | null} */
    this.paneKey = null; // the row that it belongs to
    this.closed = false;
    this.chipKey = "";
    this.frame = 0;
    this.height = context.spec.height ?? 360;
    this.filter = h("input.nb-input.nb-filter", {
      type: "search",
      placeholder: t("table.filter"),
      "aria-label": t("table.filterProcesses"),
      spellcheck: "false",
      oninput: ({ currentTarget }) => this.ask({ filter: currentTarget.value }),
      onkeydown: ({ key, currentTarget }) => key === "Escape" && (currentTarget.value ? this.clearFilter() : this.body.focus()),
    });
    this.chips = h("div.nb-chips", { role: "group", "aria-label": t("table.showByStatus") });
    this.count = h("span.nb-count", {}, "");
    this.signalMenu = h("select.nb-input.nb-signal", {
      "aria-label": t("table.sendASignal"),
      title: t("table.sendASignal"),
      onchange: ({ currentTarget: menu }) => {
        const signal = menu.value;
        menu.value = "";
        if (signal) this.act("signal", this.targets(), null, { signal });
      },
    });
    this.clearButton = button("clear", t("table.clearTheRowsOfWhat"), () => this.clear());
    this.actions = h(
      "div.nb-actions",
      { role: "toolbar", "aria-label": t("table.actionsOnTheSelectedProcesses") },
      this.count,
      this.action("pause", t("table.pauseTheSelectedP")),
      this.action("resume", t("table.resumeTheSelectedP")),
      this.action("restart", t("table.restartTheSelectedR")),
      this.signalMenu,
      this.action("stop", t("table.stopTheSelectedS"), true),
      this.action("kill", t("table.killTheSelectedK"), true),
      this.clearButton,
      button("help", t("table.keys"), () => this.help()),
    );
    this.head = h("div.nb-row.nb-head", { role: "row", "aria-rowindex": "1", id: this.rowId("head") });
    this.all = h("input", { type: "checkbox", "aria-label": t("table.selectAll"), onchange: ({ currentTarget }) => this.selectAll(currentTarget.checked) });
    this.head.append(h("span.nb-cell.nb-c-sel", { role: "columnheader" }, this.all));
    /** @type {Map<string, HTMLElement>} */
    this.heads = new Map(HEADS.map(([key, , , long]) => [key, this.heading(key, t(`columns.${key}`), long)]));
    this.head.append(...this.heads.values());
    this.head.append(h("span.nb-cell.nb-c-do", { role: "columnheader" }, h("span.nb-hidden", {}, t("table.actions"))));
    this.space = h("div.nb-space", { role: "presentation" });
    this.empty = h("div.nb-empty", { hidden: true });
    this.body = h(
      "div.nb-body",
      {
        role: "grid", // the head is its own by id: only what may have the focus may point to its active row
        "aria-owns": this.head.id,
        "aria-multiselectable": "true",
        tabindex: "0",
        "aria-label": t("table.processesArrowsMoveSpaceSelects"),
        onscroll: () => this.draw(),
        onkeydown: (event) => this.key(event),
        onfocus: () => this.activate(this.active ?? this.shown[0]?.key ?? null, false),
      },
      this.space,
      this.empty,
    );
    this.tall = 3; // rows that the body is high; grows with them, never shrinks: what is below must not jump
    this.body.style.height = `${ROW * this.tall}px`;
    this.grid = h("div.nb-grid", {}, this.head, this.body);
    this.columns = new Columns(this.grid);
    for (const [key, head] of this.heads) this.columns.handle(head, key);
    this.columns.lay();
    this.detail = h("div.nb-detail", { hidden: true });
    this.keys = h("dl.nb-keys", { hidden: true }, ...KEYS.flatMap((name) => [h("dt", {}, t(`key.${name}`)), h("dd", {}, t(`keyDoes.${name}`))]));
    this.asked = h("span.nb-asked", {});
    this.question = h(
      "div.nb-ask",
      { hidden: true, role: "alertdialog", "aria-label": t("table.pleaseConfirm") },
      this.asked,
      h("button.nb-button.nb-text.nb-yes", { type: "button", onclick: () => this.answer(true) }, t("table.yes")),
      h("button.nb-button.nb-text", { type: "button", onclick: () => this.answer(false) }, t("table.noEsc")),
    );
    this.root = h(
      "div.nb-table",
      {
        onkeydown: (event) => event.key === "Escape" && this.question.hidden === false && (event.preventDefault(), event.stopPropagation(), this.answer(false)),
      },
      h("div.nb-bar", {}, this.filter, this.chips, this.question, this.actions),
      this.keys,
      this.grid,
      this.detail,
    );
    this.timer = setInterval(() => this.tickClock(), 1000);
    this.observer = globalThis.ResizeObserver && new ResizeObserver(() => (this.columns.fit(this.root.clientWidth), this.draw()));
    this.observer?.observe(this.body);
  }

  /**
   * @param {string} key
   * @param {string} label
   * @param {string} [long] the key of a longer name
   */
  heading(key, label, long) {
    const sort = h(
      "button.nb-sort",
      { type: "button", title: t("table.sortBy", { column: t(`columns.${long ?? key}`).toLowerCase() }), onclick: () => this.sortBy(key) },
      label,
    );
    return h(`span.nb-cell.nb-c-${key}`, { role: "columnheader", "aria-sort": "none", "data-key": key }, sort);
  }

  /**
   * A button that acts on what is selected.
   * @param {Icon} op also the name of its icon
   * @param {string} label
   * @param {boolean} danger
   */
  action(op, label, danger = false) {
    const node = button(op, label, ({ currentTarget }) => this.act(op, this.targets(), currentTarget), { "data-op": op });
    if (danger) node.classList.add("nb-danger");
    return node;
  }

  // -- what the kernel tells

  /** @param {Snapshot} content */
  snapshot(content) {
    this.rows.reset(content);
    if (content.closed) this.context.closed(t("table.theManagerIsClosedIts"));
    this.signalMenu.replaceChildren(h("option", { value: "" }, t("table.signal")), ...content.signals.map((name) => h("option", { value: name }, name)));
    const ids = new Set([...this.rows.byKey.values()].map((row) => this.id(row)));
    for (const id of this.selected) if (!ids.has(id)) this.selected.delete(id);
    this.arrange();
  }

  /** @param {Delta} content */
  delta(content) {
    const { structure } = this.rows.apply(content);
    if (content.closed) this.context.closed(t("table.theManagerIsClosedIts"));
    if (structure || content.closed) this.arrange();
    else {
      if (content.k) this.measureColumns();
      this.draw();
    }
  }

  /** Nothing can be done any more; output can still be read. */
  close() {
    this.closed = true;
    for (const row of this.rows.byKey.values()) row.changed = true;
    this.arrange();
  }

  /**
   * @param {Row} row
   * @returns {string}
   */
  id(row) {
    return row.cells[this.rows.index.id];
  }

  /** @param {Key | null} key */
  at(key) {
    return key === null ? undefined : this.rows.byKey.get(key);
  }

  help() {
    this.keys.hidden = !this.keys.hidden;
  }

  /** Rows of what has ended leave this page; the kernel's history keeps them, and a reload brings them back. */
  clear() {
    for (const row of this.rows.byKey.values()) if (!this.rows.live(row)) this.rows.cleared.add(row.key);
    this.selected.clear();
    this.arrange();
    this.afterSelection();
  }

  /**
   * @param {Key} key
   * @param {boolean} open
   */
  fold(key, open) {
    const row = this.rows.byKey.get(key);
    if (!row) return;
    const name = this.rows.get(row, "name");
    if (open) this.query.unfolded.add(name);
    else this.query.unfolded.delete(name);
    for (const other of this.rows.byKey.values()) other.changed = true;
    this.arrange();
  }

  /** Columns that have something to show. */
  measureColumns() {
    const { index } = this.rows;
    /** @type {Set<string>} */
    const needed = new Set();
    for (const row of this.rows.byKey.values()) {
      for (const key of ["restarts", "ports", "line"]) if (row.cells[index[key]]) needed.add(key);
      if (this.rows.live(row)) needed.add("pid");
      if (row.cpu.length) needed.add("cpu").add("mem");
      if (row.cells[index.end] && row.cells[index.end] !== "exit 0") needed.add("end");
    }
    this.columns.needs(needed);
  }

  // -- sorting, filtering, selecting

  /** @param {Query} change */
  ask(change) {
    Object.assign(this.query, change);
    this.arrange();
  }

  clearFilter() {
    this.filter.value = "";
    this.ask({ filter: "" });
  }

  /** @param {string} key */
  sortBy(key) {
    const { sort, down } = this.query;
    const first = FIRST_DOWN.has(key);
    if (sort !== key) this.ask({ sort: key, down: first });
    else if (down === first) this.ask({ down: !first });
    else this.ask({ sort: "", down: false });
  }

  arrange() {
    this.measureColumns();
    this.clearButton.disabled = ![...this.rows.byKey.values()].some((row) => !this.rows.live(row) && !this.rows.cleared.has(row.key));
    this.shown = this.rows.view(this.query);
    this.position = new Map(this.shown.map((row, i) => [row.key, i]));
    for (const [key, head] of this.heads) {
      set(head, { "aria-sort": key !== this.query.sort ? "none" : this.query.down ? "descending" : "ascending" });
    }
    this.space.style.height = `${this.shown.length * ROW}px`;
    const tall = Math.max(this.tall, Math.min(this.shown.length, Math.floor(this.height / ROW)));
    if (tall !== this.tall) this.body.style.height = `${ROW * (this.tall = tall)}px`;
    set(this.body, { "aria-rowcount": String(this.shown.length + 1) });
    this.drawChips();
    this.drawEmpty();
    this.drawActions();
    this.draw();
  }

  drawEmpty() {
    this.empty.hidden = this.shown.length > 0;
    if (this.empty.hidden) return;
    const text = this.rows.byKey.size ? t("table.noProcessMatchesTheFilter") : this.closed ? t("table.theManagerIsClosed") : t("table.noProcessesYet");
    say(this.empty, text);
  }

  drawChips() {
    const counts = this.rows.counts();
    const total = Object.values(counts).reduce((sum, n) => sum + n, 0);
    /** @type {[status: string, label: string, count: number][]} */
    const entries = [["", t("table.all"), total]];
    for (const s of STATUS_ORDER) if (counts[s] || s === this.query.status) entries.push([s, s, counts[s] ?? 0]);
    const key = entries.map(([s, , n]) => `${s}${n}`).join() + this.query.status;
    if (key === this.chipKey) return;
    this.chipKey = key;
    const focused = this.chips.contains(document.activeElement) ? document.activeElement?.getAttribute("data-status") : null;
    this.chips.replaceChildren(
      ...entries.map(([status, label, count]) =>
        h(
          "button.nb-chip",
          {
            type: "button",
            "data-status": status,
            "aria-pressed": String(this.query.status === status),
            onclick: () => this.ask({ status: this.query.status === status ? "" : status }),
          },
          status && h("i.nb-dot", { "data-status": status, "aria-hidden": "true" }),
          `${label} `,
          h("b", {}, String(count)),
        ),
      ),
    );
    if (typeof focused === "string") /** @type {HTMLElement | null} */ (this.chips.querySelector(`[data-status="${focused}"]`))?.focus();
  }

  targets() {
    if (this.selected.size) return [...this.selected];
    const row = this.at(this.active);
    return row ? [this.id(row)] : [];
  }

  /** @param {boolean} on */
  selectAll(on) {
    this.selected.clear();
    if (on) for (const row of this.shown) this.selected.add(this.id(row));
    this.afterSelection();
  }

  /**
   * @param {Key} key
   * @param {boolean} range
   */
  toggle(key, range = false) {
    const row = this.rows.byKey.get(key);
    if (!row) return;
    const from = this.anchor === null ? undefined : this.position.get(this.anchor);
    if (range && from !== undefined) {
      const [a, b] = [from, this.position.get(key) ?? from].sort((x, y) => x - y);
      for (const other of this.shown.slice(a, b + 1)) this.selected.add(this.id(other));
    } else {
      const id = this.id(row);
      if (!this.selected.delete(id)) this.selected.add(id);
      this.anchor = key;
    }
    this.afterSelection();
  }

  afterSelection() {
    for (const row of this.rows.byKey.values()) row.changed = true;
    this.drawActions();
    this.draw();
  }

  drawActions() {
    const chosen = this.selected.size;
    const known = [...this.rows.byKey.values()].filter((row) => this.selected.has(this.id(row)));
    const live = known.filter((row) => this.rows.live(row));
    const statuses = new Set(known.map((row) => this.rows.get(row, "status")));
    say(this.count, chosen ? t("boards.selected", { n: chosen }) : "");
    set(this.actions, { "data-some": chosen > 0 });
    /** @type {Record<string, boolean>} */
    const usable = { pause: statuses.has("running"), resume: statuses.has("paused"), restart: chosen > 0, stop: live.length > 0, kill: live.length > 0 };
    for (const node of controls(this.actions, "[data-op]")) node.disabled = this.closed || !usable[node.dataset.op ?? ""];
    this.signalMenu.disabled = this.closed || !live.length;
    this.all.checked = chosen > 0 && this.shown.length > 0 && this.shown.every((row) => this.selected.has(this.id(row)));
    this.all.indeterminate = chosen > 0 && !this.all.checked;
  }

  // -- keyboard

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.target instanceof Element && event.target !== this.body && event.target.closest("button, input, select")) return;
    const at = this.active === null ? -1 : (this.position.get(this.active) ?? -1);
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW) - 1);
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: at + 1, ArrowUp: Math.max(at, 1) - 1, Home: 0, End: this.shown.length - 1, PageDown: at + page, PageUp: at - page };
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
    let used = true;
    if (event.key in moves) {
      const next = Math.min(Math.max(moves[event.key], 0), this.shown.length - 1);
      if (next >= 0) {
        const { key } = this.shown[next];
        if (event.shiftKey && at >= 0 && this.anchor === null) this.anchor = this.active;
        this.activate(key, true);
        if (event.shiftKey) this.toggle(key, true);
      }
    } else if (event.key === " " && this.active !== null) this.toggle(this.active, event.shiftKey);
    else if (event.key === "Enter" && this.active !== null) this.show(this.rows.byKey.get(this.active));
    else if (event.key === "Escape") this.pending ? this.answer(false) : this.selectAll(false);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) this.selectAll(true);
    else if (event.key === "ArrowRight" && this.active !== null) this.fold(this.active, true);
    else if (event.key === "ArrowLeft" && this.active !== null) this.fold(this.active, false);
    else if (event.key === "?" && plain) this.help();
    else if (event.key === "c" && plain) this.clear();
    else if (event.key === "/" && plain) this.filter.focus();
    else if (event.key === "s" && plain) this.act("stop", this.targets());
    else if (event.key === "k" && plain) this.act("kill", this.targets());
    else if (event.key === "r" && plain) this.act("restart", this.targets());
    else if (event.key === "p" && plain) this.pauseOrResume();
    else if (event.key === "b" && plain) this.bell(this.targets());
    else used = false;
    if (used) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  pauseOrResume() {
    const ids = new Set(this.targets());
    const rows = [...this.rows.byKey.values()].filter((row) => ids.has(this.id(row)));
    this.act(rows.some((row) => this.rows.get(row, "status") === "running") ? "pause" : "resume", [...ids]);
  }

  /**
   * Be told when they are done, or, where that holds for all of them, not.
   * @param {string[]} ids
   * @param {HTMLElement | null} node
   */
  bell(ids, node = null) {
    const live = [...this.rows.byKey.values()].filter((row) => ids.includes(this.id(row)) && this.rows.live(row));
    this.act(
      "bell",
      live.map((row) => this.id(row)),
      node,
      { on: !live.every((row) => this.rows.get(row, "told")) },
    );
  }

  /**
   * @param {Key | null} key
   * @param {boolean} scroll
   */
  activate(key, scroll) {
    const before = this.at(this.active);
    if (before) before.changed = true;
    this.active = key;
    const row = this.at(key);
    if (row) {
      row.changed = true;
      const top = (this.position.get(row.key) ?? 0) * ROW;
      if (scroll && top < this.body.scrollTop) this.body.scrollTop = top;
      if (scroll && top + ROW > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = top + ROW - this.body.clientHeight;
      set(this.body, { "aria-activedescendant": this.rowId(row.key) });
    } else set(this.body, { "aria-activedescendant": null });
    this.draw();
  }

  /** @param {Key | "head"} key */
  rowId(key) {
    return `nb-${this.context.connection.view}-${this.part}-${key}`.replace(/[^\w-]/g, "_");
  }

  // -- acting

  /**
   * What ends several at once asks first, in the toolbar's place; the same key or button again says yes, Esc or any other act says no.
   * @param {string} op
   * @param {string[]} ids
   * @param {HTMLElement | null} node
   */
  confirmed(op, ids, node) {
    const key = `${op} ${ids.join()}`;
    const again = this.pending?.key === key;
    this.answer(false);
    if (again || ids.length < 2 || !["stop", "kill", "restart"].includes(op)) return true;
    this.pending = { key, go: () => this.act(op, ids, node) };
    say(this.asked, t("table.ask", { op, n: ids.length }));
    this.question.hidden = false;
    this.chips.hidden = true;
    return false;
  }

  /** @param {boolean} yes */
  answer(yes) {
    const { pending } = this;
    this.question.hidden = true;
    this.chips.hidden = false;
    if (yes) return pending?.go();
    this.pending = null;
    if (this.question.contains(document.activeElement)) this.body.focus();
  }

  /**
   * @param {string} op
   * @param {string[]} ids
   * @param {HTMLElement | null} node
   * @param {Record<string, unknown>} args
   */
  async act(op, ids, node = null, args = {}) {
    if (this.closed || !ids.length || !this.confirmed(op, ids, node)) return;
    node?.setAttribute("aria-busy", "true");
    try {
      await this.context.connection.call(this.part, op, { ids, ...args });
    } catch (error) {
      this.context.notice(reason(error), "error");
    } finally {
      node?.removeAttribute("aria-busy");
    }
  }

  /** @param {Row | undefined} row */
  async show(row) {
    if (!row) return;
    if (this.pane && this.paneKey === row.key) return this.hide();
    this.hide();
    this.paneKey = row.key;
    row.changed = true;
    this.draw();
    try {
      const { data } = await this.context.connection.call(this.part, "show", { id: this.id(row) });
      if (this.paneKey !== row.key) return;
      this.pane = new Pane(this.context, data, { onclose: () => this.hide(), height: 220 });
      this.detail.replaceChildren(this.pane.root);
      this.detail.hidden = false;
      this.context.mount(data, this.pane);
    } catch (error) {
      this.context.notice(reason(error), "error");
    }
  }

  hide() {
    const row = this.at(this.paneKey);
    if (row) row.changed = true;
    if (this.pane) {
      this.context.unmount(this.pane.part);
      this.pane.destroy();
    }
    this.pane = null;
    this.paneKey = null;
    this.detail.hidden = true;
    this.detail.replaceChildren();
    this.draw();
  }

  // -- drawing

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.drawNow();
    });
  }

  drawNow() {
    const top = this.body.scrollTop;
    const sight = this.body.clientHeight || this.height;
    const first = Math.max(0, Math.floor(top / ROW) - SPARE);
    const last = Math.min(this.shown.length, Math.ceil((top + sight) / ROW) + SPARE);
    /** @type {Set<Key>} */
    const wanted = new Set();
    for (let i = first; i < last; i++) {
      const row = this.shown[i];
      wanted.add(row.key);
      let line = this.lines.get(row.key);
      if (!line) {
        line = this.makeLine(row);
        this.lines.set(row.key, line);
        this.space.append(line.root);
        row.changed = true;
      }
      if (line.at !== i) {
        line.at = i;
        line.root.style.transform = `translateY(${i * ROW}px)`;
        line.root.setAttribute("aria-rowindex", String(i + 2));
      }
      if (row.changed || line.row !== row) {
        row.changed = false;
        line.row = row;
        this.fill(line, row);
      }
    }
    for (const [key, line] of this.lines) {
      if (wanted.has(key)) continue;
      line.root.remove();
      this.lines.delete(key);
    }
  }

  /** @param {Row} first that it shows */
  makeLine({ key }) {
    const row = () => this.rows.byKey.get(key);
    const ids = () => {
      const one = row();
      return one ? [this.id(one)] : [];
    };
    const get = (/** @type {string} */ column) => {
      const one = row();
      return one && this.rows.get(one, column);
    };
    const act = (/** @type {Icon} */ name, /** @type {string} */ label, op = () => /** @type {string} */ (name)) =>
      button(name, label, (event) => (event.stopPropagation(), this.act(op(), ids(), event.currentTarget)), { tabindex: "-1" });
    const cell = (/** @type {string} */ name, /** @type {Node[]} */ ...children) => h(`span.nb-cell.nb-c-${name}`, { role: "gridcell" }, ...children);
    const spark = (/** @type {Node} */ path, /** @type {string} */ kind) =>
      svg("svg", { class: `nb-spark nb-${kind}`, width: "54", height: "18", viewBox: "0 0 54 18", "aria-hidden": "true" }, path);
    const line = {
      row: /** @type {Row | null} */ (null),
      at: -1,
      pausedShown: false,
      check: h("input", { type: "checkbox", tabindex: "-1", onclick: (event) => (event.stopPropagation(), this.toggle(key, event.shiftKey)) }),
      fold: h("button.nb-fold", {
        type: "button",
        tabindex: "-1",
        hidden: true,
        "aria-label": t("table.earlierRuns"),
        onclick: (event) => (event.stopPropagation(), this.fold(key, !this.query.unfolded.has(get("name")))),
      }),
      name: h("b", {}),
      mark: h("span.nb-mark", { hidden: true, title: t("table.itOutlivesTheKernelNbprocs") }, t("table.detached")),
      cmd: h("span.nb-cmd", {}),
      dot: h("i.nb-dot", { "aria-hidden": "true" }),
      status: h("span", {}),
      end: h("span.nb-end", {}),
      cpuPath: svg("path", {}),
      memPath: svg("path", {}),
      cpu: h("span.nb-value", {}),
      mem: h("span.nb-value", {}),
      pid: cell("pid"),
      uptime: cell("uptime"),
      restarts: cell("restarts"),
      ports: cell("ports"),
      line: cell("line"),
      pause: act("pause", t("table.pause"), () => (get("status") === "paused" ? "resume" : "pause")),
      stop: act("stop", t("table.stop")),
      restart: act("restart", t("table.restart")),
      bell: button("bell", t("bell.off"), (event) => (event.stopPropagation(), this.bell(ids(), event.currentTarget)), {
        tabindex: "-1",
        "aria-pressed": "false",
      }),
      told: h("span.nb-told", { hidden: true, role: "img", "aria-label": t("bell.on"), title: t("bell.on") }, icon("bell")),
      output: button("output", t("table.showOutput"), (event) => (event.stopPropagation(), this.show(row())), { tabindex: "-1" }),
    };
    line.stop.classList.add("nb-danger");
    const who = cell("name", line.fold, line.name, line.told, line.mark, line.cmd);
    const state = cell("status", line.dot, line.status, line.end);
    const root = h(
      "div.nb-row",
      { role: "row", id: this.rowId(key), onclick: (event) => this.click(key, event), ondblclick: () => this.show(row()) },
      cell("sel", line.check),
      who,
      state,
      line.pid,
      line.uptime,
      cell("cpu", spark(line.cpuPath, "cpu"), line.cpu),
      cell("mem", spark(line.memPath, "mem"), line.mem),
      line.restarts,
      line.ports,
      line.line,
      cell("do", line.output, line.bell, line.pause, line.restart, line.stop),
    );
    return Object.assign(line, { root, who, state });
  }

  /**
   * @param {Key} key
   * @param {MouseEvent} event
   */
  click(key, event) {
    this.activate(key, false);
    if (event.shiftKey || event.ctrlKey || event.metaKey) this.toggle(key, event.shiftKey);
  }

  /**
   * @param {Line} line
   * @param {Row} row
   */
  fill(line, row) {
    const get = (/** @type {string} */ name) => this.rows.get(row, name);
    const live = this.rows.live(row);
    const status = get("status");
    const selected = this.selected.has(this.id(row));
    line.check.checked = selected;
    set(line.check, { "aria-label": t("grid.select", { name: get("name") }) });
    set(line.root, { "aria-selected": String(selected), "data-active": row.key === this.active, "data-live": live, "data-open": row.key === this.paneKey });
    const folded = this.rows.folded.get(row.key);
    line.fold.hidden = !folded;
    if (folded) {
      const open = this.query.unfolded.has(get("name"));
      say(line.fold, `${open ? "▾" : "▸"} ${folded + 1}`);
      set(line.fold, {
        "aria-expanded": String(open),
        title: t("table.folded", { n: folded }),
        "aria-label": t("table.earlierOf", { n: folded, name: get("name") }),
      });
    }
    set(line.root, { "data-earlier": this.rows.earlier.has(row.key) });
    say(line.name, get("name"));
    line.mark.hidden = !get("detached");
    line.told.hidden = !get("told");
    line.bell.disabled = this.closed || !live;
    set(line.bell, { "aria-pressed": String(Boolean(get("told"))), title: t(get("told") ? "bell.on" : "bell.off") });
    say(line.cmd, short(get("cmd")));
    line.who.title = `${get("name")}\n${get("cmd")}`;
    line.dot.dataset.status = status;
    say(line.status, status);
    say(line.end, get("end") && get("end") !== "exit 0" ? get("end").split(" (")[0] : ""); // the reason is in the title, and in the pane
    line.state.title = [status, get("end")].filter(Boolean).join(", ");
    say(line.pid, live ? String(get("pid") ?? "") : "");
    this.fillClock(line, row);
    this.fillMeasures(line, row, live);
    say(line.restarts, get("restarts") ? String(get("restarts")) : "");
    say(line.ports, get("ports"));
    say(line.line, get("line"));
    line.line.title = get("line");
    line.stop.disabled = this.closed || !live;
    line.restart.disabled = Boolean(this.closed);
    line.pause.disabled = this.closed || !live || status === "starting";
    if (line.pausedShown !== (status === "paused")) {
      line.pausedShown = status === "paused";
      line.pause.replaceChildren(icon(line.pausedShown ? "resume" : "pause"));
      set(line.pause, {
        title: line.pausedShown ? t("table.resume") : t("table.pause"),
        "aria-label": line.pausedShown ? t("table.resume") : t("table.pause"),
      });
    }
    set(line.output, { "aria-pressed": String(row.key === this.paneKey) });
  }

  /**
   * @param {Line} line
   * @param {Row} row
   */
  fillClock(line, row) {
    const value = this.rows.uptime(row);
    say(line.uptime, this.rows.live(row) ? clock(value) : seconds(value));
  }

  /**
   * @param {Line} line
   * @param {Row} row
   * @param {boolean} live
   */
  fillMeasures(line, row, live) {
    const cpu = this.rows.get(row, "cpu");
    const mem = this.rows.get(row, "mem");
    say(line.cpu, live && cpu !== null ? String(cpu) : "");
    say(line.mem, live && mem !== null ? mebibytes(mem) : "");
    sparkline(line.cpuPath, live ? row.cpu : [], 54, 18, Math.max(100, ...row.cpu), this.rows.slots);
    sparkline(line.memPath, live ? row.mem : [], 54, 18, Math.max(1, ...row.mem) * 1.15, this.rows.slots);
  }

  tickClock() {
    if (!this.root.isConnected || this.root.closest(".nb-stale")) return;
    for (const line of this.lines.values()) if (line.row && this.rows.live(line.row)) this.fillClock(line, line.row);
  }

  destroy() {
    clearInterval(this.timer);
    cancelAnimationFrame(this.frame);
    this.observer?.disconnect();
    this.pane?.destroy();
  }
}
