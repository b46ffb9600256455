// One view as an element: builds what its spec names and connects it. Used by the hub, and by the widget view.

import { button, h, say } from "./dom.js";
import { Pool, Queue } from "./boards.js";
import { Charts } from "./charts.js";
import { Form } from "./form.js";
import { Pane } from "./pane.js";
import { Connection } from "./protocol.js";
import { Table } from "./table.js";
import { t } from "./texts.js";
import { Workers } from "./workers.js";

const KINDS = { table: Table, pane: Pane, form: Form, charts: Charts, pool: Pool, queue: Queue, workers: Workers };

/** `channel` is a model as anywidget gives it, or the hub's line to one view. */
export class Root {
  constructor(channel) {
    this.channel = channel;
    this.parts = new Map();
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
    const context = {
      connection: this.connection,
      spec: this.spec,
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
    this.node.addEventListener("focusin", (event) => this.focused(event.target));
    this.node.addEventListener("focusout", (event) => this.node.isConnected && !this.node.contains(event.relatedTarget) && this.focused(null));
    this.scrolled = new Map(); // element → where it was scrolled to; a node that is taken out forgets it
    this.node.addEventListener("scroll", ({ target }) => target.isConnected && this.scrolled.set(target, target.scrollTop), true);
    this.lost = () => this.over(t("root.theKernelOfThisView"));
    channel.on("comm_live_update", this.lost);
    this.connection.hello();
  }

  /** Put it into an element, which may not be the one that it was in before: the notebook renders an output anew when its record changes. */
  place(holder) {
    holder.append(this.node);
    for (const [node, top] of this.scrolled) node.scrollTop = top;
    this.focus?.focus?.({ preventScroll: true });
  }

  /** The kernel writes no record while somebody types here: that would make the notebook render this output anew. */
  focused(node) {
    if (Boolean(node) !== Boolean(this.focus)) this.connection.call("view", "focus", { on: Boolean(node), view: this.connection.view }).catch(() => {});
    this.focus = node;
  }

  mount(name, part) {
    this.parts.set(name, part);
    this.refresh(name);
  }

  unmount(name) {
    this.parts.delete(name);
    this.connection.call("view", "unmount", { part: name, view: this.connection.view }).catch(() => {}); // gone with the kernel as well
  }

  refresh(name) {
    this.connection.call("view", "snapshot", { part: name, view: this.connection.view }).catch((error) => this.notice(error.message, "error"));
  }

  notice(text, kind = "info") {
    clearTimeout(this.noticeTimer);
    this.bar.hidden = !text;
    this.bar.dataset.kind = kind;
    say(this.text, text);
    if (text && kind !== "error") this.noticeTimer = setTimeout(() => this.notice(""), 4000);
  }

  /** What holds for all of the view, on top of it, for as long as it holds. */
  state(text) {
    this.waiting = text;
    this.drawState();
  }

  /** What will not change any more: nothing here can be done. */
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

/** Keys without Ctrl or the like are for the view alone, or "x" would cut the cell around it; Ctrl+S still saves the notebook. */
function keepPlainKeys(event) {
  const runs = event.key === "Enter" && event.shiftKey;
  if (!event.ctrlKey && !event.metaKey && !event.altKey && !runs) event.stopPropagation();
}
