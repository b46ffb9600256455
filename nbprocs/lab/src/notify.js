// The news of ends: a comm "nbprocs.notify" of any kernel becomes a toast here, a browser notification and a mark in the title while hidden.
import { Notification as Toast } from "@jupyterlab/apputils";
import { TEXTS } from "./texts.js";

const COMM = "nbprocs.notify";
const KEPT = 1000; // ids of the latest news, so that two connections to one kernel tell a thing once

/**
 * @typedef {object} News
 * @property {string} id
 * @property {string} title
 * @property {string} body
 * @property {"success" | "error" | "info" | "warning"} level
 * @property {string} [process_id]
 */

export class Announcer {
  /** @param {(process: string) => void} openOutput */
  constructor(openOutput) {
    this.openOutput = openOutput;
    /** @type {Set<string>} */
    this.told = new Set();
    this.unseen = 0;
    this.title = "";
    /** @type {WeakSet<object>} */
    this.kernels = new WeakSet();
    document.addEventListener("visibilitychange", () => this.seen());
  }

  /** Hear a kernel from now on. @param {import("@jupyterlab/services").Kernel.IKernelConnection | null | undefined} kernel */
  listen(kernel) {
    if (!kernel || this.kernels.has(kernel)) return;
    this.kernels.add(kernel);
    kernel.registerCommTarget(COMM, (comm, message) => {
      comm.onMsg = (next) => this.tell(/** @type {any} */ (next.content.data));
      this.tell(/** @type {any} */ (message.content.data));
    });
  }

  /** @param {News} news */
  tell(news) {
    if (!news?.id || this.told.has(news.id)) return;
    this.told.add(news.id);
    if (this.told.size > KEPT) this.told.delete(/** @type {string} */ (this.told.values().next().value));
    const text = news.body ? `${news.title}\n${news.body}` : news.title;
    /** @type {Toast.IAction[]} */
    const actions = [];
    if (news.process_id) actions.push({ label: TEXTS.output, callback: () => this.openOutput(/** @type {string} */ (news.process_id)) });
    if ("Notification" in window && Notification.permission === "default") {
      actions.push({ label: TEXTS.allow, callback: () => void Notification.requestPermission() });
    }
    const level = news.level === "info" ? "default" : news.level;
    Toast.emit(text, level, { autoClose: news.level === "error" ? false : 8000, actions });
    if (document.hidden) this.tellAway(news);
  }

  /** @param {News} news */
  tellAway(news) {
    if ("Notification" in window && Notification.permission === "granted") {
      new Notification(news.title, { body: news.body, tag: news.id });
    }
    if (this.unseen === 0) this.title = document.title;
    this.unseen += 1;
    document.title = `(${this.unseen}) ${news.title}`;
  }

  seen() {
    if (document.hidden || this.unseen === 0) return;
    this.unseen = 0;
    document.title = this.title;
  }
}
