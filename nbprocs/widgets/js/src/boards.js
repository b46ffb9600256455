// The pool view and the queue view.

import { button, clock, controls, h, icon, say, seconds, set, short, sparkline, svg } from "./dom.js";
import { Grid } from "./grid.js";
import { reason } from "./protocol.js";
import { named } from "./rows.js";
import { t } from "./texts.js";

/** @import {Icon} from "./dom.js" */
/** @import {Line} from "./grid.js" */
/** @import {Context} from "./root.js" */
/** @typedef {[name: string, cells: unknown[]]} Row as it travels; its columns are named once, in the snapshot */
/** @typedef {{state: string, pid: number | null, born: number, done: number, held: number, titles: string, why: string}} Worker */
/**
 * @typedef {{workers: number, starting: number, busy: number, most: number, queued: number, running: number, completed: number, failed: number,
 *   retries: number, crashed: number, average: number, closed: boolean}} Figures of a pool
 */
/**
 * @typedef {{name: string, cmd: string, state: string, priority: number, level: string, group: string, tries: string, due: number, expected: number | null,
 *   why: string, worker: string, host: string}} Task
 */
/** @typedef {[task: string, start: number, end: number | null, state: string]} Bar of the timeline, seconds; end: null while it runs */
/**
 * @typedef {{running: number, limit: number, waiting: number, counts: Record<string, number>, paused: boolean, halted: string, closed: boolean,
 *   eta: [low: number, middle: number, high: number] | null, next: number | null, resources: [name: string, used: number, capacity: number][]}} Status
 */

/** @param {string} label */
function tile(label) {
  const value = h("b.nb-figure", {}, "–");
  return { value, root: h("div.nb-tile", {}, value, h("span", {}, label)) };
}

const count = (/** @type {number} */ n) => (n ?? 0).toLocaleString("en");

export class Pool {
  /**
   * @param {Context} context
   * @param {string} name of the part
   */
  constructor(context, name) {
    this.context = context;
    this.part = name;
    /** @type {number[]} */
    this.rates = [];
    this.tiles = {
      busy: tile(t("boards.busy")),
      queued: tile(t("boards.queued")),
      completed: tile(t("boards.completed")),
      failed: tile(t("boards.failed")),
      average: tile(t("boards.average")),
      rate: tile(t("boards.tasksASecond")),
    };
    this.path = svg("path", {});
    this.tiles.rate.root.append(svg("svg", { class: "nb-spark nb-cpu", width: "90", height: "20", viewBox: "0 0 90 20", "aria-hidden": "true" }, this.path));
    this.size = h("input.nb-input.nb-number", {
      type: "number",
      min: "0",
      max: "1024",
      "aria-label": t("boards.workersAsManyAsThe"),
      title: t("boards.workersAsManyAsThe"),
      onchange: ({ currentTarget }) => this.call("resize", { workers: Number(currentTarget.value) }),
    });
    /** @type {Grid<Worker>} */
    this.grid = new Grid(
      [
        { name: "name", label: t("boards.worker"), fill: (cell, row) => say(cell, row.key) },
        {
          name: "status",
          label: t("boards.state"),
          make: (cell) => cell.append(h("i.nb-dot", { "aria-hidden": "true" }), h("span", {})),
          fill: (_cell, { data }, [dot, word]) => {
            dot.dataset.status = data.state;
            say(word, data.state);
          },
        },
        { name: "pid", label: "PID", fill: (cell, { data }) => say(cell, String(data.pid ?? "")) },
        { name: "uptime", label: t("boards.age"), fill: (cell, { data }) => say(cell, clock(Date.now() / 1000 + this.offset - data.born)) },
        { name: "pid", label: t("boards.done"), fill: (cell, { data }) => say(cell, count(data.done)) },
        { name: "pid", label: t("boards.holds"), fill: (cell, { data }) => say(cell, data.held ? count(data.held) : "") },
        { name: "line", label: t("boards.tasks"), fill: (cell, { data }) => ((cell.title = data.titles || data.why), say(cell, data.titles || data.why)) },
      ],
      {
        name: "pool",
        label: t("boards.workers"),
        height: (context.height ?? 210) - 30, // less its bar
        order: (a, b) => a.key.localeCompare(b.key, "en", { numeric: true }),
        title: (row) => row.key,
        empty: t("boards.noWorkersYetTheyStart"),
      },
    );
    this.who = h("b", {}, t("boards.pool"));
    this.facts = h("span.nb-facts", {});
    this.root = h(
      "section.nb-board",
      { role: "group", "aria-label": t("boards.processPool") },
      h(
        "div.nb-bar",
        {},
        this.who,
        this.facts,
        h(
          "span.nb-actions",
          {},
          h("span.nb-label", {}, t("boards.workers")),
          this.size,
          button("restart", t("boards.renewAllWorkersEachWhen"), () => this.call("renew")),
        ),
      ),
      h("div.nb-tiles", {}, ...Object.values(this.tiles).map(({ root }) => root)),
      this.grid.root,
    );
    this.offset = 0;
    this.named = named([]);
    this.timer = setInterval(() => this.root.isConnected && this.grid.rows.forEach((row) => this.grid.fill(row)), 1000);
  }

  close() {
    for (const node of controls(this.root, ".nb-actions .nb-button, .nb-actions .nb-input")) node.disabled = true;
  }

  /** @param {{columns: string[], rows: Row[], figures: Figures, rates: number[], now: number}} content */
  snapshot(content) {
    this.offset = content.now - Date.now() / 1000;
    this.grid.clear();
    this.named = named(content.columns);
    for (const [name, row] of content.rows) this.grid.put(name, /** @type {Worker} */ (this.named(row)));
    this.grid.arrange();
    this.rates = content.rates;
    this.figures(content.figures, this.rates.at(-1) ?? 0);
  }

  /** @param {{"-"?: string[], u?: Row[], figures?: Figures, rate?: number}} content */
  delta(content) {
    for (const name of content["-"] ?? []) this.grid.remove(name);
    for (const [name, row] of content.u ?? []) this.grid.put(name, /** @type {Worker} */ (this.named(row)));
    if (content.u) this.grid.arrange();
    if (content.figures) {
      const rate = content.rate ?? 0;
      this.rates.push(rate);
      if (this.rates.length > 60) this.rates.shift();
      this.figures(content.figures, rate);
    }
  }

  /**
   * @param {Figures} f
   * @param {number} rate tasks a second
   */
  figures(f, rate) {
    if (f.closed) say(this.grid.empty, t("boards.thePoolIsClosed"));
    say(
      this.facts,
      f.closed
        ? t("boards.closed")
        : [
            t("boards.workersOf", { n: f.workers, most: f.most }),
            .../** @type {const} */ (["starting", "crashed", "retries"]).filter((what) => f[what]).map((what) => t(`boards.some.${what}`, { n: f[what] })),
          ].join(", "),
    );
    say(this.tiles.busy.value, `${count(f.busy)}`);
    say(this.tiles.queued.value, count(f.queued));
    say(this.tiles.completed.value, count(f.completed));
    say(this.tiles.failed.value, count(f.failed));
    this.tiles.failed.root.classList.toggle("nb-bad", f.failed > 0);
    say(this.tiles.average.value, f.completed ? seconds(f.average) : "–");
    say(this.tiles.rate.value, rate >= 10 ? count(Math.round(rate)) : rate.toFixed(1));
    sparkline(this.path, this.rates, 90, 20, Math.max(1, ...this.rates), 60);
    if (document.activeElement !== this.size) set(this.size, { placeholder: String(f.workers) });
    for (const node of controls(this.root, ".nb-actions .nb-button, .nb-actions .nb-input")) node.disabled = f.closed;
  }

  /**
   * @param {string} op
   * @param {Record<string, unknown>} args
   */
  async call(op, args = {}) {
    try {
      await this.context.connection.call(this.part, op, args);
    } catch (error) {
      this.context.notice(reason(error), "error");
    }
  }

  destroy() {
    clearInterval(this.timer);
  }
}

const STATES = ["running", "queued", "scheduled", "blocked", "held", "failed", "interrupted", "skipped", "cancelled", "succeeded"];
/** @type {Record<string, string>} */
const DOTS = {
  running: "running",
  queued: "queued",
  scheduled: "waiting",
  blocked: "waiting",
  held: "paused",
  failed: "failed",
  interrupted: "failed",
  skipped: "cancelled",
  cancelled: "cancelled",
  succeeded: "completed",
};
/** @type {Record<string, string | undefined>} */
const KEYS = { c: "cancel", h: "hold", r: "release" };
const FINAL = new Set(["failed", "interrupted", "skipped", "cancelled", "succeeded"]);
const WINDOW = 120; // seconds shown in the timeline at least

export class Queue {
  /**
   * @param {Context} context
   * @param {string} name of the part
   */
  constructor(context, name) {
    this.context = context;
    this.part = name;
    this.offset = 0;
    this.named = named([]);
    /** @type {Map<string, Bar[]>} */
    this.bars = new Map();
    this.paused = false;
    this.over = false;
    this.pauseButton = button("pause", t("boards.pauseTheQueue"), () => this.call("pause", { on: !this.paused }));
    this.limit = h("input.nb-input.nb-number", {
      type: "number",
      min: "0",
      max: "10000",
      "aria-label": t("boards.tasksAtATime"),
      title: t("boards.tasksAtATime"),
      onchange: ({ currentTarget }) => this.call("set_limit", { limit: Number(currentTarget.value) }),
    });
    this.priority = h("select.nb-input.nb-signal", {
      "aria-label": t("boards.priorityOfTheSelectedTasks"),
      title: t("boards.priorityOfTheSelectedTasks"),
      onchange: () => this.setPriority(),
    });
    const act = (/** @type {Icon} */ icons, /** @type {string} */ label, /** @type {string} */ op) =>
      button(icons, label, () => this.act(op), { "data-op": op });
    this.cancelButton = act("close", t("boards.cancelTheSelectedTasksC"), "cancel");
    this.cancelButton.classList.add("nb-danger");
    this.picked = h("span.nb-count", {});
    this.actions = h(
      "span.nb-actions",
      { role: "toolbar", "aria-label": t("boards.actionsOnTasks") },
      this.picked,
      act("pause", t("boards.holdTheSelectedTasksH"), "hold"),
      act("play", t("boards.releaseTheSelectedTasksR"), "release"),
      this.priority,
      this.cancelButton,
    );
    this.facts = h("span.nb-facts", {});
    this.counts = h("span.nb-chips.nb-tallies", {});
    this.bar = h("div.nb-progress", { role: "progressbar", "aria-label": t("boards.tasksThatHaveEnded"), "aria-valuemin": "0", "aria-valuemax": "100" });
    this.timeline = h("div.nb-timeline", { role: "img", "aria-label": t("boards.timelineOfTheTasks") });
    /** @type {Grid<Task>} */
    this.grid = new Grid(
      [
        {
          name: "name",
          label: t("boards.task"),
          make: (cell) => cell.append(h("b", {}), h("span.nb-cmd", {})),
          fill: (cell, { data }, [name, cmd]) => {
            say(name, data.name);
            say(cmd, data.cmd === data.name ? "" : short(data.cmd));
            cell.title = data.worker ? t("boards.placed", { cmd: data.cmd, worker: data.worker, host: data.host }) : data.cmd;
          },
        },
        {
          name: "status",
          label: t("boards.state"),
          make: (cell) => cell.append(h("i.nb-dot", { "aria-hidden": "true" }), h("span", {})),
          fill: (_cell, { data }, [dot, word]) => {
            dot.dataset.status = DOTS[data.state] ?? data.state;
            say(word, data.state);
          },
        },
        { name: "ports", label: t("boards.priority"), fill: (cell, { data }) => say(cell, data.level.toLowerCase()) },
        { name: "ports", label: t("boards.group"), fill: (cell, { data }) => say(cell, data.group) },
        { name: "pid", label: t("boards.retries"), fill: (cell, { data }) => say(cell, data.tries) },
        { name: "worker", label: t("boards.worker"), fill: (cell, { data }) => ((cell.title = data.worker), say(cell, data.worker)) },
        { name: "host", label: t("boards.host"), fill: (cell, { data }) => ((cell.title = data.host), say(cell, data.host)) },
        {
          name: "line",
          label: t("boards.progress"),
          make: (cell) => cell.append(h("i.nb-done", { "aria-hidden": "true" }), h("span", {})),
          fill: (cell, row, inside) => this.fillProgress(cell, row, inside),
        },
      ],
      {
        name: "queue",
        label: t("boards.tasks"),
        height: (context.height ?? 270) - 30, // less its bar
        select: true,
        title: (row) => row.data.name,
        order: (a, b) => this.order(a, b),
        selection: () => this.drawActions(),
        press: (key) => this.press(key),
        empty: t("boards.theQueueIsEmpty"),
      },
    );
    this.root = h(
      "section.nb-board",
      { role: "group", "aria-label": t("boards.taskQueue") },
      h(
        "div.nb-bar",
        {},
        h("b", {}, t("boards.queue")),
        this.pauseButton,
        h("span.nb-label", {}, t("boards.atATime")),
        this.limit,
        this.facts,
        this.counts,
        this.actions,
      ),
      this.bar,
      this.timeline,
      this.grid.root,
    );
    this.drawActions();
    this.timer = setInterval(() => this.root.isConnected && this.tick(), 1000);
  }

  /**
   * @param {Line<Task>} a
   * @param {Line<Task>} b
   */
  order(a, b) {
    const rank = (/** @type {Line<Task>} */ row) => (row.data.state === "running" ? 0 : FINAL.has(row.data.state) ? 2 : 1);
    const difference = rank(a) - rank(b);
    if (difference) return difference;
    if (rank(a) === 2) return (this.ended(b.key) ?? 0) - (this.ended(a.key) ?? 0);
    const ready = (/** @type {Line<Task>} */ row) => STATES.indexOf(row.data.state);
    return ready(a) - ready(b) || b.data.priority - a.data.priority || a.data.due - b.data.due;
  }

  /** @param {string} key */
  ended(key) {
    return this.bars.get(key)?.at(-1)?.[2];
  }

  close() {
    this.over = true;
    this.drawActions();
    this.pauseButton.disabled = this.limit.disabled = true;
  }

  /**
   * @param {HTMLElement} cell
   * @param {Line<Task>} row
   * @param {HTMLElement[]} inside
   */
  fillProgress(cell, { key, data }, [done, words]) {
    const bar = this.bars.get(key)?.at(-1);
    const running = data.state === "running" && bar;
    const now = Date.now() / 1000 + this.offset;
    const took = running ? now - bar[1] : bar?.[2] ? bar[2] - bar[1] : NaN;
    const part = running && data.expected ? Math.min(took / data.expected, 0.98) : 0;
    done.style.width = `${Math.round(part * 100)}%`;
    const wait = !running && !FINAL.has(data.state) ? data.why : "";
    const text = running
      ? data.expected
        ? t("boards.ofAbout", { took: clock(took), all: seconds(data.expected) })
        : clock(took)
      : took >= 0 && FINAL.has(data.state)
        ? data.expected
          ? t("boards.insteadOf", { took: seconds(took), all: seconds(data.expected) })
          : seconds(took)
        : wait;
    say(words, text);
    cell.title = text;
  }

  /**
   * @param {{columns: string[], rows: Row[], bars: Bar[], status: Status, now: number, priorities: Record<string, number>}} content
   */
  snapshot(content) {
    this.offset = content.now - Date.now() / 1000;
    this.bars = new Map();
    for (const bar of content.bars) this.addBar(bar);
    this.grid.clear();
    this.named = named(content.columns);
    for (const [key, row] of content.rows) this.put(key, row);
    this.grid.arrange();
    this.priority.replaceChildren(
      h("option", { value: "" }, t("boards.priority2")),
      ...Object.entries(content.priorities).map(([name, value]) => h("option", { value }, name.toLowerCase())),
    );
    this.status(content.status);
    this.drawTimeline();
    this.drawActions();
  }

  /**
   * A row; the columns of where a task runs come with the first that runs on a worker, and stay.
   * @param {string} key
   * @param {unknown[]} cells
   */
  put(key, cells) {
    const data = /** @type {Task} */ (this.named(cells));
    if (data.worker) this.grid.root.classList.add("nb-far");
    this.grid.put(key, data);
  }

  /** @param {Bar} bar */
  addBar(bar) {
    const bars = this.bars.get(bar[0]) ?? [];
    this.bars.set(bar[0], bars);
    const same = bars.findIndex((other) => other[1] === bar[1]);
    if (same >= 0) bars[same] = bar;
    else bars.push(bar);
  }

  /** @param {{b?: Bar[], "-"?: string[], u?: Row[], status?: Status}} content */
  delta(content) {
    for (const bar of content.b ?? []) this.addBar(bar);
    for (const key of content["-"] ?? []) this.grid.remove(key);
    for (const [key, row] of content.u ?? []) this.put(key, row);
    if (content.u) this.grid.arrange();
    if (content.status) this.status(content.status);
    if (content.b) this.drawTimeline();
    this.drawActions();
  }

  /** @param {Status} s */
  status(s) {
    if (s.closed) this.close();
    this.paused = s.paused || Boolean(s.halted);
    this.pauseButton.replaceChildren(icon(this.paused ? "play" : "pause"));
    set(this.pauseButton, {
      title: this.paused ? t("boards.resumeTheQueue") : t("boards.pauseTheQueue"),
      "aria-label": this.paused ? t("boards.resumeTheQueue") : t("boards.pauseTheQueue"),
      "aria-pressed": String(this.paused),
      disabled: s.closed,
    });
    this.limit.disabled = s.closed;
    if (document.activeElement !== this.limit) this.limit.value = String(s.limit);
    const words = [
      s.closed ? t("boards.closed") : s.halted || (s.paused ? t("boards.paused") : ""),
      t("boards.running", { n: count(s.running) }),
      t("boards.waiting", { n: count(s.waiting) }),
    ];
    const later = s.counts.scheduled ?? 0; // not due yet: the time left is of work, not of waiting
    if (s.eta && s.running + s.waiting)
      words.push(t(later ? "boards.workLeft" : "boards.left", { left: clock(s.eta[1]), least: clock(s.eta[0]), most: clock(s.eta[2]) }));
    if (later && s.next) words.push(t("boards.notDue", { n: count(later), wait: clock(s.next - Date.now() / 1000 - this.offset) }));
    for (const [name, used, capacity] of s.resources) words.push(`${name} ${used}/${capacity}`);
    say(this.facts, words.filter(Boolean).join(" · "));
    const total = Object.values(s.counts).reduce((sum, n) => sum + n, 0);
    const ended = STATES.filter((name) => FINAL.has(name)).reduce((sum, name) => sum + (s.counts[name] ?? 0), 0);
    set(this.bar, { "aria-valuenow": String(total ? Math.round((100 * ended) / total) : 0), title: t("boards.ended", { n: count(ended), all: count(total) }) });
    const order = ["succeeded", "failed", "interrupted", "skipped", "cancelled", "running"];
    this.bar.replaceChildren(
      ...order.filter((name) => s.counts[name]).map((name) => h("i", { "data-state": name, style: { width: `${(100 * s.counts[name]) / total}%` } })),
    );
    this.counts.replaceChildren(
      ...STATES.filter((name) => s.counts[name]).map((name) =>
        h("span.nb-tally", {}, h("i.nb-dot", { "data-status": DOTS[name], "aria-hidden": "true" }), `${name} `, h("b", {}, count(s.counts[name]))),
      ),
    );
  }

  tick() {
    for (const row of this.grid.rows.values()) if (row.data.state === "running") this.grid.fill(row);
    if ([...this.bars.values()].some((bars) => bars.some((bar) => bar[2] === null))) this.drawTimeline();
  }

  /** Bars in as few lanes as they need, over the last minutes. */
  drawTimeline() {
    const now = Date.now() / 1000 + this.offset;
    const bars = [...this.bars.values()].flat().sort((a, b) => a[1] - b[1]);
    const first = bars.find((bar) => (bar[2] ?? now) > now - 600)?.[1] ?? now;
    const from = Math.max(Math.min(first, now - 10), now - 600);
    const span = Math.max(now - from, Math.min(WINDOW, 20));
    /** @type {number[]} */
    const lanes = []; // until when each is taken
    /** @type {[lane: number, bar: Bar, end: number][]} */
    const shown = [];
    for (const bar of bars) {
      const end = bar[2] ?? now;
      if (end < from) continue;
      let lane = lanes.findIndex((until) => until <= bar[1] + 0.01);
      if (lane < 0) lane = lanes.push(0) - 1;
      lanes[lane] = end;
      if (lane < 8) shown.push([lane, bar, end]);
    }
    this.timeline.hidden = !shown.length;
    this.timeline.style.height = `${Math.min(lanes.length, 8) * 12 + 8}px`;
    this.timeline.replaceChildren(
      ...shown.slice(-300).map(([lane, [key, start, until, state], end]) =>
        h("i", {
          "data-state": state,
          title: t("boards.bar", { name: this.grid.rows.get(key)?.data.name ?? key, state, took: seconds(end - start) }),
          style: {
            left: `${(100 * Math.max(start - from, 0)) / span}%`,
            width: `max(2px, ${(100 * (end - Math.max(start, from))) / span}%)`,
            top: `${lane * 12 + 4}px`,
          },
          "data-open": until === null,
        }),
      ),
    );
  }

  targets() {
    return this.grid.selected.size ? [...this.grid.selected] : this.grid.active ? [this.grid.active.key] : [];
  }

  drawActions() {
    const chosen = [...this.grid.selected].flatMap((key) => this.grid.rows.get(key)?.data.state ?? []);
    say(this.picked, chosen.length ? t("boards.selected", { n: chosen.length }) : "");
    const open = !this.over && chosen.some((state) => !FINAL.has(state));
    for (const node of controls(this.actions, "[data-op]")) node.disabled = !open || (node.dataset.op === "release" && !chosen.includes("held"));
    this.priority.disabled = !open;
  }

  /** @param {string} key */
  press(key) {
    const op = KEYS[key];
    if (op) this.act(op);
    return Boolean(op);
  }

  /**
   * @param {string} op
   * @param {Record<string, unknown>} args
   */
  act(op, args = {}) {
    const ids = this.targets();
    if (ids.length) this.call(op, { ids, ...args });
  }

  setPriority() {
    const value = this.priority.value;
    this.priority.value = "";
    if (value !== "") this.act("reprioritise", { priority: Number(value) });
  }

  /**
   * @param {string} op
   * @param {Record<string, unknown>} args
   */
  async call(op, args = {}) {
    try {
      await this.context.connection.call(this.part, op, args);
    } catch (error) {
      this.context.notice(reason(error), "error");
    }
  }

  destroy() {
    clearInterval(this.timer);
  }
}
