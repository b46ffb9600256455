// The browser's side of the wire (see widgets/wire.py): hello → snapshot → numbered deltas, resync when a number is missing, calls with replies.

import { t } from "./texts.js";

const REPLY_TIMEOUT = 60_000; // ms; stopping a stubborn tree may take its grace
const HELLO_AGAIN = 1_000; // ms without an answer, at first: what was said to a kernel whose cell runs, before the page had a thread there, waits for that cell

/** @typedef {DataView<ArrayBuffer> | ArrayBuffer | Uint8Array<ArrayBuffer>} Bytes of a buffer; anywidget hands over a DataView */
/** @typedef {{re: number, ok: boolean, data?: unknown, error?: string, field?: string}} Reply */
/** @typedef {{n: number, s: Contents, kinds?: Record<string, string>}} Snapshot */
/** @typedef {{n: number, p: Contents}} Delta */
/** @typedef {Partial<Reply & Snapshot & Delta> & {to?: string, gone?: string}} Message */
/** @typedef {Record<string, unknown>} Contents by part; under "" which buffers belong to which part */
/** @typedef {(message: any, buffers: Bytes[]) => void} Listener to what was parsed: each says what it expects */
/**
 * @typedef {{send(message: object): void, get(name: string): any, on(name: string, f: Listener): void, off(name: string, f: Listener): void}} Channel
 *   a model as anywidget gives it; what get() gives is said by the kernel's side of it
 */
/** @typedef {Channel & {widget_manager?: {isDisposed?: boolean, context?: {isDisposed?: boolean}}}} Model with the manager of a notebook's widgets, where it is known */
/** @typedef {{data: any, buffers: Bytes[]}} Answer to a call; what is in it is said by the kernel's side of the operation */

let counter = 0;
const unique = () => `${Date.now().toString(36)}-${(counter++).toString(36)}-${Math.random().toString(36).slice(2, 8)}`;

export class CallFailed extends Error {
  /**
   * @param {string} message
   * @param {string} field
   */
  constructor(message, field = "") {
    super(message);
    this.field = field;
  }
}

/**
 * What is said of something that was thrown.
 * @param {unknown} error
 */
export function reason(error) {
  return error instanceof Error ? error.message : String(error);
}

export class Connection {
  /**
   * @param {Channel} model
   * @param {{snapshot: (part: string, content: unknown, buffers: Bytes[], kind?: string) => void,
   *   delta: (part: string, content: unknown, buffers: Bytes[]) => void,
   *   gone?: (text: string) => void, state?: (text: string) => void}} handlers
   */
  constructor(model, handlers) {
    this.model = model;
    this.handlers = handlers;
    this.view = unique();
    /** @type {number | null} */
    this.number = null; // of the last message that was applied; null until the snapshot is there
    /** @type {Map<number, {resolve: (answer: Answer) => void, reject: (error: Error) => void, timer: number}>} */
    this.calls = new Map();
    this.nextCall = 1;
    this.patience = HELLO_AGAIN;
    /** @type {[Delta, Bytes[]][]} */
    this.early = []; // deltas that overtook the snapshot
    this.receive = this.receive.bind(this);
    model.on("msg:custom", this.receive);
  }

  hello() {
    this.number = null;
    this.early = [];
    clearTimeout(this.retry);
    this.model.send({ do: "hello", view: this.view });
    this.retry = setTimeout(() => {
      if (this.patience > HELLO_AGAIN) this.handlers.state?.(t("protocol.waitingForTheKernel"));
      this.patience = Math.min(3 * this.patience, 60_000); // a kernel that is busy for long gets few hellos to answer
      this.hello();
    }, this.patience);
  }

  bye() {
    clearTimeout(this.retry);
    this.model.off("msg:custom", this.receive);
    for (const { reject, timer } of this.calls.values()) {
      clearTimeout(timer);
      reject(new CallFailed(t("protocol.theViewWasClosed")));
    }
    this.calls.clear();
    try {
      this.model.send({ do: "bye", view: this.view });
    } catch {
      // the kernel or the comm is gone already; nobody is left to be told
    }
  }

  /**
   * Ask for something to be done; resolves to {data, buffers}, rejects with CallFailed.
   * @param {string} part
   * @param {string} op
   * @param {Record<string, unknown>} args
   * @returns {Promise<Answer>}
   */
  call(part, op, args = {}) {
    const id = this.nextCall++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.calls.delete(id);
        reject(new CallFailed(t("protocol.noAnswerFromTheKernel")));
      }, REPLY_TIMEOUT);
      this.calls.set(id, { resolve, reject, timer });
      this.model.send({ do: "call", view: this.view, id, part, op, args });
    });
  }

  /**
   * @param {Message} message
   * @param {Bytes[]} buffers
   */
  receive(message, buffers = []) {
    if (!message || typeof message !== "object") return;
    if (message.to && message.to !== this.view) return;
    if (message.gone) return this.handlers.gone?.(message.gone);
    if (message.re !== undefined) return this.settle(/** @type {Reply} */ (message), buffers);
    if (message.s) return this.snapshot(/** @type {Snapshot} */ (message), buffers);
    if (message.p) return this.delta(/** @type {Delta} */ (message), buffers);
  }

  /**
   * @param {Reply} message
   * @param {Bytes[]} buffers
   */
  settle(message, buffers) {
    const call = this.calls.get(message.re);
    if (!call) return;
    this.calls.delete(message.re);
    clearTimeout(call.timer);
    if (message.ok) call.resolve({ data: message.data, buffers });
    else call.reject(new CallFailed(String(message.error), message.field));
  }

  /**
   * @param {Snapshot} message
   * @param {Bytes[]} buffers
   */
  snapshot(message, buffers) {
    clearTimeout(this.retry);
    this.patience = HELLO_AGAIN;
    this.handlers.state?.("");
    if (this.number === null) this.number = message.n;
    this.each(message.s, buffers, (part, content, own) => this.handlers.snapshot(part, content, own, message.kinds?.[part]));
    const early = this.early;
    this.early = [];
    for (const [late, lateBuffers] of early) this.delta(late, lateBuffers);
  }

  /**
   * @param {Delta} message
   * @param {Bytes[]} buffers
   */
  delta(message, buffers) {
    if (this.number === null) {
      if (this.early.length < 100) this.early.push([message, buffers]);
      return;
    }
    if (message.n <= this.number) return; // in the snapshot already
    if (message.n !== this.number + 1) return this.hello(); // one was dropped on the way
    this.number = message.n;
    this.each(message.p, buffers, (part, content, own) => this.handlers.delta(part, content, own));
  }

  /**
   * @param {Contents} contents
   * @param {Bytes[]} buffers
   * @param {(part: string, content: unknown, own: Bytes[]) => void} apply
   */
  each(contents, buffers, apply) {
    const slices = /** @type {Record<string, [first: number, count: number]>} */ (contents[""] ?? {});
    for (const [part, content] of Object.entries(contents)) {
      if (part === "") continue;
      const [first, count] = slices[part] ?? [0, 0];
      apply(part, content, buffers.slice(first, first + count));
    }
  }
}

/**
 * The bytes of a buffer, without a copy.
 * @param {Bytes} buffer
 */
export function octets(buffer) {
  if (buffer instanceof Uint8Array) return buffer;
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

/**
 * Asked again, as hello is.
 * @param {Connection} connection
 * @param {string} name
 * @returns {Promise<Answer>}
 */
function fetched(connection, name) {
  return new Promise((resolve, reject) => {
    const ask = () => connection.call("view", "asset", { name }).then(resolve, reject);
    const again = setTimeout(ask, HELLO_AGAIN);
    ask().finally(() => clearTimeout(again));
  });
}

/**
 * A script that only some views need: fetched from the kernel once a page, whatever the number of views. No network is used.
 * @param {Connection} connection
 * @param {string} name
 * @returns {Promise<any>}
 */
export function asset(connection, name) {
  const loaded = (globalThis.__nbprocs_assets ??= new Map());
  if (!loaded.has(name)) {
    const promise = fetched(connection, name).then(async ({ buffers }) => {
      const url = URL.createObjectURL(new Blob([octets(buffers[0])], { type: "text/javascript" }));
      try {
        const module = await import(/* @vite-ignore */ url);
        if (module.css) {
          const style = document.createElement("style");
          style.textContent = module.css;
          document.head.append(style);
        }
        return module;
      } finally {
        URL.revokeObjectURL(url);
      }
    });
    promise.catch(() => loaded.delete(name));
    loaded.set(name, promise);
  }
  return loaded.get(name) ?? Promise.reject(new Error(name));
}
