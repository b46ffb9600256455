// The news of ends: what kernels tell on a comm "nbprocs.notify", opened from here, becomes a toast, and while the page is hidden a browser
// notification and a mark in the title. The contract stands in nbprocs/notify/__init__.py.
import { Notification as Toast } from "@jupyterlab/apputils";
import { openComm } from "./comm.js";
import { TEXTS } from "./texts.js";

const COMM = "nbprocs.notify";
const KEPT = 1000; // ids of the latest news, so that two connections to one kernel tell a thing once

/**
 * @typedef {object} News
 * @property {string} title
 * @property {string} body
 * @property {"success" | "error" | "warning"} level
 * @property {string} [process_id]
 * @property {number} at seconds since the epoch
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
    if (!kernel || kernel.status === "dead" || this.kernels.has(kernel)) return;
    this.kernels.add(kernel);
    openComm(kernel, COMM, {}, {
      heard: (data) => {
        for (const news of data.notices ?? []) this.tell(news);
      },
      closed: () => void this.kernels.delete(kernel), // nbprocs was not loaded, or the kernel ended: asked again when it is there
    });
  }

  /** @param {News} news */
  tell(news) {
    const key = `${news.process_id} ${news.at} ${news.title}`;
    if (this.told.has(key)) return;
    this.told.add(key);
    if (this.told.size > KEPT) this.told.delete(/** @type {string} */ (this.told.values().next().value));
    const text = news.body ? `${news.title}\n${news.body}` : news.title;
    /** @type {Toast.IAction[]} */
    const actions = [];
    if (news.process_id) actions.push({ label: TEXTS.output, callback: () => this.openOutput(/** @type {string} */ (news.process_id)) });
    if ("Notification" in window && Notification.permission === "default") {
      actions.push({ label: TEXTS.allow, callback: () => void Notification.requestPermission() });
    }
    Toast.emit(text, news.level, { autoClose: news.level === "error" ? false : 8000, actions });
    if (document.hidden) this.tellAway(news);
  }

  /** @param {News} news */
  tellAway(news) {
    if ("Notification" in window && Notification.permission === "granted") {
      new Notification(news.title, { body: news.body, tag: `nbprocs ${news.process_id} ${news.at}` });
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
