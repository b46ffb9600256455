// The one poll of a page: asks the server for all processes, fast while the panel is seen, slowly for the status bar, never while hidden.
import { URLExt } from "@jupyterlab/coreutils";
import { ServerConnection } from "@jupyterlab/services";
import { Poll } from "@lumino/polling";
import { Signal } from "@lumino/signaling";
import { load, ordered } from "./rows.js";
import { TEXTS } from "./texts.js";

/** @typedef {import("./rows.js").Process} Process */

const SEEN = 2000; // ms between two looks while the panel is on screen
const UNSEEN = 15000; // ms, for the number in the status bar

export class Processes {
  /** @param {import("@jupyterlab/services").ServerConnection.ISettings} settings @param {() => boolean} panelSeen */
  constructor(settings, panelSeen) {
    this.settings = settings;
    /** @type {Process[]} */
    this.rows = [];
    /** @type {string[]} ids of the kernels that have loaded nbprocs */
    this.kernels = [];
    this.at = Date.now() / 1000;
    /** @type {Map<string, {cpu?: number, at: number}>} */
    this.before = new Map();
    /** @type {Map<string, number | undefined>} */
    this.loads = new Map();
    /** @type {Signal<Processes, void>} */
    this.changed = new Signal(this);
    this.poll = new Poll({
      name: "nbprocs:processes",
      factory: () => this.look(),
      frequency: { interval: UNSEEN, backoff: true, max: 60000 },
      standby: () => document.hidden, // Poll's own "when-hidden" asks once more
    });
    this.shown = () => {
      if (!document.hidden) void this.poll.refresh();
    };
    document.addEventListener("visibilitychange", this.shown);
    // A panel that opens is filled at once: the tick is cheap, the look is not taken unless the panel came into sight.
    this.watch = setInterval(() => {
      const interval = panelSeen() ? SEEN : UNSEEN;
      if (this.poll.frequency.interval !== interval) {
        this.poll.frequency = { ...this.poll.frequency, interval };
        if (interval === SEEN && !document.hidden) void this.poll.refresh();
      }
    }, 500);
  }

  async look() {
    const answer = await this.request("processes");
    /** @type {Map<string, {cpu?: number, at: number}>} */
    const seen = new Map();
    this.loads = new Map();
    for (const row of answer.processes) {
      const now = { cpu: row.cpu, at: answer.at };
      const key = this.key(row);
      this.loads.set(key, load(this.before.get(key), now));
      seen.set(key, now);
    }
    this.before = seen;
    this.kernels = answer.kernels;
    this.at = answer.at;
    this.rows = ordered(answer.processes);
    this.changed.emit(undefined);
  }

  /** @param {Process} row */
  key(row) {
    return `${row.socket}/${row.id ?? row.pid}`;
  }

  /** @param {string} key */
  find(key) {
    return this.rows.find((row) => this.key(row) === key);
  }

  /** Carry out an order; throws with the shim's words where it is refused. @param {Process} row @param {string} op */
  async order(row, op) {
    const body = JSON.stringify({ socket: row.socket, id: row.id, op });
    const answer = await this.request("order", { method: "POST", body });
    await this.poll.refresh();
    if (!answer.ok) throw new Error(answer.error ?? TEXTS.noReason);
  }

  /** @param {string} what @param {RequestInit} init @returns {Promise<any>} */
  async request(what, init = {}) {
    const address = URLExt.join(this.settings.baseUrl, "nbprocs", what);
    const response = await ServerConnection.makeRequest(address, init, this.settings);
    if (!response.ok) throw new ServerConnection.ResponseError(response);
    return response.json();
  }

  dispose() {
    clearInterval(this.watch);
    document.removeEventListener("visibilitychange", this.shown);
    this.poll.dispose();
    Signal.clearData(this);
  }
}
