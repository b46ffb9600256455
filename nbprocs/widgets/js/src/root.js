// One view as an element: builds what its spec names and connects it. Used by the hub, and by the widget view.

import { button, h, say } from "./dom.js";
import { Pool, Queue } from "./boards.js";
import { Charts } from "./charts.js";
import { Form } from "./form.js";
import { Pane } from "./pane.js";
import { Connection, reason } from "./protocol.js";
import { Table } from "./table.js";
import { t } from "./texts.js";
import { Workers } from "./workers.js";

/** @import {Bytes, Channel} from "./protocol.js" */
/** @typedef {{uid: string, parts: {name: string, kind: keyof typeof KINDS}[], arranged?: string, height?: number}} Spec how the kernel wants a view laid out */
/**
 * @typedef {object} Part
 * @property {HTMLElement} root
 * @property {(content: any, buffers: Bytes[]) => void} snapshot each part says what it is given, as the kernel's side of it sends it
 * @property {(content: any, buffers: Bytes[]) => void} delta
 * @property {() => void} [close] nothing can be done any more
 * @property {() => void} destroy
 */
/**
 * @typedef {object} Context what a part is given of its view
 * @property {Connection} connection
 * @property {Spec} spec
 * @property {number} [height] px that the caller asked for; among several parts it is the table's alone
 * @property {(text: string, kind?: string) => void} notice
 * @property {(text: string) => void} closed
 * @property {(name: string, part: Part) => void} mount
 * @property {(name: string) => void} unmount
 * @property {(name: string) => void} refresh
 */

const KINDS = { table: Table, pane: Pane, form: Form, charts: Charts, pool: Pool, queue: Queue, workers: Workers };

/** `channel` is a model as anywidget gives it, or the hub's line to one view. */
export class Root {
  /** @param {Channel} channel */
  constructor(channel) {
    this.channel = channel;
    /** @type {Map<string, Part>} */
    this.parts = new Map();
    /** @type {Spec} */
    this.spec = channel.get("spec");
    this.connection = new Connection(channel, {
      snapshot: (part, content, buffers) => this.parts.get(part)?.snapshot(content, buffers),
      delta: (part, content, buffers) => this.parts.get(part)?.delta(content, buffers),
      gone: (text) => this.notice(text, "error"),
      state: (text) => this.state(text),
    });
    this.text = h("span", {});
    this.bar = h(
      "div.nb-notice",
      { hidden: true, role: "status", "aria-live": "polite" },
      this.text,
      button("close", t("root.dismiss"), () => this.notice("")),
    );
    this.top = h("div.nb-state", { hidden: true, role: "status" });
    this.node = h("div.nb-view", { "data-jp-suppress-context-menu": "true", onkeydown: keepPlainKeys });
    if (this.spec.arranged) this.node.classList.add(`nb-${this.spec.arranged}`);
    /** @type {Context} */
    const context = {
      connection: this.connection,
      spec: this.spec,
      height: this.spec.arranged ? undefined : this.spec.height,
      notice: (text, kind) => this.notice(text, kind),
      closed: (text) => this.over(text),
      mount: (name, part) => this.mount(name, part),
      unmount: (name) => this.unmount(name),
      refresh: (name) => this.refresh(name),
    };
    this.node.append(this.top);
    for (const { name, kind } of this.spec.parts) {
      const part = new KINDS[kind](context, name);
      this.parts.set(name, part);
      this.node.append(h("div.nb-section", {}, part.root));
    }
    this.node.append(this.bar);
    this.node.addEventListener("focusin", ({ target }) => target instanceof HTMLElement && this.focused(target));
    this.node.addEventListener("focusout", ({ relatedTarget: to }) => {
      if (this.node.isConnected && !(to instanceof Node && this.node.contains(to))) this.focused(null);
    });
    /** @type {Map<Element, number>} */
    this.scrolled = new Map(); // where it was scrolled to; a node that is taken out forgets it
    this.node.addEventListener("scroll", ({ target }) => target instanceof Element && target.isConnected && this.scrolled.set(target, target.scrollTop), true);
    this.lost = () => this.over(t("root.theKernelOfThisView"));
    channel.on("comm_live_update", this.lost);
    this.connection.hello();
  }

  /**
   * Put it into an element, which may not be the one that it was in before: the notebook renders an output anew when its record changes.
   * @param {Element} holder
   */
  place(holder) {
    holder.append(this.node);
    for (const [node, top] of this.scrolled) node.scrollTop = top;
    this.focus?.focus?.({ preventScroll: true });
  }

  /**
   * The kernel writes no record while somebody types here: that would make the notebook render this output anew.
   * @param {HTMLElement | null} node
   */
  focused(node) {
    if (Boolean(node) !== Boolean(this.focus)) this.connection.call("view", "focus", { on: Boolean(node), view: this.connection.view }).catch(() => {});
    this.focus = node;
  }

  /**
   * @param {string} name
   * @param {Part} part
   */
  mount(name, part) {
    this.parts.set(name, part);
    this.refresh(name);
  }

  /** @param {string} name */
  unmount(name) {
    this.parts.delete(name);
    this.connection.call("view", "unmount", { part: name, view: this.connection.view }).catch(() => {}); // gone with the kernel as well
  }

  /** @param {string} name */
  refresh(name) {
    this.connection.call("view", "snapshot", { part: name, view: this.connection.view }).catch((error) => this.notice(reason(error), "error"));
  }

  /**
   * @param {string} text
   * @param {string} kind
   */
  notice(text, kind = "info") {
    clearTimeout(this.noticeTimer);
    this.bar.hidden = !text;
    this.bar.dataset.kind = kind;
    say(this.text, text);
    if (text && kind !== "error") this.noticeTimer = setTimeout(() => this.notice(""), 4000);
  }

  /**
   * What holds for all of the view, on top of it, for as long as it holds.
   * @param {string} text
   */
  state(text) {
    this.waiting = text;
    this.drawState();
  }

  /**
   * What will not change any more: nothing here can be done.
   * @param {string} text
   */
  over(text) {
    this.ended = text;
    this.drawState();
    for (const part of this.parts.values()) part.close?.();
  }

  drawState() {
    const text = this.ended || this.waiting || "";
    this.node.classList.toggle("nb-stale", Boolean(text));
    this.top.hidden = !text;
    say(this.top, text);
  }

  destroy() {
    this.channel.off("comm_live_update", this.lost);
    this.connection.bye();
    for (const part of this.parts.values()) part.destroy();
    this.node.remove();
  }
}

/**
 * Keys without Ctrl or the like are for the view alone, or "x" would cut the cell around it; Ctrl+S still saves the notebook.
 * @param {KeyboardEvent} event
 */
function keepPlainKeys(event) {
  const runs = event.key === "Enter" && event.shiftKey;
  if (!event.ctrlKey && !event.metaKey && !event.altKey && !runs) event.stopPropagation();
}
