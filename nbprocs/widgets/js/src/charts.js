// CPU and memory over time: two charts with one legend and one cursor; alerts as marks in the charts and words below them.

import { clock, h, mebibytes, say, set } from "./dom.js";
import { asset, reason } from "./protocol.js";
import { t } from "./texts.js";

/** @import uPlot from "uplot" */
/** @import {Context} from "./root.js" */
/** @typedef {number | null} Value; null: not measured, or not yet */
/** @typedef {{key: number, name: string, cpu: Value[], mem: Value[], dead?: boolean}} Line as long as the times; dead: it has ended */
/** @typedef {[key: number, cpu: Value, mem: Value]} Point of one line */
/** @typedef {[id: string, severity: string, message: string, from: number, to: number | null, resolved: boolean, type: string]} Alert */
/** @typedef {"cpu" | "mem"} Which chart */
/** @typedef {ReturnType<Charts["colours"]>} Colours */

const DRAWN = 10; // lines; the others are summed up
/** @type {Record<string, Which | undefined>} */
const SHADED = { memory_usage: "mem", cpu_usage: "cpu" }; // which chart an episode colours; others only mark their beginning
const GONE = 3; // samples without a value
const KEPT = 600; // samples
const AT_LEAST = 10; // seconds from edge to edge, or the first lines would be drawn anew from end to end with each sample
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400]; // seconds between labels, which show no fractions
// Okabe and Ito's colours, which people with any kind of colour blindness tell apart; dark themes get lighter ones
const LIGHT = ["#0072b2", "#d55e00", "#007d58", "#b8528f", "#8a6d00", "#2b7bba", "#7a3e9d", "#5b6770", "#a3341c", "#3d7a00"];
const DARK = ["#56b4e9", "#ff9a4d", "#3ddc97", "#f0a3d0", "#e6c229", "#8ec9ff", "#c9a0ff", "#b6c2cc", "#ff8a73", "#a5d65a"];

/**
 * 14:03:05, whatever the language of the browser.
 * @param {number} time
 */
function hours(time) {
  const date = new Date(time * 1000);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, "0")).join(":");
}

/** Samples of many processes on one time axis. No DOM here. */
export class Samples {
  constructor() {
    /** @type {number[]} */
    this.times = [];
    /** @type {Map<number, Line>} */
    this.lines = new Map();
  }

  /**
   * @param {number} key
   * @param {string} name
   */
  add(key, name) {
    const blank = () => new Array(this.times.length).fill(null);
    const line = this.lines.get(key) ?? { key, name, cpu: blank(), mem: blank() };
    this.lines.set(key, line);
    return line;
  }

  /** @param {[key: number, name: string, points: [time: number, cpu: Value, mem: Value][]][]} lines */
  fill(lines) {
    /** @type {Map<number, number>} */
    const at = new Map();
    for (const [, , points] of lines) for (const [t] of points) at.set(Math.round(t), 0);
    this.times = [...at.keys()].sort((a, b) => a - b).slice(-KEPT);
    this.times.forEach((t, i) => at.set(t, i));
    for (const [key, name, points] of lines) {
      const line = this.add(key, name);
      for (const [t, cpu, mem] of points) {
        const i = at.get(Math.round(t)) ?? 0;
        if (this.times[i] !== Math.round(t)) continue;
        line.cpu[i] = cpu;
        line.mem[i] = mem;
      }
    }
  }

  /**
   * @param {number} time
   * @param {Point[]} points
   */
  tick(time, points) {
    this.times.push(time);
    for (const line of this.lines.values()) {
      line.cpu.push(null);
      line.mem.push(null);
    }
    for (const [key, cpu, mem] of points) {
      const line = this.lines.get(key);
      if (!line) continue;
      line.cpu[line.cpu.length - 1] = cpu;
      line.mem[line.mem.length - 1] = mem;
    }
    if (this.times.length > KEPT) {
      this.times.shift();
      for (const line of this.lines.values()) {
        line.cpu.shift();
        line.mem.shift();
        if (line.mem.every((v) => v === null)) this.lines.delete(line.key);
      }
    }
  }

  /**
   * The lines worth drawing, the busiest and largest first by rank, in a stable order; the rest as one line.
   * @returns {Line[]}
   */
  drawn() {
    const lines = [...this.lines.values()];
    for (const line of lines) line.dead = this.times.length > GONE && line.mem.slice(-GONE).every((v) => v === null); // has ended: its curve stays, in grey
    if (lines.length <= DRAWN) return lines;
    const sum = (/** @type {Value[]} */ values) => values.slice(-30).reduce((/** @type {number} */ total, v) => total + (v ?? 0), 0);
    const weight = (/** @type {Line} */ line) => (line.dead ? -1e9 : 0) + sum(line.cpu) + sum(line.mem) / 10; // what has ended is summed up first
    const first = new Set([...lines].sort((a, b) => weight(b) - weight(a)).slice(0, DRAWN - 1));
    const rest = lines.filter((line) => !first.has(line));
    const both = (/** @type {Value} */ a, /** @type {Value} */ b) => (a === null || b === null ? (a ?? b) : a + b);
    const total = (/** @type {Which} */ name) => this.times.map((_, i) => rest.map((line) => line[name][i]).reduce(both, null));
    return [...lines.filter((line) => first.has(line)), { key: 0, name: t("charts.others", { n: rest.length }), cpu: total("cpu"), mem: total("mem") }];
  }
}

export class Charts {
  /**
   * @param {Context} context
   * @param {string} name of the part
   */
  constructor(context, name) {
    this.context = context;
    this.part = name;
    this.height = (context.height ?? 170) - 20; // less the title
    this.samples = new Samples();
    /** @type {Map<string, Alert>} */
    this.alerts = new Map();
    /** @type {Set<number>} */
    this.hidden = new Set();
    /** @type {[Which, uPlot][]} */
    this.plots = [];
    /** @type {HTMLElement[]} */
    this.entries = []; // of the legend: each line's value
    /** @type {number | null} */
    this.at = null; // sample below the cursor
    /** @type {string | null} */
    this.key = null; // of what is drawn
    this.frame = 0;
    this.gone = false;
    this.cpu = h("div.nb-plot", { role: "img", "aria-label": t("charts.cpuOverTime") });
    this.mem = h("div.nb-plot", { role: "img", "aria-label": t("charts.memoryOverTime") });
    this.legend = h("div.nb-legend", { role: "group", "aria-label": t("charts.lines") });
    this.list = h("ul.nb-alerts", { "aria-label": t("charts.alerts") });
    this.quiet = h("span.nb-facts", {}, t("charts.nothingToMeasureYet"));
    const plot = (/** @type {string} */ title, /** @type {string} */ unit, /** @type {Node} */ node) =>
      h("div.nb-chart", {}, h("div.nb-label", {}, title, h("span.nb-unit", {}, unit)), node);
    this.root = h(
      "section.nb-charts",
      { role: "group", "aria-label": t("charts.cpuAndMemory") },
      h("div.nb-plots", {}, plot("CPU", t("charts.ofACore"), this.cpu), plot(t("charts.memory"), "MiB", this.mem)),
      this.legend,
      this.list,
    );
    for (const node of [this.cpu, this.mem]) node.style.height = `${this.height}px`;
    this.load();
  }

  async load() {
    try {
      const { uPlot } = await asset(this.context.connection, "plot");
      if (this.gone) return;
      /** @type {typeof uPlot} */
      this.Plot = uPlot;
      this.observer = new ResizeObserver(() => this.resize());
      this.observer.observe(this.cpu);
      this.themes = new MutationObserver(() => this.rebuild());
      this.themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
      this.draw();
    } catch (error) {
      this.cpu.append(h("div.nb-empty", {}, t("charts.failed", { why: reason(error) })));
    }
  }

  /** @param {{lines: Parameters<Samples["fill"]>[0], alerts: Alert[]}} content */
  snapshot(content) {
    this.samples = new Samples();
    this.samples.fill(content.lines);
    this.alerts = new Map(content.alerts.map((alert) => [alert[0], alert]));
    this.drawAlerts();
    this.draw();
  }

  /** @param {{"+"?: [key: number, name: string][], t?: [time: number, points: Point[]][], a?: Alert[]}} content */
  delta(content) {
    for (const [key, name] of content["+"] ?? []) this.samples.add(key, name);
    for (const [time, points] of content.t ?? []) this.samples.tick(time, points);
    for (const alert of content.a ?? []) this.alerts.set(alert[0], alert);
    if (content.a) this.drawAlerts();
    this.draw();
  }

  draw() {
    if (this.frame || !this.Plot) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.root.isConnected) this.drawNow();
    });
  }

  colours() {
    const style = getComputedStyle(this.root);
    const pick = (/** @type {string} */ name, /** @type {string} */ other) => style.getPropertyValue(name).trim() || other;
    const dark = style.colorScheme.includes("dark");
    return { dark, lines: dark ? DARK : LIGHT, axis: pick("--nb-muted", "#5f6368"), grid: pick("--nb-line", "#e0e0e0") };
  }

  drawNow() {
    const lines = this.samples.drawn();
    const key = lines.map((line) => `${line.key}:${line.name}:${Boolean(line.dead)}`).join("|");
    if (key !== this.key) {
      this.key = key;
      this.build(lines);
    }
    const times = this.samples.times;
    for (const [which, plot] of this.plots) plot.setData([times, ...lines.map((line) => line[which])]);
    this.fillLegend(lines);
  }

  rebuild() {
    this.key = null;
    this.draw();
  }

  /** @param {Line[]} lines */
  build(lines) {
    for (const [, plot] of this.plots) plot.destroy();
    const colours = this.colours();
    const width = Math.max(this.cpu.clientWidth, 100);
    this.plots = [
      ["cpu", this.plot("cpu", lines, colours, width, (_u, _min, max) => [0, Math.max(max ?? 0, 100) * 1.02])],
      ["mem", this.plot("mem", lines, colours, width, (_u, _min, max) => [0, Math.max(max ?? 0, 1) * 1.1])],
    ];
    this.buildLegend(lines, colours);
  }

  /**
   * @param {Which} which
   * @param {Line[]} lines
   * @param {Colours} colours
   * @param {number} width
   * @param {uPlot.Range.Function} range
   */
  plot(which, lines, colours, width, range) {
    const axis = { stroke: colours.axis, grid: { stroke: colours.grid, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    /** @type {uPlot.Options} */
    const options = {
      width,
      height: this.height,
      legend: { show: false },
      cursor: { sync: { key: `nbprocs-${this.context.connection.view}` }, drag: { x: false, y: false }, points: { size: 5 } },
      scales: { x: { range: () => this.span() }, y: { range } },
      axes: [
        { ...axis, space: 80, size: 24, incrs: STEPS, values: (_u, ticks) => ticks.map((t) => (this.samples.times.length ? hours(t) : "")) },
        { ...axis, size: 46, values: (_u, ticks) => ticks.map((v) => (which === "mem" ? mebibytes(v).replace(" M", "") : String(v))) },
      ],
      series: [
        {},
        ...lines.map((line, i) => ({
          label: line.name,
          stroke: line.dead ? colours.grid : colours.lines[i % colours.lines.length],
          width: line.dead ? 1 : 1.6,
          dash: i >= colours.lines.length ? [5, 4] : undefined,
          show: !this.hidden.has(line.key),
          points: { show: false },
          spanGaps: false,
        })),
      ],
      hooks: { draw: [(plot) => this.marks(which, plot)], setCursor: [(plot) => this.cursor(plot)] },
      padding: [8, 28, 0, 0], // half a label of the last moment
    };
    return new this.Plot(options, [[], ...lines.map(() => [])], this[which]);
  }

  /** From the first sample to the last one; not what uPlot would say, which makes a day of a single sample. */
  // @returns
  /** @returns {[from: number, to: number]} */
  span() {
    const times = this.samples.times;
    const last = times.at(-1) ?? 0;
    return [Math.min(times[0] ?? last, last - AT_LEAST), last];
  }

  /**
   * @param {Which} which
   * @param {uPlot} plot
   */
  marks(which, plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    const [left, right] = [bbox.left, bbox.left + bbox.width];
    for (const [, severity, , from, to, , type] of this.alerts.values()) {
      const x = plot.valToPos(from, "x", true);
      const end = to === null ? right : Math.min(plot.valToPos(to, "x", true), right);
      const bad = severity === "critical" || severity === "emergency";
      if (SHADED[type] === which && x < right && end > left) {
        ctx.fillStyle = bad ? "rgba(207, 34, 46, 0.12)" : "rgba(191, 135, 0, 0.12)";
        ctx.fillRect(Math.max(x, left), bbox.top, end - Math.max(x, left), bbox.height);
      }
      if (x < left || x > right || (SHADED[type] ?? which) !== which) continue;
      ctx.strokeStyle = bad ? "#cf222e" : "#bf8700";
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  /**
   * @param {Line[]} lines
   * @param {Colours} colours
   */
  buildLegend(lines, colours) {
    const entries = lines.map((line, i) => {
      const value = h("span.nb-value", {});
      const swatch = h("i.nb-swatch", { "aria-hidden": "true", style: { background: colours.lines[i % colours.lines.length] } });
      const node = h(
        "button.nb-chip.nb-entry",
        {
          type: "button",
          "aria-pressed": String(!this.hidden.has(line.key)),
          title: t("charts.toggle", { name: line.name }),
          onclick: ({ currentTarget }) => this.toggle(line.key, i, currentTarget),
        },
        swatch,
        h("span.nb-entry-name", {}, line.name),
        value,
      );
      return { value, node };
    });
    this.entries = entries.map(({ value }) => value);
    const live = entries.filter((_, i) => !lines[i].dead).map(({ node }) => node);
    this.legend.replaceChildren(...(live.length ? live : [this.quiet]));
  }

  /**
   * @param {number} key
   * @param {number} i
   * @param {HTMLElement} node of the legend
   */
  toggle(key, i, node) {
    const hide = !this.hidden.has(key);
    if (hide) this.hidden.add(key);
    else this.hidden.delete(key);
    set(node, { "aria-pressed": String(!hide) });
    for (const [, plot] of this.plots) plot.setSeries(i + 1, { show: !hide });
  }

  /** @param {Line[]} lines */
  fillLegend(lines) {
    lines.forEach((line, i) => {
      const at = this.at ?? this.samples.times.length - 1;
      const cpu = line.cpu[at];
      const mem = line.mem[at];
      const text = mem === null || mem === undefined ? "–" : `${cpu === null ? "…" : Math.round(cpu)} %  ${mebibytes(Math.round(mem))}`;
      if (this.entries[i]) say(this.entries[i], text);
    });
  }

  /** @param {uPlot} plot */
  cursor(plot) {
    const at = plot.cursor.idx ?? null;
    if (at === this.at) return;
    this.at = (plot.cursor.left ?? 0) < 0 ? null : at;
    this.fillLegend(this.samples.drawn());
  }

  drawAlerts() {
    const alerts = [...this.alerts.values()].sort((a, b) => b[3] - a[3]).slice(0, 8);
    this.list.replaceChildren(
      ...alerts.map(([, severity, message, from, to, resolved]) =>
        h(
          "li",
          { "data-severity": severity, "data-resolved": resolved },
          h("b", {}, severity),
          h("span.nb-alert-text", {}, message),
          h("time.nb-facts", {}, resolved ? t("charts.over", { at: hours(from), took: clock((to ?? from) - from) }) : hours(from)),
        ),
      ),
    );
    this.list.hidden = !alerts.length;
  }

  resize() {
    const width = this.cpu.clientWidth;
    if (width <= 20) return;
    for (const [, plot] of this.plots) if (plot.width !== width) plot.setSize({ width, height: this.height });
  }

  destroy() {
    this.gone = true;
    cancelAnimationFrame(this.frame);
    this.observer?.disconnect();
    this.themes?.disconnect();
    for (const [, plot] of this.plots) plot.destroy();
  }
}
